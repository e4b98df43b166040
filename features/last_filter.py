"""The last step before an answer: what must not be shown goes, levers act, gaps are filled, reasons are given.

In: candidates of each query, best first; the columns of :mod:`features.shelf`. Out: lists of items, written in place.
Compiled. Every list passes here, whatever made its candidates, and nothing is added after it.

A *place* is the number of an item of the model, n + slot of an item that the model does not know, or beyond all slots
one of which nothing is known but that it is clicked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from features.shelf import HIDDEN, LISTED, SOLD_OUT, WITHHELD, View
from features.sources import (
    LINEAR_DECAY,
    TRANSITION_DECAY,
    Doubles,
    Hashes,
    Index,
    Longs,
    Scratch,
    known_items,
)
from features.toplist import Floats, Ints
from features.uncounted import counting_nothing

(VIEWED_AFTER, IN_SESSION, POPULAR, POPULAR_IN, NEW_IN, BOOSTED, DEMOTED, FRESH, OFFERED) = range(9)
LEFT_OUT = 4  # items told for each list that a cap kept out
_ADDED = 64  # places beside the candidates while a list is made
_NO_ITEM = -1


class Asked(NamedTuple):
    """m queries: ``hashes`` uint64[m, L] and ``counts`` int64[m] as the recommender takes them, ``times`` int64[m] of
    the clicks, ``viewed`` int32[m] the place of the item now viewed or -1, and ``bought`` int32 places that must not
    be shown, those of query i from ``bought_bounds[i]`` on.
    """

    hashes: Hashes
    counts: Longs
    times: Longs
    viewed: Ints
    bought: Ints
    bought_bounds: Longs


class Rules(NamedTuple):
    """What holds for all lists: ``open`` shows items without a record, ``hide_viewed`` never the item now viewed;
    the rest is of :class:`features.levers.Levers`. ``plain``: no lever acts and no item is new.
    """

    open: bool
    hide_viewed: bool
    plain: bool
    fresh_ms: int
    fresh_factor: float
    new_max: int


class Found(NamedTuple):
    """Candidates: ``items`` int32[m, c] best first and ``scores`` float32[m, c], ``sizes`` int32[m] of them, and why
    they are there, ``reasons`` int32[m, c]. ``popular`` int32[p] and ``weights`` float32[p] (descending from at most 1)
    are places to fill up with before the model's items in their order.
    """

    items: Ints
    scores: Floats
    sizes: Ints
    reasons: Ints
    popular: Ints
    weights: Floats


class Filled(NamedTuple):
    """Lists, written: ``places`` int32[m, k] or -1, ``scores`` float32[m, k], ``reasons`` int8[m, k], ``because``
    int32[m, k] the item of the session that a reason stands on or -1, ``left_out`` int32[m, LEFT_OUT] or -1.
    """

    places: Ints
    scores: Floats
    reasons: Ints
    because: Ints
    left_out: Ints


@counting_nothing
def _slot(place: int, view: View) -> int:
    """The slot of an item, or -1."""
    items = len(view.slots)
    if place < items:
        return int(view.slots[place])
    return place - items if place - items < len(view.state) else -1


@counting_nothing
def _in_catalogue(place: int, view: View) -> bool:
    """Whether an item may be offered without anybody having clicked it: it has a record, or the model knows it."""
    return bool(place < len(view.slots) or view.state[place - len(view.slots)] & LISTED)


@counting_nothing
def shown(place: int, time: int, open_: bool, view: View) -> bool:
    """Whether an item may be in a list after a click at ``time``, as far as no query of its own forbids it."""
    slot = _slot(place, view)
    if slot < 0:
        return open_
    state = view.state[slot]
    if state & (HIDDEN | SOLD_OUT | WITHHELD) or view.barred[slot]:
        return False
    if not state & LISTED:
        return open_
    if time < view.from_ms[slot] or time >= view.until_ms[slot]:
        return False
    category, seller = view.category[slot], view.seller[slot]
    if category >= 0 and view.barred_categories[category]:
        return False
    return bool(seller < 0 or view.barred_sellers[seller] == 0)


@counting_nothing
def _category(place: int, view: View) -> int:
    slot = _slot(place, view)
    return view.category[slot] if slot >= 0 else -1


@counting_nothing
def _capped(place: int, size: int, row: Ints, view: View) -> bool:
    """Whether the list holds as many of the item's category or seller as it may."""
    slot = _slot(place, view)
    if slot < 0:
        return False
    category, seller = view.category[slot], view.seller[slot]
    of_category, of_seller = 0, 0
    for t in range(size):
        other = _slot(row[t], view)
        if other >= 0:
            of_category += category >= 0 and view.category[other] == category
            of_seller += seller >= 0 and view.seller[other] == seller
    if category >= 0 and of_category >= view.category_caps[category]:
        return True
    return bool(seller >= 0 and of_seller >= view.seller_caps[seller])


@counting_nothing
def _offer(i: int, place: int, score: float, reason: int, size: int, asked: Asked, rules: Rules, view: View,
           filled: Filled) -> int:  # fmt: skip
    """Add an item to list i if it may be shown there; the new size. This is the only way into a list."""
    if not shown(place, asked.times[i], rules.open, view):
        return size
    if rules.hide_viewed and place == asked.viewed[i]:
        return size
    row = filled.places[i]
    for t in range(size):
        if row[t] == place:
            return size
    for b in range(asked.bought_bounds[i], asked.bought_bounds[i + 1]):
        if asked.bought[b] == place:
            return size
    if not rules.plain and _capped(place, size, row, view):
        left = filled.left_out[i]
        for t in range(LEFT_OUT):
            if left[t] == place:
                break
            if left[t] < 0:
                left[t] = place
                break
        return size
    row[size] = place
    filled.scores[i, size] = score
    filled.reasons[i, size] = reason
    return size + 1


@counting_nothing
def _weigh(place: int, score: float, reason: int, time: int, rules: Rules, view: View) -> tuple[float, int]:
    """Score and reason after the levers."""
    slot = _slot(place, view)
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
        category, mass, own = _category(places[t], view), 0.0, 0
        if category < 0 or category == best or category + 1 >= len(view.new_bounds):
            continue  # nothing new in it, or it came after the orders were made
        if view.new_bounds[category] == view.new_bounds[category + 1]:
            continue
        for other in range(count):
            if _category(places[other], view) == category:
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
        if _in_catalogue(place, view) and shown(place, asked.times[i], rules.open, view):
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
        size = _offer(i, found.items[i, t], found.scores[i, t], found.reasons[i, t], size, asked, rules, view, filled)
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
        size = _offer(i, places[at], scores[at], reasons[at], size, asked, rules, view, filled)
    return size


@counting_nothing
def _from_category(
    i: int, size: int, asked: Asked, rules: Rules, view: View, popularity: Floats, filled: Filled
) -> int:
    """What is popular and what is new in the category of an item that the model does not know."""
    viewed, limit = asked.viewed[i], filled.places.shape[1]
    if viewed < len(view.slots):
        return size
    category = _category(viewed, view)
    if category < 0 or category + 1 >= len(view.popular_bounds):
        return size
    for at in range(view.popular_bounds[category], view.popular_bounds[category + 1]):
        if size == limit:
            return size
        place = view.popular[at]
        size = _offer(i, place, float(popularity[place]), POPULAR_IN, size, asked, rules, view, filled)
    score = float(filled.scores[i, size - 1]) if size else 1.0
    for at in range(view.new_bounds[category], view.new_bounds[category + 1]):
        if size == limit:
            return size
        if _in_catalogue(len(view.slots) + view.new[at], view):
            reason = NEW_IN if len(view.slots) else OFFERED
            size = _offer(i, len(view.slots) + view.new[at], score, reason, size, asked, rules, view,
                          filled)  # fmt: skip
    return size


@counting_nothing
def _order(at: int, view: View) -> int:
    """Everything there is in the order of the last resort: by popularity, then what the model does not know."""
    items = len(view.slots)
    return at if at < items else items + view.others[at - items]


@counting_nothing
def _fill(i: int, size: int, pool: Ints, pooled: int, found: Found, asked: Asked, rules: Rules, view: View,
          popularity: Floats, filled: Filled) -> int:  # fmt: skip
    """Fill one list: with what is popular now, with what is shown to somebody in this cycle, then with everything."""
    items, limit = len(view.slots), filled.places.shape[1]
    lowest, weight = filled.scores[i, size - 1] if size else np.float32(1.0), np.float32(1.0)
    for at in range(len(found.popular)):
        if size == limit:
            return size
        weight = found.weights[at]
        size = _offer(i, found.popular[at], float(lowest * weight), POPULAR, size, asked, rules, view, filled)
    for step in range(2):
        for at in range(pooled if step == 0 else items + len(view.others)):
            if size == limit:
                return size
            place = pool[at] if step == 0 else _order(at, view)
            if not _in_catalogue(place, view):
                continue
            reason = POPULAR if place < items else NEW_IN if items and _category(place, view) >= 0 else OFFERED
            own = popularity[min(place, items - 1)] if items else np.float32(1.0)
            score = float(lowest * min(weight, own))
            if size:
                score = min(score, float(filled.scores[i, size - 1]))
            size = _offer(i, place, score, reason, size, asked, rules, view, filled)
        if pooled < len(pool) or (size and not rules.plain):
            break  # the pool holds everything that there is, or more than enough where only caps keep it out
    return size


@njit(cache=True, nogil=True)
def _pool(pool: Ints, asked: Asked, rules: Rules, view: View) -> int:
    """The first items of the last resort that some query of this cycle may show; how many, at most ``len(pool)``."""
    earliest, latest, pooled = asked.times.min(), asked.times.max(), 0
    for at in range(len(view.slots) + len(view.others)):
        if pooled == len(pool):
            break
        place = _order(at, view)
        slot = _slot(place, view)
        begins = min(max(view.from_ms[slot], earliest), latest) if slot >= 0 else earliest
        if _in_catalogue(place, view) and shown(place, begins, rules.open, view):
            pool[pooled] = place
            pooled += 1
    return pooled


@njit(cache=True, nogil=True)
def _explain(i: int, size: int, index: Index, scratch: Scratch, found: int, slots: Ints, view: View, filled: Filled
             ) -> None:  # fmt: skip
    """Which item of the session speaks most for each item that was viewed after it."""
    row, reasons, because = filled.places[i], filled.reasons[i], filled.because[i]
    items = len(view.slots)
    for t in range(size):
        if row[t] >= items and reasons[t] == VIEWED_AFTER:
            reasons[t] = POPULAR
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
    limit, pooled = filled.places.shape[1], -1
    for i in range(len(asked.counts)):
        known = known_items(asked.hashes[i, : asked.counts[i]], index, scratch)[1]
        size = _from_candidates(i, found, places, scores, reasons, asked, rules, view, filled)
        if size < limit:
            if known == 0:
                size = _from_category(i, size, asked, rules, view, index.popularity, filled)
            if size < limit:
                if pooled < 0:
                    pooled = _pool(pool, asked, rules, view)
                size = _fill(i, size, pool, pooled, found, asked, rules, view, index.popularity, filled)
        _explain(i, size, index, scratch, known, scratch.slots, view, filled)
