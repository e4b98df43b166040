"""The compiled kernel: folds events into entity state and emits features. Training and serving both run this code.

In: columns of operations (transactions and labels of one or more partitions, in the order in which they count), state
rows, the layout. Out: feature columns, repeats, joined labels; the state rows changed in place. No IO, no clock.

For each operation, in this order and for each entity: read the features as of just before it, then fold it. The three
steps of a batch: :func:`features.memory.recall` (repeats, label joins, what is new to the key entity), :func:`fold`
once for each entity (windows), and after the models ran :func:`features.memory.remember`.

A state row has an integer and a float part::

    ints    newest time | first time | newest label time | memory: head, size, distinct[o], hash[k], time[k],
            label[k] (-1 none), label time[k], action[k] (-1 pending), other hash[o][k]
    floats  tiles[w][RING](count, per field: n, sum, sum of squares, max) | label tiles[lw][RING](labels, frauds)
            | memory: ratio[k], score[k], anomaly[k]

Tile number ``time // hop`` lies at position ``number % RING``. The tiles that count are the RING newest up to the
entity's newest time, so a row needs no tile numbers, and what is older reads as empty by construction.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.catalogue import NEVER, RING, TILES

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.int8]

TRANSACTION, LABEL = 0, 1
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_NOISE = 1e-12  # share of the mean square below which a variance is none: 16 digits less those that sums of 10^4 lose


@njit(cache=True, nogil=True, error_model="numpy")
def clear(ints: Ints, floats: Floats, dims: Ints) -> None:
    """Make one row read as an entity without events. Its memory has a life of its own."""
    ints[0] = NEVER
    ints[1] = NEVER
    ints[2] = NEVER
    floats[: len(floats) - 3 * dims[3]] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _advance(floats: Floats, base: int, stride: int, hop: int, newest: int, time: int) -> None:
    """Empty the tiles after that of ``newest`` up to that of ``time``."""
    if newest == NEVER:
        return
    old, new = newest // hop, time // hop
    for number in range(max(old + 1, new - RING + 1), new + 1):
        at = base + (number % RING) * stride
        floats[at : at + stride] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _expire(ints: Ints, floats: Floats, dims: Ints, time: int) -> None:
    """Let an entity start anew that had neither event nor label for ``dims[5]`` ms."""
    newest = max(ints[0], ints[2])
    if newest != NEVER and time - newest > dims[5]:
        clear(ints, floats, dims)


@njit(cache=True, nogil=True, error_model="numpy")
def forget(ints: Ints, floats: Floats, dims: Ints, mark: int) -> None:
    """Let an entity start anew whose newest event or label lies ``1.5 * dims[5]`` ms before the watermark.

    For an event in time this says nothing new (:func:`_expire` comes first); a late one finds the row as if it had been
    removed, which :mod:`features.watermark` may have done.
    """
    newest = max(ints[0], ints[2])
    if newest != NEVER and mark - newest > dims[5] + dims[5] // 2:
        clear(ints, floats, dims)


@njit(cache=True, nogil=True, error_model="numpy")
def _fold_transaction(ints: Ints, floats: Floats, dims: Ints, hops: Ints, time: int, values: Floats) -> None:
    _expire(ints, floats, dims, time)
    newest = ints[0]
    stride = 1 + 4 * dims[2]
    for w in range(dims[0]):
        base = w * RING * stride
        hop = hops[w]
        if newest == NEVER or time > newest:
            _advance(floats, base, stride, hop, newest, time)
        elif time // hop <= newest // hop - RING:
            continue
        at = base + (time // hop % RING) * stride
        floats[at] += 1.0
        for f in range(dims[2]):
            value = values[f]
            if value == value:
                p = at + 1 + 4 * f
                if floats[p] == 0.0 or value > floats[p + 3]:
                    floats[p + 3] = value
                floats[p] += 1.0
                floats[p + 1] += value
                floats[p + 2] += value * value
    if newest == NEVER or time > newest:
        ints[0] = time
    if ints[1] == NEVER or time < ints[1]:
        ints[1] = time


@njit(cache=True, nogil=True, error_model="numpy")
def _fold_label(ints: Ints, floats: Floats, dims: Ints, hops: Ints, time: int, labels: float, frauds: float) -> None:
    newest = ints[2]
    start = dims[0] * RING * (1 + 4 * dims[2])
    for w in range(dims[1]):
        base = start + w * RING * 2
        hop = hops[w]
        if newest == NEVER or time > newest:
            _advance(floats, base, 2, hop, newest, time)
        elif time // hop <= newest // hop - RING:
            continue
        at = base + (time // hop % RING) * 2
        floats[at] += labels
        floats[at + 1] += frauds
    if newest == NEVER or time > newest:
        ints[2] = time


@njit(cache=True, nogil=True, error_model="numpy")
def _emit_field(floats: Floats, at: int, stride: int, hop: int, first: int, last: int, value: float, columns: Ints,
                out: Floats) -> None:  # fmt: skip
    n, total, squares, largest = 0.0, 0.0, 0.0, -np.inf
    for number in range(first, last + 1):
        p = at + (number % RING) * stride
        if floats[p] > 0.0:
            n += floats[p]
            total += floats[p + 1]
            squares += floats[p + 2]
            largest = max(largest, floats[p + 3])
    if columns[0] >= 0:
        out[columns[0]] = total
    if n == 0.0:
        return
    mean = total / n
    variance = squares / n - mean * mean
    # Of equal values this difference is rounding noise, and a zscore would divide by it.
    deviation = np.sqrt(variance) if variance > _NOISE * squares / n else 0.0
    if columns[1] >= 0:
        out[columns[1]] = mean
    if columns[2] >= 0:
        out[columns[2]] = largest
    if columns[3] >= 0:
        out[columns[3]] = deviation
    if columns[4] >= 0 and mean != 0.0:
        out[columns[4]] = value / mean
    if columns[5] >= 0 and deviation > 0.0:
        out[columns[5]] = (value - mean) / deviation


@njit(cache=True, nogil=True, error_model="numpy")
def _emit(ints: Ints, floats: Floats, dims: Ints, hops: Ints, label_hops: Ints, time: int, values: Floats,
          count_columns: Ints, field_columns: Ints, label_columns: Ints, time_columns: Ints,
          out: Floats) -> None:  # fmt: skip
    newest = ints[0]
    stride = 1 + 4 * dims[2]
    known = newest != NEVER and time - max(newest, ints[2]) <= dims[5]
    for w in range(dims[0]):
        hop = hops[w]
        first, last = 1, 0
        if known:
            newest_tile = newest // hop
            first, last = max(time // hop - TILES, newest_tile - RING + 1), min(time // hop, newest_tile)
        base = w * RING * stride
        if count_columns[w] >= 0:
            count = 0.0
            for number in range(first, last + 1):
                count += floats[base + (number % RING) * stride]
            out[count_columns[w]] = count
        for f in range(dims[2]):
            _emit_field(floats, base + 1 + 4 * f, stride, hop, first, last, values[f], field_columns[w, f], out)
    if known:
        out[time_columns[0]] = max(time - newest, 0) / 1000.0
        out[time_columns[1]] = max(time - ints[1], 0) / 1000.0
    start = dims[0] * RING * stride
    for w in range(dims[1]):
        labels, frauds = 0.0, 0.0
        if ints[2] != NEVER:
            hop = label_hops[w]
            newest_tile = ints[2] // hop
            for number in range(max(time // hop - TILES, newest_tile - RING + 1), min(time // hop, newest_tile) + 1):
                p = start + w * RING * 2 + (number % RING) * 2
                labels += floats[p]
                frauds += floats[p + 1]
        out[label_columns[w, 0]] = frauds
        if labels > 0.0:
            out[label_columns[w, 1]] = frauds / labels


@njit(cache=True, nogil=True, error_model="numpy")
def fold(kind: Bytes, time: Ints, marks: Ints, values: Floats, slots: Ints, views: Ints, repeat: Bytes,
         label_moves: Ints, ints: Ints, floats: Floats, dims: Ints, hops: Ints, label_hops: Ints, count_columns: Ints,
         field_columns: Ints, label_columns: Ints, time_columns: Ints, out: Floats) -> None:  # fmt: skip
    """Fold n operations into the rows of one entity and emit its features for the transactions among them.

    Parameters
    ----------
    kind : int8[n]
        TRANSACTION or LABEL.
    time : int64[n]
        Event time, for labels their arrival, in epoch ms.
    marks : int64[n]
        Watermark of the partition as of just before each operation, see :mod:`features.watermark`.
    values : float64[n, fields]
        Numeric fields; NaN is missing.
    slots, views : int64[n]
        The row to fold into, and the row to read: the same one, or a row that merges all shards of the entity (then
        it is folded into as well).
    repeat : int8[n]
        1 for a transaction that was seen before: its features are emitted, it is not folded.
    label_moves : int64[n, 4]
        Of a label, see :func:`features.memory.recall`: labels and frauds to add now; whether, and of what time, a fraud
        verdict or a good one is taken back.
    ints, floats : int64[rows, :], float64[rows, :]
        State, changed in place.
    out : float64[n, features]
        Filled at the columns of this entity; must hold NaN before.
    """
    for i in range(len(kind)):
        s, v = slots[i], views[i]
        forget(ints[s], floats[s], dims, marks[i])
        if v != s:
            forget(ints[v], floats[v], dims, marks[i])
        if kind[i] == TRANSACTION:
            _emit(ints[v], floats[v], dims, hops, label_hops, time[i], values[i], count_columns, field_columns,
                  label_columns, time_columns, out[i])  # fmt: skip
            if repeat[i] == 0:
                _fold_transaction(ints[s], floats[s], dims, hops, time[i], values[i])
                if v != s:
                    _fold_transaction(ints[v], floats[v], dims, hops, time[i], values[i])
        else:
            added, frauds = label_moves[i, 0], label_moves[i, 1]
            taken, taken_time = label_moves[i, 2], label_moves[i, 3]
            for row in range(1 if v == s else 2):
                r = s if row == 0 else v
                if added > 0:
                    _expire(ints[r], floats[r], dims, time[i])
                if taken > 0:
                    _fold_label(ints[r], floats[r], dims, label_hops, taken_time, -1.0, -float(taken - 1))
                if added > 0:
                    _fold_label(ints[r], floats[r], dims, label_hops, time[i], float(added), float(frauds))


@njit(cache=True, nogil=True, error_model="numpy")
def event_features(time: Ints, values: Floats, categories: Floats, out: Floats) -> None:
    """Fill the leading columns: numeric values, hour of day, day of week, categories."""
    fields = values.shape[1]
    for i in range(len(time)):
        out[i, :fields] = values[i]
        out[i, fields] = (time[i] % _DAY_MS) / _HOUR_MS
        out[i, fields + 1] = (time[i] // _DAY_MS + 3) % 7
        out[i, fields + 2 : fields + 2 + categories.shape[1]] = categories[i]


@njit(cache=True, nogil=True, error_model="numpy")
def _merge_tiles(floats: Floats, other: Floats, base: int, stride: int, newest: int, other_newest: int) -> None:
    """Add the tiles of ``other`` that still count to a row that has been advanced to the newest of both."""
    for number in range(max(newest, other_newest) - RING + 1, other_newest + 1):
        at = base + (number % RING) * stride
        floats[at] += other[at]
        if stride == 2:
            floats[at + 1] += other[at + 1]
            continue
        for p in range(at + 1, at + stride, 4):
            if other[p] > 0.0:
                floats[p + 3] = other[p + 3] if floats[p] == 0.0 else max(floats[p + 3], other[p + 3])
                floats[p] += other[p]
                floats[p + 1] += other[p + 1]
                floats[p + 2] += other[p + 2]


@njit(cache=True, nogil=True, error_model="numpy")
def merge(ints: Ints, floats: Floats, rows: Ints, view: int, dims: Ints, hops: Ints, label_hops: Ints) -> None:
    """Make row ``view`` the sum of ``rows`` (shards of one entity): counts and sums add, times and maxima extend.

    Sums are added in the order of ``rows``, so that the same shards always give the same bits.
    """
    row, values = ints[view], floats[view]
    clear(row, values, dims)
    stride = 1 + 4 * dims[2]
    start = dims[0] * RING * stride
    for r in rows:
        other, other_values = ints[r], floats[r]
        if other[0] != NEVER:
            for w in range(dims[0]):
                base, hop = w * RING * stride, hops[w]
                if other[0] > row[0]:
                    _advance(values, base, stride, hop, row[0], other[0])
                newest = other[0] // hop if row[0] == NEVER else row[0] // hop
                _merge_tiles(values, other_values, base, stride, newest, other[0] // hop)
            row[1] = other[1] if row[1] == NEVER else min(row[1], other[1])
            row[0] = max(row[0], other[0])
        if other[2] != NEVER:
            for w in range(dims[1]):
                base, hop = start + w * RING * 2, label_hops[w]
                if other[2] > row[2]:
                    _advance(values, base, 2, hop, row[2], other[2])
                newest = other[2] // hop if row[2] == NEVER else row[2] // hop
                _merge_tiles(values, other_values, base, 2, newest, other[2] // hop)
            row[2] = max(row[2], other[2])
