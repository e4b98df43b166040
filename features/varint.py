"""Numbers as few bytes and back, compiled: the words that :mod:`features.codec` is written in.

*varint* is LEB128; *signed* is its zigzag form; *raw* is 8 bytes, little-endian. A *number* is a float64 near a whole
number m of some unit, say cents, with ``0 <= m < 2**52``. It is one varint::

    2 m + 1              the float nearest to m units
    16 m + 4 c + 2       c = 0..3: 2 or 1 floats below that, 1 or 2 above, as sums of rounded amounts come to lie
    0, then raw          any other float

Writers are given room enough. Readers take a cursor (int64[2]: position and end) and never pass the end; whoever reads
past it finds zeros, and the cursor at :data:`BROKEN`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.bits import bits_float, float_bits
from features.kernel import Ints, U
from features.uncounted import kernel, kernel_part

U8 = NDArray[np.uint8]
BROKEN = -1  # position of a cursor over bytes that no writer has written
_UNITS_MAX = float(1 << 52)


@kernel_part
def put_varint(out: U8, at: int, value: int) -> int:
    """Write ``value`` (at least 0); returns the position after it, as every writer does."""
    while value >= 128:
        out[U(at)] = (value & 127) | 128
        value >>= 7
        at += 1
    out[U(at)] = value
    return at + 1


@kernel_part
def put_signed(out: U8, at: int, value: int) -> int:
    """Write an integer of either sign."""
    return int(put_varint(out, at, (value << 1) if value >= 0 else ((-value) << 1) - 1))


@kernel_part
def put_raw(out: U8, at: int, bits: int) -> int:
    """Write 64 bits."""
    for j in range(8):
        out[U(at + j)] = (bits >> (8 * j)) & 255
    return at + 8


@kernel_part
def put_number(out: U8, at: int, value: float, units: float) -> int:
    """Write a float; ``units`` in 1."""
    m = np.rint(value * units)
    if 0.0 <= m < _UNITS_MAX:
        whole = int(m)  # which -0.0 is not
        off = float_bits(value) - float_bits(whole / units)
        if off == 0:
            return int(put_varint(out, at, 2 * whole + 1))
        if -2 <= off <= 2:
            return int(put_varint(out, at, 16 * whole + 4 * (off + 2 if off < 0 else off + 1) + 2))
    out[U(at)] = 0
    return int(put_raw(out, at + 1, float_bits(value)))


@kernel
def get_varint(data: U8, cursor: Ints) -> int:
    """Read a varint of at most 9 bytes, which is 63 bits."""
    value = 0
    at = cursor[0]
    if at >= 0:
        for j in range(min(9, cursor[1] - at)):
            byte = int(data[U(at + j)])
            value |= (byte & 127) << (7 * j)
            if byte < 128:
                cursor[0] = at + j + 1
                return value
    cursor[0] = BROKEN
    return 0


@kernel_part
def get_signed(data: U8, cursor: Ints) -> int:
    """Read an integer of either sign."""
    value = get_varint(data, cursor)
    return -((value + 1) >> 1) if value & 1 else value >> 1


@kernel
def get_raw(data: U8, cursor: Ints, width: int) -> int:
    """Read ``width`` bytes, at most 8, as the low bits of an integer."""
    at, bits = cursor[0], 0
    if at < 0 or cursor[1] - at < width:
        cursor[0] = BROKEN
        return 0
    for j in range(width):
        bits |= int(data[U(at + j)]) << (8 * j)
    cursor[0] = at + width
    return bits


@kernel
def get_number(data: U8, cursor: Ints, units: float) -> float:
    """Read a float; ``units`` in 1."""
    found = get_varint(data, cursor)
    if found & 1:
        return (found >> 1) / units
    if found & 2:
        c = (found >> 2) & 3
        return float(bits_float(float_bits((found >> 4) / units) + (c - 2 if c < 2 else c - 1)))
    return float(bits_float(get_raw(data, cursor, 8)))
