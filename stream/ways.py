"""One way to make lists: who makes them, how long they are, and what live clicks say to it.

In: the clicks of a cycle and a model. Out: their lists. State owned: the way's own count of what trends, since such a
count keeps the places of one model. Nothing else that changes is shared between two ways but the shelf.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.listing import Clicked, Lister, Lists
from features.rungs import Asking, Rung
from stream.settings import WorkerSettings
from stream.suspects import Suspects
from stream.trending import ClickPart, Trends


@dataclass(frozen=True, slots=True)
class Way:
    """Lists of ``k`` items by a lister; ``trends`` is None where live clicks move nothing."""

    lister: Lister
    k: int
    trends: Trends | None

    @classmethod
    def of(cls, worker: WorkerSettings, lister: Lister, *, k: int | None = None, learning: bool | None = None) -> Way:
        """As a worker's settings say, but for what is given."""
        learns = worker.online_learning if learning is None else learning
        trends = Trends(worker.online_half_life_s) if learns else None
        return cls(lister, worker.recommendations_k if k is None else k, trends)

    def lists(self, model: Any, clicked: Clicked, rung: Rung, beside: Executor) -> Lists:
        """The list of one model after each click."""
        asking = Asking(rung, beside, *(() if self.trends is None else self.trends.popular(model)))
        return self.lister.lists(model, clicked, self.k, asking, self.trends)

    def learn(self, work: Sequence[ClickPart], before: NDArray[np.uint64], suspects: Suspects) -> None:
        """Count the clicks of a cycle; ``before`` as of :func:`stream.trending.viewed_before`."""
        if self.trends is not None:
            self.trends.learn(work, before, suspects)
