"""Reads state rows of version 1, which nothing writes any more. See :mod:`features.codec`.

After the version byte; *number* is a varint ``2m + 1`` for a float that is exactly ``m / 100``, else a zero byte and 8
bytes::

    presence          1 byte: 1 has events, 2 has labels, 4 has a memory
    events            signed newest time, varint newest - first time;
                      per window: varint of a 16-bit map of tiles that are not empty (bit j: j tiles before the newest),
                      per such tile: varint count; per numeric field: varint n, then if n > 0 number sum, and if n > 1
                      number sum of squares, number max
    labels            signed newest label time; per window: the map, per tile: signed labels, signed frauds
    memory            varint size, then oldest to newest: 8 bytes event hash, signed time against the previous,
                      byte (label + 1) * 4 + action + 1, if label >= 0 signed label time - time, 8 bytes for each other
                      entity, 4 bytes that nothing reads, number score, number anomaly
"""

from __future__ import annotations

import numpy as np
from numba import njit

from features.catalogue import MEMORY_FLOATS, MEMORY_INTS, RING, ROW_INTS
from features.kernel import Floats, Ints
from features.varint import BROKEN, U8, get_number, get_raw, get_signed, get_varint

_CENTS = 100.0


@njit(cache=True, nogil=True, error_model="numpy")
def _events(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints) -> None:
    ints[i] = get_signed(data, cursor)
    ints[i + 1] = ints[i] - get_varint(data, cursor)
    stride, squares_at, largest_at = 1 + dims[2] * dims[6], dims[7], dims[8]
    for w in range(dims[0]):
        newest = ints[i] // hops[w]
        tiles, bits = get_varint(data, cursor), 0
        for j in range(RING):
            if not tiles >> j & 1:
                continue
            bits |= 1 << (RING - 1 - j)
            p = f + (w * RING + ((newest - j) & (RING - 1))) * stride
            floats[p] = get_varint(data, cursor)
            for k in range(dims[12]):
                n, total, squares, largest = get_varint(data, cursor), 0.0, 0.0, -np.inf
                if n > 0:
                    total = get_number(data, cursor, _CENTS)
                    squares, largest = total * total, total
                if n > 1:
                    squares = get_number(data, cursor, _CENTS)
                    largest = get_number(data, cursor, _CENTS)
                if k < dims[2]:
                    q = p + 1 + k * dims[6]
                    floats[q], floats[q + 1] = n, total
                    if squares_at > 0:
                        floats[q + squares_at] = squares
                    if largest_at > 0:
                        floats[q + largest_at] = largest
        ints[i + ROW_INTS + w] = newest << RING | bits


@njit(cache=True, nogil=True, error_model="numpy")
def _labels(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints) -> None:
    ints[i + 2] = get_signed(data, cursor)
    for w in range(dims[1]):
        newest = ints[i + 2] // hops[w]
        tiles, bits = get_varint(data, cursor), 0
        for j in range(RING):
            if tiles >> j & 1:
                bits |= 1 << (RING - 1 - j)
                p = f + dims[9] + (w * RING + ((newest - j) & (RING - 1))) * 2
                floats[p] = get_signed(data, cursor)
                floats[p + 1] = get_signed(data, cursor)
        ints[i + ROW_INTS + dims[0] + w] = newest << RING | bits


@njit(cache=True, nogil=True, error_model="numpy")
def _memory(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints) -> None:
    memory, others = dims[3], dims[4]
    at = i + ROW_INTS + dims[0] + dims[1]
    size = get_varint(data, cursor)
    if size > memory:
        cursor[0] = BROKEN
        return
    ints[at], ints[at + 1] = size % memory, size
    start, values = at + 2 + others, f + dims[11] - MEMORY_FLOATS * memory
    time = 0
    for k in range(size):
        ints[start + k] = get_raw(data, cursor, 8)
        time += get_signed(data, cursor)
        ints[start + memory + k] = time
        state = get_varint(data, cursor)
        if state >= 12:
            cursor[0] = BROKEN
            return
        ints[start + 2 * memory + k] = state // 4 - 1
        ints[start + 4 * memory + k] = state % 4 - 1
        if state >= 4:
            ints[start + 3 * memory + k] = time + get_signed(data, cursor)
        for o in range(others):
            column = start + (MEMORY_INTS + o) * memory
            ints[column + k] = get_raw(data, cursor, 8)
            seen = False
            for other in range(k):
                seen = seen or ints[column + other] == ints[column + k]
            ints[at + 2 + o] += 0 if seen else 1
        get_raw(data, cursor, 4)
        floats[values + k] = get_number(data, cursor, _CENTS)
        floats[values + memory + k] = get_number(data, cursor, _CENTS)


@njit(cache=True, nogil=True, error_model="numpy")
def decode_v1(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints,
              label_hops: Ints) -> None:  # fmt: skip
    """Read one row that begins at ``ints[i]`` and ``floats[f]``, after its version byte."""
    presence = get_raw(data, cursor, 1)
    if presence > 7 or (presence & 4 and dims[3] == 0):
        cursor[0] = BROKEN
        return
    if presence & 1:
        _events(data, cursor, ints, floats, i, f, dims, hops)
    if presence & 2:
        _labels(data, cursor, ints, floats, i, f, dims, label_hops)
    if presence & 4:
        _memory(data, cursor, ints, floats, i, f, dims)
