"""The fraud lane: transactions and labels of one partition number share state and become decisions and alerts.

In: fetched records by partition, entity state, models. Out: decisions, alerts, dead letters, new state and offsets.
State owned: the caches of entity rows, and labels that wait. On redelivery: records below the applied offset are
skipped; what was emitted but not applied is folded again with the decision that was emitted.

Labels wait while transactions lag: a label of the future must not reach an old transaction. They are folded in their
own order, merged with the transactions by time, and each decision records the label position that it saw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from features import engine
from features.catalogue import Catalogue
from features.decode import Bad, LabelDecoder, Limits, TransactionBatch, TransactionDecoder
from features.engine import Operations
from features.hashing import hash_strings, partitions_of
from features.kernel import LABEL, TRANSACTION
from features.messages import ACTIONS, Alert, Decision
from features.scoring import FraudModel
from stream.entities import EntityCache
from stream.lane import Output, Produced, Record, Records, Tally, refuse, source_id
from stream.settings import Settings
from stream.store import FIELDS_MAX
from stream.vectors import VectorLog

_ROUND = 6  # decimals of scores: what is published is what is remembered


@dataclass(slots=True)
class _Waiting:
    """A label that is not folded yet, or a bad one that keeps its place among them."""

    record: Record
    clock: int
    event_id: str = ""
    entities: tuple[str, ...] = ()
    time: int = 0
    fraud: int = 0
    bad: Bad | None = None


@dataclass(slots=True)
class _Partition:
    """Where a partition stands: offsets decoded so far, the newest times seen, labels that wait, emitted decisions."""

    offsets: dict[str, int]
    clock: int = 0
    label_clock: int = 0
    labels: deque[_Waiting] = field(default_factory=deque)
    emitted: dict[str, Decision] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Part:
    """One partition's share of a cycle; ``order`` indexes transactions first, then labels."""

    partition: int
    offsets: dict[str, int]
    outputs: list[Output]
    records: list[Record]
    batch: TransactionBatch
    labels: list[_Waiting]
    order: NDArray[np.int64]
    positions: NDArray[np.int64]
    entities: list[list[str]]


class FraudLane:
    """Transactions and labels to decisions, see the module's text."""

    name = "fraud"

    def __init__(self, settings: Settings, catalogue: Catalogue, log: VectorLog | None = None) -> None:
        worker, topics = settings.worker, settings.topics
        schema = catalogue.schema
        limits = Limits(worker.message_bytes_max, int(worker.ahead_max_s * 1000))
        self.catalogue = catalogue
        self.partitions = topics.transaction_partitions
        self.transactions, self.labels = topics.transactions, topics.labels
        self.topics = (topics.transactions, topics.labels)
        self.outputs = (topics.decisions, topics.alerts, topics.dead_letters)
        self.records_max = FIELDS_MAX // (2 * len(schema.entities)) - 1  # transactions and labels, each its entities
        self._topic_names = topics
        self._worker = worker
        self._decode_transactions = TransactionDecoder(schema, limits).decode
        self._decode_labels = LabelDecoder(schema, limits).decode
        share = max(worker.cache_entities // len(catalogue.layouts), 1)
        self.caches = tuple(
            EntityCache(layout, share, merged=e > 0 and self.partitions > 1,
                        refresh_s=worker.foreign_refresh_ms / 1000)
            for e, layout in enumerate(catalogue.layouts)
        )  # fmt: skip
        self._tables = tuple(cache.rows for cache in self.caches)
        self._partitions: dict[int, _Partition] = {}
        self._log = log

    def resume(self, partition: int, offsets: Mapping[str, int]) -> None:
        """Start a partition at the applied ``offsets``; nothing of it is cached."""
        self.drop(partition)
        self._partitions[partition] = _Partition(dict(offsets))

    def drop(self, partition: int) -> None:
        """Forget a partition: it is lost, or its state ran ahead of what was applied."""
        self._partitions.pop(partition, None)
        for cache in self.caches:
            cache.drop(partition)

    def evict(self, settled: int) -> None:
        """Hold the caches to their capacity; cycles up to ``settled`` are applied."""
        for cache in self.caches:
            cache.evict(settled)

    def adopt(self, partition: int, emitted: Mapping[str, Sequence[bytes]]) -> None:
        """Take note of outputs beyond the applied state: they are not emitted again, their decisions hold."""
        state = self._partitions[partition]
        for topic, values in emitted.items():
            for value in values:
                if topic == self._topic_names.dead_letters:
                    state.done.add(f"{topic} {msgspec.json.decode(value)['dead_letter_id']}")
                else:
                    decision = msgspec.json.decode(value, type=Decision if topic == self._topic_names.decisions else Alert)
                    state.done.add(f"{topic} {decision.decision_id}")
                    if isinstance(decision, Decision):
                        state.emitted[decision.decision_id] = decision

    def waiting(self) -> dict[int, int]:
        """How many labels wait, by partition."""
        return {partition: len(state.labels) for partition, state in self._partitions.items() if state.labels}

    def begin(self, fetched: Mapping[int, Records], lagging: Mapping[int, bool], tally: Tally) -> list[_Part]:
        """Skip what is applied, decode, check the keys, and put transactions and labels in order."""
        parts = []
        for partition, state in self._partitions.items():
            records = fetched.get(partition, {})
            if records or state.labels:
                part = self._begin(partition, state, records, lagging.get(partition, False), tally)
                if part is not None:
                    parts.append(part)
        return parts

    def _begin(self, partition: int, state: _Partition, records: Records, lagging: bool, tally: Tally) -> _Part | None:
        outputs: list[Output] = []
        fresh = self._fresh(state, records.get(self.transactions, ()), self.transactions)
        batch = self._decode_transactions([r.value for r in fresh], [r.timestamp for r in fresh])
        self._check_partition(batch, partition)
        for bad in batch.bad:
            refuse(fresh[bad.index], bad, self._topic_names.dead_letters, outputs, tally)
        self._queue_labels(partition, state, records.get(self.labels, ()), tally)
        clocks = np.maximum.accumulate(np.concatenate([[state.clock], batch.time]))[1:]
        if len(clocks):
            state.clock = int(clocks[-1])
        labels = self._due_labels(state, lagging)
        if not fresh and not labels:
            return None
        tally.add(tally.events, "transactions", len(fresh))
        tally.add(tally.events, "labels", len(labels))
        tally.unknown_fields += batch.unknown_fields
        offsets = dict(state.offsets)
        if fresh:
            offsets[self.transactions] = fresh[-1].offset + 1
        before = [state.offsets.get(self.labels, 0), *(label.record.offset + 1 for label in labels)]
        offsets[self.labels] = before[-1]
        state.offsets = offsets
        for label in labels:
            if label.bad is not None:
                refuse(label.record, label.bad, self._topic_names.dead_letters, outputs, tally)
        good = [i for i, label in enumerate(labels) if label.bad is None]
        label_clocks = np.array([labels[i].clock for i in good], np.int64)
        order = np.argsort(np.concatenate([clocks, label_clocks]), kind="stable")
        # The labels seen by a transaction are all those with a clock below its own, bad ones included.
        all_clocks = np.array([label.clock for label in labels], np.int64)
        positions = np.array(before, np.int64)[np.searchsorted(all_clocks, clocks, side="left")]
        kept = [labels[i] for i in good]
        entities = [[*batch.entities[e], *(label.entities[e] for label in kept)] for e in range(len(self.caches))]
        return _Part(partition, offsets, outputs, [fresh[i] for i in batch.rows], batch, kept, order, positions, entities)

    def _fresh(self, state: _Partition, records: Sequence[Record], topic: str) -> list[Record]:
        applied = state.offsets.get(topic, 0)
        return [record for record in records if record.offset >= applied]

    def _check_partition(self, batch: TransactionBatch, partition: int) -> None:
        """Move events whose key belongs to another partition from the good to the bad ones."""
        if self._worker.accept_mispartitioned or not batch.rows:
            return
        expected = partitions_of([id_.encode() for id_ in batch.entities[0]], self.partitions)
        if (expected == partition).all():
            return
        keep = np.flatnonzero(expected == partition)
        for i in np.flatnonzero(expected != partition):
            batch.bad.append(Bad(batch.rows[i], "wrong_partition",
                f"{self.catalogue.schema.key.name} {batch.entities[0][i]!r} belongs to partition {expected[i]} of "
                f"{self.partitions}, not {partition}: the producer does not use murmur2 on the key "
                "(`headrace repartition`, or set worker.accept_mispartitioned)"))  # fmt: skip
        batch.rows = [batch.rows[i] for i in keep]
        batch.event_id = [batch.event_id[i] for i in keep]
        batch.entities = [[ids[i] for i in keep] for ids in batch.entities]
        for name in ("time", "values", "categories", "fraud"):
            setattr(batch, name, getattr(batch, name)[keep])

    def _queue_labels(self, partition: int, state: _Partition, records: Sequence[Record], tally: Tally) -> None:
        seen = state.labels[-1].record.offset + 1 if state.labels else state.offsets.get(self.labels, 0)
        fresh = [record for record in records if record.offset >= seen]
        if not fresh:
            return
        batch = self._decode_labels([r.value for r in fresh], [r.timestamp for r in fresh])
        self._check_partition(batch, partition)
        tally.unknown_fields += batch.unknown_fields
        bad = {item.index: item for item in batch.bad}
        good = {row: i for i, row in enumerate(batch.rows)}
        for index, record in enumerate(fresh):
            if index in bad:
                state.labels.append(_Waiting(record, state.label_clock, bad=bad[index]))
                continue
            i = good[index]
            time = int(batch.time[i])
            state.label_clock = max(state.label_clock, time)
            entities = tuple(ids[i] for ids in batch.entities)
            state.labels.append(_Waiting(record, state.label_clock, batch.event_id[i], entities, time,
                                         int(batch.fraud[i])))  # fmt: skip

    def _due_labels(self, state: _Partition, lagging: bool) -> list[_Waiting]:
        due = []
        while state.labels and len(due) < self.records_max and (not lagging or state.labels[0].clock < state.clock):
            due.append(state.labels.popleft())
        return due

    def wanted(self, work: list[_Part], now_s: float) -> dict[int, list[bytes]]:
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
                        wanted.setdefault(partition, []).append(cache.field(id_))
        return {partition: list(dict.fromkeys(fields)) for partition, fields in wanted.items()}

    def fill(self, work: list[_Part], values: Mapping[int, Mapping[bytes, bytes | None]], now_s: float) -> None:
        """Take in what was read for :meth:`wanted`, asked with the same ``now_s``."""
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
            for id_ in stale:
                cache.build_view(id_, others[id_], now_s)

    def compute(self, work: list[_Part], models: Any, cycle: int, tally: Tally) -> list[Produced]:
        """Fold and score everything, then decide; returns what each partition has to write."""
        if not work:
            return []
        operations = self._operations(work, cycle)
        with tally.stage("features"):
            folded = engine.fold(self.catalogue, self._tables, operations)
        rows = np.flatnonzero(operations.kind == TRANSACTION)
        x = np.ascontiguousarray(folded.x[rows])
        with tally.stage("model"):
            score, anomaly, action = self._score(models.fraud, x)
            records, positions = self._in_order(work)
            self._adopt_emitted(work, records, score, anomaly, action)
            n = len(operations)
            full = np.zeros(n), np.zeros(n), np.zeros(n, np.int8)
            for column, part in zip(full, (score, anomaly, action), strict=True):
                column[rows] = part
            engine.remember(self.catalogue, self._tables, operations, folded, *full)
        tally.labels_missed += int(folded.missed.sum())
        tally.duplicates += int(folded.repeat.sum())
        if self._log is not None:
            self._log.append([source_id(r) for r in records], positions, x)
        decided = _Decided(x, *(column[rows] for column in full), folded.repeat[rows], positions)
        with tally.stage("encode"):
            return self._produced(work, records, decided, models, tally)

    def _operations(self, work: list[_Part], cycle: int) -> Operations:
        """The columns of all partitions end to end, each in its own order."""
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in Operations.__slots__}
        for part in work:
            labels, batch, order = part.labels, part.batch, part.order
            n, extra = len(batch.rows), len(labels)
            ids = [*batch.event_id, *(label.event_id for label in labels)]
            missing = np.full((extra, batch.values.shape[1]), np.nan), np.full((extra, batch.categories.shape[1]), np.nan)
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
        operations = Operations(**{name: np.concatenate(columns) for name, columns in parts.items()})
        for e, cache in enumerate(self.caches):
            if not cache.merged:
                operations.views[:, e] = operations.slots[:, e]
        return operations

    def _in_order(self, work: list[_Part]) -> tuple[list[Record], NDArray[np.int64]]:
        """The transactions' records and label positions, in the order of the operations."""
        records: list[Record] = []
        positions = []
        for part in work:
            chosen = part.order[part.order < len(part.records)]
            records += [part.records[i] for i in chosen]
            positions.append(part.positions[chosen])
        return records, np.concatenate(positions)

    def _score(self, model: FraudModel, x: NDArray[np.float64]) -> tuple[Any, Any, Any]:
        worker = self._worker
        score, anomaly = model.score_many(x) if len(x) else (np.zeros(0), np.zeros(0))
        score, anomaly = np.round(score, _ROUND), np.round(anomaly, _ROUND)
        block = model.thresholds.block if worker.block_score is None else worker.block_score
        review = model.thresholds.review if worker.review_score is None else worker.review_score
        action = np.where(score >= block, 2, np.where(score >= review, 1, 0)).astype(np.int8)
        return score, anomaly, action

    def _adopt_emitted(self, work: list[_Part], records: list[Record], score: Any, anomaly: Any, action: Any) -> None:
        emitted = {id_: d for part in work for id_, d in self._partitions[part.partition].emitted.items()}
        if not emitted:
            return
        for i, record in enumerate(records):
            decision = emitted.get(source_id(record))
            if decision is not None:
                score[i], anomaly[i], action[i] = decision.score, decision.anomaly, ACTIONS.index(decision.action)

    def _produced(self, work: list[_Part], records: list[Record], decided: _Decided, models: Any, tally: Tally
                  ) -> list[Produced]:  # fmt: skip
        produced, first = [], 0
        for part in work:
            chosen = part.order[part.order < len(part.records)]
            outputs = list(part.outputs)
            for i, row in enumerate(chosen.tolist(), first):
                outputs += self._decide(part, row, records[i], decided, i, models, tally)
            first += len(chosen)
            state = self._partitions[part.partition]
            if state.done:
                outputs = [o for o in outputs if f"{o.topic} {o.source}" not in state.done]
            fields: dict[bytes, bytes] = {}
            for cache, ids in zip(self.caches, part.entities, strict=True):
                fields |= cache.encode(part.partition, ids)
            produced.append(Produced(part.partition, part.offsets, outputs, fields))
        return produced

    def _decide(self, part: _Part, row: int, record: Record, decided: _Decided, i: int, models: Any, tally: Tally
                ) -> list[Output]:  # fmt: skip
        """The decision on one transaction, and its alert where it needs a person."""
        topics, batch = self._topic_names, part.batch
        action = ACTIONS[decided.action[i]]
        reasons = models.fraud.reasons(decided.x[i]) if action != "allow" else []
        source = source_id(record)
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
            "model_version": models.version,
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
                entities={layout.entity.name: batch.entities[e][row] for e, layout in enumerate(self.catalogue.layouts)},
                values={name: None if value != value else value
                        for name, value in zip(self.catalogue.names, decided.x[i].tolist(), strict=True)},
            )  # fmt: skip
            outputs.append(Output(topics.alerts, key, msgspec.json.encode(alert), source))
        return outputs


@dataclass(frozen=True, slots=True)
class _Decided:
    """Columns of the transactions of a cycle in the order of the operations."""

    x: NDArray[np.float64]
    score: NDArray[np.float64]
    anomaly: NDArray[np.float64]
    action: NDArray[np.int8]
    repeat: NDArray[np.int8]
    positions: NDArray[np.int64]
