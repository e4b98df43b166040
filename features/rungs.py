"""How a list is made: the rungs from the best answer to the cheapest, and what else a recommender is told. Pure."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from features.messages import Degraded

_NOTHING, _NO_WEIGHTS = np.zeros(0, np.int32), np.zeros(0, np.float32)


class Rung(IntEnum):
    """How much work goes into a list.

    ``FULL`` asks all sources and the ranker. ``FEWER`` looks at the 150 newest sessions of an item in the place of up
    to 1,000 and ranks 20 candidates in the place of 50. ``NEIGHBOURS`` takes what stands in the lists of the session's
    items, in the order of the sources. ``POPULAR`` looks at no session at all.
    """

    FULL = 0
    FEWER = 1
    NEIGHBOURS = 2
    POPULAR = 3

    @property
    def label(self) -> Degraded | None:
        """Its name in messages and metrics; None for the full answer."""
        return _LABELS[self]


_LABELS: tuple[Degraded | None, ...] = (None, "fewer", "neighbours", "popular")
FEWER_SESSIONS = 150  # newest sessions and occurrences of an item that ``FEWER`` looks at
FEWER_CANDIDATES = 20


@dataclass(frozen=True, eq=False, slots=True)
class Asking:
    """How lists are made.

    ``beside`` does half of many queries where it is given. ``popular`` int32[p] (item numbers) and ``weights``
    float32[p] (descending from at most 1) are what lists are filled up with before the model's own popular items.
    """

    rung: Rung = Rung.FULL
    beside: Executor | None = None
    popular: NDArray[np.int32] = field(default_factory=lambda: _NOTHING)
    weights: NDArray[np.float32] = field(default_factory=lambda: _NO_WEIGHTS)


PLAIN = Asking()
