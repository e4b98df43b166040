"""Lists for a whole cycle: candidates, the last filter, and the messages' items with their reasons.

In: queries, the model in use, the shelf. Out: :class:`Lists`. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from features.candidates import fill_up
from features.last_filter import fill_lists
from features.list_gate import LEFT_OUT, Asked, Filled, Found, Rules
from features.list_reasons import NAMES, OF_CATEGORY, OF_ITEM, POPULAR, VIEWED_AFTER
from features.list_reasons import PLAIN as PLAIN_WORDS
from features.messages import LeftOut, RecommendationReason, RecommendedItem
from features.recommender import Recommender
from features.rungs import PLAIN, Asking, Rung
from features.same_lists import first_of_each
from features.shelf import Shelf
from features.sources import EXCLUDE_CURRENT, Hashes, Longs
from features.toplist import Floats, Ints

_POOL = 4096
_TEXTS_MAX = 200_000  # kept; a text is made in about a microsecond


@dataclass(frozen=True, slots=True)
class Clicked:
    """m clicks to answer: ``hashes`` uint64[m, L] and ``counts`` int64[m] of :meth:`Recommender.recommend_many`,
    ``times`` int64[m] in ms, ``viewed`` uint64[m] hashes of the clicked items, and ``bought`` item hashes by click
    that must not be shown (empty: none for any).
    """

    hashes: Hashes
    counts: Longs
    times: Longs
    viewed: Hashes
    bought: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Lists:
    """By click the items, best first, and what caps kept out of it.

    ``same`` int64[m]: where the lists were made once for all clicks that have the same, the number of each click's;
    clicks of one number share the objects.
    """

    items: list[list[RecommendedItem]]
    left_out: list[list[LeftOut] | msgspec.UnsetType]
    same: Longs | None = None


class Moving(Protocol):
    """What moves candidates between refits, see :mod:`stream.trending`; its places beyond n are slots of its own."""

    def blend(self, model: Recommender, viewed: Hashes, items: Ints, scores: Floats, sizes: Ints, reasons: Ints
              ) -> None: ...  # fmt: skip
    def hashes_of(self, slots: Longs) -> Hashes: ...
    def item_id(self, model: Recommender, place: int) -> str: ...


class Lister:
    """Makes lists that hold nothing that the shelf forbids.

    ``viewed`` says whether the item now viewed may stand in its own list: ``hide``, ``show``, or ``auto``: as training
    found it in the model's clicks. ``levers`` are those of this number on the shelf.
    """

    def __init__(self, shelf: Shelf, viewed: str = "auto", levers: int = 0) -> None:
        self.shelf = shelf
        self._viewed = viewed
        self._levers = levers
        self._strangers: dict[int, int] = {}  # places of this call by hash, of items that only trends know
        self._trends: Moving | None = None
        self._texts: dict[tuple[int, int], tuple[RecommendationReason, str | None, str]] = {}
        self._texts_of: tuple[object, int] = (None, -1)

    def lists(self, model: Recommender, clicked: Clicked, k: int, how: Asking = PLAIN, trends: Moving | None = None
              ) -> Lists:  # fmt: skip
        """The list after each click; ``trends`` move the candidates and ``how.popular`` are its places."""
        hide, shelf = self._hides_viewed(model), self.shelf
        if how.rung is Rung.POPULAR:
            return self._popular(model, clicked, k, hide, how, trends)
        items, scores, sizes = model.rank_many(clicked.hashes, clicked.counts, hide, how)
        reasons = np.full(items.shape, VIEWED_AFTER, np.int32)
        if trends is not None:
            # What is popular has to be there already, so that a trend has to be stronger than that.
            limit = min(k, items.shape[1])
            short = np.flatnonzero(sizes < limit)
            if len(short):
                reasons[short] = np.where(np.arange(items.shape[1]) < sizes[short, None], VIEWED_AFTER, POPULAR)
                excluded = model.numbers_of(clicked.viewed) if hide else np.full(len(sizes), -1, np.int32)
                fill_up(limit, excluded, how.popular, how.weights, model.popularity, items, scores, sizes)
            trends.blend(model, clicked.viewed, items, scores, sizes, reasons)
            sizes[short] = np.minimum(sizes[short], limit)
        with shelf.lock:
            self._strangers = {}
            if trends is not None:
                items[np.arange(items.shape[1]) >= sizes[:, None]] = -1
                items, popular = self._placed(model, trends, items), self._placed(model, trends, how.popular)
            else:
                popular = how.popular
            found = Found(items, scores, sizes, reasons, popular, how.weights)
            return Lists(*self._named(model, self._filtered(model, clicked, found, hide, k), trends))

    def _popular(self, model: Recommender, clicked: Clicked, k: int, hide: bool, how: Asking, trends: Moving | None
                 ) -> Lists:  # fmt: skip
        """What is popular, through the same filter for each click; most lists are equal and are worded once."""
        m = len(clicked.counts)
        unasked = Clicked(np.zeros((m, 0), np.uint64), np.zeros(m, np.int64), clicked.times, clicked.viewed,
                          clicked.bought)  # fmt: skip
        none, no_scores = np.zeros((m, 0), np.int32), np.zeros((m, 0), np.float32)
        with self.shelf.lock:
            self._strangers = {}
            popular = how.popular if trends is None else self._placed(model, trends, how.popular)
            found = Found(none, no_scores, np.zeros(m, np.int32), none, popular, how.weights)
            filled = self._filtered(model, unasked, found, hide, k)
            same = np.zeros(m, np.int64)
            firsts = first_of_each(filled, same)
            columns: Any = [column[firsts] for column in filled]
            items, left_out = self._named(model, Filled(*columns), trends)
        numbers = same.tolist()
        return Lists([items[n] for n in numbers], [left_out[n] for n in numbers], same)

    def _filtered(self, model: Recommender, clicked: Clicked, found: Found, hide: bool, k: int) -> Filled:
        """The candidates through the last filter; the caller holds the shelf's lock."""
        filled = self._filled(model, clicked, found, hide, k)
        if self.shelf.stale and (filled.places[:, 0] < 0).any():
            self.shelf.refresh_now()
            filled = self._filled(model, clicked, found, hide, k)
        nothing = filled.places[:, 0] < 0
        if hide and self._viewed == "auto" and nothing.any():  # the only item is rather repeated than nothing said
            again = self._filled(model, clicked, found, False, k)
            for column, other in zip(filled, again, strict=True):
                column[nothing] = other[nothing]
        return filled

    def _placed(self, model: Recommender, trends: Moving, places: Ints) -> Ints:
        """Places of trends, beyond the model's numbers n + slot of the trends, as places of the shelf.

        Items that the shelf does not know are numbered beyond its slots, for this call.
        """
        n, beyond = model.items, model.items + self.shelf.capacity
        stranger = places >= n
        if not stranger.any():
            return places
        unknown = np.unique(places[stranger])
        hashes = trends.hashes_of(unknown.astype(np.int64) - n).tolist()
        slots = np.array(self.shelf.slots_of(hashes), np.int32)
        own = np.where(slots >= 0, n + slots, beyond + unknown - n).astype(np.int32)
        self._strangers |= dict(zip(hashes, own.tolist(), strict=True))
        return np.where(places >= n, own[np.searchsorted(unknown, np.maximum(places, n)) % len(own)], places)

    def _hides_viewed(self, model: Recommender) -> bool:
        return bool(model.settings[EXCLUDE_CURRENT]) if self._viewed == "auto" else self._viewed == "hide"

    def _filled(self, model: Recommender, clicked: Clicked, found: Found, hide: bool, k: int) -> Filled:
        shelf, m = self.shelf, len(clicked.counts)
        view, levers = shelf.view(model, self._levers), shelf.levers(self._levers)
        bought = [value for row in clicked.bought for value in row]
        bounds, hashes = np.zeros(m + 1, np.int64), clicked.viewed
        if bought:
            bounds[1:] = np.cumsum([len(row) for row in clicked.bought])
            hashes = np.concatenate([hashes, np.array(bought, np.uint64)])
        places = self._places(model, hashes)
        asked = Asked(clicked.hashes, clicked.counts, clicked.times, places[:m], places[m:], bounds)
        plain = levers.idle and not len(view.new)
        rules = Rules(shelf.open, hide, plain, levers.fresh_ms, levers.fresh_factor, levers.new_max)
        filled = Filled(np.full((m, k), -1, np.int32), np.zeros((m, k), np.float32), np.zeros((m, k), np.int8),
                        np.full((m, k), -1, np.int32), np.full((m, LEFT_OUT), -1, np.int32))  # fmt: skip
        if m:
            fill_lists(asked, found, rules, view, *model.inside(), np.empty(_POOL, np.int32), filled)
        return filled

    def _places(self, model: Recommender, hashes: Hashes) -> Ints:
        """The places of hashed ids: the model's number, n + slot, or -1 where neither knows the item."""
        places = model.numbers_of(hashes)
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            wanted = hashes[unknown].tolist()
            slots = np.array(self.shelf.slots_of(wanted), np.int32)
            strangers = np.array([self._strangers.get(value, -1) for value in wanted], np.int32)
            places[unknown] = np.where(slots < 0, strangers, slots + model.items)
        return places

    # -- words --------------------------------------------------------------------------------------------------

    def _named(self, model: Recommender, filled: Filled, trends: Moving | None
               ) -> tuple[list[list[RecommendedItem]], list[list[LeftOut] | msgspec.UnsetType]]:  # fmt: skip
        shelf, self._trends = self.shelf, trends
        if self._texts_of[0] is not model or self._texts_of[1] != shelf.named or len(self._texts) > _TEXTS_MAX:
            self._texts, self._texts_of = {}, (model, shelf.named)
        rows = zip(*(array.tolist() for array in filled[:4]), strict=True)
        items = [self._items(model, *row) for row in rows]
        left_out: list[list[LeftOut] | msgspec.UnsetType] = [msgspec.UNSET] * len(items)
        for i in np.flatnonzero(filled.left_out[:, 0] >= 0).tolist():
            left = [place for place in filled.left_out[i].tolist() if place >= 0]
            left_out[i] = [LeftOut(item_id=self._id(model, place), reason="capped") for place in left]
        return items, left_out

    def _items(self, model: Recommender, places: list[int], scores: list[float], reasons: list[int],
               because: list[int]) -> list[RecommendedItem]:  # fmt: skip
        items, known, n = [], self._texts, model.items
        title_of, item_id = self.shelf.title if len(self.shelf) else _no_title, model.item_id
        for place, score, code, why in zip(places, scores, reasons, because, strict=True):
            if place < 0:
                break
            key = (code, why if why >= 0 else self._stands_on(model, code, place))
            text = known.get(key)
            if text is None:
                text = known[key] = self._reason(model, *key)
            id_ = item_id(place) if place < n else self._id(model, place)
            items.append(RecommendedItem(id_, round(score, 6), *text, title_of(id_) or msgspec.UNSET))
        return items

    def _stands_on(self, model: Recommender, code: int, place: int) -> int:
        """What a reason stands on besides an item of the session: a category's code, or nothing."""
        return self.shelf.category_code(self._slot(model, place)) if code in OF_CATEGORY else -1

    def _reason(self, model: Recommender, code: int, on: int) -> tuple[RecommendationReason, str | None, str]:
        name = NAMES[code]
        if on >= 0 and code in OF_ITEM:
            id_ = model.item_id(on)
            return name, id_, OF_ITEM[code].format(self.shelf.title(id_) or id_)
        if on >= 0:
            category = self.shelf.categories[on]
            return name, category, OF_CATEGORY[code] + category
        return name, None, PLAIN_WORDS[code]

    def _slot(self, model: Recommender, place: int) -> int:
        if place >= model.items:
            return place - model.items if place - model.items < self.shelf.capacity else -1
        return int(self.shelf.view(model).slots[place])

    def _id(self, model: Recommender, place: int) -> str:
        if place < model.items:
            return model.item_id(place)
        if self._trends is not None and place >= model.items + self.shelf.capacity:
            return self._trends.item_id(model, place - self.shelf.capacity)
        return self.shelf.ids[place - model.items]


def _no_title(item_id: str) -> None:
    """Of an empty shelf."""
