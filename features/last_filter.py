"""The last step before an answer: what must not be shown goes, levers act, gaps are filled, reasons are given.

In: candidates of each query, best first; the columns of :mod:`features.shelf`. Out: lists of items, written in place.
Compiled. Every list passes here, whatever made its candidates, and nothing is added after it; what is in it came
through the gate (:mod:`features.list_gate`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from features.filling import Pool, fill, fill_pool, from_category
from features.list_gate import Asked, Filled, Found, Rules, admit, category_of, in_catalogue, shown, slot_of
from features.list_reasons import BOOSTED, DEMOTED, FRESH, IN_SESSION, NEW_IN, VIEWED_AFTER, VIEWED_LIVE
from features.shelf import View
from features.sources import (
    LINEAR_DECAY,
    TRANSITION_DECAY,
    Doubles,
    Index,
    Scratch,
    known_items,
)
from features.toplist import Ints
from features.uncounted import counting_nothing

_ADDED = 64  # places beside the candidates while a list is made


@counting_nothing
def _weigh(place: int, score: float, reason: int, time: int, rules: Rules, view: View) -> tuple[float, int]:
    """Score and reason after the levers."""
    slot = slot_of(place, view)
    if slot < 0:
        return score, reason
    if rules.fresh_ms > 0 and 0 <= time - view.from_ms[slot] <= rules.fresh_ms:
        score, reason = score * rules.fresh_factor, FRESH
    category = view.category[slot]
    if category >= 0 and view.factors[category] != np.float32(1.0):
        factor = view.factors[category]
        score, reason = score * factor, BOOSTED if factor > 1.0 else DEMOTED
    return score, reason


@counting_nothing
def _add_new(i: int, count: int, places: Ints, scores: Doubles, reasons: Ints, asked: Asked, rules: Rules, view: View
             ) -> int:  # fmt: skip
    """Let items that nobody has clicked compete as an average candidate of the category that the candidates favour.

    What the session leads to tells the category: it is what is viewed with what the session viewed. Sessions begin at
    different items of the newest, so that not all of them show the same one. Without a model none is new.
    """
    if count == 0 or len(view.new) == 0 or len(view.slots) == 0:
        return count
    best, best_mass, mean = -1, 0.0, 0.0
    for t in range(count):
        category, mass, own = category_of(places[t], view), 0.0, 0
        if category < 0 or category == best or category + 1 >= len(view.new_bounds):
            continue  # nothing new in it, or it came after the orders were made
        if view.new_bounds[category] == view.new_bounds[category + 1]:
            continue
        for other in range(count):
            if category_of(places[other], view) == category:
                mass += scores[other]
                own += 1
        if mass > best_mass:
            best, best_mass, mean = category, mass, mass / own
    if best < 0:
        return count
    start, end = view.new_bounds[best], view.new_bounds[best + 1]
    last = asked.hashes[i, asked.counts[i] - 1] if asked.counts[i] > 0 else np.uint64(0)
    first = np.int64((last >> np.uint64(8)) % np.uint64(min(end - start, 8)))
    added = 0
    for t in range(min(end - start, _ADDED)):
        at = start + (first + t) % min(end - start, _ADDED)
        place = len(view.slots) + view.new[at]
        if added == rules.new_max:
            break
        if in_catalogue(place, view) and shown(place, asked.times[i], rules.open, view):
            places[count], scores[count], reasons[count] = place, mean, NEW_IN
            count += 1
            added += 1
    return count


@counting_nothing
def _in_their_order(i: int, found: Found, asked: Asked, rules: Rules, view: View, filled: Filled) -> int:
    size, limit = 0, filled.places.shape[1]
    for t in range(found.sizes[i]):
        if size == limit:
            break
        size = admit(i, found.items[i, t], found.scores[i, t], found.reasons[i, t], size, asked, rules, view, filled)
    return size


@njit(cache=True, nogil=True)
def _from_candidates(i: int, found: Found, places: Ints, scores: Doubles, reasons: Ints, asked: Asked, rules: Rules,
                     view: View, filled: Filled) -> int:  # fmt: skip
    if rules.plain:
        return _in_their_order(i, found, asked, rules, view, filled)
    size, limit = 0, filled.places.shape[1]
    count = int(found.sizes[i])
    for t in range(count):
        places[t], scores[t], reasons[t] = found.items[i, t], found.scores[i, t], found.reasons[i, t]
    count = _add_new(i, count, places, scores, reasons, asked, rules, view)
    for t in range(count):
        scores[t], reasons[t] = _weigh(places[t], scores[t], reasons[t], asked.times[i], rules, view)
    order = np.argsort(-scores[:count], kind="mergesort")
    for t in range(count):
        if size == limit:
            break
        at = order[t]
        size = admit(i, places[at], scores[at], reasons[at], size, asked, rules, view, filled)
    return size


@njit(cache=True, nogil=True)
def _explain(i: int, size: int, index: Index, scratch: Scratch, found: int, viewed: int, view: View, filled: Filled
             ) -> None:  # fmt: skip
    """Which item of the session speaks most for each item that was viewed after it; live clicks speak of ``viewed``."""
    row, reasons, because, slots = filled.places[i], filled.reasons[i], filled.because[i], scratch.slots
    items = len(view.slots)
    for t in range(size):
        if reasons[t] == VIEWED_LIVE and 0 <= viewed < items:
            because[t] = viewed
    if found == 0:
        return
    weights = np.zeros(size, np.float32)
    for t in range(size):
        if row[t] < items:
            slots[row[t]] = t
            if reasons[t] == VIEWED_AFTER:
                because[t] = scratch.query[0]
    for j in range(found):
        item = scratch.query[j]
        if slots[item] >= 0 and reasons[slots[item]] == VIEWED_AFTER:
            reasons[slots[item]] = IN_SESSION
            because[slots[item]] = item
        for source in range(2):
            offsets = index.linear_offsets if source == 0 else index.transition_offsets
            others = index.linear_items if source == 0 else index.transition_items
            shares = index.linear_weights if source == 0 else index.transition_weights
            decay = index.settings[LINEAR_DECAY if source == 0 else TRANSITION_DECAY]
            factor = np.float32(np.exp(-decay * scratch.ages[j]))
            for p in range(offsets[item], offsets[item + 1]):
                t = slots[others[p]]
                if t >= 0 and reasons[t] == VIEWED_AFTER and factor * shares[p] > weights[t]:
                    weights[t] = factor * shares[p]
                    because[t] = item
    for t in range(size):
        if row[t] < items:
            slots[row[t]] = -1


@njit(cache=True, nogil=True)
def fill_lists(asked: Asked, found: Found, rules: Rules, view: View, index: Index, scratch: Scratch, pool: Ints,
               filled: Filled) -> None:  # fmt: skip
    """Make the list of every query."""
    width = found.items.shape[1] + _ADDED
    places, scores, reasons = np.empty(width, np.int32), np.empty(width, np.float64), np.empty(width, np.int32)
    limit, pooled = filled.places.shape[1], False
    last = Pool(pool, np.zeros(2, np.int64), np.zeros(len(view.category_caps) + 1, np.uint8),
                np.zeros(len(view.seller_caps) + 1, np.uint8))  # fmt: skip
    for i in range(len(asked.counts)):
        known = known_items(asked.hashes[i, : asked.counts[i]], index, scratch)[1]
        size = _from_candidates(i, found, places, scores, reasons, asked, rules, view, filled)
        if size < limit:
            if known == 0:
                size = from_category(i, size, asked, rules, view, index.popularity, filled)
            if size < limit:
                if not pooled:
                    fill_pool(last, asked, rules, view)
                    pooled = True
                size = fill(i, size, last, found, asked, rules, view, index.popularity, filled)
        _explain(i, size, index, scratch, known, asked.viewed[i], view, filled)
