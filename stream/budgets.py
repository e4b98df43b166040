"""The alert budget of a worker: the controller of each partition that it holds, between policy and state.

In: what a cycle decided so far (rules, decisions of before a restart), and the fields of a partition that was taken
over. Out: actions and thresholds in the decisions, and the fields to apply with the cycle. State owned: the
controllers, forgotten with their partitions; on redelivery they are read again and what was emitted is folded as it was
decided, so that they come to the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from features.budget import FIELDS, Budget, model_tag
from features.budget_kernel import AT_LEAST, OPEN, SKIP
from stream.deciding import Decided, Seen
from stream.fallback import NO_REASONS_LAST
from stream.intake import Emitted, Part
from stream.lane import source_id

_Emitted = Mapping[str, Emitted]


class Budgets:
    """Budgets by partition; each has the same share of ``cases_per_day``, since cards are spread by their hash."""

    fields = FIELDS

    def __init__(self, cases_per_day: int, partitions: int, topic: str) -> None:
        self._each = cases_per_day / partitions
        self._topic = topic
        self._held: dict[int, Budget] = {}
        self._tags: dict[str, int] = {}

    def resume(self, partition: int, values: Sequence[bytes | None]) -> None:
        """Go on from what was read of :attr:`fields`; from nothing where there is nothing."""
        self._held[partition] = Budget(self._each, values or [None] * len(FIELDS))

    def drop(self, partition: int) -> None:
        """Forget a partition."""
        self._held.pop(partition, None)

    def decide(self, seen: Seen, decided: Decided, repeat: NDArray[np.int8], emitted: Sequence[_Emitted], version: str,
               thresholds: tuple[float, float]) -> None:  # fmt: skip
        """Decide what no earlier decision and no rule has, each partition in its order.

        ``repeat`` int8[n] marks transactions decided before, ``emitted`` are each part's decisions of before a restart,
        ``version`` and ``thresholds`` (review, block) the model's.
        """
        card, time = seen.hashes(0), seen.time
        given, missing = np.full(len(seen), OPEN, np.int8), decided.degraded > NO_REASONS_LAST
        if decided.ruled is not None:  # a rule raises the action, or allows whatever the score
            raised = np.where(decided.action > 0, AT_LEAST + decided.action, decided.action).astype(np.int8)
            given = np.where(decided.ruled, raised, given)
        given = np.where(missing, decided.action, given).astype(np.int8)
        score = np.where(missing, np.nan, decided.score)
        model = np.full(len(seen), self._tag(version))
        start = 0
        for part, before in zip(seen.parts, emitted, strict=True):
            rows = slice(start, start + len(part.records))
            start = rows.stop
            stays = self._adopt(part, before, decided.action[rows], given[rows], model[rows])
            action = np.where(repeat[rows] > 0, SKIP, given[rows]).astype(np.int8)
            marks = part.marks[part.order < len(part.records)]
            found = self._held[part.partition].decide(
                time[rows], marks, card[rows], score[rows], model[rows], action, *thresholds
            )
            decided.action[rows] = np.where(action == SKIP, decided.action[rows], action)
            decided.review_score[rows] = np.where(stays | missing[rows], decided.review_score[rows], found)

    def _adopt(self, part: Part, before: _Emitted, action: NDArray[np.int8], given: NDArray[np.int8],
               model: NDArray[np.int64]) -> NDArray[np.bool_]:  # fmt: skip
        """Fix what was emitted before, with the model that decided it; which rows those are."""
        stays = np.zeros(len(given), np.bool_)
        if before:
            for i, record in enumerate(part.records):
                found = before.get(source_id((self._topic, part.partition), record.offset))
                if found is not None:
                    stays[i], given[i], model[i] = True, action[i], self._tag(found.model_version)
        return stays

    def _tag(self, version: str) -> int:
        if version not in self._tags:
            self._tags = {version: model_tag(version)}
        return self._tags[version]

    def changed(self, partition: int) -> Mapping[bytes, bytes]:
        """The fields of a partition to apply with this cycle."""
        return self._held[partition].fields()

    def standing(self, partition: int) -> tuple[float, int]:
        """Threshold in force and cases of today of a partition."""
        budget = self._held[partition]
        return budget.threshold, budget.cases
