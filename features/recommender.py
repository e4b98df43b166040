"""The recommender as arrays: candidates of six sources, ordered by a ranker, filled up with what is popular.

In: the last items of many sessions as 64-bit hashes. Out: per session the best items with scores. Pure.

Items are numbered by popularity (0 = most popular of late) and sessions by recency (0 = newest), so that ties fall to
the more popular or newer one by their number alone, and the numbers 0, 1, 2 .. are the answer to a cold session.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import candidates as compiled
from features.described import FACTS, FEATURES, WIDTH
from features.hashing import hash_buffer
from features.model_text import parse
from features.rungs import FEWER_CANDIDATES, FEWER_SESSIONS, PLAIN, Asking, Rung
from features.sources import (
    CLICKS,
    COLUMNS,
    CUT,
    EXCLUDE_CURRENT,
    LIST,
    NEAREST,
    REACH,
    SOURCES,
    TASTE,
    VARIANTS,
    Doubles,
    Hashes,
    Index,
    Longs,
    Scratch,
)
from features.toplist import Floats, Ints
from features.trees import FlatTrees
from features.wholeness import check_whole

_ROWS = 64  # queries whose candidates and features are held at a time
_EMPTY_CUT = 100  # places for what others than the model find


@dataclass(frozen=True, eq=False, slots=True)
class Candidates:
    """Candidates of m queries: those of query i are rows ``bounds[i]:bounds[i + 1]`` of ``items`` (int32[c]).

    ``x`` float64[c, F] are the features of :data:`features.described.FEATURES`, ``rank_sums`` float32[c] the sums by
    which the candidates are ordered, and ``excluded`` int32[m] the item that must not be recommended, or negative.
    """

    items: Ints
    rank_sums: Floats
    excluded: Ints
    bounds: Longs
    x: Doubles

    def filled(self) -> Candidates:
        """Without the room behind the last one."""
        end = int(self.bounds[-1])
        return Candidates(self.items[:end], self.rank_sums[:end], self.excluded, self.bounds, self.x[:end])


@dataclass(frozen=True, eq=False, slots=True)
class Recommender:
    """A fitted recommender over n items and s sessions.

    Attributes
    ----------
    item_bytes, item_offsets : uint8[b], int64[n + 1]
        UTF-8 ids of the items, the most popular first.
    rarity : float32[n]
        How telling an item is (a power of the inverse document frequency), positive.
    popularity : float32[n]
        Time-decayed share of clicks over that of item 0, descending from 1.
    facts : float32[n, 5]
        What the ranker knows of an item, see :data:`features.described.FACTS`.
    posting_offsets, posting_sessions, posting_places : int64[n + 1], int32[p], int32[p]
        Per item the sessions that hold it, newest first, and the place of its last occurrence there.
    next_offsets, next_places : int64[n + 1], int32[e]
        Per item where in ``sequence`` it was followed by something, newest session first.
    session_offsets, sequence : int64[s + 1], int32[q]
        The items of all sessions in order of time, -1 before, between and after them; where each session begins.
    recency : float32[s, 3]
        How recent a session is to each variant of the neighbours; positive.
    place_weights : float32[3, 121]
        By variant the weight of an item of a neighbour by its distance from the shared one, -60..60.
    linear_offsets, linear_items, linear_weights : int64[n + 1], int32[l], float32[l]
        Per item the items that it speaks for by the linear model.
    transition_offsets, transition_items, transition_weights : int64[n + 1], int32[t], float32[t]
        Per item the items that came soon after it, with their share.
    tastes : float32[n, 32]
        Per item where it lies: items that the same items are viewed with have a large product. Of length 1, or 0.
    variants : float64[3, 2]
        By variant the number of nearest sessions, and the decay per click of age in the query.
    settings : float64[7]
        See the names in :mod:`features.sources`.
    ranker : str
        LightGBM's text of a lambdarank model over the features; empty for the order of the candidates alone.
    """

    item_bytes: NDArray[np.uint8]
    item_offsets: Longs
    rarity: Floats
    popularity: Floats
    facts: Floats
    posting_offsets: Longs
    posting_sessions: Ints
    posting_places: Ints
    next_offsets: Longs
    next_places: Ints
    session_offsets: Longs
    sequence: Ints
    recency: Floats
    place_weights: Floats
    linear_offsets: Longs
    linear_items: Ints
    linear_weights: Floats
    transition_offsets: Longs
    transition_items: Ints
    transition_weights: Floats
    tastes: Floats
    variants: Doubles
    settings: Doubles
    ranker: str = ""
    _index: Index = field(init=False, repr=False)
    _fewer: Index = field(init=False, repr=False)
    _ids: list[str] = field(init=False, repr=False)
    _trees: FlatTrees | None = field(init=False, repr=False)
    _scratch: threading.local = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse arrays that would send compiled code outside of them, and index the ids by their hash."""
        check_whole(self)
        hashes = hash_buffer(self.item_bytes, self.item_offsets)
        order = np.argsort(hashes, kind="stable")
        arrays = {name: getattr(self, name) for name in Index._fields if name in _ARRAYS}
        data, bounds = self.item_bytes.tobytes(), self.item_offsets.tolist()
        at = self.session_offsets[self.posting_sessions] + self.posting_places
        index = Index(hashes=hashes[order], items=order.astype(np.int32), posting_ends=self.posting_offsets[1:],
                      posting_at=at.astype(np.int32), next_ends=self.next_offsets[1:], **arrays)  # fmt: skip
        object.__setattr__(self, "_index", index)
        object.__setattr__(self, "_fewer", _fewer(index))
        object.__setattr__(self, "_ids", [data[start:end].decode() for start, end in pairwise(bounds)])
        object.__setattr__(self, "_trees", FlatTrees(parse(self.ranker)) if self.ranker else None)
        object.__setattr__(self, "_scratch", threading.local())
        if self._trees is not None and self._trees.model.names != FEATURES:
            raise ValueError("recommender: the ranker was fitted on other features than this program computes")

    @property
    def items(self) -> int:
        """The number of items n in the catalogue."""
        return len(self.popularity)

    def item_id(self, number: int) -> str:
        """The id of one item."""
        return self._ids[number]

    def numbers(self, ids: list[str]) -> Longs:
        """The number of each id, -1 where the catalogue does not hold it; int64[len(ids)]."""
        known = {id_: number for number, id_ in enumerate(self._ids)}
        return np.array([known.get(id_, -1) for id_ in ids], np.int64)

    def numbers_of(self, hashes: Hashes) -> Ints:
        """The number of the item of each hash, int32 of the same shape; -2 where the catalogue does not hold it."""
        index = self._index
        if not self.items:
            return np.full(hashes.shape, -2, np.int32)
        at = np.minimum(np.searchsorted(index.hashes, hashes), self.items - 1)
        return np.where(index.hashes[at] == hashes, index.items[at], np.int32(-2))

    def candidates_many(self, hashes: Hashes, counts: Longs) -> Candidates:
        """What the ranker is asked about: arguments and errors as of :meth:`recommend_many`."""
        return self._candidates(*_queries(hashes, counts), self._index)

    def _candidates(self, hashes: Hashes, counts: Longs, index: Index) -> Candidates:
        found = _room(len(hashes), int(index.settings[CUT]), WIDTH)
        compiled.candidates(hashes, counts, index, self._work_space(), found.items, found.rank_sums, found.excluded,
                            found.bounds, found.x)  # fmt: skip
        return found.filled()

    def recommend_many(self, hashes: Hashes, counts: Longs, k: int, how: Asking = PLAIN) -> tuple[Ints, Floats]:
        """The best items after each of m sessions.

        Parameters
        ----------
        hashes : uint64[m, L]
            The last items of each session by :func:`features.hashing.hash_strings`, oldest first. Only the newest 20
            are looked at. Items that the catalogue does not hold are left out.
        counts : int64[m]
            Row i holds ``hashes[i, :counts[i]]``; the rest of it is not read.
        k : int
            Length of an answer.
        how : Asking, optional
            A cheaper way, another thread to share the work with, other popular items. A list does not depend on what
            else is asked with it, nor on the thread.

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
        hashes, counts = _queries(hashes, counts)
        if k < 1:
            raise ValueError(f"k = {k}: a list has at least one item")
        items, scores = np.full((len(hashes), k), -1, np.int32), np.zeros((len(hashes), k), np.float32)

        def answer(rows: slice) -> None:
            found, raw = self._asked(hashes[rows], counts[rows], how.rung)
            compiled.answers(found.items, found.bounds, raw, found.excluded, how.popular, how.weights,
                             self.popularity, items[rows], scores[rows])  # fmt: skip

        _shared(len(hashes), how, answer)
        return items, scores

    def _asked(self, hashes: Hashes, counts: Longs, rung: Rung, hide_viewed: bool | None = None
               ) -> tuple[Candidates, Doubles]:  # fmt: skip
        """Candidates of some queries and what orders them; ``hide_viewed`` None: as training found it."""
        index = self._fewer if rung is Rung.FEWER else self._index
        if hide_viewed is not None and hide_viewed != bool(self.settings[EXCLUDE_CURRENT]):
            settings = index.settings.copy()
            settings[EXCLUDE_CURRENT] = hide_viewed
            index = index._replace(settings=settings)
        if rung <= Rung.FEWER:
            found = self._candidates(hashes, counts, index)
            raw = found.rank_sums.astype(np.float64) if self._trees is None else self._trees.raw(found.x)
            return found, raw
        scratch = self._work_space()
        found = _room(len(hashes), int(index.settings[CUT]) if rung is Rung.NEIGHBOURS else 0, 0)
        if rung is Rung.NEIGHBOURS:
            compiled.neighbours(hashes, counts, index, scratch, found.items, found.rank_sums, found.excluded,
                                found.bounds)  # fmt: skip
        else:
            compiled.nothing(hashes, counts, index, scratch, found.excluded)
        found = found.filled()
        return found, found.rank_sums.astype(np.float64)

    def rank_many(self, hashes: Hashes, counts: Longs, hide_viewed: bool, how: Asking = PLAIN
                  ) -> tuple[Ints, Floats, Ints]:  # fmt: skip
        """All candidates of each of m sessions in the ranker's order, for :mod:`features.last_filter`.

        Returns
        -------
        items, scores, sizes : int32[m, c], float32[m, c], int32[m]
            Row i holds ``sizes[i]`` items, best first, with scores as of :meth:`recommend_many`; c is the same for
            every call. With ``hide_viewed`` the item of the last click is no candidate.
        """
        hashes, counts = _queries(hashes, counts)
        m, cut = len(hashes), int(self.settings[CUT])
        items, scores, sizes = np.full((m, cut), -1, np.int32), np.zeros((m, cut), np.float32), np.zeros(m, np.int32)

        def rank(rows: slice) -> None:
            found, raw = self._asked(hashes[rows], counts[rows], how.rung, hide_viewed)
            compiled.ordered(found.items, found.bounds, raw, items[rows], scores[rows], sizes[rows])

        _shared(m, how, rank)
        return items, scores, sizes

    def inside(self) -> tuple[Index, Scratch]:
        """The arrays and this thread's work space, for compiled code that makes lists of candidates."""
        return self._index, self._work_space()

    def _work_space(self) -> Scratch:
        """Work space of this thread, made once: every call leaves it as it found it."""
        scratch: Scratch | None = getattr(self._scratch, "scratch", None)
        if scratch is None:
            n, sessions = self.items, len(self.recency)
            nearest = int(self.variants[:, NEAREST].max())
            entries = int(max(self.settings[LIST], self.settings[CUT]))
            scratch = Scratch(
                raw=np.zeros(CLICKS, np.int32),
                query=np.zeros(CLICKS, np.int32),
                ages=np.zeros(CLICKS, np.int64),
                overlap=np.zeros((sessions, VARIANTS), np.float32),
                found=np.zeros((sessions, VARIANTS), np.float32),
                places=np.zeros(sessions, np.int32),
                sessions=np.zeros(sessions, np.int32),
                votes=np.zeros(nearest, np.float32),
                voters=np.zeros(nearest, np.int32),
                scores=np.zeros((n, COLUMNS), np.float32),
                slots=np.full(n, -1, np.int32),
                touched=np.zeros(n, np.int32),
                list_scores=np.zeros(entries, np.float32),
                list_items=np.zeros(entries, np.int32),
                ranks=np.zeros((n, len(SOURCES)), np.int32),
                named=np.zeros((n, len(SOURCES)), np.float32),
                counts=np.zeros(3),
                weights=np.zeros(VARIANTS, np.float32),
                tops=np.zeros(len(SOURCES), np.float32),
                sums=np.zeros(len(SOURCES), np.float32),
                taste=np.zeros(TASTE, np.float32),
            )
            self._scratch.scratch = scratch
        return scratch

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by name, fit for ``np.savez``; the ranker is a text of its own."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]], ranker: str = "") -> Recommender:
        """The inverse of :meth:`to_arrays`.

        Raises
        ------
        ValueError
            If an array is missing, of another type, or does not fit the others, or the ranker cannot be read.
        """
        found = {}
        for name, (kind, dimensions) in _ARRAYS.items():
            array = arrays.get(name)
            if array is None or array.dtype != kind or array.ndim != dimensions:
                raise ValueError(f"recommender: {name!r} is not an array of {kind} with {dimensions} dimensions")
            found[name] = np.ascontiguousarray(array)
        return cls(**found, ranker=ranker)

    @classmethod
    def empty(cls) -> Recommender:
        """One that knows no item: lists then hold what is wanted now, and what the shelf has."""
        shapes: dict[str, tuple[int, ...]] = {
            "facts": (0, len(FACTS)), "recency": (0, VARIANTS), "place_weights": (VARIANTS, 2 * REACH + 1),
            "variants": (VARIANTS, 2), "tastes": (0, TASTE), "settings": (7,), "session_offsets": (1,),
            "sequence": (1,),
        }  # fmt: skip
        sizes = {name: shapes.get(name, (int(name.endswith("_offsets")),)) for name in _ARRAYS}
        found: dict[str, NDArray[Any]] = {name: np.zeros(sizes[name], kind) for name, (kind, _) in _ARRAYS.items()}
        found["variants"][:, NEAREST] = 1
        found["settings"][[LIST, CUT]], found["settings"][EXCLUDE_CURRENT] = _EMPTY_CUT, 1
        found["session_offsets"][:], found["sequence"][:] = 1, -1
        return cls.from_arrays(found)


def _shared(total: int, how: Asking, work: Callable[[slice], None]) -> None:
    """Do all rows, some at a time; with ``how.beside`` whoever is free takes the next ones."""
    starts = iter(range(0, total, _ROWS))

    def some() -> None:
        for start in starts:
            work(slice(start, start + _ROWS))

    shared = how.beside.submit(some) if how.beside is not None and total > _ROWS else None
    some()
    if shared is not None:
        shared.result()


def _room(queries: int, each: int, width: int) -> Candidates:
    """Room for so many candidates of each query."""
    n = queries * each
    return Candidates(np.zeros(n, np.int32), np.zeros(n, np.float32), np.full(queries, -1, np.int32),
                      np.zeros(queries + 1, np.int64), np.empty((n, width)))  # fmt: skip


def _fewer(index: Index) -> Index:
    """The same model, looked at less far."""
    settings = index.settings.copy()
    settings[CUT] = min(settings[CUT], FEWER_CANDIDATES)
    return index._replace(
        posting_ends=np.minimum(index.posting_ends, index.posting_offsets[:-1] + FEWER_SESSIONS),
        next_ends=np.minimum(index.next_ends, index.next_offsets[:-1] + FEWER_SESSIONS),
        settings=settings,
    )


def _array(name: str, annotation: object) -> tuple[np.dtype[np.generic], int]:
    kinds = {"Longs": np.int64, "Ints": np.int32, "Floats": np.float32, "Doubles": np.float64}
    kind = np.dtype(kinds.get(str(annotation), np.uint8))
    return kind, 2 if name in ("facts", "recency", "place_weights", "tastes", "variants") else 1


_ARRAYS = {f.name: _array(f.name, f.type) for f in fields(Recommender) if f.init and f.name != "ranker"}


def _queries(hashes: Hashes, counts: Longs) -> tuple[Hashes, Longs]:
    if hashes.ndim != 2 or counts.shape != (len(hashes),):
        raise ValueError(f"sessions of shape {hashes.shape} with counts of {counts.shape}")
    if len(counts) and not (counts.min() >= 0 and counts.max() <= hashes.shape[1]):
        raise ValueError(f"counts reach from {counts.min()} to {counts.max()}; a row holds {hashes.shape[1]}")
    return np.ascontiguousarray(hashes, np.uint64), np.ascontiguousarray(counts, np.int64)
