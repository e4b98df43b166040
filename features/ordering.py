"""Other orders of operations, compiled: what belongs to one row put together, so that it is worked on while it is near.

In: the row of each operation. Out: an order of the operations. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.uncounted import kernel

Longs = NDArray[np.int64]


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
    """The order that puts equal ``rows`` (of 0 to ``count`` - 1) together and keeps them in theirs; int64[n].

    >>> row_by_row(np.array([2, 0, 2, 0]), 3).tolist()
    [1, 3, 0, 2]
    """
    order = np.empty(len(rows), np.int64)
    _count_off(np.ascontiguousarray(rows), np.zeros(count + 1, np.int64), order)
    return order
