"""Orders in which operations of a history go through the kernel, compiled.

In: times, rows. Out: orders, int64[n]. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.uncounted import kernel

Longs = NDArray[np.int64]


@kernel
def _merge(clock: Longs, arrival: Longs, order: Longs) -> None:
    i, j, n = 0, 0, len(clock)
    for k in range(len(order)):
        if j == len(arrival) or (i < n and clock[i] <= arrival[j]):
            order[k] = i
            i += 1
        else:
            order[k] = n + j
            j += 1


def by_time(times: Longs, arrivals: Longs) -> Longs:
    """Transactions and labels in order of time: numbers of transactions and, from ``len(times)`` on, of labels.

    Labels are sorted by arrival; of equal times transactions come first. Transactions keep their own order: labels are
    put by the newest time of one so far, as the stream does, so a late one keeps its place.

    >>> by_time(np.array([5, 9, 7]), np.array([5, 8, 9])).tolist()
    [0, 3, 4, 1, 2, 5]
    """
    order = np.empty(len(times) + len(arrivals), np.int64)
    _merge(np.maximum.accumulate(times) if len(times) else times, arrivals, order)
    return order


@kernel
def _count_off(rows: Longs, ends: Longs, order: Longs) -> None:
    for row in rows:
        ends[row + 1] += 1
    for row in range(1, len(ends)):
        ends[row] += ends[row - 1]
    for i, row in enumerate(rows):
        order[ends[row]] = i
        ends[row] += 1


def row_by_row(rows: Longs, count: int) -> Longs:
    """The order that puts equal ``rows`` (of 0 to ``count`` - 1) together and keeps them in theirs.

    >>> row_by_row(np.array([2, 0, 2, 0]), 3).tolist()
    [1, 3, 0, 2]
    """
    order = np.empty(len(rows), np.int64)
    _count_off(np.ascontiguousarray(rows), np.zeros(count + 1, np.int64), order)
    return order
