"""Levers as columns, so that compiled code can look at them: by slot of an item, by category and by seller.

In: levers, and what a shelf knows of items. Out: arrays. Pure. A shelf has one of these for every set of levers that is
in force at once; an experiment may have two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from features.levers import Levers
from features.toplist import Floats, Ints

Bytes = NDArray[np.uint8]


class LeverColumns:
    """One set of levers. ``barred`` uint8[s] says by slot whether an item is never shown; s as the shelf has room.

    By category ``factors`` float32, ``barred_categories`` uint8, ``category_caps`` int32; by seller
    ``barred_sellers`` uint8, ``seller_caps`` int32.
    """

    def __init__(self, room: int) -> None:
        self.levers = Levers()
        self.barred: Bytes = np.zeros(room, np.uint8)
        self._by_category(())
        self._by_seller(())

    def pull(self, levers: Levers, slot_of: Callable[[str], int], categories: Sequence[str], sellers: Sequence[str]
             ) -> None:  # fmt: skip
        """Use other levers; ``slot_of`` may make room for an item that was not known."""
        slots = [slot_of(item) for item in levers.items]
        self.levers = levers
        self.barred[:] = 0
        self.barred[slots] = 1
        self._by_category(categories)
        self._by_seller(sellers)

    def widen(self, room: int) -> None:
        """Have room for so many slots."""
        self.barred = np.concatenate([self.barred, np.zeros(room - len(self.barred), np.uint8)])

    def follow(self, categories: Sequence[str], sellers: Sequence[str]) -> None:
        """Know categories and sellers that have come since."""
        if len(categories) != len(self.factors):
            self._by_category(categories)
        if len(sellers) != len(self.seller_caps):
            self._by_seller(sellers)

    def _by_category(self, names: Sequence[str]) -> None:
        levers = self.levers
        self.factors: Floats = np.array([levers.factors.get(name, 1.0) for name in names], np.float32)
        self.barred_categories: Bytes = np.array([name in levers.categories for name in names], np.uint8)
        caps = [levers.category_caps.get(name, levers.per_category) for name in names]
        self.category_caps: Ints = np.array(caps, np.int32)

    def _by_seller(self, names: Sequence[str]) -> None:
        levers = self.levers
        self.barred_sellers: Bytes = np.array([name in levers.sellers for name in names], np.uint8)
        caps = [levers.seller_caps.get(name, levers.per_seller) for name in names]
        self.seller_caps: Ints = np.array(caps, np.int32)
