"""The shelf: what is known of every item, in columns, so that compiled code can look at it before an item is shown.

In: decoded records of the items topic, the model in use, levers. Out: :class:`View`, the columns as one model's numbers
see them. Pure; one lock, since records arrive in another thread than the one that answers.

An item has a *slot* from its first record on. A *place* names an item for one model: its number there, or ``n + slot``
where the model of n items does not know it. Nothing here depends on the order in which items arrived, so two workers
that have read the same records answer alike.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.checks import FOREVER_MS
from features.hashing import hash_strings
from features.item_records import Faulty, Gone, ItemFacts
from features.lever_columns import Bytes, LeverColumns
from features.levers import Levers
from features.recommender import Recommender
from features.sources import Hashes, Longs
from features.toplist import Floats, Ints

LISTED, HIDDEN, SOLD_OUT, WITHHELD = 1, 2, 4, 8  # bits of ``View.state``
_MODELS_KEPT = 4  # in use, about to be, and the ones before
_ORDERS = ("popular", "popular_bounds", "new", "new_bounds", "others")


class View(NamedTuple):
    """The columns, by slot (s of them, the rest of an array is spare), category, seller, or number of the model.

    ``slots`` int32[n] the slot of each number or -1. ``numbers`` int32[s] the number of each slot or -1. ``state``
    uint8[s] bits, ``from_ms``, ``until_ms`` int64[s], ``category``, ``seller`` int32[s] or -1. From ``barred`` to
    ``seller_caps`` as of :class:`features.lever_columns.LeverColumns`.
    ``popular`` int32 the numbers of each category from ``popular_bounds`` on, most popular first; ``new`` int32 the
    slots of each category that the model does not know, newest first, from ``new_bounds`` on; ``others`` int32 all
    slots that the model does not know, newest first.
    """

    slots: Ints
    numbers: Ints
    state: Bytes
    from_ms: Longs
    until_ms: Longs
    category: Ints
    seller: Ints
    barred: Bytes
    factors: Floats
    barred_categories: Bytes
    category_caps: Ints
    barred_sellers: Bytes
    seller_caps: Ints
    popular: Ints
    popular_bounds: Longs
    new: Ints
    new_bounds: Longs
    others: Ints


def _no_ints() -> Ints:
    return np.zeros(0, np.int32)


def _no_bounds() -> Longs:
    return np.zeros(1, np.int64)


@dataclass(slots=True)
class _Numbering:
    """How one model numbers the items, and orders of them; see :class:`View`."""

    model: Recommender
    slots: Ints
    numbers: Ints
    popular: Ints = field(default_factory=_no_ints)
    popular_bounds: Longs = field(default_factory=_no_bounds)
    new: Ints = field(default_factory=_no_ints)
    new_bounds: Longs = field(default_factory=_no_bounds)
    others: Ints = field(default_factory=_no_ints)


class Shelf:
    """What is known of items. ``hide_unlisted``: an item without a record is not shown, once there was any record.

    ``lock`` is held by whoever applies records and by whoever answers. What may be shown follows from what was applied
    at once; the orders in which new items are offered are those of the last :meth:`refresh`.
    """

    def __init__(self, *, hide_unlisted: bool = True) -> None:
        self.lock = threading.Lock()
        self.hide_unlisted = hide_unlisted
        self.used = False  # the topic has ever held a record
        self._pulled = [LeverColumns(0)]
        self.named = 0  # rises when the title or the category of an item changes
        self.stale = False  # the orders are older than the items
        self.ids: list[str] = []
        self.titles: list[str | None] = []
        self.categories: list[str] = []
        self.sellers: list[str] = []
        self._slots: dict[str, int] = {}
        self._by_hash: dict[int, int] = {}
        self._codes: tuple[dict[str, int], dict[str, int]] = {}, {}
        self._hashes = np.zeros(0, np.uint64)
        self._state = np.zeros(0, np.uint8)
        self._times = np.zeros((2, 0), np.int64)
        self._groups = np.zeros((2, 0), np.int32)  # category and seller
        self._numberings: dict[int, _Numbering] = {}
        self._ordered = 0  # slots that the orders hold

    def __len__(self) -> int:
        """How many items have a slot."""
        return len(self.ids)

    @property
    def capacity(self) -> int:
        """How many slots there is room for; no place of an item that has one lies beyond."""
        return len(self._state)

    @property
    def listed(self) -> int:
        """How many items there are."""
        return int((self._state[: len(self)] & LISTED != 0).sum())

    def holds(self, item_id: str) -> bool:
        """Whether a record of an item is known that was not deleted."""
        slot = self._slots.get(item_id, -1)
        return slot >= 0 and bool(self._state[slot] & (LISTED | WITHHELD))

    @property
    def open(self) -> bool:
        """Whether an item of which nothing is known is shown."""
        return not (self.hide_unlisted and self.used)

    # -- what comes in ------------------------------------------------------------------------------------------

    def apply(self, records: Iterable[ItemFacts | Gone | Faulty]) -> None:
        """Take in what records say, in their order; the caller holds the lock."""
        for record in records:
            self.used = True
            if record.item_id is None:
                continue
            slot = self._slot(record.item_id)
            if isinstance(record, ItemFacts):
                self._state[slot] = LISTED | record.hidden * HIDDEN | record.sold_out * SOLD_OUT
                self._describe(slot, record)
            elif isinstance(record, Gone):
                self._state[slot] = 0
                self._describe(slot, ItemFacts(record.item_id))
            else:
                self._state[slot] = int(self._state[slot]) | WITHHELD
        for pulled in self._pulled:
            pulled.follow(self.categories, self.sellers)

    def pull(self, levers: Levers, which: int = 0) -> None:
        """Use other levers in the place of those of a number; the caller holds the lock."""
        self._columns_of(which).pull(levers, self._slot, self.categories, self.sellers)

    def _columns_of(self, which: int) -> LeverColumns:
        while len(self._pulled) <= which:
            self._pulled.append(LeverColumns(self.capacity))
            self._pulled[-1].follow(self.categories, self.sellers)
        return self._pulled[which]

    def _slot(self, item_id: str) -> int:
        slot = self._slots.get(item_id)
        if slot is not None:
            return slot
        slot = self._slots[item_id] = len(self.ids)
        if slot == len(self._state):
            self._grow(max(64, slot // 2))
        self.ids.append(item_id)
        self.titles.append(None)
        hashed = hash_strings([item_id])
        self._hashes[slot] = hashed[0]
        self._by_hash[int(hashed[0])] = slot
        for numbering in self._numberings.values():
            number = int(numbering.model.numbers_of(hashed)[0])
            if number >= 0:
                numbering.numbers[slot], numbering.slots[number] = number, slot
        return slot

    def _grow(self, more: int) -> None:
        def wider(array: NDArray[Any], value: int) -> NDArray[Any]:
            spare = np.full((*array.shape[:-1], more), value, array.dtype)
            return np.concatenate([array, spare], axis=-1)

        self._hashes, self._state = wider(self._hashes, 0), wider(self._state, 0)
        self._times, self._groups = wider(self._times, 0), wider(self._groups, -1)
        self._times[0, -more:], self._times[1, -more:] = -FOREVER_MS, FOREVER_MS
        for numbering in self._numberings.values():
            numbering.numbers = wider(numbering.numbers, -1)
        for pulled in self._pulled:
            pulled.widen(self.capacity)

    def _describe(self, slot: int, facts: ItemFacts) -> None:
        groups = (_code(self._codes[0], self.categories, facts.category),
                  _code(self._codes[1], self.sellers, facts.seller))  # fmt: skip
        times = facts.from_ms, facts.until_ms
        if groups[0] != self._groups[0, slot] or facts.title != self.titles[slot]:
            self.named += 1
        self.stale = self.stale or groups[0] != self._groups[0, slot] or times[0] != self._times[0, slot]
        self.stale = self.stale or slot >= self._ordered
        self._groups[:, slot], self._times[:, slot], self.titles[slot] = groups, times, facts.title

    # -- what is asked ------------------------------------------------------------------------------------------

    def slots_of(self, hashes: Sequence[int]) -> list[int]:
        """The slot of each hashed id, -1 where nothing is known of it."""
        return [self._by_hash.get(value, -1) for value in hashes]

    def title(self, item_id: str) -> str | None:
        """The title of an item, where one is known."""
        slot = self._slots.get(item_id, -1)
        return None if slot < 0 else self.titles[slot]

    def category_code(self, slot: int) -> int:
        """Where the category of the item in a slot stands among ``categories``; -1 if it has none."""
        return int(self._groups[0, slot]) if slot >= 0 else -1

    def prepare(self, model: Recommender) -> None:
        """Number the items as a model does, before it is in use."""
        with self.lock:
            self._numbering(model)

    def levers(self, which: int = 0) -> Levers:
        """The levers of a number; there is one set, or with an experiment two."""
        return self._columns_of(which).levers

    def view(self, model: Recommender, which: int = 0) -> View:
        """The columns as a model numbers its items, with the levers of a number; the caller holds the lock."""
        n, pulled = self._numbering(model), self._columns_of(which)
        return View(
            n.slots, n.numbers, self._state, self._times[0], self._times[1], self._groups[0], self._groups[1],
            pulled.barred, pulled.factors, pulled.barred_categories, pulled.category_caps, pulled.barred_sellers,
            pulled.seller_caps, n.popular, n.popular_bounds, n.new, n.new_bounds, n.others,
        )  # fmt: skip

    def _numbering(self, model: Recommender) -> _Numbering:
        found = self._numberings.get(id(model))
        if found is None:
            size = len(self)
            found = _Numbering(model, np.full(model.items, -1, np.int32), np.full(len(self._state), -1, np.int32))
            if size:
                found.numbers[:size] = np.maximum(model.numbers_of(self._hashes[:size]), -1)
            known = np.flatnonzero(found.numbers >= 0)
            found.slots[found.numbers[known]] = known
            while len(self._numberings) >= _MODELS_KEPT:
                del self._numberings[next(iter(self._numberings))]
            self._numberings[id(model)] = found
            self._order(found, self._columns())
        return found

    def refresh(self) -> None:
        """Make the orders anew, if items or their categories have come since. The lock is held for moments only."""
        with self.lock:
            if not self.stale:
                return
            columns, numberings = self._columns(), list(self._numberings.values())
            self.stale = False
            copies = [replace(numbering, numbers=numbering.numbers.copy()) for numbering in numberings]
        for copy in copies:
            self._order(copy, columns)
        with self.lock:
            for numbering, copy in zip(numberings, copies, strict=True):
                for name in _ORDERS:
                    setattr(numbering, name, getattr(copy, name))

    def refresh_now(self) -> None:
        """The same by a caller that holds the lock."""
        columns, self.stale = self._columns(), False
        for numbering in self._numberings.values():
            self._order(numbering, columns)

    def _columns(self) -> tuple[Hashes, Longs, Ints, int]:
        size = self._ordered = len(self)
        return (
            self._hashes[:size].copy(),
            self._times[0, :size].copy(),
            self._groups[0, :size].copy(),
            len(self.categories),
        )

    @staticmethod
    def _order(numbering: _Numbering, columns: tuple[Hashes, Longs, Ints, int]) -> None:
        hashes, from_ms, category, categories = columns
        numbers = numbering.numbers[: len(hashes)]
        own, known = np.flatnonzero(numbers < 0), np.flatnonzero(numbers >= 0)
        # Newest first; what has no beginning is oldest, and the hash decides among equals.
        others = own[np.lexsort((hashes[own], -from_ms[own]))].astype(np.int32)
        known = known[np.argsort(numbers[known])]
        numbering.others = others
        numbering.popular, numbering.popular_bounds = _grouped(numbers[known], category[known], categories)
        numbering.new, numbering.new_bounds = _grouped(others, category[others], categories)


def _code(codes: dict[str, int], names: list[str], name: str | None) -> int:
    if name is None:
        return -1
    code = codes.setdefault(name, len(names))
    if code == len(names):
        names.append(name)
    return code


def _grouped(items: Ints, category: Ints, categories: int) -> tuple[Ints, Longs]:
    """``items`` grouped by category, in their order within; where each group begins."""
    order = np.argsort(category, kind="stable")
    order = order[np.searchsorted(category[order], 0) :]
    bounds = np.searchsorted(category[order], np.arange(categories + 1)).astype(np.int64)
    return items[order], bounds
