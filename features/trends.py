"""What clicks say since the model was fitted: which items are wanted now, and what is viewed after what. Compiled.

In: clicks as hashes, with the weight that their time gives them. Out: counts in tables of a fixed size, and lists of
candidates that these counts have been blended into. Pure; :mod:`stream.trending` drives it.

Every count decays by event time with one half-life. A new click is given a weight that grows as old ones would fall
(forward decay, Cormode et al., ICDE 2009), so nothing has to be touched as time passes. A visitor (user, else session)
counts an item once, and a step from one item to another once, as long as the table of what was seen remembers it.

An item has one of eight places by its hash; a ninth takes the place of the least wanted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.list_reasons import POPULAR, TRENDING, VIEWED_LIVE
from features.sources import Hashes, Longs
from features.toplist import Floats, Ints

ITEMS, SEEN, FOLLOWERS, WAYS = 1 << 14, 1 << 17, 16, 8
Doubles = NDArray[np.float64]


class Counts(NamedTuple):
    """By slot of an item: ``items`` its hash (0: free), ``weight`` of its visitors, ``steps`` from it to others, and of
    the followers their hashes ``after`` [slots, 16] and ``after_weight``. ``total`` [1] is the weight of all visitors.
    ``seen`` are hashes of a visitor with an item or a step, the newest first of each eight.
    """

    items: Hashes
    weight: Doubles
    steps: Doubles
    after: Hashes
    after_weight: Doubles
    total: Doubles
    seen: Hashes

    @classmethod
    def empty(cls) -> Counts:
        """Nothing counted."""
        return cls(np.zeros(ITEMS, np.uint64), np.zeros(ITEMS), np.zeros(ITEMS),
                   np.zeros((ITEMS, FOLLOWERS), np.uint64), np.zeros((ITEMS, FOLLOWERS)), np.zeros(1),
                   np.zeros(SEEN, np.uint64))  # fmt: skip


@njit(cache=True, nogil=True)
def _mix(a: Any, b: Any) -> Any:
    """Two hashes as one (the finalizer of splitmix64)."""
    z = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def _is_new(key: Any, seen: Hashes) -> bool:
    """Whether a key was not seen; it comes to the front of its eight, and the last of them goes."""
    begin = np.int64(np.uint64(key) % np.uint64(len(seen) // WAYS)) * WAYS
    at = 0
    while at < WAYS - 1 and seen[begin + at] != key:
        at += 1
    new = bool(seen[begin + at] != key)
    for j in range(at, 0, -1):
        seen[begin + j] = seen[begin + j - 1]
    seen[begin] = key
    return new


@njit(cache=True, nogil=True)
def slot_of(item: int, items: Hashes) -> int:
    """Where an item is counted; -1 if nowhere."""
    begin = np.int64(np.uint64(item) % np.uint64(len(items) // WAYS)) * WAYS
    for at in range(begin, begin + WAYS):
        if items[at] == item:
            return at
    return -1


@njit(cache=True, nogil=True)
def _claim(item: int, counts: Counts) -> int:
    """The slot of an item, which takes that of the least wanted where there is none."""
    items, weight, steps = counts.items, counts.weight, counts.steps
    slot = slot_of(item, items)
    if slot >= 0:
        return slot
    begin = np.int64(np.uint64(item) % np.uint64(len(items) // WAYS)) * WAYS
    slot = int(begin)
    for at in range(begin, begin + WAYS):
        if weight[at] + steps[at] < weight[slot] + steps[slot]:
            slot = at
    items[slot], weight[slot], steps[slot] = item, 0.0, 0.0
    counts.after[slot, :] = 0
    counts.after_weight[slot, :] = 0.0
    return slot


@njit(cache=True, nogil=True)
def _follow(slot: int, item: int, weight: float, counts: Counts) -> None:
    after, after_weight, least = counts.after[slot], counts.after_weight[slot], 0
    counts.steps[slot] += weight
    for j in range(FOLLOWERS):
        if after[j] == item:
            after_weight[j] += weight
            return
        if after_weight[j] < after_weight[least]:
            least = j
    after[least], after_weight[least] = item, weight


@njit(cache=True, nogil=True)
def count_clicks(viewed: Hashes, before: Hashes, visitor: Hashes, weight: Doubles, counts: Counts, slots: Longs
                 ) -> None:  # fmt: skip
    """Count n clicks on ``viewed`` by ``visitor`` after ``before`` (0: none); those of weight 0 are left out.

    Writes the slot of each click's item, or -1 where it has not come to count.
    """
    for i in range(len(viewed)):
        slots[i] = -1
        if weight[i] <= 0.0:
            continue
        if _is_new(_mix(visitor[i], viewed[i]), counts.seen):
            slots[i] = _claim(viewed[i], counts)
            counts.weight[slots[i]] += weight[i]
            counts.total[0] += weight[i]
        step = before[i] != 0 and before[i] != viewed[i]
        if step and _is_new(_mix(_mix(visitor[i], before[i]), viewed[i]), counts.seen):
            _follow(_claim(before[i], counts), viewed[i], weight[i], counts)


@njit(cache=True, nogil=True)
def scale_down(factor: float, counts: Counts) -> None:
    """Multiply every weight, so that none overflows."""
    counts.weight[:] *= factor
    counts.steps[:] *= factor
    counts.total[:] *= factor
    counts.after_weight[:] *= factor


@njit(cache=True, nogil=True)
def _add(place: int, gain: float, reason: int, size: int, items: Ints, scores: Floats, reasons: Ints) -> int:
    """Add to the score of a place, which may be new to the list; the new size. The reason says more than popularity."""
    for t in range(size):
        if items[t] == place:
            scores[t] += gain
            if reasons[t] == POPULAR:
                reasons[t] = reason
            return size
    if size < len(items):
        items[size], scores[size], reasons[size] = place, gain, reason
        return size + 1
    least = size - 1
    for t in range(size):
        least = t if scores[t] < scores[least] else least
    if gain > scores[least]:
        items[least], scores[least], reasons[least] = place, gain, reason
    return size


@njit(cache=True, nogil=True)
def blend(viewed: Hashes, excluded: Ints, counts: Counts, places: Ints, now: float, prior: float, lifted: Ints,
          lifts: Floats, popular: Ints, shares: Floats, items: Ints, scores: Floats, sizes: Ints, reasons: Ints
          ) -> None:  # fmt: skip
    """Blend the counts into m lists of candidates, which stay in order.

    Parameters
    ----------
    viewed, excluded : uint64[m], int32[m]
        The item now viewed by hash, and the place that must not be added, or negative.
    places : int32[slots]
        The place of the item in each slot, or -1.
    now, prior : float
        What a weight is now worth in visitors, and the visitors that the model's own shares are worth.
    lifted, lifts : int32[l], float32[l]
        Places that are wanted more than the model knows, and what they gain in every list.
    popular, shares : int32[p], float32[p]
        What is wanted now, best first, for lists that hold nothing.
    items, scores, sizes : int32[m, c], float32[m, c], int32[m]
        The lists: places and shares, best first, ``sizes[i]`` of them.
    reasons : int32[m, c]
        Why each item is there, see :mod:`features.list_reasons`; those of what is new are written.
    """
    for i in range(len(viewed)):
        size, row, own, why = sizes[i], items[i], scores[i], reasons[i]
        if size == 0:
            for p in range(len(popular)):
                if size < len(row) and popular[p] != excluded[i]:
                    row[size], own[size], why[size] = popular[p], shares[p], POPULAR
                    size += 1
        else:
            slot = slot_of(viewed[i], counts.items)
            steps = counts.steps[slot] * now if slot >= 0 else 0.0
            if steps > 0.0:
                keep = np.float32(prior / (prior + steps))
                for t in range(size):
                    own[t] *= keep
                for j in range(FOLLOWERS):
                    follower = slot_of(counts.after[slot, j], counts.items) if counts.after[slot, j] != 0 else -1
                    if follower >= 0 and places[follower] >= 0 and places[follower] != excluded[i]:
                        gain = counts.after_weight[slot, j] * now / (prior + steps)
                        size = _add(places[follower], gain, VIEWED_LIVE, size, row, own, why)
            for p in range(len(lifted)):
                if lifted[p] != excluded[i]:
                    size = _add(lifted[p], lifts[p], TRENDING, size, row, own, why)
        order = np.argsort(-own[:size], kind="mergesort")
        row[:size], own[:size], why[:size] = row[:size][order], own[:size][order], why[:size][order]
        sizes[i] = size
