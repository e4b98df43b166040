"""The fraud lane: transactions and labels of one partition number share state and become decisions and alerts.

In: fetched records by partition, entity state, models. Out: decisions, alerts, dead letters, new state and offsets.
State owned: the caches of entity rows (:mod:`stream.intake` puts the records in order). On redelivery: records below
the applied offset are skipped; what was emitted but not applied is folded again with the decision that was emitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from features import engine
from features.catalogue import Catalogue
from features.engine import Operations
from features.hashing import hash_strings
from features.kernel import LABEL, TRANSACTION
from features.messages import ACTIONS, Alert, Decision
from features.scoring import FraudModel
from features.watermark import UNMARKED, Watermark
from stream.entities import EntityCache
from stream.intake import Emitted, Intake, Part, Progress
from stream.lane import (
    LetterId,
    Output,
    Produced,
    Record,
    Records,
    Tally,
    after_sources,
    emitted_before,
    reached,
    source_id,
)
from stream.settings import Settings
from stream.store import FIELDS_MAX, HEAD, head_watermark
from stream.vectors import VectorLog

_Scored = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int8]]
_ROUND = 6  # decimals of scores: what is published is what is remembered


class FraudLane:
    """Transactions and labels to decisions, see the module's text."""

    name = "fraud"

    def __init__(self, settings: Settings, catalogue: Catalogue, log: VectorLog | None = None) -> None:
        worker, topics = settings.worker, settings.topics
        schema = catalogue.schema
        self.catalogue = catalogue
        self.partitions = topics.transaction_partitions
        self.topics = (topics.transactions, topics.labels)
        self.outputs = (topics.decisions, topics.alerts, topics.dead_letters)
        self.records_max = FIELDS_MAX // (2 * len(schema.entities)) - 1  # transactions and labels, each its entities
        self._topic_names = topics
        self._worker = worker
        self._intake = Intake(settings, schema, self.records_max)
        share = max(worker.cache_entities // len(catalogue.layouts), 1)
        self.caches = tuple(
            EntityCache(layout, share, merged=e > 0 and self.partitions > 1,
                        refresh_s=worker.foreign_refresh_ms / 1000)
            for e, layout in enumerate(catalogue.layouts)
        )  # fmt: skip
        self._tables = tuple(cache.rows for cache in self.caches)
        self._log = log

    def resume(self, partition: int, offsets: Mapping[str, int], watermark: Watermark = UNMARKED) -> None:
        """Start a partition at the applied ``offsets`` and watermark; nothing of it is cached."""
        self.drop(partition)
        self._intake.partitions[partition] = Progress(dict(offsets), watermark)

    def drop(self, partition: int) -> None:
        """Forget a partition: it is lost, or its state ran ahead of what was applied."""
        self._intake.partitions.pop(partition, None)
        for cache in self.caches:
            cache.drop(partition)

    def evict(self, settled: int) -> None:
        """Hold the caches to their capacity; cycles up to ``settled`` are applied."""
        for cache in self.caches:
            cache.evict(settled)

    def adopt(self, partition: int, emitted: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
        """Take note of outputs beyond the applied state: they are not emitted again, their decisions hold.

        Returns the offset after the last input that was answered, by topic.
        """
        state = self._intake.partitions[partition]
        sources: set[str] = set()
        for topic, values in emitted.items():
            letters = topic == self._topic_names.dead_letters
            found: Mapping[str, Any] = emitted_before(values, LetterId if letters else Emitted, self.topics)
            state.done.update(f"{topic} {source}" for source in found)
            state.emitted |= {} if letters else found
            sources |= found.keys()
        state.answered = after_sources(sources)
        return state.answered

    def waiting(self) -> dict[int, int]:
        """How many labels wait, by partition."""
        return {partition: len(state.labels) for partition, state in self._intake.partitions.items() if state.labels}

    def held(self) -> dict[str, tuple[int, int]]:
        """Rows and bytes of each entity's cache."""
        return {cache.layout.entity.name: (len(cache), cache.rows.nbytes) for cache in self.caches}

    def past(self, values: Mapping[bytes, bytes], watermark: int) -> list[bytes]:
        """Those of a partition's fields in Redis that read as empty from a watermark on."""
        return [name for cache in self.caches for name in cache.past(values, watermark)]

    def begin(self, fetched: Mapping[int, Records], lagging: Mapping[int, bool], tally: Tally) -> list[Part]:
        """Skip what is applied, decode, check the keys, and put transactions and labels in order."""
        return self._intake.take(fetched, lagging, tally)

    def wanted(self, work: list[Part], now_s: float) -> dict[int, list[bytes]]:
        """Redis fields of the shards and views that the caches lack, by partition."""
        wanted: dict[int, list[bytes]] = {}
        for e, cache in enumerate(self.caches):
            for part in work:
                ids = cache.missing(part.partition, part.entities[e])
                if ids:
                    wanted.setdefault(part.partition, []).extend(map(cache.field, ids))
            if cache.merged:
                for id_ in cache.stale((id_ for part in work for id_ in part.entities[e]), now_s):
                    for partition in cache.uncached_shards(id_, self.partitions):
                        wanted.setdefault(partition, [HEAD]).append(cache.field(id_))
        return {partition: list(dict.fromkeys(fields)) for partition, fields in wanted.items()}

    def fill(self, work: list[Part], values: Mapping[int, Mapping[bytes, bytes | None]], now_s: float) -> None:
        """Take in what was read for :meth:`wanted`, asked with the same ``now_s``."""
        marks = {p: head_watermark(found.get(HEAD)) for p, found in values.items()}
        marks |= {p: state.watermark.time for p, state in self._intake.partitions.items()}
        for e, cache in enumerate(self.caches):
            ids = list(dict.fromkeys(id_ for part in work for id_ in part.entities[e]))
            stale = cache.stale(ids, now_s) if cache.merged else []
            others = {
                id_: {p: values[p][cache.field(id_)] for p in cache.uncached_shards(id_, self.partitions)}
                for id_ in stale
            }
            for part in work:
                missing = cache.missing(part.partition, part.entities[e])
                if missing:
                    found = values[part.partition]
                    cache.fill(part.partition, missing, [found[cache.field(id_)] for id_ in missing])
            # Nobody else writes while this worker holds every partition: a view stays right until one is lost.
            alone = len(self._intake.partitions) == self.partitions
            for id_ in stale:
                until_s = math.inf if alone else now_s + cache.refresh_s
                cache.build_view(id_, others[id_], until_s, marks)

    def compute(self, work: list[Part], models: Any, cycle: int, tally: Tally) -> list[Produced]:
        """Fold and score everything, then decide; returns what each partition has to write."""
        if not work:
            return []
        operations, rows, marks = self._operations(work, cycle)
        with tally.stage("features"):
            folded = engine.fold(self.catalogue, self._tables, operations, marks)
        x = np.ascontiguousarray(folded.x[rows])
        with tally.stage("model"):
            scored = self._score(models.fraud, x)
            records, positions = self._in_order(work)
            self._adopt_emitted(records, scored)
            decided = self._remember(operations, folded, rows, scored)
        tally.labels_missed += int(folded.missed.sum())
        tally.duplicates += int(folded.repeat.sum())
        if self._log is not None:
            self._log.append([source_id(r) for r in records], positions, x)
        with tally.stage("encode"):
            return self._produced(work, records, _Decided(x, *decided, folded.repeat[rows], positions), models, tally)

    def _remember(self, operations: Operations, folded: engine.Folded, rows: NDArray[np.int64], scored: _Scored
                  ) -> _Scored:  # fmt: skip
        """Put the decisions into the key entities' memory; a repeat gets the decision of the first."""
        n = len(operations)
        score, anomaly, action = np.zeros(n), np.zeros(n), np.zeros(n, np.int8)
        score[rows], anomaly[rows], action[rows] = scored
        engine.remember(self.catalogue, self._tables, operations, folded, score, anomaly, action)
        return score[rows], anomaly[rows], action[rows]

    def _operations(self, work: list[Part], cycle: int
                    ) -> tuple[Operations, NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
        """The columns of all partitions merged by time, where each one's transactions lie among them, and watermarks.

        Each partition keeps its own order. Merging matters to entities that several partitions share: one partition
        after the other, the second would see the hours of the first as its past.
        """
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in Operations.__slots__}
        for part in work:
            labels, batch, order = part.labels, part.batch, part.order
            n, extra = len(batch.rows), len(labels)
            ids = [*batch.event_id, *(label.event_id for label in labels)]
            missing = [np.full((extra, column.shape[1]), np.nan) for column in (batch.values, batch.categories)]
            columns = {
                "kind": np.repeat(np.array([TRANSACTION, LABEL], np.int8), [n, extra]),
                "time": np.concatenate([batch.time, np.array([label.time for label in labels], np.int64)]),
                "event_hash": hash_strings(ids).view(np.int64),
                "values": np.concatenate([batch.values, missing[0]]),
                "categories": np.concatenate([batch.categories, missing[1]]),
                "fraud": np.concatenate([batch.fraud, np.array([label.fraud for label in labels], np.int8)]),
                "entity_hash": np.stack([hash_strings(column).view(np.int64) for column in part.entities], axis=1),
                "slots": np.stack([cache.use(part.partition, column, cycle)
                                   for cache, column in zip(self.caches, part.entities, strict=True)], axis=1),
                "views": np.stack([cache.views(column) if cache.merged else np.zeros(n + extra, np.int64)
                                   for cache, column in zip(self.caches, part.entities, strict=True)], axis=1),
            }  # fmt: skip
            for name, column in columns.items():
                parts[name].append(column[order])
        clocks = np.concatenate([np.maximum.accumulate(time) for time in parts["time"]])
        order = np.argsort(clocks, kind="stable")
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        rows = places[np.flatnonzero(np.concatenate(parts["kind"]) == TRANSACTION)]
        operations = Operations(**{name: np.concatenate(columns)[order] for name, columns in parts.items()})
        for e, cache in enumerate(self.caches):
            if not cache.merged:
                operations.views[:, e] = operations.slots[:, e]
        return operations, rows, np.concatenate([part.marks for part in work])[order]

    def _in_order(self, work: list[Part]) -> tuple[list[Record], NDArray[np.int64]]:
        """The transactions' records and label positions, partition by partition."""
        records: list[Record] = []
        positions = []
        for part in work:
            records += [part.records[i] for i in part.transactions]
            positions.append(part.positions[part.transactions])
        return records, np.concatenate(positions)

    def _score(self, model: FraudModel, x: NDArray[np.float64]) -> _Scored:
        worker = self._worker
        score, anomaly = model.score_many(x) if len(x) else (np.zeros(0), np.zeros(0))
        score, anomaly = np.round(score, _ROUND), np.round(anomaly, _ROUND)
        block = model.thresholds.block if worker.block_score is None else worker.block_score
        review = model.thresholds.review if worker.review_score is None else worker.review_score
        action = np.where(score >= block, 2, np.where(score >= review, 1, 0)).astype(np.int8)
        return score, anomaly, action

    def _adopt_emitted(self, records: list[Record], scored: _Scored) -> None:
        score, anomaly, action = scored
        for i, record in enumerate(records):
            decision = self._emitted(record)
            if decision is not None:
                score[i], anomaly[i], action[i] = decision.score, decision.anomaly, ACTIONS.index(decision.action)

    def _emitted(self, record: Record) -> Emitted | None:
        """What an earlier owner, or this one before it had to start over, has said about a transaction."""
        emitted = self._intake.partitions[record.partition].emitted
        return emitted.get(source_id(record)) if emitted else None

    def _produced(self, work: list[Part], records: list[Record], decided: _Decided, models: Any, tally: Tally
                  ) -> list[Produced]:  # fmt: skip
        produced, first = [], 0
        for part in work:
            outputs = list(part.outputs)
            for i, row in enumerate(part.transactions.tolist(), first):
                outputs += self._decide(part, row, records[i], decided, i, models, tally)
            first += len(part.records)
            state = self._intake.partitions[part.partition]
            if state.done:
                outputs = [o for o in outputs if f"{o.topic} {o.source}" not in state.done]
                if reached(part.offsets, state.answered):
                    state.done.clear()
                    state.emitted.clear()
            fields: dict[bytes, bytes] = {}
            for cache, ids in zip(self.caches, part.entities, strict=True):
                fields |= cache.encode(part.partition, ids)
            produced.append(Produced(part.partition, part.offsets, outputs, fields, part.watermark))
        return produced

    def _decide(self, part: Part, row: int, record: Record, decided: _Decided, i: int, models: Any, tally: Tally
                ) -> list[Output]:  # fmt: skip
        """The decision on one transaction, and its alert where it needs a person."""
        topics, batch = self._topic_names, part.batch
        action = ACTIONS[decided.action[i]]
        reasons = models.fraud.reasons(decided.x[i]) if action != "allow" else []
        source, emitted = source_id(record), self._emitted(record)
        tally.add(tally.actions, action)
        tally.timestamps.setdefault("decision", []).append(record.timestamp)
        facts = {
            "decision_id": source,
            "event_id": batch.event_id[row],
            "key": batch.entities[0][row],
            "event_time": int(batch.time[row]),
            "score": float(decided.score[i]),
            "anomaly": float(decided.anomaly[i]),
            "action": action,
            "model_version": models.version if emitted is None else emitted.model_version,
            "label_position": int(decided.positions[i]),
            "duplicate": bool(decided.repeat[i]),
        }
        key = facts["key"].encode()
        decision = Decision(**facts, reasons=[reason.text for reason in reasons])
        outputs = [Output(topics.decisions, key, msgspec.json.encode(decision), source)]
        if action != "allow":
            tally.alerts += 1
            alert = Alert(
                **facts,
                reasons=reasons,
                entities={cache.layout.entity.name: ids[row]
                          for cache, ids in zip(self.caches, batch.entities, strict=True)},
                values={name: None if value != value else value
                        for name, value in zip(self.catalogue.names, decided.x[i].tolist(), strict=True)},
            )  # fmt: skip
            outputs.append(Output(topics.alerts, key, msgspec.json.encode(alert), source))
        return outputs


@dataclass(frozen=True, slots=True)
class _Decided:
    """Columns of the transactions of a cycle, partition by partition."""

    x: NDArray[np.float64]
    score: NDArray[np.float64]
    anomaly: NDArray[np.float64]
    action: NDArray[np.int8]
    repeat: NDArray[np.int8]
    positions: NDArray[np.int64]
