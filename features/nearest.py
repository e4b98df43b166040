"""The compiled search behind :mod:`features.neighbours`: from the last items of sessions to ranked items.

In: item hashes and the arrays of a fitted model. Out: answers written in place. No IO, no clock. One query runs
through four steps: known items, sessions that share them, the votes of the nearest sessions, the best items.
Work space is passed in zeroed and left zeroed, so that a query costs what it touches and not what the model holds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Hashes = NDArray[np.uint64]

NEAREST, QUERY_DECAY, PLACE_DECAY, BEHIND, EXCLUDE_CURRENT = range(5)  # places in ``Index.settings``
_TINY = np.float32(1e-30)  # a weight that underflowed to 0 would look like an entry never touched


class Index(NamedTuple):
    """The model's arrays, see :class:`features.neighbours.Neighbours`; ``items`` is sorted by ``hashes``."""

    hashes: Hashes
    items: Ints
    item_weights: Floats
    popularity: Floats
    posting_offsets: Longs
    posting_sessions: Ints
    posting_places: Ints
    session_offsets: Longs
    session_items: Ints
    session_weights: Floats
    settings: NDArray[np.float64]


class Scratch(NamedTuple):
    """Work space: ``overlap`` and ``item_scores`` are zero between queries."""

    query: Ints
    ages: Longs
    overlap: Floats
    places: Ints
    item_scores: Floats
    touched: Ints
    votes: Floats
    voters: Ints


@njit(cache=True, nogil=True)
def _worse(value: float, number: int, other_value: float, other_number: int) -> bool:
    return value < other_value or (value == other_value and number > other_number)


@njit(cache=True, nogil=True)
def _sink(values: Floats, numbers: Ints, size: int) -> None:
    """Restore the heap (worst entry on top) after its top was replaced."""
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
def _offer(values: Floats, numbers: Ints, size: int, value: float, number: int) -> int:
    """Keep the best ``len(values)`` entries; the new size."""
    if size == len(values):
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
def _best_first(values: Floats, numbers: Ints, size: int) -> None:
    """Turn a heap into a list, best first."""
    for last in range(size - 1, 0, -1):
        values[0], values[last] = values[last], values[0]
        numbers[0], numbers[last] = numbers[last], numbers[0]
        _sink(values, numbers, last)


@njit(cache=True, nogil=True)
def _find(hashes: Hashes, wanted: int) -> int:
    """Where ``wanted`` stands among the sorted hashes; -1 if nowhere."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high) // 2
        if hashes[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < len(hashes) and hashes[low] == wanted else -1


@njit(cache=True, nogil=True)
def _known_items(hashes: Hashes, index: Index, query: Ints, ages: Longs) -> int:
    """The query's items that the catalogue holds, newest first and each once, with their age in clicks."""
    found = 0
    for age in range(len(hashes)):
        at = _find(index.hashes, hashes[len(hashes) - 1 - age])
        if at < 0:
            continue
        item = index.items[at]
        seen = False
        for j in range(found):
            seen = seen or query[j] == item
        if not seen:
            query[found] = item
            ages[found] = age
            found += 1
    return found


@njit(cache=True, nogil=True)
def _match(found: int, index: Index, scratch: Scratch) -> int:
    """Add up the overlap of every session that shares an item with the query; how many sessions there are."""
    count = 0
    for j in range(found):
        item = scratch.query[j]
        decay = np.exp(-index.settings[QUERY_DECAY] * scratch.ages[j])
        weight = max(np.float32(decay) * index.item_weights[item], _TINY)
        for p in range(index.posting_offsets[item], index.posting_offsets[item + 1]):
            session = index.posting_sessions[p]
            if scratch.overlap[session] == 0.0:
                scratch.touched[count] = session
                count += 1
                # The newest shared item comes first: what followed it in that session is what may come next here.
                scratch.places[session] = index.posting_places[p]
            scratch.overlap[session] += weight
    return count


@njit(cache=True, nogil=True)
def _vote(near: int, index: Index, scratch: Scratch) -> int:
    """Let the nearest sessions add their items to the item scores; how many items were touched."""
    count = 0
    for v in range(near):
        session = scratch.voters[v]
        start = index.session_offsets[session]
        shared = start + scratch.places[session]
        for p in range(start, index.session_offsets[session + 1]):
            item = index.session_items[p]
            distance = p - shared
            weight = np.exp(-index.settings[PLACE_DECAY] * max(abs(distance) - 1, 0))
            if distance <= 0:
                weight *= index.settings[BEHIND]
            if scratch.item_scores[item] == 0.0:
                scratch.touched[count] = item
                count += 1
            scratch.item_scores[item] += max(np.float32(weight) * scratch.votes[v] * index.item_weights[item], _TINY)
    return count


@njit(cache=True, nogil=True)
def _fill(items: Ints, scores: Floats, size: int, popularity: Floats, excluded: int) -> None:
    """Fill what is left of one answer with the most popular items that it does not hold yet."""
    lowest = scores[size - 1] if size else np.float32(1.0)
    for item in range(len(popularity)):
        if size == len(items):
            return
        taken = item == excluded
        for j in range(size):
            taken = taken or items[j] == item
        if not taken:
            items[size] = item
            scores[size] = lowest * popularity[item]
            size += 1


@njit(cache=True, nogil=True)
def recommend(hashes: Hashes, counts: Longs, items: Ints, scores: Floats, index: Index, scratch: Scratch) -> None:
    """Answer each query ``hashes[i, :counts[i]]`` (oldest first) in ``items[i]`` and ``scores[i]``, best first."""
    for i in range(len(hashes)):
        found = _known_items(hashes[i, : counts[i]], index, scratch.query, scratch.ages)
        excluded = -1
        if index.settings[EXCLUDE_CURRENT] and found and scratch.ages[0] == 0 and len(index.popularity) > 1:
            excluded = scratch.query[0]
        near = 0
        for t in range(_match(found, index, scratch)):
            session = scratch.touched[t]
            vote = scratch.overlap[session] * index.session_weights[session]
            near = _offer(scratch.votes, scratch.voters, near, vote, session)
            scratch.overlap[session] = 0.0
        size = 0
        for t in range(_vote(near, index, scratch)):
            item = scratch.touched[t]
            if item != excluded:
                size = _offer(scores[i], items[i], size, scratch.item_scores[item], item)
            scratch.item_scores[item] = 0.0
        _best_first(scores[i], items[i], size)
        _fill(items[i], scores[i], size, index.popularity, excluded)
