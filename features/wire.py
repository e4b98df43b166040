"""Names and values as the arguments of a Redis command, written by compiled code for many rows at once.

In: names in a table, values end to end. Out: bytes in Redis' protocol (RESP): ``$<length>\\r\\n<bytes>\\r\\n`` for each
name and each value in turn. Pure.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.answers import digits
from features.bits import copy_bytes

_U8 = NDArray[np.uint8]
_Ints = NDArray[np.int64]
_DOLLAR, _CR, _LF = 36, 13, 10
_LENGTH_BYTES = 24  # what stands around one argument, at most


@njit(cache=True, nogil=True)
def _length(out: _U8, at: int, value: int) -> int:
    out[at] = _DOLLAR
    end = digits(out, at + 1, value)
    out[end], out[end + 1] = _CR, _LF
    return end + 2


@njit(cache=True, nogil=True)
def _write(prefix: _U8, ids: _U8, lengths: NDArray[np.int32], rows: _Ints, data: _U8, ends: _Ints, out: _U8) -> int:
    at, start = 0, 0
    for i in range(len(rows)):
        row, end = rows[i], ends[i]
        at = _length(out, at, len(prefix) + lengths[row])
        at = copy_bytes(out, at, prefix, 0, len(prefix))
        at = copy_bytes(out, at, ids, row * ids.shape[1], lengths[row])
        out[at], out[at + 1] = _CR, _LF
        at = _length(out, at + 2, end - start)
        at = copy_bytes(out, at, data, start, end - start)
        out[at], out[at + 1] = _CR, _LF
        at += 2
        start = end
    return at


def arguments(prefix: _U8, ids: _U8, lengths: NDArray[np.int32], rows: _Ints, data: _U8, ends: _Ints) -> bytes:
    """Name and value of each of n rows.

    Parameters
    ----------
    prefix, ids, lengths : uint8[p], uint8[rows, w], int32[rows]
        The name of row r is ``prefix`` and ``ids[r, :lengths[r]]``.
    rows : int64[n]
    data, ends : uint8[b], int64[n]
        Value i ends at ``ends[i]`` and begins where the one before ends.
    """
    size = int(lengths[rows].sum()) + len(rows) * (len(prefix) + 2 * _LENGTH_BYTES) + len(data)
    out = np.empty(size, np.uint8)
    return out[: _write(prefix, ids, lengths, rows, data, ends, out)].tobytes()
