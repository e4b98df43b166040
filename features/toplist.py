"""The best few of many numbers, compiled: a heap whose top is the worst entry that is still kept.

Entries are a value and a number; a higher value is better, and among equal values the lower number. Both lie in
arrays of the caller, whose length says how many are kept.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@njit(cache=True, nogil=True)
def _worse(value: float, number: int, other_value: float, other_number: int) -> bool:
    return value < other_value or (value == other_value and number > other_number)


@njit(cache=True, nogil=True)
def _sink(values: Floats, numbers: Ints, size: int) -> None:
    """Restore the heap after its top was replaced."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and _worse(values[child + 1], numbers[child + 1], values[child], numbers[child]):
            child += 1
        if not _worse(values[child], numbers[child], values[at], numbers[at]):
            return
        values[at], values[child] = values[child], values[at]
        numbers[at], numbers[child] = numbers[child], numbers[at]
        at = child


@njit(cache=True, nogil=True)
def offer(values: Floats, numbers: Ints, limit: int, size: int, value: float, number: int) -> int:
    """Keep the best ``limit`` entries, of which there are ``size`` now; the new size."""
    if size == limit:
        if _worse(values[0], numbers[0], value, number):
            values[0] = value
            numbers[0] = number
            _sink(values, numbers, size)
        return size
    at = size
    values[at] = value
    numbers[at] = number
    while at > 0:
        parent = (at - 1) // 2
        if not _worse(values[at], numbers[at], values[parent], numbers[parent]):
            break
        values[at], values[parent] = values[parent], values[at]
        numbers[at], numbers[parent] = numbers[parent], numbers[at]
        at = parent
    return size + 1


@njit(cache=True, nogil=True)
def best_first(values: Floats, numbers: Ints, size: int) -> None:
    """Turn a heap into a list, best first."""
    for last in range(size - 1, 0, -1):
        values[0], values[last] = values[last], values[0]
        numbers[0], numbers[last] = numbers[last], numbers[0]
        _sink(values, numbers, last)
