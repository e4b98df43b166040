"""State rows as bytes and back, compiled. This is what lies in Redis, so every version ever written stays readable.

In: state rows (see :mod:`features.kernel`) and their layout. Out: one compact byte string per row. Pure.

Version 3, after the version byte, in the words of :mod:`features.varint`. Numbers of values are in 1/100, sums of
squares in 1/10000, scores and anomalies in 1/1000000. Times are differences, in ms or, with flag 8, in s::

    flags       1 byte: 1 has events, 2 has labels, 4 has a memory, 8 all its times are whole seconds, 16 in every tile
                each field has as many values as there are transactions
    events      signed newest time, varint newest - first time; per window: a varint of 16 bits that says which tiles
                hold something (bit j: j tiles before the newest), or 0 for a window that, as the one before it, holds
                the newest tile only, and the same in it; a varint of 16 bits that says in which of them there is more
                than one transaction; per tile from the oldest to the newest: if more than one, varint count; per field:
                without flag 16 varint n; if n > 0 number sum; if n > 1 and kept number sum of squares, number max
    labels      signed newest label time - newest time (without events: - 0); per window: the tiles; a varint of those
                that hold anything but one good verdict; per such tile: signed labels, signed frauds. Then varint count
                of the labels kept one by one; from the newest to the oldest: varint (time of the one before, of the
                first the newest label time, - time) * 2 + fraud; of a fraud a byte of level
    memory      varint size; from the oldest to the newest: raw event hash, signed time - that of the one before (of
                the first: - newest time), a byte: (label + 1) * 4 + action + 1, + 16 if score and anomaly are 0, + 32
                if the label came as long after its event as the last label before; if there is a label and no 32,
                signed label time - time; a byte of level; for each other entity how many events before the same one
                was met last, or 0 and the raw hash; without 16 number score, number anomaly. Then per numeric field
                what is usual:
                varint weight; if not 0 raw mean, raw variance, a byte whether a value was unusual, and if so signed
                time of the last one - newest time

A row decoded from its bytes is equal to the row encoded, bit for bit, in all that any later event can read.
"""

from __future__ import annotations

import itertools

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.bits import float_bits, lowest_bit, prefetch
from features.catalogue import LABELS_KEPT, MEMORY_FLOATS, MEMORY_INTS, NEVER, RING, ROW_INTS, USUAL_FLOATS, Layout
from features.codec_v1 import decode_v1
from features.codec_v2 import (
    COMPLETE,
    EVENTS,
    LABELS,
    MEMORY,
    NOTHING,
    SAME_DELAY,
    SCORES,
    SECONDS,
    SQUARES,
    VALUES,
    decode_v2,
)
from features.codec_v3 import decode_v3
from features.errors import StateMismatch
from features.kernel import LINE, Floats, Ints
from features.labels import FRAUD, LEVEL, TIME
from features.memory import find_last
from features.uncounted import kernel, kernel_part
from features.varint import U8, get_raw, put_number, put_raw, put_signed, put_varint

CODEC_VERSION = 3
_NEWEST = RING - 1
_BITS = (1 << RING) - 1
_ROW_BYTES_LIKELY = 512


@kernel_part
def _units(time: int, seconds: bool) -> int:
    return int(time // 1000) if seconds else time


@kernel
def _whole_seconds(ints: Ints, floats: Floats, i: int, f: int, dims: Ints, size: int) -> bool:
    for k in range(ROW_INTS):
        if ints[i + k] != NEVER and ints[i + k] % 1000 != 0:
            return False
    for k in range(i + dims[10] - dims[13], i + dims[10]):
        if (ints[k] >> TIME) % 1000 != 0:
            return False
    memory = dims[3]
    usual = f + dims[11] - MEMORY_FLOATS * memory - USUAL_FLOATS * dims[14]
    for k in range(dims[14] if size > 0 else 0):
        if int(floats[usual + USUAL_FLOATS * k + 3]) % 1000 != 0:
            return False
    times = i + ROW_INTS + dims[0] + dims[1] + 2 + dims[4] + memory
    odd = 0
    for k in range(size):
        odd |= ints[times + k] % 1000 | (ints[times + 2 * memory + k] % 1000 if ints[times + memory + k] >= 0 else 0)
    return odd == 0


@kernel
def _complete(ints: Ints, floats: Floats, i: int, f: int, dims: Ints) -> bool:
    """Whether each field of each tile that holds something has as many values as the tile has transactions."""
    stride = 1 + dims[2] * dims[6]
    for w in range(dims[0]):
        bits = ints[i + ROW_INTS + w] & _BITS
        first = (ints[i + ROW_INTS + w] >> RING) - _NEWEST
        while bits != 0:
            p = f + (w * RING + ((first + lowest_bit(bits)) & _NEWEST)) * stride
            bits &= bits - 1
            for k in range(dims[2]):
                if floats[p + 1 + k * dims[6]] != floats[p]:
                    return False
    return True


@kernel
def _same_tile(floats: Floats, p: int, q: int, width: int) -> bool:
    odd = 0
    for k in range(width):
        odd |= float_bits(floats[p + k]) ^ float_bits(floats[q + k])
    return odd == 0


@kernel
def _put_events(out: U8, at: int, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, seconds: bool,
                complete: bool) -> int:  # fmt: skip
    at = put_signed(out, at, _units(ints[i], seconds))
    at = put_varint(out, at, _units(ints[i] - ints[i + 1], seconds))
    cell, squares_at, largest_at = dims[6], dims[7], dims[8]
    stride = 1 + dims[2] * cell
    alone_at = -1  # where the newest tile of the window before lies, if it is the only one
    for w in range(dims[0]):
        tile_map, base = ints[i + ROW_INTS + w], f + w * RING * stride
        bits, first = tile_map & _BITS, (tile_map >> RING) - _NEWEST
        newest_at = base + ((tile_map >> RING) & _NEWEST) * stride
        alone = bits == 1 << _NEWEST
        if alone and alone_at >= 0 and _same_tile(floats, newest_at, alone_at, stride):
            at = put_varint(out, at, 0)
            alone_at = newest_at
            continue
        alone_at = newest_at if alone else -1
        tiles, several, rest = 0, 0, bits
        while rest != 0:
            b = lowest_bit(rest)
            rest &= rest - 1
            tiles |= 1 << (_NEWEST - b)
            if floats[base + ((first + b) & _NEWEST) * stride] != 1.0:
                several |= 1 << (_NEWEST - b)
        at = put_varint(out, at, tiles)
        at = put_varint(out, at, several)
        while bits != 0:
            b = lowest_bit(bits)
            bits &= bits - 1
            p = base + ((first + b) & _NEWEST) * stride
            if several >> (_NEWEST - b) & 1:
                at = put_varint(out, at, int(floats[p]))
            for q in range(p + 1, p + stride, cell):
                if not complete:
                    at = put_varint(out, at, int(floats[q]))
                if floats[q] > 0.0:
                    at = put_number(out, at, floats[q + 1], VALUES)
                if floats[q] > 1.0 and squares_at > 0:
                    at = put_number(out, at, floats[q + squares_at], SQUARES)
                if floats[q] > 1.0 and largest_at > 0:
                    at = put_number(out, at, floats[q + largest_at], VALUES)
    return at


@kernel
def _put_labels(out: U8, at: int, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, seconds: bool) -> int:
    newest = ints[i] if ints[i] != NEVER else 0
    at = put_signed(out, at, _units(ints[i + 2] - newest, seconds))
    for w in range(dims[1]):
        tile_map, base = ints[i + ROW_INTS + dims[0] + w], f + dims[9] + w * RING * 2
        bits, first = tile_map & _BITS, (tile_map >> RING) - _NEWEST
        tiles, told, rest = 0, 0, bits
        while rest != 0:
            b = lowest_bit(rest)
            rest &= rest - 1
            p = base + ((first + b) & _NEWEST) * 2
            if floats[p] == 0.0 and floats[p + 1] == 0.0:
                continue  # what was added has been taken back
            tiles |= 1 << (_NEWEST - b)
            if floats[p] != 1.0 or floats[p + 1] != 0.0:
                told |= 1 << (_NEWEST - b)
        at = put_varint(out, at, tiles)
        at = put_varint(out, at, told)
        while bits != 0:
            b = lowest_bit(bits)
            bits &= bits - 1
            if told >> (_NEWEST - b) & 1:
                p = base + ((first + b) & _NEWEST) * 2
                at = put_signed(out, at, int(floats[p]))
                at = put_signed(out, at, int(floats[p + 1]))
    return _put_kept(out, at, ints, i, dims, seconds)


@kernel
def _put_kept(out: U8, at: int, ints: Ints, i: int, dims: Ints, seconds: bool) -> int:
    end, count, before = i + dims[10], 0, ints[i + 2]
    while count < dims[13] and ints[end - 1 - count] != 0:
        count += 1
    at = put_varint(out, at, count)
    for k in range(count):
        entry = ints[end - 1 - k]
        fraud = entry & FRAUD != 0
        at = put_varint(out, at, _units(before - (entry >> TIME), seconds) * 2 + (1 if fraud else 0))
        before = entry >> TIME
        if fraud:
            out[at] = entry & LEVEL
            at += 1
    return at


@kernel
def _put_memory(out: U8, at: int, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, seconds: bool) -> int:
    memory, others = dims[3], dims[4]
    start = i + ROW_INTS + dims[0] + dims[1] + 2 + others
    head, size = ints[start - 2 - others], ints[start - 1 - others]
    values = f + dims[11] - MEMORY_FLOATS * memory
    previous, delay = ints[i] if ints[i] != NEVER else 0, 0
    at = put_varint(out, at, size)
    for n in range(size):
        k = (head - size + n) % memory
        at = put_raw(out, at, ints[start + k])
        time, label = ints[start + memory + k], ints[start + 2 * memory + k]
        at = put_signed(out, at, _units(time - previous, seconds))
        previous = time
        nothing = float_bits(floats[values + k]) == 0 and float_bits(floats[values + memory + k]) == 0
        since = ints[start + 3 * memory + k] - time
        same_delay = label >= 0 and since == delay
        out[at] = ((label + 1) * 4 + ints[start + 4 * memory + k] + 1 + (NOTHING if nothing else 0)
                   + (SAME_DELAY if same_delay else 0))  # fmt: skip
        at += 1
        if label >= 0 and not same_delay:
            at = put_signed(out, at, _units(since, seconds))
            delay = since
        out[at] = ints[start + 5 * memory + k]
        at += 1
        for o in range(others):
            column, near = start + (MEMORY_INTS + o) * memory, min(n, k)
            other = ints[column + k]
            same = find_last(ints, column + k - near, near, other)
            back = near - same if same >= 0 else 0
            if same < 0 and n > k:  # the ring's older part
                same = find_last(ints, column + memory - (n - k), n - k, other)
                back = n - same if same >= 0 else 0
            at = put_varint(out, at, back)
            if back == 0:
                at = put_raw(out, at, other)
        if not nothing:
            at = put_number(out, at, floats[values + k], SCORES)
            at = put_number(out, at, floats[values + memory + k], SCORES)
    return _put_usual(out, at, ints, floats, i, values - USUAL_FLOATS * dims[14], dims, seconds)


@kernel
def _put_usual(out: U8, at: int, ints: Ints, floats: Floats, i: int, u: int, dims: Ints, seconds: bool) -> int:
    newest = ints[i] if ints[i] != NEVER else 0
    for p in range(u, u + USUAL_FLOATS * dims[14], USUAL_FLOATS):
        at = put_varint(out, at, int(floats[p]))
        if floats[p] > 0.0:
            at = put_raw(out, at, float_bits(floats[p + 1]))
            at = put_raw(out, at, float_bits(floats[p + 2]))
            out[at] = 1 if floats[p + 3] > 0.0 else 0
            at += 1
            if floats[p + 3] > 0.0:
                at = put_signed(out, at, _units(int(floats[p + 3]) - newest, seconds))
    return at


@kernel
def _encode(rows: Ints, done: int, ints: Ints, floats: Floats, dims: Ints, out: U8, ends: Ints, room: int) -> int:
    """Encode rows from number ``done`` on while there is ``room`` for a row; returns how many are encoded."""
    at = 0 if done == 0 else ends[done - 1]
    for n in range(done, len(rows)):
        if len(out) - at < room:
            return n
        if n + 1 < len(rows):
            for k in range(rows[n + 1] * dims[10], (rows[n + 1] + 1) * dims[10], LINE):
                prefetch(ints, k)
            for k in range(rows[n + 1] * dims[11], (rows[n + 1] + 1) * dims[11], LINE):
                prefetch(floats, k)
        i, f = rows[n] * dims[10], rows[n] * dims[11]
        size = ints[i + ROW_INTS + dims[0] + dims[1] + 1] if dims[3] > 0 else 0
        seconds, complete = _whole_seconds(ints, floats, i, f, dims, size), False
        events, labels = ints[i] != NEVER, ints[i + 2] != NEVER
        if events:
            complete = _complete(ints, floats, i, f, dims)
        out[at] = CODEC_VERSION
        out[at + 1] = ((EVENTS if events else 0) | (LABELS if labels else 0) | (MEMORY if size > 0 else 0)
                       | (SECONDS if seconds else 0) | (COMPLETE if complete else 0))  # fmt: skip
        at += 2
        if events:
            at = _put_events(out, at, ints, floats, i, f, dims, seconds, complete)
        if labels:
            at = _put_labels(out, at, ints, floats, i, f, dims, seconds)
        if size > 0:
            at = _put_memory(out, at, ints, floats, i, f, dims, seconds)
        ends[n] = at
    return len(rows)


@njit(cache=True, nogil=True, error_model="numpy")
def _decode(data: U8, offsets: Ints, rows: Ints, ints: Ints, floats: Floats, dims: Ints, hops: Ints,
            label_hops: Ints) -> int:  # fmt: skip
    """Decode all rows; returns the number of the first that no encoder has written, or -1."""
    cursor = np.zeros(2, np.int64)
    for n in range(len(rows)):
        if offsets[n] == offsets[n + 1]:
            continue
        i, f = rows[n] * dims[10], rows[n] * dims[11]
        cursor[0], cursor[1] = offsets[n], offsets[n + 1]
        values = f + dims[11] - MEMORY_FLOATS * dims[3]
        floats[values - USUAL_FLOATS * dims[14] : values] = 0.0  # nothing of it in older versions
        version = get_raw(data, cursor, 1)
        if version == 1:
            decode_v1(data, cursor, ints, floats, i, f, dims, hops, label_hops)
        elif version == 2:
            decode_v2(data, cursor, ints, floats, i, f, dims, hops, label_hops)
        elif version == CODEC_VERSION:
            decode_v3(data, cursor, ints, floats, i, f, dims, hops, label_hops)
        else:
            return n
        if cursor[0] != offsets[n + 1]:
            return n
    return -1


def row_bytes_max(layout: Layout) -> int:
    """An upper bound of the bytes of one encoded row."""
    windows, label_windows, fields, memory, others = (int(d) for d in layout.dims[:5])
    events = 20 + windows * (6 + RING * (10 + fields * 40))
    labels = 10 + label_windows * (6 + RING * 20) + 1 + LABELS_KEPT * 11
    usual = int(layout.dims[14]) * (1 + 16 + 1 + 10)
    return 2 + events + labels + 10 + memory * (8 + 10 + 1 + 10 + 1 + 10 * others + 20) + usual


def encode_packed(layout: Layout, rows: Ints, ints: Ints, floats: Floats) -> tuple[NDArray[np.uint8], Ints]:
    """The bytes of each of ``rows`` (int64[n]) of a table, one after the other.

    Returns
    -------
    data : uint8[b]
    ends : int64[n]
        Where in ``data`` the bytes of each row end; they begin where those of the row before end.
    """
    room = row_bytes_max(layout)
    out = np.empty(room + _ROW_BYTES_LIKELY * len(rows), np.uint8)
    ends = np.zeros(len(rows), np.int64)
    ints, floats = ints.reshape(-1, copy=False), floats.reshape(-1, copy=False)
    done = 0
    while (done := _encode(rows, done, ints, floats, layout.dims, out, ends, room)) < len(rows):
        out = np.concatenate([out, np.empty(len(out) + room, np.uint8)])
    return out[: ends[-1] if len(rows) else 0], ends


def encode_rows(layout: Layout, rows: Ints, ints: Ints, floats: Floats) -> list[bytes]:
    """The bytes of each of ``rows`` (int64[n]) of a table."""
    packed, ends = encode_packed(layout, rows, ints, floats)
    data = packed.tobytes()
    return [data[a:b] for a, b in itertools.pairwise([0, *ends.tolist()])]


def decode_rows(layout: Layout, values: list[bytes], rows: Ints, ints: Ints, floats: Floats) -> None:
    """Fill cleared ``rows`` (int64[n]) of a table from ``values``; an empty value leaves its row without events.

    Raises
    ------
    StateMismatch
        If a value is of an unknown codec version or does not fit the layout.
    """
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=offsets[1:])
    data = np.frombuffer(b"".join(values), np.uint8)
    bad = _decode(data, offsets, rows, ints.reshape(-1, copy=False), floats.reshape(-1, copy=False), layout.dims,
                  layout.hops_ms, layout.label_hops_ms)  # fmt: skip
    if bad >= 0:
        raise StateMismatch(
            f"state of a {layout.entity.name} ({len(values[bad])} bytes, version {values[bad][0]}) does not fit codec "
            f"version {CODEC_VERSION} and this feature schema; use the schema it was made with, or another "
            "redis.namespace"
        )
