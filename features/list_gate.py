"""The gate of every list: what may stand in one, and the only way into it. Compiled.

In: an item, a query, the columns of :mod:`features.shelf`. Out: the list one item longer, or as it was.

A *place* is the number of an item of the model, n + slot of an item that the model does not know, or beyond all slots
one of which nothing is known but that it is clicked.
"""

from __future__ import annotations

from typing import NamedTuple

from features.shelf import HIDDEN, LISTED, SOLD_OUT, WITHHELD, View
from features.sources import Hashes, Longs
from features.toplist import Floats, Ints
from features.uncounted import counting_nothing

LEFT_OUT = 4  # items told for each list that a cap kept out


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
def slot_of(place: int, view: View) -> int:
    """The slot of an item, or -1."""
    items = len(view.slots)
    if place < items:
        return int(view.slots[place])
    return place - items if place - items < len(view.state) else -1


@counting_nothing
def in_catalogue(place: int, view: View) -> bool:
    """Whether an item may be offered without anybody having clicked it: it has a record, or the model knows it."""
    return bool(place < len(view.slots) or view.state[place - len(view.slots)] & LISTED)


@counting_nothing
def shown(place: int, time: int, open_: bool, view: View) -> bool:
    """Whether an item may be in a list after a click at ``time``, as far as no query of its own forbids it."""
    slot = slot_of(place, view)
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
def category_of(place: int, view: View) -> int:
    """The category of an item, or -1."""
    slot = slot_of(place, view)
    return view.category[slot] if slot >= 0 else -1


@counting_nothing
def _capped(place: int, size: int, row: Ints, view: View) -> bool:
    """Whether the list holds as many of the item's category or seller as it may."""
    slot = slot_of(place, view)
    if slot < 0:
        return False
    category, seller = view.category[slot], view.seller[slot]
    of_category, of_seller = 0, 0
    for t in range(size):
        other = slot_of(row[t], view)
        if other >= 0:
            of_category += category >= 0 and view.category[other] == category
            of_seller += seller >= 0 and view.seller[other] == seller
    if category >= 0 and of_category >= view.category_caps[category]:
        return True
    return bool(seller >= 0 and of_seller >= view.seller_caps[seller])


@counting_nothing
def admit(i: int, place: int, score: float, reason: int, size: int, asked: Asked, rules: Rules, view: View,
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
