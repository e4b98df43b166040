"""Session nearest neighbours: what people did next who had seen the same items, as flat arrays and compiled.

In: the last items of many sessions as 64-bit hashes. Out: per session the best items with scores. Pure.

A variant of VMIS-kNN (Kersbergen, Sprangers, Schelter: Serenade, SIGMOD 2022) that looks forward: for each item of
the query the newest training sessions that hold it are found, the ``nearest`` of them by weighted overlap vote, and
items that came after the shared item in such a session count far more than items before it.

Items are numbered by popularity (0 = most popular of late) and sessions by recency (0 = newest), so that ties fall to
the more popular or newer one by their number alone, and the numbers 0, 1, 2 .. are the answer to a cold session.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from features.hashing import hash_buffer
from features.nearest import NEAREST, Floats, Hashes, Index, Ints, Longs, Scratch, recommend

_TYPES = {
    "item_bytes": np.uint8, "item_offsets": np.int64, "item_weights": np.float32, "popularity": np.float32,
    "posting_offsets": np.int64, "posting_sessions": np.int32, "posting_places": np.int32,
    "session_offsets": np.int64, "session_items": np.int32, "session_weights": np.float32,
    "settings": np.float64,
}  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class Neighbours:
    """A fitted session nearest neighbour model over n items and s sessions.

    Attributes
    ----------
    item_bytes, item_offsets : uint8[b], int64[n + 1]
        UTF-8 ids of the items, the most popular first.
    item_weights : float32[n]
        How telling an item is (inverse document frequency), positive.
    popularity : float32[n]
        Time-decayed share of clicks over that of item 0, descending from 1.
    posting_offsets, posting_sessions, posting_places : int64[n + 1], int32[p], int32[p]
        Per item the sessions that hold it, newest first, and the place of its last occurrence there.
    session_offsets, session_items : int64[s + 1], int32[q]
        Per session its items in order of time.
    session_weights : float32[s]
        How recent a session is; positive.
    settings : float64[5]
        Number of nearest sessions, decay per click of age in the query, decay per place in the neighbour, weight of
        what lies behind the shared item, and 1 if the item now viewed is never recommended.
    """

    item_bytes: NDArray[np.uint8]
    item_offsets: Longs
    item_weights: Floats
    popularity: Floats
    posting_offsets: Longs
    posting_sessions: Ints
    posting_places: Ints
    session_offsets: Longs
    session_items: Ints
    session_weights: Floats
    settings: NDArray[np.float64]
    _index: Index = field(init=False, repr=False)
    _ids: list[str] = field(init=False, repr=False)
    _scratch: threading.local = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse arrays that would send compiled code outside of them, and index the ids by their hash."""
        _check(self)
        hashes = hash_buffer(self.item_bytes, self.item_offsets)
        order = np.argsort(hashes, kind="stable")
        index = Index(
            hashes[order], order.astype(np.int32), self.item_weights, self.popularity,
            self.posting_offsets, self.posting_sessions, self.posting_places,
            self.session_offsets, self.session_items, self.session_weights, self.settings,
        )  # fmt: skip
        data, bounds = self.item_bytes.tobytes(), self.item_offsets.tolist()
        ids = [data[start:end].decode() for start, end in pairwise(bounds)]
        object.__setattr__(self, "_index", index)
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_scratch", threading.local())

    @property
    def items(self) -> int:
        """The number of items n in the catalogue."""
        return len(self.popularity)

    def item_id(self, number: int) -> str:
        """The id of one item."""
        return self._ids[number]

    def recommend_many(self, hashes: Hashes, counts: Longs, k: int) -> tuple[Ints, Floats]:
        """The best items after each of m sessions.

        Parameters
        ----------
        hashes : uint64[m, L]
            The last items of each session by :func:`features.hashing.hash_strings`, oldest first. Items that the
            catalogue does not hold are left out.
        counts : int64[m]
            Row i holds ``hashes[i, :counts[i]]``; the rest of it is not read.
        k : int
            Length of an answer.

        Returns
        -------
        items : int32[m, k]
            Item numbers, best first, none twice. Only a catalogue of fewer than k items leaves -1 at the end.
        scores : float32[m, k]
            Descending, comparable within a row only; 0 where there is no item.

        Raises
        ------
        ValueError
            If shapes do not fit or a count lies outside 0..L.
        """
        if hashes.ndim != 2 or counts.shape != (len(hashes),) or k < 1:
            raise ValueError(f"sessions of shape {hashes.shape} with counts of {counts.shape} and k = {k}")
        if len(counts) and not (counts.min() >= 0 and counts.max() <= hashes.shape[1]):
            raise ValueError(f"counts reach from {counts.min()} to {counts.max()}; a row holds {hashes.shape[1]}")
        items = np.full((len(hashes), k), -1, np.int32)
        scores = np.zeros((len(hashes), k), np.float32)
        recommend(
            np.ascontiguousarray(hashes, np.uint64), np.ascontiguousarray(counts, np.int64),
            items, scores, self._index, self._work_space(hashes.shape[1]),
        )  # fmt: skip
        return items, scores

    def _work_space(self, length: int) -> Scratch:
        """Work space of this thread, made once: every call leaves it as it found it."""
        scratch: Scratch | None = getattr(self._scratch, "scratch", None)
        if scratch is None or len(scratch.query) < length:
            sessions, nearest = len(self.session_weights), int(self.settings[NEAREST])
            scratch = Scratch(
                query=np.zeros(length, np.int32),
                ages=np.zeros(length, np.int64),
                overlap=np.zeros(sessions, np.float32),
                places=np.zeros(sessions, np.int32),
                item_scores=np.zeros(self.items, np.float32),
                touched=np.zeros(max(sessions, self.items), np.int32),
                votes=np.zeros(nearest, np.float32),
                voters=np.zeros(nearest, np.int32),
            )
            self._scratch.scratch = scratch
        return scratch

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by name, fit for ``np.savez``."""
        return {name: getattr(self, name) for name in _TYPES}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Neighbours:
        """The inverse of :meth:`to_arrays`.

        Raises
        ------
        ValueError
            If an array is missing, of another type, or does not fit the others.
        """
        found = {}
        for name in (f.name for f in fields(cls) if f.init):
            array = arrays.get(name)
            if array is None or array.dtype != np.dtype(_TYPES[name]) or array.ndim != 1:
                raise ValueError(f"neighbours: {name!r} is not an array of {np.dtype(_TYPES[name])}")
            found[name] = np.ascontiguousarray(array)
        return cls(**found)


def _offsets_fit(offsets: Longs, groups: int, total: int) -> bool:
    return (
        len(offsets) == groups + 1 and offsets[0] == 0 and offsets[-1] == total and bool((np.diff(offsets) >= 0).all())
    )


def _inside(numbers: Ints, limit: int) -> bool:
    return len(numbers) == 0 or (int(numbers.min()) >= 0 and int(numbers.max()) < limit)


def _positive(weights: Floats) -> bool:
    return bool((np.isfinite(weights) & (weights > 0)).all())


def _check(model: Neighbours) -> None:
    n, s = len(model.popularity), len(model.session_weights)
    whole = (
        _offsets_fit(model.item_offsets, n, len(model.item_bytes))
        and _offsets_fit(model.posting_offsets, n, len(model.posting_sessions))
        and _offsets_fit(model.session_offsets, s, len(model.session_items))
        and len(model.item_weights) == n
        and len(model.posting_places) == len(model.posting_sessions)
        and _inside(model.posting_sessions, s)
        and _inside(model.session_items, n)
        and all(map(_positive, (model.item_weights, model.session_weights, model.popularity)))
        and len(model.settings) == 5
        and bool(np.isfinite(model.settings).all())
        and 1 <= model.settings[NEAREST] <= 100_000
    )
    if not whole:
        raise ValueError(f"neighbours: the arrays of {n} items and {s} sessions do not fit each other")
