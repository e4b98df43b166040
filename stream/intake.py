"""What a fetch brings to the fraud lane: skipped, decoded, checked, and put in the order in which it counts.

In: fetched records of transactions and labels by partition. Out: one :class:`Part` for each partition. State owned:
how far each partition is decoded, the labels that wait, and what an earlier owner emitted beyond the applied state.

Labels wait while transactions lag: a label of the future must not reach an old transaction. They are folded in their
own order, merged with the transactions by time, and each decision records the label position that it saw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from features.decode import Bad, LabelDecoder, Limits, TransactionBatch, TransactionDecoder
from features.hashing import partitions_of
from features.messages import Decision
from features.schema import TransactionSchema
from stream.lane import Output, Record, Records, Tally, refuse
from stream.settings import Settings


@dataclass(slots=True)
class Waiting:
    """A label that is not folded yet, or a bad one that keeps its place among them."""

    record: Record
    clock: int
    event_id: str = ""
    entities: tuple[str, ...] = ()
    time: int = 0
    fraud: int = 0
    bad: Bad | None = None


@dataclass(slots=True)
class Progress:
    """Where a partition stands: offsets decoded so far, the newest times seen, labels that wait.

    And until ``answered`` is reached, what an earlier owner emitted: ``done`` (topic and source) and decisions.
    """

    offsets: dict[str, int]
    clock: int = 0
    label_clock: int = 0
    labels: deque[Waiting] = field(default_factory=deque)
    emitted: dict[str, Decision] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    answered: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Part:
    """One partition's share of a cycle; ``order`` indexes transactions first, then labels."""

    partition: int
    offsets: dict[str, int]
    outputs: list[Output]
    records: list[Record]
    batch: TransactionBatch
    labels: list[Waiting]
    order: NDArray[np.int64]
    positions: NDArray[np.int64]
    entities: list[list[str]]


class Intake:
    """Takes fetches in; ``records_max`` bounds the labels of one cycle."""

    def __init__(self, settings: Settings, schema: TransactionSchema, records_max: int) -> None:
        worker, topics = settings.worker, settings.topics
        limits = Limits(worker.message_bytes_max, int(worker.ahead_max_s * 1000))
        self.partitions: dict[int, Progress] = {}
        self._count = topics.transaction_partitions
        self._transactions, self._labels, self._dead_letters = topics.transactions, topics.labels, topics.dead_letters
        self._records_max = records_max
        self._entities = len(schema.entities)
        self._key_name = schema.key.name
        self._accept_mispartitioned = worker.accept_mispartitioned
        self._decode_transactions = TransactionDecoder(schema, limits).decode
        self._decode_labels = LabelDecoder(schema, limits).decode

    def take(self, fetched: Mapping[int, Records], lagging: Mapping[int, bool], tally: Tally) -> list[Part]:
        """Skip what is applied, decode, check the keys, and put transactions and labels in order."""
        parts = []
        for partition, state in self.partitions.items():
            records = fetched.get(partition, {})
            if records or state.labels:
                part = self._take(partition, state, records, lagging.get(partition, False), tally)
                if part is not None:
                    parts.append(part)
        return parts

    def _take(self, partition: int, state: Progress, records: Records, lagging: bool, tally: Tally) -> Part | None:
        outputs: list[Output] = []
        fresh = self._fresh(state, records.get(self._transactions, ()), self._transactions)
        batch = self._decode_transactions([r.value for r in fresh], [r.timestamp for r in fresh])
        self._check_partition(batch, partition)
        for bad in batch.bad:
            refuse(fresh[bad.index], bad, self._dead_letters, outputs, tally)
        self._queue_labels(partition, state, records.get(self._labels, ()), tally)
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
            offsets[self._transactions] = fresh[-1].offset + 1
        before = [state.offsets.get(self._labels, 0), *(label.record.offset + 1 for label in labels)]
        offsets[self._labels] = before[-1]
        state.offsets = offsets
        for label in labels:
            if label.bad is not None:
                refuse(label.record, label.bad, self._dead_letters, outputs, tally)
        good = [i for i, label in enumerate(labels) if label.bad is None]
        label_clocks = np.array([labels[i].clock for i in good], np.int64)
        order = np.argsort(np.concatenate([clocks, label_clocks]), kind="stable")
        # The labels seen by a transaction are all those with a clock below its own, bad ones included.
        all_clocks = np.array([label.clock for label in labels], np.int64)
        positions = np.array(before, np.int64)[np.searchsorted(all_clocks, clocks, side="left")]
        kept = [labels[i] for i in good]
        entities = [[*batch.entities[e], *(label.entities[e] for label in kept)] for e in range(self._entities)]
        records_kept = [fresh[i] for i in batch.rows]
        return Part(partition, offsets, outputs, records_kept, batch, kept, order, positions, entities)

    def _fresh(self, state: Progress, records: Sequence[Record], topic: str) -> list[Record]:
        applied = state.offsets.get(topic, 0)
        return [record for record in records if record.offset >= applied]

    def _check_partition(self, batch: TransactionBatch, partition: int) -> None:
        """Move events whose key belongs to another partition from the good to the bad ones."""
        if self._accept_mispartitioned or not batch.rows:
            return
        expected = partitions_of([id_.encode() for id_ in batch.entities[0]], self._count)
        if (expected == partition).all():
            return
        keep = np.flatnonzero(expected == partition)
        for i in np.flatnonzero(expected != partition):
            batch.bad.append(Bad(batch.rows[i], "wrong_partition",
                f"{self._key_name} {batch.entities[0][i]!r} belongs to partition {expected[i]} of "
                f"{self._count}, not {partition}: the producer does not use murmur2 on the key "
                "(`headrace repartition`, or set worker.accept_mispartitioned)"))  # fmt: skip
        batch.rows = [batch.rows[i] for i in keep]
        batch.event_id = [batch.event_id[i] for i in keep]
        batch.entities = [[ids[i] for i in keep] for ids in batch.entities]
        for name in ("time", "values", "categories", "fraud"):
            setattr(batch, name, getattr(batch, name)[keep])

    def _queue_labels(self, partition: int, state: Progress, records: Sequence[Record], tally: Tally) -> None:
        seen = state.labels[-1].record.offset + 1 if state.labels else state.offsets.get(self._labels, 0)
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
                state.labels.append(Waiting(record, state.label_clock, bad=bad[index]))
                continue
            i = good[index]
            time = int(batch.time[i])
            state.label_clock = max(state.label_clock, time)
            entities = tuple(ids[i] for ids in batch.entities)
            state.labels.append(Waiting(record, state.label_clock, batch.event_id[i], entities, time,
                                         int(batch.fraud[i])))  # fmt: skip

    def _due_labels(self, state: Progress, lagging: bool) -> list[Waiting]:
        due: list[Waiting] = []
        while state.labels and len(due) < self._records_max and (not lagging or state.labels[0].clock < state.clock):
            due.append(state.labels.popleft())
        return due
