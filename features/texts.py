"""Many short texts as bytes end to end: ids of a whole fetch without a Python object for each.

In: UTF-8 bytes and where each text begins and ends in them. Out: hashes, selections, and Python strings for the few
texts that somebody reads. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.bits import copy_bytes
from features.hashing import hash_spans, murmur2_spans, pack

_U8 = NDArray[np.uint8]
_Ints = NDArray[np.int64]


@njit(cache=True, nogil=True)
def _join(data: _U8, starts: _Ints, ends: _Ints, separator: int, out: _U8, bounds: _Ints) -> None:
    """Row i of ``starts`` and ``ends`` (int64[n, parts]) as one text each, with a byte between the parts."""
    at = 0
    for i in range(starts.shape[0]):
        for part in range(starts.shape[1]):
            if part > 0:
                out[at] = separator
                at += 1
            start = starts[i, part]
            at = copy_bytes(out, at, data, start, ends[i, part] - start)
        bounds[i + 1] = at


@dataclass(eq=False, slots=True)
class Texts:
    """n texts; text i is ``data[starts[i]:ends[i]]``. ``data`` uint8, ``starts`` and ``ends`` int64[n]."""

    data: _U8
    starts: _Ints
    ends: _Ints

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Texts from strings.

        >>> list(Texts.of(["card-1", "é"]).take([1, 0]))
        ['é', 'card-1']
        """
        data, bounds = pack([text.encode() for text in texts])
        return cls(data, bounds[:-1], bounds[1:])

    @classmethod
    def concat(cls, parts: Sequence[Texts]) -> Texts:
        """All texts of several, in order."""
        filled = [part for part in parts if len(part)] or list(parts[:1])
        if len(filled) == 1:
            return filled[0]
        shifts = np.cumsum([0, *(len(part.data) for part in filled[:-1])])
        return cls(
            np.concatenate([part.data for part in filled]),
            np.concatenate([part.starts + shift for part, shift in zip(filled, shifts, strict=True)]),
            np.concatenate([part.ends + shift for part, shift in zip(filled, shifts, strict=True)]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Texts], separator: str) -> Texts:
        """Text i of every part, with an ASCII ``separator`` between them; all parts lie in the same ``data``."""
        starts = np.stack([part.starts for part in parts], axis=1)
        ends = np.stack([part.ends for part in parts], axis=1)
        out = np.empty(int((ends - starts).sum()) + len(starts) * (len(parts) - 1), np.uint8)
        bounds = np.zeros(len(starts) + 1, np.int64)
        _join(parts[0].data, starts, ends, ord(separator), out, bounds)
        return cls(out, bounds[:-1], bounds[1:])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> str:
        return self.raw(i).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def raw(self, i: int) -> bytes:
        """The bytes of one text."""
        return self.data[self.starts[i] : self.ends[i]].tobytes()

    def raws(self) -> list[bytes]:
        """The bytes of every text."""
        data = self.data.tobytes()
        return [data[a:b] for a, b in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]

    def take(self, rows: Sequence[int] | NDArray[np.integer]) -> Texts:
        """The texts at ``rows``; no bytes are copied."""
        at = np.asarray(rows, np.int64)
        return Texts(self.data, self.starts[at], self.ends[at])

    def part(self, at: slice) -> Texts:
        """Consecutive texts; nothing is copied."""
        return Texts(self.data, self.starts[at], self.ends[at])

    def replaced(self, at: _Ints, given: Sequence[bytes]) -> Texts:
        """The same texts but those at the places ``at``.

        >>> list(Texts.of(["a", "b", "c"]).replaced(np.array([1]), [b"new"]))
        ['a', 'new', 'c']
        """
        if not len(at):
            return self
        data, bounds = pack(given)
        starts, ends = self.starts.copy(), self.ends.copy()
        starts[at], ends[at] = bounds[:-1] + len(self.data), bounds[1:] + len(self.data)
        return Texts(np.concatenate([self.data, data]), starts, ends)

    def packed(self) -> Texts:
        """The same texts in no more bytes than about what they need, so that what is kept does not hold a whole fetch.

        >>> Texts.of([str(n) for n in range(10_000)]).take([7]).packed().data.tobytes()
        b'7'
        """
        if len(self.data) <= 2 * int((self.ends - self.starts).sum()) + 64:
            return self
        return Texts.joined([self], " ")

    def hashes(self) -> _Ints:
        """:func:`features.hashing.hash_strings` of each, as signed numbers; int64[n]."""
        return hash_spans(self.data, self.starts, self.ends).view(np.int64)

    def partitions(self, count: int) -> NDArray[np.int32]:
        """The partition of ``count`` that Kafka's default partitioner gives each; int32[n]."""
        return murmur2_spans(self.data, self.starts, self.ends) % np.int32(count)
