"""What turns scores into decisions: columns of a cycle's transactions in, columns of their decisions out.

In: :class:`Seen`, what a cycle knows of its transactions, and the fraud model. Out: :class:`Decided`. No IO; a clock
only where :mod:`stream.fallback` has a deadline to keep.
On redelivery the same transactions come again; those that were answered get the decision that was emitted
(:meth:`Decided.adopt`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import costs
from features.costs import Costs
from features.errors import SettingsError
from features.messages import ACTIONS, Reason
from features.rule_machine import Columns
from features.rules import Rule
from features.schema import TransactionSchema
from features.scoring import FraudModel, by_thresholds
from features.texts import Texts
from stream.fallback import DEGRADED, Fallback
from stream.intake import Emitted, Part
from stream.rules import RulesHolder, RulesInUse
from stream.settings import WorkerSettings

Floats = NDArray[np.float64]
_ROUND = 6  # decimals of scores and thresholds: what is published is what is compared and remembered


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

    @property
    def texts(self) -> NDArray[np.int64]:
        """Hashes of the ids of every entity and then of every categorical field, int64[n, texts]."""
        width = [len(part.hashes) + part.batch.category_hash.shape[1] for part in self.parts]
        found, first = np.empty((len(self), max(width, default=0)), np.int64), 0
        for part in self.parts:
            entities, n = len(part.hashes), len(part.records)
            for e, hashes in enumerate(part.hashes):
                found[first : first + n, e] = hashes[:n]
            found[first : first + n, entities:] = part.batch.category_hash
            first += n
        return found

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
    watch; None where no rule hit anything. ``reasons`` gives those that asked for an action; ``rules_version``
    is that of the rules that were asked, None without any.
    """

    score: Floats
    anomaly: Floats
    action: NDArray[np.int8]
    review_score: Floats
    degraded: NDArray[np.int8]
    hits: NDArray[np.bool_] | None = None
    rules: Sequence[str] = ()
    watching: NDArray[np.bool_] | None = None
    reasons: Callable[[NDArray[np.bool_], int], list[Rule]] | None = None
    rules_version: str | None = None

    def adopt(self, i: int, emitted: Emitted) -> None:
        """Put a decision that was emitted before in the place of row ``i``."""
        self.score[i], self.anomaly[i], self.action[i] = emitted.score, emitted.anomaly, ACTIONS.index(emitted.action)
        self.review_score[i] = np.nan if emitted.review_score is None else emitted.review_score
        self.degraded[i] = DEGRADED.index(emitted.degraded) if emitted.degraded in DEGRADED else 0
        if self.hits is not None:
            self.hits[i] = np.isin(self.rules, [*emitted.rules, *emitted.shadow_rules])

    @property
    def ruled(self) -> NDArray[np.bool_] | None:
        """Which rows a rule that counts has hit, bool[n]; None where none hit anything."""
        if self.hits is None or self.watching is None:
            return None
        return np.asarray(self.hits[:, ~self.watching].any(axis=1))

    def names(self, i: int, *, watching: bool) -> list[str]:
        """The rules that hit row ``i``: those that only watch, or those that count."""
        if self.hits is None or self.watching is None:
            return []
        return [self.rules[r] for r in np.flatnonzero(self.hits[i] & (self.watching == watching)).tolist()]

    def rule_reasons(self, i: int) -> list[Reason]:
        """What the rules say that asked for the action of row ``i``; a rule has no share of the score."""
        if self.hits is None or self.reasons is None:
            return []
        found = self.reasons(self.hits[i], int(self.action[i]))
        codes = [f"rule:{rule.name}" for rule in found]
        return [Reason(code=code, feature=code, value=None, contribution=None, text=rule.reason)
                for code, rule in zip(codes, found, strict=True)]  # fmt: skip


def amount_column(worker: WorkerSettings, schema: TransactionSchema) -> int:
    """Which numeric field says what is lost in a fraud: ``worker.cost_amount``, or else the first.

    Raises
    ------
    SettingsError
        If the schema has no such field.
    """
    names = [numeric.name for numeric in schema.numeric]
    wanted = worker.cost_amount if worker.cost_amount is not None or not names else names[0]
    if wanted not in names:
        told = ", ".join(names) or "none"
        raise SettingsError([f"worker.cost_amount = {wanted!r}: expected a numeric field of the schema: {told}"])
    return names.index(wanted)


class Policy:
    """The decision policy of the settings, and the rules beside it."""

    def __init__(self, worker: WorkerSettings, schema: TransactionSchema, rules: RulesHolder | None = None) -> None:
        self._worker = worker
        self._rules = rules
        self.fallback = Fallback(worker)
        self._costs: Costs | None = None
        if worker.cost_review is not None or worker.cost_block is not None:
            self._costs = Costs(worker.cost_review, worker.cost_block, worker.cost_recovered)
            self._amount = amount_column(worker, schema)

    def decide(self, seen: Seen, model: FraudModel | None, beside: Executor | None = None, spent_s: float = 0.0
               ) -> Decided:  # fmt: skip
        """Score and decide, in a cycle that took so many seconds until now.

        ``beside`` is for a second thread, see :meth:`FraudModel.score_many`.
        """
        scored = self.fallback.score(seen.x, model, beside, spent_s)
        scored.score, scored.anomaly = np.round(scored.score, _ROUND), np.round(scored.anomaly, _ROUND)
        action, in_force = self._act(seen, scored.score, model)
        missing = scored.degraded.any()
        if missing:
            self.fallback.act(scored, action)
        decided = Decided(scored.score, scored.anomaly, action, in_force, scored.degraded)
        if self._rules is not None and len(seen):
            self._apply(self._rules.current, seen, decided)
        if missing:
            decided.review_score[scored.degraded > 0] = np.nan
            self.fallback.settle(scored, decided.ruled)
        return decided

    def _apply(self, in_use: RulesInUse, seen: Seen, decided: Decided) -> None:
        """Have the rules change the actions, and note which hit."""
        decided.rules_version = in_use.rules.version
        hits = in_use.judge(Columns(seen.x, decided.score, decided.anomaly, seen.time, seen.texts))
        if hits.matrix.any():
            decided.action = hits.applied(decided.action)
            decided.hits, decided.rules, decided.watching = hits.matrix, in_use.rules.names, in_use.rules.shadow
            decided.reasons = in_use.rules.reasons

    def _act(self, seen: Seen, score: Floats, model: FraudModel | None) -> tuple[NDArray[np.int8], Floats]:
        """Actions, and the review threshold in force at each; with an alert budget it decides later, see
        :mod:`stream.budgets`."""
        if self._costs is not None:
            return costs.decide(self._costs, score, seen.values[:, self._amount])
        review, block = self.thresholds(model)
        if self._worker.cases_per_day is not None:
            return np.zeros(len(score), np.int8), np.full(len(score), review)
        return by_thresholds(score, review, block), np.full(len(score), review)

    def thresholds(self, model: FraudModel | None) -> tuple[float, float]:
        """The lowest score to review and to block, of the settings or else of the model."""
        if model is None:
            return math.nan, math.nan
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
