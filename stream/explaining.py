"""What the fraud lane says: a decision for each transaction, and an alert with its reasons where it needs a person.

In: the columns of a cycle's decisions. Out: messages among each part's answers. No IO. What was emitted before a
takeover is not said again; what is said again of the same decision says the same.

Reasons are for alerts, and may take a share of a cycle. How many fit is known before the first is made, by what the
last ones cost: the alerts of a cycle get theirs in the order of the records, and those that come too late get what is
furthest from usual, which costs next to nothing, and are marked. Score and action do not depend on it. State owned: the
costs.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.answers import MICRO, UNKNOWN, allowed, trailing
from features.catalogue import Catalogue
from features.messages import ACTIONS, Alert, Decision, Reason
from features.reason_codes import Reasoner
from features.recordbatch import Columns
from stream.deciding import Decided, Seen
from stream.fallback import DEGRADED, NO_REASONS_BY_DEADLINE, NO_REASONS_BY_FAILURE, NO_REASONS_LAST, Fallback
from stream.intake import Part, Progress
from stream.lane import Tally, source_id
from stream.models import Served
from stream.settings import Settings
from stream.suspects import Suspects, visitor
from stream.vectors import sampled

REASONS_S_MAX = 0.002  # for one, and what any cycle may spend: one so short has time
_CHEAP = 2  # partial reasons of an alert
_COST_S = 0.0002  # of one before any was made
_COSTS_KEPT = 9
_TRY_AGAIN = 1000  # cycles with alerts


class ReasonsBudget:
    """How many alerts of a cycle get all of their reasons; see the module's text.

    Parameters
    ----------
    share : float
        Of a cycle's time, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._costs = deque([_COST_S], maxlen=_COSTS_KEPT)
        self._refused = 0

    def count(self, seconds: float) -> int:
        """How many fit into a cycle that took so many ``seconds`` until now."""
        if self._share in (0.0, 1.0):
            return 1_000_000 if self._share else 0
        cost = median(self._costs)
        if cost > REASONS_S_MAX:  # too dear; but it may have been the machine
            self._refused += 1
            return int(self._refused % _TRY_AGAIN == 0)
        return int(max(REASONS_S_MAX, seconds * self._share / (1.0 - self._share)) / cost)

    def spent(self, seconds: float, made: int) -> None:
        """Take note of what so many took."""
        if self._refused:
            self._refused = 0
            self._costs.clear()
        self._costs.append(seconds / made)


class Explaining:
    """Writes the messages of a cycle; see the module's text."""

    def __init__(self, settings: Settings, catalogue: Catalogue, fallback: Fallback) -> None:
        self._fallback = fallback
        self.suspects = Suspects()  # whom it has said to block
        self._reasoner = Reasoner(catalogue.features)
        self._topics = settings.topics
        self._sample = settings.worker.vector_sample
        self._budget = ReasonsBudget(settings.worker.reasons_share)
        self._names = catalogue.names
        self._entities = [layout.entity.name for layout in catalogue.layouts]

    def answer(self, seen: Seen, decided: Decided, repeat: NDArray[np.int8], states: list[Progress], models: Served,
               tally: Tally) -> None:  # fmt: skip
        """All decisions of each part in order, and an alert where one needs a person.

        ``repeat`` int8[n] marks transactions that were decided before; ``states`` are the parts' partitions.
        """
        rows = np.flatnonzero(decided.action > 0)
        again = any(state.done for state in states)  # what was said then holds, and so its reasons are all there
        reasons, partial = self._reasons(seen, decided, rows, models, tally, again) if len(rows) else ({}, set[int]())
        cycle = _Cycle(seen, decided, repeat, reasons, partial, models.version)
        first = 0
        for part, state in zip(seen.parts, states, strict=True):
            if part.records:
                self._part(part, first, state, cycle)
            first += len(part.records)

    def _reasons(self, seen: Seen, decided: Decided, rows: NDArray[np.int64], models: Served, tally: Tally,
                 again: bool) -> tuple[dict[int, list[Reason]], set[int]]:  # fmt: skip
        """Reasons of the alerts in ``rows``, and those of which not all are there."""
        model, spent_s = models.fraud, sum(tally.seconds.values())
        scored = rows[decided.degraded[rows] == 0]
        full, found = scored if again else scored[: self._budget.count(spent_s)], list[list[Reason]]()
        if self._fallback.late(spent_s) and not again:
            full = scored[:0]
            decided.degraded[scored] = NO_REASONS_BY_DEADLINE
            self._fallback.tell(NO_REASONS_BY_DEADLINE)
        if len(full) and model is not None:
            start = perf_counter()
            try:
                found = model.reasons_many(seen.x[full])
            except Exception as error:
                if not self._fallback.forgiving:
                    raise
                decided.degraded[full] = NO_REASONS_BY_FAILURE
                self._fallback.tell(NO_REASONS_BY_FAILURE, error)
                full = full[:0]
            else:
                self._budget.spent(perf_counter() - start, len(full))
        reasons = dict(zip(full.tolist(), found, strict=True))
        others = np.setdiff1d(rows, full)
        cheap = others[(decided.degraded[others] == 0) | (decided.degraded[others] > NO_REASONS_LAST)]
        if len(cheap):
            reasons |= zip(cheap.tolist(), self._reasoner.by_deviation(seen.x[cheap], _CHEAP), strict=True)
        tally.add(tally.reasons, "full", len(full))
        tally.add(tally.reasons, "partial", len(others))
        return reasons, set(others.tolist())

    def _part(self, part: Part, first: int, state: Progress, cycle: _Cycle) -> None:
        batch, answers, topic, decided = part.batch, part.answers, self._topics.decisions, cycle.decided
        n = len(part.records)
        mine = slice(first, first + n)
        if state.done:  # after a takeover some of these answers are out already
            for i, key in enumerate(batch.entities[0].raws()):
                source = source_id((self._topics.transactions, part.partition), part.records[i].offset)
                answers.add(topic, source, (key, self._explain(part, i, first + i, state, cycle)))
            return
        offsets = np.array([record.offset for record in part.records], np.int64)
        score, anomaly = (np.rint(column[mine] * MICRO).astype(np.int64) for column in (decided.score, decided.anomaly))
        values = allowed(self._topics.transactions, part.partition, offsets, batch.event_id, batch.entities[0],
                         batch.time, score, anomaly, cycle.version, part.positions, cycle.repeat[mine],
                         _micro(decided.review_score[mine]), *_trailing(decided, mine))  # fmt: skip
        longer = np.flatnonzero(decided.action[mine] > 0)
        if self._sample > 0.0:
            longer = np.union1d(longer, np.flatnonzero(sampled(batch.event_id, self._sample)))
        explained = [self._explain(part, i, first + i, state, cycle) for i in longer.tolist()]
        answers.messages[topic] = Columns(batch.entities[0], values.replaced(longer, explained))

    def _explain(self, part: Part, i: int, row: int, state: Progress, cycle: _Cycle) -> bytes:
        """A decision with its reasons; if it needs a person, its alert is among the answers.

        It is transaction ``i`` of the part, and ``row`` of the cycle.
        """
        batch, decided = part.batch, cycle.decided
        source = source_id((self._topics.transactions, part.partition), part.records[i].offset)
        emitted, review = state.emitted.get(source), float(decided.review_score[row])
        reasons = [*decided.rule_reasons(row), *cycle.reasons.get(row, [])]
        facts = {
            "decision_id": source,
            "event_id": batch.event_id[i],
            "key": batch.entities[0][i],
            "event_time": int(batch.time[i]),
            "score": float(decided.score[row]),
            "anomaly": float(decided.anomaly[row]),
            "action": ACTIONS[decided.action[row]],
            "model_version": cycle.version if emitted is None else emitted.model_version,
            "label_position": int(part.positions[i]),
            "duplicate": bool(cycle.repeat[row]),
            "review_score": None if math.isnan(review) else review,
            "rules": decided.names(row, watching=False) if emitted is None else emitted.rules,
            "shadow_rules": decided.names(row, watching=True) if emitted is None else emitted.shadow_rules,
            "rules_version": decided.rules_version if emitted is None else emitted.rules_version,
            "degraded": DEGRADED[decided.degraded[row]] if emitted is None else emitted.degraded,
            "reasons_partial": row in cycle.partial if emitted is None else emitted.reasons_partial,
        }
        values = {name: None if value != value else value
                  for name, value in zip(self._names, cycle.seen.x[row].tolist(), strict=True)}  # fmt: skip
        if decided.action[row] > 0:
            entities = {name: ids[i] for name, ids in zip(self._entities, batch.entities, strict=True)}
            if facts["action"] == "block":
                self.suspects.add([visitor(batch.entities[0][i], part.records[i].value or b"")], [int(batch.time[i])])
            alert = Alert(**facts, reasons=reasons, entities=entities, values=values)
            message = batch.entities[0].raw(i), msgspec.json.encode(alert)
            part.answers.add(self._topics.alerts, source, message)
        kept = values if sampled(batch.event_id.take([i]), self._sample)[0] else msgspec.UNSET
        return msgspec.json.encode(Decision(**facts, reasons=[reason.text for reason in reasons], values=kept))


class _Cycle(msgspec.Struct, frozen=True):
    """What the messages of a cycle say, by its rows."""

    seen: Seen
    decided: Decided
    repeat: NDArray[np.int8]
    reasons: dict[int, list[Reason]]
    partial: set[int]
    version: str


def _micro(column: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.where(np.isnan(column), UNKNOWN, np.rint(column * MICRO)).astype(np.int64)


def _trailing(decided: Decided, mine: slice) -> tuple[list[bytes], NDArray[np.int64] | None]:
    """The ends of the messages, each different one once, and which one a row has (None: all the same)."""
    degraded, plain = decided.degraded[mine], trailing([], [], decided.rules_version, None)
    if decided.hits is None and not degraded.any():
        return [plain], None
    hits = np.zeros((len(degraded), 1), np.bool_) if decided.hits is None else decided.hits[mine]
    said = np.union1d(np.flatnonzero(hits) // hits.shape[1], np.flatnonzero(degraded))  # usually few
    if not len(said):
        return [plain], None
    marks = np.column_stack([degraded[said].view(np.uint8), np.packbits(hits[said], axis=1)])
    _, firsts, kind = np.unique(marks, axis=0, return_index=True, return_inverse=True)
    which = np.zeros(len(degraded), np.int64)
    which[said] = kind.reshape(-1) + 1
    rows = (said[firsts] + mine.start).tolist()
    others = [trailing(decided.names(row, watching=False), decided.names(row, watching=True), decided.rules_version,
                       DEGRADED[decided.degraded[row]]) for row in rows]  # fmt: skip
    return [plain, *others], which
