"""What fills a list up that its candidates leave short: the viewed item's category, what is popular, everything else.

In: lists, queries, the columns of :mod:`features.shelf`. Out: the lists, longer, each item through the gate
(:mod:`features.list_gate`). Compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from features.lever_columns import Bytes
from features.levers import NO_CAP
from features.list_gate import Asked, Filled, Found, Rules, admit, category_of, in_catalogue, shown, slot_of
from features.list_reasons import NEW_IN, OFFERED, POPULAR, POPULAR_IN
from features.shelf import View
from features.sources import Longs
from features.toplist import Floats, Ints
from features.uncounted import counting_nothing


class Pool(NamedTuple):
    """The first items of the last resort that some query of a cycle may show.

    ``places`` int32[p]. ``counts`` int64[2]: how many are there, and 1 where no other could stand in any list.
    ``categories`` uint8[g + 1] and ``sellers`` uint8[h + 1] say which of them have such an item, and last whether an
    item has none.
    """

    places: Ints
    counts: Longs
    categories: Bytes
    sellers: Bytes


@counting_nothing
def from_category(i: int, size: int, asked: Asked, rules: Rules, view: View, popularity: Floats, filled: Filled) -> int:
    """What is popular and what is new in the category of an item that the model does not know."""
    viewed, limit = asked.viewed[i], filled.places.shape[1]
    if viewed < len(view.slots):
        return size
    category = category_of(viewed, view)
    if category < 0 or category + 1 >= len(view.popular_bounds):
        return size
    for at in range(view.popular_bounds[category], view.popular_bounds[category + 1]):
        if size == limit:
            return size
        place = view.popular[at]
        size = admit(i, place, float(popularity[place]), POPULAR_IN, size, asked, rules, view, filled)
    score = float(filled.scores[i, size - 1]) if size else 1.0
    for at in range(view.new_bounds[category], view.new_bounds[category + 1]):
        if size == limit:
            return size
        if in_catalogue(len(view.slots) + view.new[at], view):
            reason = NEW_IN if len(view.slots) else OFFERED
            size = admit(i, len(view.slots) + view.new[at], score, reason, size, asked, rules, view,
                          filled)  # fmt: skip
    return size


@counting_nothing
def _order(at: int, view: View) -> int:
    """Everything there is in the order of the last resort: by popularity, then what the model does not know."""
    items = len(view.slots)
    return at if at < items else items + view.others[at - items]


@counting_nothing
def _all_full(present: Bytes, caps: Ints, groups: Ints, size: int, row: Ints, view: View) -> bool:
    """Whether every category, or seller, that has an item to show is in the list as often as it may."""
    if present[len(caps)]:
        return False
    for group in range(len(caps)):
        if present[group]:
            held = 0
            for t in range(size):
                slot = slot_of(row[t], view)
                held += slot >= 0 and groups[slot] == group
            if held < caps[group]:
                return False
    return True


@counting_nothing
def _is_full(size: int, row: Ints, pool: Pool, rules: Rules, view: View) -> bool:
    """Whether caps keep everything else out of a list."""
    if rules.plain:
        return False
    return _all_full(pool.categories, view.category_caps, view.category, size, row, view) or _all_full(
        pool.sellers, view.seller_caps, view.seller, size, row, view
    )


@counting_nothing
def _admit_popular(i: int, size: int, place: int, lowest: Any, weight: Any, asked: Asked, rules: Rules, view: View,
                   popularity: Floats, filled: Filled) -> int:  # fmt: skip
    """Add an item of the last resort, below what is in the list; the new size."""
    items = len(view.slots)
    if not in_catalogue(place, view):
        return size
    reason = POPULAR if place < items else NEW_IN if items and category_of(place, view) >= 0 else OFFERED
    own = popularity[min(place, items - 1)] if items else np.float32(1.0)
    score = float(lowest * min(weight, own))
    if size:
        score = min(score, float(filled.scores[i, size - 1]))
    return admit(i, place, score, reason, size, asked, rules, view, filled)


@counting_nothing
def fill(i: int, size: int, pool: Pool, found: Found, asked: Asked, rules: Rules, view: View, popularity: Floats,
         filled: Filled) -> int:  # fmt: skip
    """Fill one list: with what is popular now, with what is shown to somebody in this cycle, then with everything."""
    limit, row = filled.places.shape[1], filled.places[i]
    lowest, weight = filled.scores[i, size - 1] if size else np.float32(1.0), np.float32(1.0)
    for at in range(len(found.popular)):
        if size == limit:
            return size
        weight = found.weights[at]
        size = admit(i, found.popular[at], float(lowest * weight), POPULAR, size, asked, rules, view, filled)
    for at in range(pool.counts[0]):
        if size == limit:
            return size
        size = _admit_popular(i, size, pool.places[at], lowest, weight, asked, rules, view, popularity, filled)
    if size == limit or pool.counts[1] or _is_full(size, row, pool, rules, view):
        return size
    for at in range(len(view.slots) + len(view.others)):
        before = size
        size = _admit_popular(i, size, _order(at, view), lowest, weight, asked, rules, view, popularity, filled)
        if size == limit or (size > before and _is_full(size, row, pool, rules, view)):
            break
    return size


@njit(cache=True, nogil=True)
def fill_pool(pool: Pool, asked: Asked, rules: Rules, view: View) -> None:
    """Find the items of a pool.

    Of what a cap bounds it takes so many that enough are left for any list, whatever was bought or is viewed there.
    Where both a cap by category and one by seller bound something, the pool may lack what fits into both.
    """
    earliest, latest, bounds = asked.times.min(), asked.times.max(), asked.bought_bounds
    spare = 1 + (bounds[1:] - bounds[:-1]).max()
    taken = np.zeros(len(view.category_caps), np.int64), np.zeros(len(view.seller_caps), np.int64)
    left_out, whole = np.zeros(2, np.bool_), True
    caps = (view.category_caps < NO_CAP).any(), (view.seller_caps < NO_CAP).any()
    pool.counts[:] = 0
    for at in range(len(view.slots) + len(view.others)):
        place = _order(at, view)
        slot = slot_of(place, view)
        begins = min(max(view.from_ms[slot], earliest), latest) if slot >= 0 else earliest
        if not (in_catalogue(place, view) and shown(place, begins, rules.open, view)):
            continue
        category, seller = (view.category[slot], view.seller[slot]) if slot >= 0 else (-1, -1)
        pool.categories[category] = pool.sellers[seller] = 1  # the last where there is none
        if not rules.plain:
            if category >= 0 and taken[0][category] >= view.category_caps[category] + spare:
                left_out[0] = True
                continue
            if seller >= 0 and taken[1][seller] >= view.seller_caps[seller] + spare:
                left_out[1] = True
                continue
        if pool.counts[0] == len(pool.places):
            whole = False
            if rules.plain or not (caps[0] or caps[1]):
                break
            continue
        pool.places[pool.counts[0]] = place
        pool.counts[0] += 1
        if shown(place, earliest, rules.open, view) and shown(place, latest, rules.open, view):
            if category >= 0:
                taken[0][category] += 1
            if seller >= 0:
                taken[1][seller] += 1
    pool.counts[1] = whole and not (left_out[0] and caps[1]) and not (left_out[1] and caps[0])
