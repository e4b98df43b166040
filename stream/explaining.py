"""What the fraud lane says: a decision for each transaction, and an alert with its reasons where it needs a person.

In: the columns of a cycle's decisions. Out: messages among each part's answers. No state, no IO. What was emitted
before a takeover is not said again; what is said again of the same decision says the same.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.answers import MICRO, UNKNOWN, allowed, trailing
from features.catalogue import Catalogue
from features.messages import ACTIONS, Alert, Decision, Reason
from features.recordbatch import Columns
from stream.deciding import DEGRADED, Decided, Seen
from stream.intake import Part, Progress
from stream.lane import source_id
from stream.models import Served
from stream.settings import Settings
from stream.vectors import sampled


class Explaining:
    """Writes the messages of a cycle; see the module's text."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self._topics = settings.topics
        self._sample = settings.worker.vector_sample
        self._names = catalogue.names
        self._entities = [layout.entity.name for layout in catalogue.layouts]

    def answer(self, seen: Seen, decided: Decided, repeat: NDArray[np.int8], states: list[Progress], models: Served
               ) -> None:  # fmt: skip
        """All decisions of each part in order, and an alert where one needs a person.

        ``repeat`` int8[n] marks transactions that were decided before; ``states`` are the parts' partitions.
        """
        rows = np.flatnonzero(decided.action > 0)
        found = models.fraud.reasons_many(seen.x[rows]) if len(rows) and models.fraud is not None else []
        cycle = _Cycle(seen, decided, repeat, dict(zip(rows.tolist(), found, strict=True)), models.version)
        first = 0
        for part, state in zip(seen.parts, states, strict=True):
            if part.records:
                self._part(part, first, state, cycle)
            first += len(part.records)

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
        reasons = cycle.reasons.get(row, [])
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
            "degraded": DEGRADED[decided.degraded[row]] if emitted is None else emitted.degraded,
            "reasons_partial": False if emitted is None else emitted.reasons_partial,
        }
        values = {name: None if value != value else value
                  for name, value in zip(self._names, cycle.seen.x[row].tolist(), strict=True)}  # fmt: skip
        if decided.action[row] > 0:
            entities = {name: ids[i] for name, ids in zip(self._entities, batch.entities, strict=True)}
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
    version: str


def _micro(column: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.where(np.isnan(column), UNKNOWN, np.rint(column * MICRO)).astype(np.int64)


def _trailing(decided: Decided, mine: slice) -> tuple[list[bytes], NDArray[np.int64] | None]:
    """The ends of the messages, each different one once, and which one a row has (None: all the same)."""
    degraded = decided.degraded[mine]
    if decided.hits is None and not degraded.any():
        return [trailing([], [], None)], None
    hits = np.zeros((len(degraded), 0), np.bool_) if decided.hits is None else decided.hits[mine]
    marks = np.column_stack([degraded.view(np.uint8), np.packbits(hits, axis=1)])
    _, firsts, which = np.unique(marks, axis=0, return_index=True, return_inverse=True)
    rows = (firsts + mine.start).tolist()
    return [trailing(decided.names(row, watching=False), decided.names(row, watching=True),
                     DEGRADED[decided.degraded[row]]) for row in rows], which.reshape(-1).astype(np.int64)  # fmt: skip
