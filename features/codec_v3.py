"""Reads state rows of version 3. The format stands in :mod:`features.codec`."""

from __future__ import annotations

from numba import njit

from features.bits import bits_float
from features.catalogue import MEMORY_FLOATS, MEMORY_INTS, NEVER, ROW_INTS, USUAL_FLOATS
from features.codec_v2 import (
    COMPLETE,
    EVENTS,
    LABELS,
    MEMORY,
    NOTHING,
    SAME_DELAY,
    SCORES,
    SECONDS,
    events_of,
    labels_of,
)
from features.kernel import Floats, Ints
from features.labels import label_entry
from features.varint import BROKEN, U8, get_number, get_raw, get_signed, get_varint

_SPAN_MAX = 1 << 43  # ms between labels of one row: what any two accepted times can lie apart


@njit(cache=True, nogil=True, error_model="numpy")
def _kept(data: U8, cursor: Ints, ints: Ints, i: int, dims: Ints, unit: int) -> None:
    count, time, end = get_varint(data, cursor), ints[i + 2], i + dims[10]
    if count > dims[13]:
        cursor[0] = BROKEN
        return
    for k in range(count):
        back = get_varint(data, cursor)
        if back >> 1 > _SPAN_MAX:
            cursor[0] = BROKEN
            return
        time -= (back >> 1) * unit
        level = get_raw(data, cursor, 1) if back & 1 else 0
        ints[end - 1 - k] = label_entry(time, back & 1, level)


@njit(cache=True, nogil=True, error_model="numpy")
def _usual(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, unit: int) -> None:
    newest = ints[i] if ints[i] != NEVER else 0
    u = f + dims[11] - MEMORY_FLOATS * dims[3] - USUAL_FLOATS * dims[14]
    for p in range(u, u + USUAL_FLOATS * dims[14], USUAL_FLOATS):
        weight = get_varint(data, cursor)
        if weight == 0:
            continue
        floats[p] = weight
        floats[p + 1] = bits_float(get_raw(data, cursor, 8))
        floats[p + 2] = bits_float(get_raw(data, cursor, 8))
        if get_raw(data, cursor, 1) > 0:
            floats[p + 3] = newest + get_signed(data, cursor) * unit


@njit(cache=True, nogil=True, error_model="numpy")
def _memory(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, unit: int) -> None:
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
def decode_v3(data: U8, cursor: Ints, ints: Ints, floats: Floats, i: int, f: int, dims: Ints, hops: Ints,
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
        _kept(data, cursor, ints, i, dims, unit)
    if flags & MEMORY:
        _memory(data, cursor, ints, floats, i, f, dims, unit)
        _usual(data, cursor, ints, floats, i, f, dims, unit)
