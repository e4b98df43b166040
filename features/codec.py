"""State rows as bytes and back, compiled. This is what lies in Redis, so every version ever written stays readable.

In: state rows (see :mod:`features.kernel`) and their layout. Out: one compact byte string per row. Pure.

Version 1, after the version byte; *varint* is LEB128, *signed* is its zigzag form, *number* is a varint ``2m + 1`` for
a float that is exactly ``m / 100`` with ``0 <= m < 2**52``, else a zero byte and 8 bytes little-endian::

    presence          1 byte: 1 has events, 2 has labels, 4 has a memory
    events            signed newest time, varint newest - first time;
                      per window: varint of a 16-bit map of tiles that are not empty (bit j: j tiles before the newest),
                      per such tile: varint count; per field: varint n, then if n > 0 number sum, and if n > 1
                      number sum of squares, number max
    labels            signed newest label time; per window: the map, per tile: signed labels, signed frauds
    memory            varint size, then oldest to newest: 8 bytes event hash, signed time against the previous,
                      byte (label + 1) * 4 + action + 1, if label >= 0 signed label time - time, 8 bytes for each other
                      entity, 4 bytes ratio (float32), number score, number anomaly

A row decoded from its bytes is equal to the row encoded, bit for bit, in all that any later event can read.
"""

from __future__ import annotations

import itertools

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.catalogue import MEMORY_INTS, NEVER, RING, ROW_INTS, Layout
from features.errors import StateMismatch
from features.kernel import Floats, Ints

CODEC_VERSION = 1
_U8 = NDArray[np.uint8]
_CENTS_MAX = float(1 << 52)


@njit(cache=True, nogil=True)
def _put_varint(out: _U8, at: int, value: int) -> int:
    while value >= 128:
        out[at] = (value & 127) | 128
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@njit(cache=True, nogil=True)
def _put_signed(out: _U8, at: int, value: int) -> int:
    return _put_varint(out, at, (value << 1) if value >= 0 else ((-value) << 1) - 1)


@njit(cache=True, nogil=True)
def _put_raw(out: _U8, at: int, values: _U8) -> int:
    for j in range(len(values)):
        out[at + j] = values[j]
    return at + len(values)


@njit(cache=True, nogil=True)
def _put_number(out: _U8, at: int, cell: Floats) -> int:
    """``cell`` is one float as a view of length 1, so that its bytes can be taken without a copy."""
    value = cell[0]
    cents = np.rint(value * 100.0)
    if 0.0 <= cents < _CENTS_MAX and cents / 100.0 == value and not (value == 0.0 and np.signbit(value)):
        return _put_varint(out, at, 2 * int(cents) + 1)
    out[at] = 0
    return _put_raw(out, at + 1, cell.view(np.uint8))


@njit(cache=True, nogil=True)
def _put_events(out: _U8, at: int, ints: Ints, floats: Floats, dims: Ints, hops: Ints) -> int:
    at = _put_signed(out, at, ints[0])
    at = _put_varint(out, at, ints[0] - ints[1])
    stride = 1 + 4 * dims[2]
    for w in range(dims[0]):
        newest = ints[0] // hops[w]
        tiles = 0
        for j in range(RING):
            if floats[(w * RING + (newest - j) % RING) * stride] > 0.0:
                tiles |= 1 << j
        at = _put_varint(out, at, tiles)
        for j in range(RING):
            if tiles >> j & 1:
                p = (w * RING + (newest - j) % RING) * stride
                at = _put_varint(out, at, int(floats[p]))
                for f in range(dims[2]):
                    q = p + 1 + 4 * f
                    at = _put_varint(out, at, int(floats[q]))
                    if floats[q] > 0.0:
                        at = _put_number(out, at, floats[q + 1 : q + 2])
                    if floats[q] > 1.0:
                        at = _put_number(out, at, floats[q + 2 : q + 3])
                        at = _put_number(out, at, floats[q + 3 : q + 4])
    return at


@njit(cache=True, nogil=True)
def _put_labels(out: _U8, at: int, ints: Ints, floats: Floats, dims: Ints, label_hops: Ints) -> int:
    at = _put_signed(out, at, ints[2])
    start = dims[0] * RING * (1 + 4 * dims[2])
    for w in range(dims[1]):
        newest = ints[2] // label_hops[w]
        tiles = 0
        for j in range(RING):
            p = start + (w * RING + (newest - j) % RING) * 2
            if floats[p] != 0.0 or floats[p + 1] != 0.0:
                tiles |= 1 << j
        at = _put_varint(out, at, tiles)
        for j in range(RING):
            if tiles >> j & 1:
                p = start + (w * RING + (newest - j) % RING) * 2
                at = _put_signed(out, at, int(floats[p]))
                at = _put_signed(out, at, int(floats[p + 1]))
    return at


@njit(cache=True, nogil=True)
def _put_memory(out: _U8, at: int, ints: Ints, floats: Floats, dims: Ints) -> int:
    memory, others = dims[3], dims[4]
    head, size = ints[ROW_INTS], ints[ROW_INTS + 1]
    start = ROW_INTS + 2 + others
    values = len(floats) - 3 * memory
    previous = 0
    ratio = np.empty(1, np.float32)
    at = _put_varint(out, at, size)
    for n in range(size):
        k = (head - size + n) % memory
        at = _put_raw(out, at, ints[start + k : start + k + 1].view(np.uint8))
        time, label = ints[start + memory + k], ints[start + 2 * memory + k]
        at = _put_signed(out, at, time - previous)
        previous = time
        out[at] = (label + 1) * 4 + ints[start + 4 * memory + k] + 1
        at += 1
        if label >= 0:
            at = _put_signed(out, at, ints[start + 3 * memory + k] - time)
        for o in range(others):
            p = start + MEMORY_INTS * memory + o * memory + k
            at = _put_raw(out, at, ints[p : p + 1].view(np.uint8))
        ratio[0] = floats[values + k]
        at = _put_raw(out, at, ratio.view(np.uint8))
        at = _put_number(out, at, floats[values + memory + k : values + memory + k + 1])
        at = _put_number(out, at, floats[values + 2 * memory + k : values + 2 * memory + k + 1])
    return at


@njit(cache=True, nogil=True)
def _encode(rows: Ints, ints: Ints, floats: Floats, dims: Ints, hops: Ints, label_hops: Ints, out: _U8,
            ends: Ints) -> None:  # fmt: skip
    at = 0
    for i in range(len(rows)):
        row, values = ints[rows[i]], floats[rows[i]]
        remembers = dims[3] > 0 and row[ROW_INTS + 1] > 0
        out[at] = CODEC_VERSION
        out[at + 1] = (1 if row[0] != NEVER else 0) | (2 if row[2] != NEVER else 0) | (4 if remembers else 0)
        at += 2
        if row[0] != NEVER:
            at = _put_events(out, at, row, values, dims, hops)
        if row[2] != NEVER:
            at = _put_labels(out, at, row, values, dims, label_hops)
        if remembers:
            at = _put_memory(out, at, row, values, dims)
        ends[i] = at


@njit(cache=True, nogil=True)
def _get_varint(data: _U8, cursor: Ints) -> int:
    value, shift = 0, 0
    while cursor[0] < len(data):
        byte = int(data[cursor[0]])
        cursor[0] += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    return value


@njit(cache=True, nogil=True)
def _get_signed(data: _U8, cursor: Ints) -> int:
    value = _get_varint(data, cursor)
    return -((value + 1) >> 1) if value & 1 else value >> 1


@njit(cache=True, nogil=True)
def _get_raw(data: _U8, cursor: Ints, target: _U8) -> None:
    for j in range(min(len(target), len(data) - cursor[0])):
        target[j] = data[cursor[0] + j]
    cursor[0] += len(target)


@njit(cache=True, nogil=True)
def _get_number(data: _U8, cursor: Ints, cell: Floats) -> None:
    head = _get_varint(data, cursor)
    if head & 1:
        cell[0] = (head >> 1) / 100.0
    else:
        _get_raw(data, cursor, cell.view(np.uint8))


@njit(cache=True, nogil=True)
def _get_events(data: _U8, cursor: Ints, ints: Ints, floats: Floats, dims: Ints, hops: Ints) -> None:
    ints[0] = _get_signed(data, cursor)
    ints[1] = ints[0] - _get_varint(data, cursor)
    stride = 1 + 4 * dims[2]
    for w in range(dims[0]):
        newest = ints[0] // hops[w]
        tiles = _get_varint(data, cursor)
        for j in range(RING):
            if tiles >> j & 1:
                p = (w * RING + (newest - j) % RING) * stride
                floats[p] = _get_varint(data, cursor)
                for f in range(dims[2]):
                    q = p + 1 + 4 * f
                    floats[q] = _get_varint(data, cursor)
                    if floats[q] > 0.0:
                        _get_number(data, cursor, floats[q + 1 : q + 2])
                        floats[q + 2] = floats[q + 1] * floats[q + 1]
                        floats[q + 3] = floats[q + 1]
                    if floats[q] > 1.0:
                        _get_number(data, cursor, floats[q + 2 : q + 3])
                        _get_number(data, cursor, floats[q + 3 : q + 4])


@njit(cache=True, nogil=True)
def _get_labels(data: _U8, cursor: Ints, ints: Ints, floats: Floats, dims: Ints, label_hops: Ints) -> None:
    ints[2] = _get_signed(data, cursor)
    start = dims[0] * RING * (1 + 4 * dims[2])
    for w in range(dims[1]):
        newest = ints[2] // label_hops[w]
        tiles = _get_varint(data, cursor)
        for j in range(RING):
            if tiles >> j & 1:
                p = start + (w * RING + (newest - j) % RING) * 2
                floats[p] = _get_signed(data, cursor)
                floats[p + 1] = _get_signed(data, cursor)


@njit(cache=True, nogil=True)
def _get_memory(data: _U8, cursor: Ints, ints: Ints, floats: Floats, dims: Ints) -> None:
    memory, others = dims[3], dims[4]
    size = max(min(_get_varint(data, cursor), memory), 0)
    ints[ROW_INTS], ints[ROW_INTS + 1] = size % memory, size
    start = ROW_INTS + 2 + others
    values = len(floats) - 3 * memory
    time = 0
    ratio = np.empty(1, np.float32)
    for k in range(size):
        _get_raw(data, cursor, ints[start + k : start + k + 1].view(np.uint8))
        time += _get_signed(data, cursor)
        ints[start + memory + k] = time
        state = _get_varint(data, cursor)
        ints[start + 2 * memory + k] = state // 4 - 1
        ints[start + 4 * memory + k] = state % 4 - 1
        if state >= 4:
            ints[start + 3 * memory + k] = time + _get_signed(data, cursor)
        for o in range(others):
            column = start + MEMORY_INTS * memory + o * memory
            _get_raw(data, cursor, ints[column + k : column + k + 1].view(np.uint8))
            seen = False
            for other in range(k):
                seen = seen or ints[column + other] == ints[column + k]
            ints[ROW_INTS + 2 + o] += 0 if seen else 1
        _get_raw(data, cursor, ratio.view(np.uint8))
        floats[values + k] = ratio[0]
        _get_number(data, cursor, floats[values + memory + k : values + memory + k + 1])
        _get_number(data, cursor, floats[values + 2 * memory + k : values + 2 * memory + k + 1])


@njit(cache=True, nogil=True)
def _decode(data: _U8, offsets: Ints, rows: Ints, ints: Ints, floats: Floats, dims: Ints, hops: Ints,
            label_hops: Ints) -> int:  # fmt: skip
    cursor = np.zeros(1, np.int64)
    for i in range(len(rows)):
        cursor[0] = offsets[i]
        if cursor[0] == offsets[i + 1]:
            continue
        if data[cursor[0]] != CODEC_VERSION or offsets[i + 1] - offsets[i] < 2:
            return i
        presence = data[cursor[0] + 1]
        if presence > 7 or (presence & 4 and dims[3] == 0):
            return i
        cursor[0] += 2
        if presence & 1:
            _get_events(data, cursor, ints[rows[i]], floats[rows[i]], dims, hops)
        if presence & 2:
            _get_labels(data, cursor, ints[rows[i]], floats[rows[i]], dims, label_hops)
        if presence & 4:
            _get_memory(data, cursor, ints[rows[i]], floats[rows[i]], dims)
        if cursor[0] != offsets[i + 1]:
            return i
    return -1


def row_bytes_max(layout: Layout) -> int:
    """An upper bound of the bytes of one encoded row."""
    windows, label_windows, fields, memory, others, _ = (int(d) for d in layout.dims)
    events = 20 + windows * (3 + RING * (10 + fields * 37))
    return 2 + events + 10 + label_windows * (3 + RING * 20) + 5 + memory * (8 + 10 + 1 + 10 + 8 * others + 4 + 18)


def encode_rows(layout: Layout, rows: Ints, ints: Ints, floats: Floats) -> list[bytes]:
    """The bytes of each of ``rows`` (int64[n]) of a table."""
    out = np.empty(max(len(rows), 1) * row_bytes_max(layout), np.uint8)
    ends = np.zeros(len(rows), np.int64)
    _encode(rows, ints, floats, layout.dims, layout.hops_ms, layout.label_hops_ms, out, ends)
    if not len(rows):
        return []
    data = out[: ends[-1]].tobytes()
    return [data[a:b] for a, b in itertools.pairwise([0, *ends.tolist()])]


def decode_rows(layout: Layout, values: list[bytes], rows: Ints, ints: Ints, floats: Floats) -> None:
    """Fill cleared ``rows`` (int64[n]) of a table from ``values``; an empty value leaves its row without events.

    Raises
    ------
    StateMismatch
        If a value is of another codec version or does not fit the layout.
    """
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=offsets[1:])
    data = np.frombuffer(b"".join(values), np.uint8)
    bad = _decode(data, offsets, rows, ints, floats, layout.dims, layout.hops_ms, layout.label_hops_ms)
    if bad >= 0:
        raise StateMismatch(
            f"state of a {layout.entity.name} ({len(values[bad])} bytes, version {values[bad][0]}) does not fit codec "
            f"version {CODEC_VERSION} and this feature schema; use the schema it was made with, or another "
            "redis.namespace"
        )
