"""Reads state rows of version 3. The format stands in :mod:`features.codec`."""

from __future__ import annotations

from numba import njit

from features.bits import bits_float
from features.catalogue import MEMORY_FLOATS, NEVER, USUAL_FLOATS
from features.codec_v2 import COMPLETE, EVENTS, LABELS, MEMORY, SECONDS, events_of, labels_of, memory_of
from features.kernel import Floats, Ints
from features.labels import label_entry
from features.varint import BROKEN, U8, get_raw, get_signed, get_varint

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
        memory_of(data, cursor, ints, floats, i, f, dims, unit, True)
        _usual(data, cursor, ints, floats, i, f, dims, unit)
