"""From what the sources say to few candidates and what the ranker sees of them, compiled.

In: item hashes and the arrays of a fitted model. Out: candidates and their features, or lists of items, written in
place. Training, backtest and serving call the same functions, so that the ranker meets live what it was fitted on.

Each source names its best items. The union is cut by the sum of 1 / (rank + 3) over the sources, which needs no
scores to be comparable.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from features.described import describe
from features.sources import (
    COLUMNS,
    CUT,
    EXCLUDE_CURRENT,
    LIST,
    SOURCES,
    Doubles,
    Hashes,
    Index,
    Longs,
    Scratch,
    ask,
    ask_lists,
    known_items,
)
from features.toplist import Floats, Ints, best_first, offer
from features.uncounted import counting_nothing

_S = len(SOURCES)


@counting_nothing
def _name(count: int, excluded: int, index: Index, scratch: Scratch) -> None:
    """Write each source's rank of every touched item, -1 where it does not name it."""
    limit = int(index.settings[LIST])
    touched, scores, ranks, slots = scratch.touched, scratch.scores, scratch.ranks, scratch.slots
    list_scores, list_items, own = scratch.list_scores, scratch.list_items, scratch.named
    for t in range(count):  # side by side, as every source looks at all of them
        item = touched[t]
        for source in range(_S):
            ranks[t, source], own[t, source] = -1, scores[item, source] if item != excluded else np.float32(0.0)
    for source in range(_S):
        size = 0
        for t in range(count):
            score = own[t, source]
            if score > 0.0 and (size < limit or score >= list_scores[0]):
                size = offer(list_scores, list_items, limit, size, score, touched[t])
        best_first(list_scores, list_items, size)
        for rank in range(size):
            ranks[slots[list_items[rank]], source] = rank


@counting_nothing
def _cut(count: int, index: Index, scratch: Scratch) -> int:
    """The candidates in ``list_items``, best first by the sum over ranks; how many there are."""
    limit, size = int(index.settings[CUT]), 0
    touched, ranks = scratch.touched, scratch.ranks
    list_scores, list_items = scratch.list_scores, scratch.list_items
    for t in range(count):
        total = np.float32(0.0)
        for source in range(_S):
            if ranks[t, source] >= 0:
                total += np.float32(1.0) / (ranks[t, source] + np.float32(3.0))
        if total > 0.0 and (size < limit or total >= list_scores[0]):
            size = offer(list_scores, list_items, limit, size, float(total), touched[t])
    best_first(list_scores, list_items, size)
    return size


@counting_nothing
def _excluded(length: int, index: Index, scratch: Scratch) -> int:
    """The item now viewed where it is never recommended, else -1."""
    only = len(index.popularity) == 1
    return scratch.raw[0] if length and index.settings[EXCLUDE_CURRENT] and not only else -1


@counting_nothing
def _leave(count: int, scratch: Scratch) -> None:
    """Work space as it was found."""
    touched, slots, scores = scratch.touched, scratch.slots, scratch.scores
    for t in range(count):
        item = touched[t]
        slots[item] = -1
        for column in range(COLUMNS):
            scores[item, column] = 0.0


@counting_nothing
def _put(start: int, size: int, scratch: Scratch, items: Ints, rank_sums: Floats) -> None:
    list_items, list_scores = scratch.list_items, scratch.list_scores
    for t in range(size):
        items[start + t], rank_sums[start + t] = list_items[t], list_scores[t]


@counting_nothing
def candidates(hashes: Hashes, counts: Longs, index: Index, scratch: Scratch, items: Ints, rank_sums: Floats,
               excluded: Ints, bounds: Longs, x: Doubles) -> None:  # fmt: skip
    """The candidates of each query ``hashes[i, :counts[i]]`` (oldest first), and their features.

    Those of query i are rows ``bounds[i]:bounds[i + 1]`` of ``items``, ``rank_sums`` and ``x``, best first by the
    sum over ranks. ``excluded[i]`` is the item that must not be recommended, or negative.
    """
    bounds[0] = 0
    for i in range(len(hashes)):
        length, found = known_items(hashes[i, : counts[i]], index, scratch)
        count = ask(length, found, index, scratch)
        excluded[i] = _excluded(length, index, scratch)
        _name(count, excluded[i], index, scratch)
        size = _cut(count, index, scratch)
        start = bounds[i]
        bounds[i + 1] = start + size
        describe(length, found, size, index, scratch, x[start : start + size])
        _put(start, size, scratch, items, rank_sums)
        _leave(count, scratch)


@counting_nothing
def neighbours(hashes: Hashes, counts: Longs, index: Index, scratch: Scratch, items: Ints, rank_sums: Floats,
               excluded: Ints, bounds: Longs) -> None:  # fmt: skip
    """As :func:`candidates`, from the lists of the session's items alone, and without features."""
    bounds[0] = 0
    for i in range(len(hashes)):
        length, found = known_items(hashes[i, : counts[i]], index, scratch)
        count = ask_lists(found, 0, index, scratch)
        excluded[i] = _excluded(length, index, scratch)
        _name(count, excluded[i], index, scratch)
        size = _cut(count, index, scratch)
        start = bounds[i]
        bounds[i + 1] = start + size
        _put(start, size, scratch, items, rank_sums)
        _leave(count, scratch)


@counting_nothing
def nothing(hashes: Hashes, counts: Longs, index: Index, scratch: Scratch, excluded: Ints) -> None:
    """The item that must not be recommended to each query, or negative."""
    for i in range(len(hashes)):
        length, _ = known_items(hashes[i, max(0, counts[i] - 1) : counts[i]], index, scratch)
        excluded[i] = _excluded(length, index, scratch)


@counting_nothing
def _take(items: Ints, scores: Floats, size: int, item: int, score: float, excluded: int) -> int:
    """Append an item unless it is excluded or there already; the new size."""
    if item == excluded:
        return size
    for j in range(size):
        if items[j] == item:
            return size
    items[size] = item
    scores[size] = score
    return size + 1


@counting_nothing
def _fill(items: Ints, scores: Floats, size: int, popular: Ints, weights: Floats, popularity: Floats, excluded: int
          ) -> None:  # fmt: skip
    """Fill what is left of one answer: with ``popular``, then with the model's items in their order."""
    lowest, weight = scores[size - 1] if size else np.float32(1.0), np.float32(1.0)
    for p in range(len(popular)):
        if size == len(items):
            return
        weight = weights[p]
        size = _take(items, scores, size, popular[p], lowest * weight, excluded)
    for item in range(len(popularity)):
        if size == len(items):
            return
        size = _take(items, scores, size, item, lowest * min(weight, popularity[item]), excluded)


@njit(cache=True, nogil=True)
def _best(own: Doubles, found: Ints, items: Ints, scores: Floats) -> int:
    """Order one query's candidates by the ranker; shares that add up to at most 1. Returns how many are written."""
    order, total = np.argsort(-own, kind="mergesort"), 0.0
    size = min(len(own), len(items))
    for t in range(len(own)):
        total += np.exp(own[t] - own[order[0]])
    for t in range(size):
        items[t] = found[order[t]]
        scores[t] = np.exp(own[order[t]] - own[order[0]]) / total
    return size


@njit(cache=True, nogil=True)
def ordered(found: Ints, bounds: Longs, raw: Doubles, items: Ints, scores: Floats, sizes: Ints) -> None:
    """Write each query's candidates, best first by the ranker's ``raw``, their shares, and how many there are."""
    for i in range(len(items)):
        start, end = bounds[i], bounds[i + 1]
        sizes[i] = _best(raw[start:end], found[start:end], items[i], scores[i])


@njit(cache=True, nogil=True)
def fill_up(limit: int, excluded: Ints, popular: Ints, weights: Floats, popularity: Floats, items: Ints,
            scores: Floats, sizes: Ints) -> None:  # fmt: skip
    """Fill lists up to ``limit`` places with what is popular, as :func:`answers` does."""
    for i in range(len(items)):
        if sizes[i] < limit:
            _fill(items[i, :limit], scores[i, :limit], sizes[i], popular, weights, popularity, excluded[i])
            while sizes[i] < limit and items[i, sizes[i]] >= 0:
                sizes[i] += 1


@njit(cache=True, nogil=True)
def answers(found: Ints, bounds: Longs, raw: Doubles, excluded: Ints, popular: Ints, weights: Floats,
            popularity: Floats, items: Ints, scores: Floats) -> None:  # fmt: skip
    """Order each query's candidates by the ranker's ``raw`` and write the best as shares that add up to at most 1.

    ``popular`` int32[p] and ``weights`` float32[p] (descending from at most 1) are what answers are filled up with
    before the model's items in their order.
    """
    for i in range(len(items)):
        start, end = bounds[i], bounds[i + 1]
        size = _best(raw[start:end], found[start:end], items[i], scores[i])
        _fill(items[i], scores[i], size, popular, weights, popularity, excluded[i])
