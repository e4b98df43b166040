"""The compiled kernel: folds events into entity state and emits features. Training and serving both run this code.

In: columns of operations (transactions and labels of one or more partitions, in the order in which they count), state
rows, the layout. Out: feature columns, repeats, joined labels; the state rows changed in place. No IO, no clock.

For each operation, in this order and for each entity: read the features as of just before it, then fold it. The three
steps of a batch: :func:`features.memory.recall` (repeats, label joins, what is new to the key entity), :func:`fold`
once for each entity (windows), and after the models ran :func:`features.memory.remember`.

A state row has an integer and a float part::

    ints    newest time | first time | newest label time | map[w] | label map[lw] | memory: head, size, distinct[o],
            hash[k], time[k], label[k] (-1 none), label time[k], action[k] (-1 pending), level[k], other hash[o][k]
            | newest labels, see :mod:`features.labels`
    floats  tiles[w][RING](count, per field: n, sum, sum of squares?, max?) | label tiles[lw][RING](labels, frauds)
            | usual values, see :mod:`features.usual` | memory: score[k], anomaly[k]

Sums of squares and maxima are kept only where an aggregate of the entity needs them, and fields only where one is about
fields. Tile number ``time // hop`` lies at position ``number % RING``. The tiles that count are the RING newest up to
the entity's newest time. A *map* is ``newest tile number << RING | bits``; bit b says that tile ``newest - (RING - 1) +
b`` holds something. A tile whose bit is not set may hold anything: what is older reads as empty by construction, and a
window costs as many reads as it has tiles with something in them. Sums run from the oldest tile to the newest, always.

The compiled functions take the tables flat: a two-dimensional view per operation costs more than the arithmetic. ``i``
and ``f`` are where a row begins in ``ints`` and ``floats``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.bits import lowest_bit, prefetch
from features.catalogue import NEVER, RING, ROW_INTS, TILES
from features.labels import emit_run, keep_label, label_entry, take_label_back
from features.uncounted import kernel, kernel_part

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.int8]

TRANSACTION, LABEL = 0, 1
LINE = 8  # numbers in a cache line
AHEAD = 8  # operations between the first touch of a row or vector and its turn; 16 is no better, 4 a tenth slower
_NOISE = 1e-12  # share of the mean square below which a variance is none: 16 digits less those that sums of 10^4 lose
U = np.uint64  # an index that cannot be negative needs no test whether it counts from the end
_BITS = (1 << RING) - 1
_NEWEST = RING - 1  # bit of the newest tile, and what takes a number modulo RING
_WINDOW = (1 << (TILES + 1)) - 1  # the tiles of a window: TILES hops and the one that holds its end


@kernel
def clear(ints: Ints, i: int, dims: Ints) -> None:
    """Make one row read as an entity without events. Its memory has a life of its own."""
    for k in range(ROW_INTS):
        ints[i + k] = NEVER
    for w in range(dims[0] + dims[1]):
        ints[i + ROW_INTS + w] = 0
    for k in range(dims[10] - dims[13], dims[10]):
        ints[i + k] = 0


@kernel_part
def _visible(tile_map: int, tile: int) -> int:
    """Those bits of a map that a window with its end in ``tile`` reads."""
    behind = (tile_map >> RING) - tile  # tiles by which the end lies before the newest: 0 unless the event is late
    bits = tile_map & _BITS
    if behind >= 0:
        if behind >= RING:
            return 0
        shift = _NEWEST - TILES - behind
        return int(bits & (_WINDOW << shift if shift >= 0 else _WINDOW >> -shift))
    shift = _NEWEST - TILES - behind
    return int(bits >> shift << shift) if shift < RING else 0


@kernel_part
def _moved(tile_map: int, tile: int) -> int:
    """The map after its newest tile has become at least ``tile``."""
    ahead = tile - (tile_map >> RING)
    if ahead <= 0:
        return tile_map
    return int(tile << RING | (tile_map & _BITS) >> min(ahead, RING))


@kernel_part
def _expired(ints: Ints, i: int, dims: Ints, time: int) -> bool:
    """Whether an entity had neither event nor label for ``dims[5]`` ms, and so starts anew."""
    newest = max(ints[i], ints[i + 2])
    return bool(newest != NEVER and time - newest > dims[5])


@kernel_part
def forget(ints: Ints, i: int, dims: Ints, mark: int) -> None:
    """Let an entity start anew whose newest event or label lies ``1.5 * dims[5]`` ms before the watermark.

    For an event in time this says nothing new (:func:`_expired` would); a late one finds the row as if it had been
    removed, which :mod:`features.watermark` may have done.
    """
    newest = max(ints[i], ints[i + 2])
    if newest != NEVER and mark - newest > dims[5] + dims[5] // 2:
        clear(ints, i, dims)


@kernel_part
def _add(floats: Floats, p: int, dims: Ints, fresh: bool, values: Floats, v: int) -> None:
    """Add a transaction to its tile at ``p``; ``fresh``: the tile holds nothing yet."""
    cell, squares, largest = dims[6], dims[7], dims[8]
    floats[p] = 1.0 if fresh else floats[p] + 1.0
    for f in range(dims[2]):
        value = values[v + f]
        q = p + 1 + cell * f
        if fresh:
            floats[q] = 0.0
            floats[q + 1] = 0.0
            if squares > 0:
                floats[q + squares] = 0.0
            if largest > 0:
                floats[q + largest] = -np.inf
        if value == value:
            floats[q] += 1.0
            floats[q + 1] += value
            if squares > 0:
                floats[q + squares] += value * value
            if largest > 0 and value > floats[q + largest]:
                floats[q + largest] = value + 0.0  # as the sum of one value: never -0.0


@kernel_part
def _add_label(floats: Floats, p: int, fresh: bool, labels: float, frauds: float) -> None:
    floats[p] = labels if fresh else floats[p] + labels
    floats[p + 1] = frauds if fresh else floats[p + 1] + frauds


@kernel_part
def _fold_label(ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints, time: int, labels: float,
                frauds: float) -> None:  # fmt: skip
    start = f + dims[9]
    for w in range(dims[1]):
        tile = time // hops[w]
        at = i + ROW_INTS + dims[0] + w
        found = tile << RING if ints[i + 2] == NEVER else _moved(ints[at], tile)
        age = (found >> RING) - tile
        if age < RING:
            bit = 1 << (_NEWEST - age)
            _add_label(floats, start + (w * RING + (tile & _NEWEST)) * 2, found & bit == 0, labels, frauds)
            found |= bit
        ints[at] = found
    ints[i + 2] = max(ints[i + 2], time)


@kernel_part
def _emit(out: Floats, o: int, column: int, value: float) -> None:
    if column >= 0:
        out[U(o + column)] = value


@kernel_part
def _emit_field(floats: Floats, base: int, stride: int, dims: Ints, k: int, tile_map: int, seen: int, value: float,
                columns: Ints, c: int, out: Floats, o: int) -> float:  # fmt: skip
    """The statistics of field k over the tiles ``seen``; ``base`` is the tile at position 0. Returns their count."""
    cell, squares_at, largest_at, first = 1 + k * dims[6], dims[7], dims[8], (tile_map >> RING) - _NEWEST
    count, n, total, squares, largest = 0.0, 0.0, 0.0, 0.0, -np.inf
    while seen != 0:
        p = base + ((first + lowest_bit(seen)) & _NEWEST) * stride
        q = p + cell
        seen &= seen - 1
        count += floats[U(p)]
        n += floats[U(q)]
        total += floats[U(q + 1)]
        if squares_at > 0:
            squares += floats[U(q + squares_at)]
        if largest_at > 0:
            largest = max(largest, floats[U(q + largest_at)])
    mean, deviation, ratio, zscore = np.nan, np.nan, np.nan, np.nan
    if n == 0.0:
        largest = np.nan
    else:
        mean = total / n
        if mean != 0.0:
            ratio = value / mean
        if squares_at > 0:
            square = squares / n
            variance = square - mean * mean
            # Of equal values this difference is rounding noise, and a zscore would divide by it.
            deviation = np.sqrt(variance) if variance > _NOISE * square else 0.0
            if deviation > 0.0 and columns[U(c + 5)] >= 0:
                zscore = (value - mean) / deviation
    _emit(out, o, columns[U(c)], total)
    _emit(out, o, columns[U(c + 1)], mean)
    _emit(out, o, columns[U(c + 2)], largest)
    _emit(out, o, columns[U(c + 3)], deviation)
    _emit(out, o, columns[U(c + 4)], ratio)
    _emit(out, o, columns[U(c + 5)], zscore)
    return count


@kernel_part
def _emit_count(floats: Floats, base: int, stride: int, tile_map: int, seen: int) -> float:
    count, first = 0.0, (tile_map >> RING) - _NEWEST
    while seen != 0:
        count += floats[U(base + ((first + lowest_bit(seen)) & _NEWEST) * stride)]
        seen &= seen - 1
    return count


@kernel_part
def _emit_labels(ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints, time: int, columns: Ints,
                 out: Floats, o: int) -> None:  # fmt: skip
    for w in range(dims[1]):
        labels, frauds = 0.0, 0.0
        if ints[i + 2] != NEVER:
            tile_map = ints[i + ROW_INTS + dims[0] + w]
            seen = _visible(tile_map, time // hops[w])
            base, first = f + dims[9] + w * RING * 2, (tile_map >> RING) - _NEWEST
            while seen != 0:
                p = base + ((first + lowest_bit(seen)) & _NEWEST) * 2
                seen &= seen - 1
                labels += floats[U(p)]
                frauds += floats[U(p + 1)]
        out[o + columns[w, 0]] = frauds
        out[o + columns[w, 1]] = frauds / labels if labels > 0.0 else np.nan


@kernel_part
def _transaction(ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints, label_hops: Ints, time: int,
                 values: Floats, v: int, emits: bool, folds: bool, count_columns: Ints, field_columns: Ints,
                 label_columns: Ints, time_columns: Ints, run_columns: Ints, out: Floats, o: int) -> None:  # fmt: skip
    """Emit the features of one row as of just before a transaction, then fold it; one division serves both."""
    newest = ints[i]
    stride = 1 + dims[2] * dims[6]
    expired = _expired(ints, i, dims, time)
    known = newest != NEVER and not expired
    if emits:
        _emit_labels(ints, floats, i, f, dims, label_hops, time, label_columns, out, o)
        emit_run(ints, i + dims[10], dims, time, run_columns, out, o)
        out[o + time_columns[0]] = max(time - newest, 0) / 1000.0 if known else np.nan
        out[o + time_columns[1]] = max(time - ints[i + 1], 0) / 1000.0 if known else np.nan
    if folds:
        if expired:
            clear(ints, i, dims)
        ints[i] = max(ints[i], time)
        ints[i + 1] = min(ints[i + 1], time) if known else time
    for w in range(dims[0]):
        tile = time // hops[w]
        base = f + w * RING * stride
        tile_map = ints[i + ROW_INTS + w] if known else tile << RING
        if emits:
            seen = _visible(tile_map, tile)
            count = 0.0
            for k in range(dims[2]):
                count = _emit_field(floats, base, stride, dims, k, tile_map, seen, values[U(v + k)], field_columns,
                                    (w * dims[2] + k) * 6, out, o)  # fmt: skip
            if dims[2] == 0 and count_columns[w] >= 0:
                count = _emit_count(floats, base, stride, tile_map, seen)
            _emit(out, o, count_columns[w], count)
        if folds:
            tile_map = _moved(tile_map, tile)
            age = (tile_map >> RING) - tile
            if age < RING:
                bit = 1 << (_NEWEST - age)
                _add(floats, base + (tile & _NEWEST) * stride, dims, tile_map & bit == 0, values, v)
                tile_map |= bit
            ints[i + ROW_INTS + w] = tile_map


@kernel_part
def _approach(ints: Ints, floats: Floats, row: int, dims: Ints, transaction: bool) -> None:
    """Begin to load a row that comes up soon: rows lie far apart in memory, and one waits long for each."""
    for k in range(row * dims[10], row * dims[10] + ROW_INTS + dims[0] + dims[1], LINE):
        prefetch(ints, k)
    for k in range((row + 1) * dims[10] - dims[13], (row + 1) * dims[10], LINE):
        prefetch(ints, k)
    start = row * dims[11]
    for k in range(start if transaction else start + dims[9], start + dims[9] + 2 * RING * dims[1], LINE):
        prefetch(floats, k)


@kernel_part
def approach_vector(out: Floats, o: int, dims: Ints) -> None:
    """Begin to load the part of a vector that the entity fills."""
    for k in range(o + dims[15], o + dims[16], LINE):
        prefetch(out, k)
    prefetch(out, o + dims[16] - 1)


@kernel
def fold(kind: Bytes, time: Ints, marks: Ints, values: Floats, slots: Ints, views: Ints, repeat: Bytes,
         label_moves: Ints, ints: Ints, floats: Floats, dims: Ints, hops: Ints, label_hops: Ints, count_columns: Ints,
         field_columns: Ints, label_columns: Ints, time_columns: Ints, run_columns: Ints, places: Ints, out: Floats
         ) -> None:  # fmt: skip
    """Fold n operations into the rows of one entity and emit its features for the transactions among them.

    Parameters
    ----------
    kind : int8[n]
        TRANSACTION or LABEL.
    time : int64[n]
        Event time, for labels their arrival, in epoch ms.
    marks : int64[n]
        Watermark of the partition as of just before each operation, see :mod:`features.watermark`.
    values : float64[n * fields]
        Numeric fields; NaN is missing.
    slots, views : int64[n]
        The row to fold into, and the row to read: the same one, or a row that merges all shards of the entity (then
        it is folded into as well).
    repeat : int8[n]
        1 for a transaction that was seen before: its features are emitted, it is not folded.
    label_moves : int64[n, 5]
        Of a label, see :func:`features.memory.recall`: labels and frauds to add now; whether, and of what time, a fraud
        verdict or a good one is taken back; the level of the judged transaction.
    ints, floats : int64[rows * :], float64[rows * :]
        State, changed in place.
    places : int64[n]
        Of a transaction, where in ``out`` its vector begins.
    out : float64[:]
        Filled at the columns of this entity.
    """
    fields = len(values) // max(len(kind), 1)
    wide_ints, wide_floats = dims[10], dims[11]
    for n in range(len(kind)):
        if n + AHEAD < len(kind):
            _approach(ints, floats, views[n + AHEAD], dims, kind[n + AHEAD] == TRANSACTION)
            if kind[n + AHEAD] == TRANSACTION:
                approach_vector(out, places[n + AHEAD], dims)
        s, v = slots[n], views[n]
        forget(ints, s * wide_ints, dims, marks[n])
        if v != s:
            forget(ints, v * wide_ints, dims, marks[n])
        if kind[n] == TRANSACTION:
            _transaction(ints, floats, v * wide_ints, v * wide_floats, dims, hops, label_hops, time[n], values,
                         n * fields, True, repeat[n] == 0, count_columns, field_columns, label_columns, time_columns,
                         run_columns, out, places[n])  # fmt: skip
            if v != s and repeat[n] == 0:
                _transaction(ints, floats, s * wide_ints, s * wide_floats, dims, hops, label_hops, time[n], values,
                             n * fields, False, True, count_columns, field_columns, label_columns, time_columns,
                             run_columns, out, 0)  # fmt: skip
            continue
        added, frauds = label_moves[n, 0], label_moves[n, 1]
        taken, taken_time = label_moves[n, 2], label_moves[n, 3]
        for shard in range(1 if v == s else 2):
            r = s if shard == 0 else v
            i, f = r * wide_ints, r * wide_floats
            if added > 0 and _expired(ints, i, dims, time[n]):
                clear(ints, i, dims)
            if taken > 0:
                _fold_label(ints, floats, i, f, dims, label_hops, taken_time, -1.0, -float(taken - 1))
                take_label_back(ints, i + dims[10], dims[13], label_entry(taken_time, taken - 1, label_moves[n, 4]))
            if added > 0:
                _fold_label(ints, floats, i, f, dims, label_hops, time[n], float(added), float(frauds))
                keep_label(ints, i + dims[10], dims[13], label_entry(time[n], frauds, label_moves[n, 4]))


@kernel_part
def _merge_tile(floats: Floats, p: int, q: int, dims: Ints, label: bool, fresh: bool) -> None:
    """Add the tile at ``q`` to the one at ``p``; ``fresh``: that one holds nothing yet."""
    width = 2 if label else 1 + dims[2] * dims[6]
    for k in range(width):
        if fresh:
            floats[p + k] = floats[q + k]
        elif not label and dims[8] > 0 and k > 0 and (k - 1) % dims[6] == dims[8]:
            floats[p + k] = max(floats[p + k], floats[q + k])
        else:
            floats[p + k] += floats[q + k]


@kernel
def merge(ints: Ints, floats: Floats, rows: Ints, view: int, dims: Ints) -> None:
    """Make row ``view`` the sum of ``rows`` (shards of one entity): counts and sums add, times and maxima extend.

    Sums are added in the order of ``rows``, so that the same shards always give the same bits.
    """
    i, f = view * dims[10], view * dims[11]
    clear(ints, i, dims)
    stride = 1 + dims[2] * dims[6]
    for r in rows:
        j, g = r * dims[10], r * dims[11]
        for w in range(dims[0] + dims[1]):
            label = w >= dims[0]
            newest = 2 if label else 0
            if ints[j + newest] == NEVER:
                continue
            base = dims[9] + (w - dims[0]) * RING * 2 if label else w * RING * stride
            other, width = ints[j + ROW_INTS + w], 2 if label else stride
            found = other & ~_BITS if ints[i + newest] == NEVER else _moved(ints[i + ROW_INTS + w], other >> RING)
            for b in range(RING):
                number = (other >> RING) - _NEWEST + b
                age = (found >> RING) - number
                if other >> b & 1 and age < RING:
                    bit = 1 << (_NEWEST - age)
                    at = base + (number & _NEWEST) * width
                    _merge_tile(floats, f + at, g + at, dims, label, found & bit == 0)
                    found |= bit
            ints[i + ROW_INTS + w] = found
        if ints[j] != NEVER:
            ints[i + 1] = ints[j + 1] if ints[i] == NEVER else min(ints[i + 1], ints[j + 1])
        ints[i] = max(ints[i], ints[j])
        ints[i + 2] = max(ints[i + 2], ints[j + 2])
        for k in range(dims[10] - dims[13], dims[10]):
            keep_label(ints, i + dims[10], dims[13], ints[j + k])
