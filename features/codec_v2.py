"""Reads state rows of version 2, which nothing writes any more, and says what its bits mean.

The format is that of :mod:`features.codec` without kept labels, levels and usual values.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from features.bits import lowest_bit
from features.catalogue import MEMORY_FLOATS, MEMORY_INTS, NEVER, RING, ROW_INTS
from features.kernel import Floats, Ints
from features.varint import BROKEN, U8, get_number, get_raw, get_signed, get_varint

VALUES, SQUARES, SCORES = 1e2, 1e4, 1e6  # units in 1
EVENTS, LABELS, MEMORY, SECONDS, COMPLETE = 1, 2, 4, 8, 16  # flags of a row
NOTHING, SAME_DELAY = 16, 32  # flags of a remembered event, beside its label and action
_NEWEST = RING - 1
_BITS = (1 << RING) - 1
_TIME_MAX = 1 << 52


@njit(cache=True, nogil=True, error_model="numpy")
def tiles_of(data: U8, cursor: Ints) -> int:
    """Read which tiles hold something, as the bits of a map."""
    tiles, bits = get_varint(data, cursor), 0
    if tiles > _BITS:
        cursor[0] = BROKEN
        return 0
    while tiles != 0:
        bits |= 1 << (_NEWEST - lowest_bit(tiles))
        tiles &= tiles - 1
    return bits


@njit(cache=True, nogil=True, error_model="numpy")
def events_of(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints, unit: int,
                complete: bool) -> None:  # fmt: skip
    ints[i] = get_signed(data, cursor) * unit
    ints[i + 1] = ints[i] - get_varint(data, cursor) * unit
    if abs(ints[i]) > _TIME_MAX:
        cursor[0] = BROKEN
        return
    cell, squares_at, largest_at = dims[6], dims[7], dims[8]
    stride, before_at = 1 + dims[2] * cell, -1
    for w in range(dims[0]):
        newest, base = ints[i] // hops[w], f + w * RING * stride
        newest_at = base + (newest & _NEWEST) * stride
        bits = tiles_of(data, cursor)
        if bits == 0:
            if before_at < 0:
                cursor[0] = BROKEN
                return
            floats[newest_at : newest_at + stride] = floats[before_at : before_at + stride]
            ints[i + ROW_INTS + w] = newest << RING | 1 << _NEWEST
            before_at = newest_at
            continue
        before_at = newest_at if bits == 1 << _NEWEST else -1
        ints[i + ROW_INTS + w] = newest << RING | bits
        several = tiles_of(data, cursor)
        while bits != 0:
            b = lowest_bit(bits)
            bits &= bits - 1
            p = base + ((newest - _NEWEST + b) & _NEWEST) * stride
            count = get_varint(data, cursor) if several >> b & 1 else 1
            floats[p] = count
            for q in range(p + 1, p + stride, cell):
                n = count if complete else get_varint(data, cursor)
                total = get_number(data, cursor, VALUES) if n > 0 else 0.0
                squares, largest = total * total, total if n > 0 else -np.inf
                if n > 1 and squares_at > 0:
                    squares = get_number(data, cursor, SQUARES)
                if n > 1 and largest_at > 0:
                    largest = get_number(data, cursor, VALUES)
                floats[q] = n
                floats[q + 1] = total
                if squares_at > 0:
                    floats[q + squares_at] = squares
                if largest_at > 0:
                    floats[q + largest_at] = largest


@njit(cache=True, nogil=True, error_model="numpy")
def labels_of(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints, unit: int
                ) -> None:  # fmt: skip
    ints[i + 2] = get_signed(data, cursor) * unit + (ints[i] if ints[i] != NEVER else 0)
    if abs(ints[i + 2]) > _TIME_MAX:
        cursor[0] = BROKEN
        return
    for w in range(dims[1]):
        newest, base = ints[i + 2] // hops[w], f + dims[9] + w * RING * 2
        bits = tiles_of(data, cursor)
        told = tiles_of(data, cursor)
        ints[i + ROW_INTS + dims[0] + w] = newest << RING | bits
        while bits != 0:
            b = lowest_bit(bits)
            bits &= bits - 1
            p = base + ((newest - _NEWEST + b) & _NEWEST) * 2
            floats[p] = get_signed(data, cursor) if told >> b & 1 else 1
            floats[p + 1] = get_signed(data, cursor) if told >> b & 1 else 0


@njit(cache=True, nogil=True, error_model="numpy")
def memory_of(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, unit: int,
              levels: bool) -> None:  # fmt: skip
    """Read the memory of the key entity; from version 3 on each transaction has its level."""
    memory, others = dims[3], dims[4]
    at = i + ROW_INTS + dims[0] + dims[1]
    size = get_varint(data, cursor)
    if size > memory:
        cursor[0] = BROKEN
        return
    ints[at], ints[at + 1] = size % memory, size
    start, values = at + 2 + others, f + dims[11] - MEMORY_FLOATS * memory
    time, delay = ints[i] if ints[i] != NEVER else 0, 0
    for k in range(size):
        ints[start + k] = get_raw(data, cursor, 8)
        time += get_signed(data, cursor) * unit
        ints[start + memory + k] = time
        state = get_raw(data, cursor, 1)
        told = state & (NOTHING - 1)
        if told >= 12 or state >= 2 * SAME_DELAY:
            cursor[0] = BROKEN
            return
        ints[start + 2 * memory + k] = told // 4 - 1
        ints[start + 4 * memory + k] = told % 4 - 1
        if told >= 4:
            if not state & SAME_DELAY:
                delay = get_signed(data, cursor) * unit
            ints[start + 3 * memory + k] = time + delay
        if levels:
            ints[start + 5 * memory + k] = get_raw(data, cursor, 1)
        for o in range(others):
            column, back = start + (MEMORY_INTS + o) * memory, get_varint(data, cursor)
            if back > k:
                cursor[0] = BROKEN
                return
            ints[column + k] = ints[column + k - back] if back > 0 else get_raw(data, cursor, 8)
            ints[at + 2 + o] += 0 if back > 0 else 1
        floats[values + k] = 0.0 if state & NOTHING else get_number(data, cursor, SCORES)
        floats[values + memory + k] = 0.0 if state & NOTHING else get_number(data, cursor, SCORES)


@njit(cache=True, nogil=True, error_model="numpy")
def decode_v2(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints,
              label_hops: Ints) -> None:  # fmt: skip
    """Read one row that begins at ``ints[i]`` and ``floats[f]``, after its version byte."""
    flags = get_raw(data, cursor, 1)
    if flags >= 2 * COMPLETE or (flags & MEMORY and dims[3] == 0):
        cursor[0] = BROKEN
        return
    unit = 1000 if flags & SECONDS else 1
    if flags & EVENTS:
        events_of(data, cursor, ints, floats, i, f, dims, hops, unit, flags & COMPLETE != 0)
    if flags & LABELS:
        labels_of(data, cursor, ints, floats, i, f, dims, label_hops, unit)
    if flags & MEMORY:
        memory_of(data, cursor, ints, floats, i, f, dims, unit, False)
