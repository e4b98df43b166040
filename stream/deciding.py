"""What turns scores into decisions: columns of a cycle's transactions in, columns of their decisions out.

In: :class:`Seen`, what a cycle knows of its transactions, and the fraud model. Out: :class:`Decided`. No IO, no clock.
On redelivery the same transactions come again; those that were answered get the decision that was emitted
(:meth:`Decided.adopt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.messages import ACTIONS
from features.scoring import FraudModel
from features.texts import Texts
from stream.intake import Emitted, Part
from stream.settings import WorkerSettings

Floats = NDArray[np.float64]
_ROUND = 6  # decimals of scores and thresholds: what is published is what is compared and remembered
DEGRADED: tuple[str | None, ...] = (None,)  # why a decision was made with less than everything, by code


@dataclass(frozen=True, slots=True)
class Seen:
    """What can be known of the n transactions of a cycle, partition by partition, in the order of their offsets.

    ``x`` float64[n, F] are their feature vectors. The other columns are made when they are asked for.
    """

    parts: Sequence[Part]
    x: Floats

    def __len__(self) -> int:
        return len(self.x)

    @property
    def time(self) -> NDArray[np.int64]:
        """Event times in epoch ms, int64[n]."""
        return self._joined([part.batch.time for part in self.parts])

    @property
    def values(self) -> Floats:
        """The schema's numeric fields in its order, float64[n, numeric]; NaN is missing."""
        return self._joined([part.batch.values for part in self.parts])

    @property
    def categories(self) -> Floats:
        """The schema's categorical fields in its order as buckets of 0..255, float64[n, categorical]."""
        return self._joined([part.batch.categories for part in self.parts])

    def ids(self, entity: int) -> Texts:
        """Ids of one entity of the schema (0: the key), n of them."""
        return Texts.concat([part.batch.entities[entity] for part in self.parts])

    def hashes(self, entity: int) -> NDArray[np.int64]:
        """Hashes of :meth:`ids`, int64[n]."""
        return self._joined([part.hashes[entity][: len(part.records)] for part in self.parts])

    @staticmethod
    def _joined(columns: list[NDArray[Any]]) -> NDArray[Any]:
        return columns[0] if len(columns) == 1 else np.concatenate(columns)


@dataclass(slots=True)
class Decided:
    """Decisions about the transactions of a :class:`Seen`, in its order.

    ``score`` and ``anomaly`` float64[n] in 0..1; ``action`` int8[n], an index of ``ACTIONS``; ``review_score``
    float64[n]: the review threshold in force, NaN where no score was compared; ``degraded`` int8[n], an index of
    ``DEGRADED``. ``hits`` bool[n, R] says which of the R ``rules`` hit, and ``watching`` bool[R] which of them only
    watch; None where no rule hit anything.
    """

    score: Floats
    anomaly: Floats
    action: NDArray[np.int8]
    review_score: Floats
    degraded: NDArray[np.int8]
    hits: NDArray[np.bool_] | None = None
    rules: Sequence[str] = ()
    watching: NDArray[np.bool_] | None = None

    def adopt(self, i: int, emitted: Emitted) -> None:
        """Put a decision that was emitted before in the place of row ``i``."""
        self.score[i], self.anomaly[i], self.action[i] = emitted.score, emitted.anomaly, ACTIONS.index(emitted.action)
        self.review_score[i] = np.nan if emitted.review_score is None else emitted.review_score
        self.degraded[i] = DEGRADED.index(emitted.degraded) if emitted.degraded in DEGRADED else 0

    def names(self, i: int, *, watching: bool) -> list[str]:
        """The rules that hit row ``i``: those that only watch, or those that count."""
        if self.hits is None or self.watching is None:
            return []
        return [self.rules[r] for r in np.flatnonzero(self.hits[i] & (self.watching == watching)).tolist()]


class Policy:
    """The decision policy of the settings."""

    def __init__(self, worker: WorkerSettings) -> None:
        self._worker = worker

    def decide(self, seen: Seen, model: FraudModel, beside: Executor | None = None) -> Decided:
        """Score and decide; ``beside`` is for a second thread, see :meth:`FraudModel.score_many`."""
        n = len(seen)
        score, anomaly = model.score_many(seen.x, beside) if n else (np.zeros(0), np.zeros(0))
        score, anomaly = np.round(score, _ROUND), np.round(anomaly, _ROUND)
        review, block = self._thresholds(model)
        action = np.where(score >= block, 2, np.where(score >= review, 1, 0)).astype(np.int8)
        return Decided(score, anomaly, action, np.full(n, review), np.zeros(n, np.int8))

    def _thresholds(self, model: FraudModel) -> tuple[float, float]:
        worker, found = self._worker, model.thresholds
        review = found.review if worker.review_score is None else worker.review_score
        block = found.block if worker.block_score is None else worker.block_score
        return round(review, _ROUND), round(block, _ROUND)


def adopt_emitted(seen: Seen, decided: Decided, emitted: Sequence[Mapping[str, Emitted]], topic: str) -> None:
    """Put what an earlier owner, or this one before it had to start over, has decided in the place of the new.

    ``emitted`` are each part's decisions by source, ``topic`` the one that the transactions came from.
    """
    first = 0
    for part, before in zip(seen.parts, emitted, strict=True):
        if before:
            for i, record in enumerate(part.records, first):
                found = before.get(f"{topic}:{part.partition}:{record.offset}")
                if found is not None:
                    decided.adopt(i, found)
        first += len(part.records)
