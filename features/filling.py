"""What fills a list up that its candidates leave short: the viewed item's category, what is popular, everything else.

In: lists, queries, the columns of :mod:`features.shelf`. Out: the lists, longer, each item through the gate
(:mod:`features.list_gate`). Compiled.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from features.list_gate import Asked, Filled, Found, Rules, admit, category_of, in_catalogue, shown, slot_of
from features.list_reasons import NEW_IN, OFFERED, POPULAR, POPULAR_IN
from features.shelf import View
from features.toplist import Floats, Ints
from features.uncounted import counting_nothing


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
def fill(i: int, size: int, pool: Ints, pooled: int, found: Found, asked: Asked, rules: Rules, view: View,
          popularity: Floats, filled: Filled) -> int:  # fmt: skip
    """Fill one list: with what is popular now, with what is shown to somebody in this cycle, then with everything."""
    items, limit = len(view.slots), filled.places.shape[1]
    lowest, weight = filled.scores[i, size - 1] if size else np.float32(1.0), np.float32(1.0)
    for at in range(len(found.popular)):
        if size == limit:
            return size
        weight = found.weights[at]
        size = admit(i, found.popular[at], float(lowest * weight), POPULAR, size, asked, rules, view, filled)
    for step in range(2):
        for at in range(pooled if step == 0 else items + len(view.others)):
            if size == limit:
                return size
            place = pool[at] if step == 0 else _order(at, view)
            if not in_catalogue(place, view):
                continue
            reason = POPULAR if place < items else NEW_IN if items and category_of(place, view) >= 0 else OFFERED
            own = popularity[min(place, items - 1)] if items else np.float32(1.0)
            score = float(lowest * min(weight, own))
            if size:
                score = min(score, float(filled.scores[i, size - 1]))
            size = admit(i, place, score, reason, size, asked, rules, view, filled)
        if pooled < len(pool) or (size and not rules.plain):
            break  # the pool holds everything that there is, or more than enough where only caps keep it out
    return size


@njit(cache=True, nogil=True)
def pool_of(pool: Ints, asked: Asked, rules: Rules, view: View) -> int:
    """The first items of the last resort that some query of this cycle may show; how many, at most ``len(pool)``."""
    earliest, latest, pooled = asked.times.min(), asked.times.max(), 0
    for at in range(len(view.slots) + len(view.others)):
        if pooled == len(pool):
            break
        place = _order(at, view)
        slot = slot_of(place, view)
        begins = min(max(view.from_ms[slot], earliest), latest) if slot >= 0 else earliest
        if in_catalogue(place, view) and shown(place, begins, rules.open, view):
            pool[pooled] = place
            pooled += 1
    return pooled
