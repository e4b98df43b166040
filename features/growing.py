"""Arrays that grow in place and take memory only where something was written.

In: a width. Out: a two-dimensional array. State owned: its memory, anonymous pages that the system fills with zeros
when they are first touched; to grow, it moves them without copying.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Growing:
    """``array`` has ``width`` columns and at first no rows; its values are 0 until they are set.

    >>> table = Growing(2, np.int64)
    >>> table.hold(2)
    >>> table.array[1] = 7
    >>> table.hold(3)
    >>> table.array.tolist()
    [[0, 0], [7, 7], [0, 0]]
    """

    def __init__(self, width: int, dtype: DTypeLike) -> None:
        self.array: NDArray[Any] = np.zeros((0, width), dtype)
        self._memory: mmap.mmap | None = None

    def hold(self, rows: int) -> None:
        """Have room for at least so many rows. Who has a view of the array from before keeps what was in it then."""
        old = self.array
        if rows <= len(old):
            return
        nbytes = rows * old.shape[1] * old.itemsize
        if not nbytes:
            self.array = np.zeros((rows, old.shape[1]), old.dtype)
            return
        if self._memory is not None:
            width, dtype = old.shape[1], old.dtype
            self.array = old = np.zeros((0, width), dtype)
            try:
                self._memory.resize(nbytes)
            except (BufferError, SystemError):  # somebody has a view, or the system is not Linux
                old = np.frombuffer(self._memory, dtype).reshape(-1, width)
            else:
                self.array = np.frombuffer(self._memory, dtype).reshape(-1, width)
                return
        self._memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.array = np.frombuffer(self._memory, old.dtype).reshape(-1, old.shape[1])
        self.array[: len(old)] = old
