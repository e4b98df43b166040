"""Arrays that grow in place and take memory only where something was written.

In: a width. Out: a two-dimensional array. State owned: its memory, anonymous pages that the system fills with zeros
when they are first touched; to grow, it moves them without copying. One thread may grow a table that others read: while
it does, they wait for the array.
"""

from __future__ import annotations

import mmap
import threading
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
        self._array: NDArray[Any] = np.zeros((0, width), dtype)
        self._memory: mmap.mmap | None = None
        self._lock = threading.Lock()

    @property
    def array(self) -> NDArray[Any]:
        """The table as it is now."""
        with self._lock:  # in the middle of growing there is none
            return self._array

    def hold(self, rows: int) -> None:
        """Have room for at least so many rows. Who has a view of the array from before keeps what was in it then."""
        with self._lock:
            self._grow(rows)

    def _grow(self, rows: int) -> None:
        old = self._array
        if rows <= len(old):
            return
        nbytes = rows * old.shape[1] * old.itemsize
        if not nbytes:
            self._array = np.zeros((rows, old.shape[1]), old.dtype)
            return
        if self._memory is not None:
            width, dtype = old.shape[1], old.dtype
            self._array = old = np.zeros((0, width), dtype)
            try:
                self._memory.resize(nbytes)
            except (BufferError, SystemError):  # somebody has a view, or the system is not Linux
                old = np.frombuffer(self._memory, dtype).reshape(-1, width)
            else:
                self._array = np.frombuffer(self._memory, dtype).reshape(-1, width)
                return
        self._memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._array = np.frombuffer(self._memory, old.dtype).reshape(-1, old.shape[1])
        self._array[: len(old)] = old
