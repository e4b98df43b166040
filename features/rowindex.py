"""Which state row holds which shard of an entity: a compiled hash table from (partition, id) to a row.

In: ids of a whole batch. Out: their rows; -1 where there is none. Open addressing over the ids' 64-bit hashes, with the
ids themselves kept beside them, so that two ids of one hash stay two. Rows are numbers that the caller gives.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features import kernel
from features.kernel import Floats, Ints
from features.texts import Texts
from features.wire import arguments

_U8 = NDArray[np.uint8]
_I32 = NDArray[np.int32]
_MIX = np.int64(-7046029254386353131)  # 2**64 over the golden ratio, so that partitions spread


@njit(cache=True, nogil=True, inline="always")
def _home(hash_: int, partition: int, mask: int) -> int:
    h = hash_ + partition * _MIX
    return int((h ^ (h >> 29)) & mask)


@njit(cache=True, nogil=True)
def _place(slots: _I32, hashes: Ints, partitions: _I32, lengths: _I32, ids: _U8, hash_: int, partition: int, data: _U8,
           start: int, end: int) -> int:  # fmt: skip
    """Where an entry lies in ``slots``, or the empty slot where it belongs."""
    mask = len(slots) - 1
    at = _home(hash_, partition, mask)
    while slots[at] >= 0:
        row = slots[at]
        if hashes[row] == hash_ and partitions[row] == partition and lengths[row] == end - start:
            same = True
            for j in range(end - start):
                if ids[row, j] != data[start + j]:
                    same = False
                    break
            if same:
                return at
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def _find(slots: _I32, hashes: Ints, partitions: _I32, lengths: _I32, ids: _U8, wanted: Ints, partition: int, data: _U8,
          starts: Ints, ends: Ints, found: Ints) -> int:  # fmt: skip
    """Fill ``found`` (int64[n]); returns how many are missing."""
    missing = 0
    for i in range(len(wanted)):
        at = _place(slots, hashes, partitions, lengths, ids, wanted[i], partition, data, starts[i], ends[i])
        found[i] = slots[at]
        missing += slots[at] < 0
    return missing


@njit(cache=True, nogil=True)
def _add(slots: _I32, hashes: Ints, partitions: _I32, lengths: _I32, ids: _U8, wanted: Ints, partition: int, data: _U8,
         starts: Ints, ends: Ints, found: Ints, spare: Ints, firsts: Ints) -> int:  # fmt: skip
    """Give every entry that is missing in ``found`` a row of ``spare``; returns how many were new.

    ``firsts`` (int64[new]) takes the place at which each new one came first.
    """
    used = 0
    for i in range(len(wanted)):
        if found[i] >= 0:
            continue
        at = _place(slots, hashes, partitions, lengths, ids, wanted[i], partition, data, starts[i], ends[i])
        if slots[at] < 0:
            row = spare[used]
            firsts[used] = i
            used += 1
            slots[at] = row
            hashes[row], partitions[row], lengths[row] = wanted[i], partition, ends[i] - starts[i]
            for j in range(ends[i] - starts[i]):
                ids[row, j] = data[starts[i] + j]
        found[i] = slots[at]
    return used


@njit(cache=True, nogil=True)
def _refill(slots: _I32, hashes: Ints, partitions: _I32, rows: Ints) -> None:
    """Put ``rows`` into a table that holds nothing else."""
    slots[:] = -1
    mask = len(slots) - 1
    for row in rows:
        at = _home(hashes[row], partitions[row], mask)
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at] = row


@njit(cache=True, nogil=True)
def merge_all(ints: Ints, floats: Floats, parts: Ints, views: Ints, dims: Ints) -> None:
    """:func:`features.kernel.merge` of ``parts[i]`` (int64[n, p], -1: none) into each of ``views`` (int64[n])."""
    rows = np.empty(parts.shape[1], np.int64)
    for i in range(len(views)):
        count = 0
        for p in range(parts.shape[1]):
            if parts[i, p] >= 0:
                rows[count] = parts[i, p]
                count += 1
        kernel.merge(ints, floats, rows[:count], views[i], dims)


class RowIndex:
    """The rows in use, by partition and id. ``names[row]`` is what the caller calls an entry."""

    def __init__(self) -> None:
        self._slots = np.full(1024, -1, np.int32)
        self._hashes = np.zeros(0, np.int64)
        self._partitions = np.full(0, -1, np.int32)
        self._lengths = np.zeros(0, np.int32)
        self._ids = np.zeros((0, 16), np.uint8)
        self.used = np.zeros(0, np.bool_)
        self.names: list[bytes] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory of the table and the ids."""
        return self._slots.nbytes + self._hashes.nbytes + self._partitions.nbytes + self._lengths.nbytes + \
            self._ids.nbytes  # fmt: skip

    def find(self, partition: int, ids: Texts, hashes: Ints) -> tuple[Ints, int]:
        """The row of each id in a partition, int64[n], -1 where there is none; and how many are missing."""
        found = np.empty(len(ids), np.int64)
        missing = _find(self._slots, self._hashes, self._partitions, self._lengths, self._ids, hashes, partition,
                        ids.data, ids.starts, ids.ends, found)  # fmt: skip
        return found, missing

    def add(self, partition: int, ids: Texts, hashes: Ints, found: Ints, spare: Ints) -> Ints:
        """Give each id that :meth:`find` did not find a row of ``spare``; returns where each new id came first."""
        self._hold(int(spare.max(initial=-1)) + 1, int((ids.ends - ids.starts).max(initial=0)))
        self._spread(self._count + len(spare))
        firsts = np.empty(len(spare), np.int64)
        new = _add(self._slots, self._hashes, self._partitions, self._lengths, self._ids, hashes, partition, ids.data,
                   ids.starts, ids.ends, found, spare, firsts)  # fmt: skip
        self.used[spare[:new]] = True
        self._count += new
        return firsts[:new]

    def rows(self, partition: int) -> Ints:
        """All rows of a partition."""
        return np.flatnonzero(self.used & (self._partitions == partition))

    def of(self, rows: Ints) -> _I32:
        """The partition of each row."""
        return self._partitions[rows]

    def arguments(self, prefix: bytes, rows: Ints, data: _U8, ends: Ints) -> bytes:
        """``prefix`` and id, and the value, of each of ``rows``, see :func:`features.wire.arguments`."""
        head = np.frombuffer(bytearray(prefix), np.uint8)
        return arguments(head, self._ids, self._lengths, rows, data, ends)

    def remove(self, rows: Ints) -> None:
        """Forget entries; ``rows`` are in use."""
        self.used[rows] = False
        self._count -= len(rows)
        for row in rows.tolist():
            self.names[row] = b""
        _refill(self._slots, self._hashes, self._partitions, np.flatnonzero(self.used))

    def _hold(self, rows: int, width: int) -> None:
        """Have room for this many rows and ids this long."""
        if rows > len(self._hashes):
            more = max(rows, 2 * len(self._hashes)) - len(self._hashes)
            self._hashes = np.concatenate([self._hashes, np.zeros(more, np.int64)])
            self._partitions = np.concatenate([self._partitions, np.full(more, -1, np.int32)])
            self._lengths = np.concatenate([self._lengths, np.zeros(more, np.int32)])
            self._ids = np.concatenate([self._ids, np.zeros((more, self._ids.shape[1]), np.uint8)])
            self.used = np.concatenate([self.used, np.zeros(more, np.bool_)])
            self.names += [b""] * more
        if width > self._ids.shape[1]:
            wider = np.zeros((len(self._ids), -(-width // 16) * 16), np.uint8)
            wider[:, : self._ids.shape[1]] = self._ids
            self._ids = wider

    def _spread(self, count: int) -> None:
        """Keep the table at most half full."""
        if 2 * count > len(self._slots):
            self._slots = np.full(1 << (2 * count - 1).bit_length() + 1, -1, np.int32)
            _refill(self._slots, self._hashes, self._partitions, np.flatnonzero(self.used))
