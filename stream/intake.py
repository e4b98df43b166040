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

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.decode import Bad, LabelDecoder, Limits, TransactionBatch, TransactionDecoder
from features.messages import Action
from features.schema import TransactionSchema
from features.watermark import UNMARKED, Watermark, advance
from stream.lane import Output, Record, Records, Tally, misplaced, refuse, source_id
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


class Emitted(msgspec.Struct, frozen=True):
    """What counts of a decision or an alert that was emitted and not applied; either may have come alone."""

    decision_id: str
    score: float
    anomaly: float
    action: Action
    model_version: str
    label_position: int


@dataclass(slots=True)
class Progress:
    """Where a partition stands: offsets decoded so far, the newest times seen, labels and transactions that wait.

    And until ``answered`` is reached, what an earlier owner emitted: ``done`` (topic and source) and decisions.
    """

    offsets: dict[str, int]
    watermark: Watermark = UNMARKED
    clock: int = 0
    label_clock: int = 0
    labels: deque[Waiting] = field(default_factory=deque)
    held: list[Record] = field(default_factory=list)
    emitted: dict[str, Emitted] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    answered: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Part:
    """One partition's share of a cycle; ``order`` indexes transactions first, then labels, ``marks`` lie in it."""

    partition: int
    offsets: dict[str, int]
    outputs: list[Output]
    records: list[Record]
    batch: TransactionBatch
    labels: list[Waiting]
    order: NDArray[np.int64]
    positions: NDArray[np.int64]
    entities: list[list[str]]
    marks: NDArray[np.int64]
    watermark: Watermark

    @property
    def transactions(self) -> NDArray[np.int64]:
        """Indices of the transactions in the order in which they count."""
        return self.order[self.order < len(self.records)]


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
            if records or state.labels or state.held:
                part = self._take(partition, state, records, lagging.get(partition, False), tally)
                if part is not None:
                    parts.append(part)
        return parts

    def _take(self, partition: int, state: Progress, records: Records, lagging: bool, tally: Tally) -> Part | None:
        outputs: list[Output] = []
        self._queue_labels(partition, state, records.get(self._labels, ()), tally)
        fresh, batch, pinned = self._transactions_ready(partition, state, records)
        for bad in batch.bad:
            refuse(fresh[bad.index], bad, self._dead_letters, outputs, tally)
        clocks = np.maximum.accumulate(np.concatenate([[state.clock], batch.time]))[1:]
        if len(clocks):
            state.clock = int(clocks[-1])
        labels = self._due_labels(state, lagging or bool(state.held), int(pinned.max(initial=-1)))
        if not fresh and not labels:
            return None
        tally.add(tally.events, "transactions", len(fresh))
        tally.add(tally.events, "labels", len(labels))
        tally.unknown_fields += batch.unknown_fields
        for label in labels:
            if label.bad is not None:
                refuse(label.record, label.bad, self._dead_letters, outputs, tally)
        before = [state.offsets.get(self._labels, 0), *(label.record.offset + 1 for label in labels)]
        state.offsets = state.offsets | {self._labels: before[-1]}
        if fresh:
            state.offsets[self._transactions] = fresh[-1].offset + 1
        good = [i for i, label in enumerate(labels) if label.bad is None]
        seen = _labels_seen(clocks, labels, pinned)
        kept = [labels[i] for i in good]
        # A transaction comes after the labels that it has seen, and before the others.
        order = np.argsort(np.concatenate([2 * seen, 2 * np.array(good, np.int64) + 1]), kind="stable")
        times = np.concatenate([batch.time, np.array([label.time for label in kept], np.int64)])
        marks, state.watermark = advance(state.watermark, times[order])
        return Part(
            partition=partition,
            offsets=dict(state.offsets),
            outputs=outputs,
            records=[fresh[i] for i in batch.rows],
            batch=batch,
            labels=kept,
            order=order,
            positions=np.array(before, np.int64)[seen],
            entities=[[*batch.entities[e], *(label.entities[e] for label in kept)] for e in range(self._entities)],
            marks=marks,
            watermark=state.watermark,
        )

    def _transactions_ready(self, partition: int, state: Progress, records: Records
                            ) -> tuple[list[Record], TransactionBatch, NDArray[np.int64]]:  # fmt: skip
        """The transactions of this cycle, decoded, and the label position that each was emitted with (-1: none).

        One that was emitted before a takeover waits, with all after it, until the labels that it has seen are here.
        """
        applied = state.offsets.get(self._transactions, 0)
        new = [record for record in records.get(self._transactions, ()) if record.offset >= applied]
        fresh = [*state.held, *new]
        fresh, state.held = fresh[: self._records_max], fresh[self._records_max :]
        batch = self._decoded(fresh, partition)
        pinned = np.full(len(batch.rows), -1, np.int64)
        if state.emitted:
            here = state.labels[-1].record.offset + 1 if state.labels else state.offsets.get(self._labels, 0)
            for i, row in enumerate(batch.rows):
                emitted = state.emitted.get(source_id(fresh[row]))
                if emitted is not None and emitted.label_position > here:
                    fresh, state.held = fresh[:row], [*fresh[row:], *state.held]
                    return fresh, self._decoded(fresh, partition), pinned[:i]
                pinned[i] = -1 if emitted is None else emitted.label_position
        return fresh, batch, pinned

    def _decoded(self, records: list[Record], partition: int) -> TransactionBatch:
        batch = self._decode_transactions([r.value for r in records], [r.timestamp for r in records])
        self._check_partition(batch, partition)
        return batch

    def _check_partition(self, batch: TransactionBatch, partition: int) -> None:
        """Move events whose key belongs to another partition from the good to the bad ones."""
        if self._accept_mispartitioned or not batch.rows:
            return
        wrong = misplaced(batch.entities[0], batch.rows, partition, self._count, f"{self._key_name} {{!r}}")
        if not wrong:
            return
        batch.bad += wrong.values()
        keep = [i for i in range(len(batch.rows)) if i not in wrong]
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

    def _due_labels(self, state: Progress, lagging: bool, position: int) -> list[Waiting]:
        """Labels below ``position``, and those that the transactions' clock has passed; all where none lags."""
        due: list[Waiting] = []
        while state.labels and len(due) < self._records_max:
            label = state.labels[0]
            if lagging and label.record.offset >= position and label.clock >= state.clock:
                break
            due.append(state.labels.popleft())
        return due


def _labels_seen(clocks: NDArray[np.int64], labels: Sequence[Waiting], pinned: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of ``labels`` come before each transaction: those of an earlier time, or as it was emitted; int64[n]."""
    by_clock = np.searchsorted([label.clock for label in labels], clocks, side="left")
    by_offset = np.searchsorted([label.record.offset for label in labels], pinned, side="left")
    return np.maximum.accumulate(np.where(pinned >= 0, by_offset, by_clock)).astype(np.int64)
