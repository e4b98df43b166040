"""What a fetch brings to the fraud lane: skipped, decoded, checked, and put in the order in which it counts.

In: fetched records of transactions and labels by partition. Out: one :class:`Part` for each partition. State owned:
how far each partition is decoded, the labels that wait, and what an earlier owner emitted beyond the applied state.

Labels wait while transactions lag: a label of the future must not reach an old transaction. They are folded in their
own order, merged with the transactions by time, and each decision records the label position that it saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.decode import Bad, LabelDecoder, Limits, TransactionBatch, TransactionDecoder
from features.messages import Action
from features.schema import TransactionSchema
from features.texts import Texts
from features.watermark import UNMARKED, Watermark, advance
from stream.lane import Answers, Record, Records, Tally, misplaced, refuse, source_id
from stream.settings import Settings

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Labels:
    """n labels that are not folded yet, in the order of their offsets.

    ``offset``, ``clock`` (the newest label time up to each) and ``time`` int64[n]; ``fraud`` int8[n]; ``good`` bool[n]:
    a bad one keeps its place among them, and ``bad`` has its record and reason by offset.
    """

    offset: Ints
    clock: Ints
    time: Ints
    fraud: NDArray[np.int8]
    good: NDArray[np.bool_]
    event_id: Texts
    entities: list[Texts]
    bad: dict[int, tuple[Record, Bad]]

    @classmethod
    def none(cls) -> Labels:
        """No labels."""
        zero = np.zeros(0, np.int64)
        return cls(zero, zero, zero, np.zeros(0, np.int8), np.zeros(0, np.bool_), Texts.of([]), [], {})

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, at: slice | NDArray[np.bool_]) -> Labels:
        """Some of them."""
        rows = np.arange(len(self))[at]
        return Labels(self.offset[at], self.clock[at], self.time[at], self.fraud[at], self.good[at],
                      self.event_id.take(rows), [ids.take(rows) for ids in self.entities], self.bad)  # fmt: skip

    def and_then(self, other: Labels) -> Labels:
        """These and those that follow them."""
        if not len(self):
            return other
        pairs = ((self.offset, other.offset), (self.clock, other.clock), (self.time, other.time))
        offset, clock, time = (np.concatenate(pair) for pair in pairs)
        entities = [Texts.concat([a.packed(), b.packed()]) for a, b in zip(self.entities, other.entities, strict=True)]
        event_id = Texts.concat([self.event_id.packed(), other.event_id.packed()])
        fraud, good = np.concatenate([self.fraud, other.fraud]), np.concatenate([self.good, other.good])
        return Labels(offset, clock, time, fraud, good, event_id, entities, self.bad | other.bad)


class Emitted(msgspec.Struct, frozen=True):
    """What counts of a decision or an alert that was emitted and not applied; either may have come alone."""

    decision_id: str
    score: float
    anomaly: float
    action: Action
    model_version: str
    label_position: int
    review_score: float | None = None
    rules: list[str] = []
    shadow_rules: list[str] = []
    degraded: str | None = None
    reasons_partial: bool = False
    rules_version: str | None = None


@dataclass(slots=True)
class Progress:
    """Where a partition stands: offsets decoded so far, the newest times seen, labels and transactions that wait.

    And until ``answered`` is reached, what an earlier owner emitted: ``done`` (topic and source) and decisions.
    """

    offsets: dict[str, int]
    watermark: Watermark = UNMARKED
    clock: int = 0
    label_clock: int = 0
    labels: Labels = field(default_factory=Labels.none)
    held: list[Record] = field(default_factory=list)
    emitted: dict[str, Emitted] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    answered: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Part:
    """One partition's share of a cycle: its transactions in order, and the labels among them.

    ``order`` indexes transactions first, then labels, and ``marks`` (watermarks) lie in it; ``entities`` are the ids of
    both, by entity, and ``hashes``, ``slots`` and ``views`` what the lane finds out about them.
    """

    partition: int
    offsets: dict[str, int]
    answers: Answers
    records: Sequence[Record]
    batch: TransactionBatch
    labels: Labels
    order: Ints
    positions: Ints
    entities: list[Texts]
    marks: Ints
    watermark: Watermark
    hashes: list[Ints] = field(default_factory=list)
    slots: list[Ints] = field(default_factory=list)
    views: list[Ints] = field(default_factory=list)


class Intake:
    """Takes fetches in; ``records_max`` bounds transactions and labels of one cycle, and ``limit`` may lie below it."""

    def __init__(self, settings: Settings, schema: TransactionSchema, records_max: int) -> None:
        worker, topics = settings.worker, settings.topics
        limits = Limits(worker.message_bytes_max, int(worker.ahead_max_s * 1000))
        self.partitions: dict[int, Progress] = {}
        self._count = topics.transaction_partitions
        self._transactions, self._labels, self._dead_letters = topics.transactions, topics.labels, topics.dead_letters
        self._records_max = self.limit = records_max
        self._entities = len(schema.entities)
        self._key_name = schema.key.name
        self._accept_mispartitioned = worker.accept_mispartitioned
        self._decode_transactions = TransactionDecoder(schema, limits).decode
        self._decode_labels = LabelDecoder(schema, limits).decode

    def take(self, fetched: Mapping[int, Records], lagging: Mapping[int, bool], tally: Tally) -> list[Part]:
        """Skip what is applied, decode, check the keys, and put transactions and labels in order."""
        ready: list[tuple[int, Progress, Records, list[Record]]] = []
        for partition, state in self.partitions.items():
            records = fetched.get(partition, {})
            if records or len(state.labels) or state.held:
                applied = state.offsets.get(self._transactions, 0)
                fresh = [*state.held, *_from(records.get(self._transactions, ()), applied)]
                fresh, state.held = fresh[: self.limit], fresh[self.limit :]
                ready.append((partition, state, records, fresh))
        batches = self._decoded([(partition, fresh) for partition, _, _, fresh in ready])
        parts = []
        for (partition, state, records, fresh), batch in zip(ready, batches, strict=True):
            self._queue_labels(partition, state, records.get(self._labels, ()), tally)
            part = self._part(partition, state, fresh, batch, lagging.get(partition, False), tally)
            if part is not None:
                parts.append(part)
        return parts

    def good(self, partition: int, records: Sequence[Record]) -> list[Record]:
        """Those of some transactions that can be decided."""
        return [records[row] for row in self._decoded([(partition, records)])[0].rows] if records else []

    def _part(self, partition: int, state: Progress, fresh: list[Record], batch: TransactionBatch, lagging: bool,
              tally: Tally) -> Part | None:  # fmt: skip
        answers = Answers(state.done)
        pinned = None
        if state.emitted:
            fresh, batch, pinned = self._pinned(partition, state, fresh, batch)
        for bad in batch.bad:
            refuse((self._transactions, partition), fresh[bad.index], bad, self._dead_letters, answers, tally)
        clocks = np.maximum.accumulate(np.concatenate([[state.clock], batch.time]))[1:]
        if len(clocks):
            state.clock = int(clocks[-1])
        labels = self._due_labels(partition, state, lagging, fresh, pinned)
        if not fresh and not len(labels):
            return None
        tally.add(tally.events, "transactions", len(fresh))
        tally.unknown_fields += batch.unknown_fields
        read = state.offsets.get(self._labels, 0)
        state.offsets = state.offsets | {self._labels: read}
        if fresh:
            state.offsets[self._transactions] = fresh[-1].offset + 1
        n = len(batch.rows)
        order, positions, entities = np.arange(n), np.full(n, read), batch.entities
        if len(labels):
            tally.add(tally.events, "labels", len(labels))
            for offset in labels.offset[~labels.good].tolist():
                record, reason = state.labels.bad.pop(offset)
                refuse((self._labels, partition), record, reason, self._dead_letters, answers, tally)
            state.offsets[self._labels] = int(labels.offset[-1]) + 1
            seen = _labels_seen(clocks, labels, pinned)
            positions = np.concatenate([[read], labels.offset + 1])[seen]
            good = np.flatnonzero(labels.good)
            labels = labels.take(labels.good)
            # A transaction comes after the labels that it has seen, and before the others.
            order = np.argsort(np.concatenate([2 * seen, 2 * good + 1]), kind="stable")
            if len(labels):
                entities = [Texts.concat(pair) for pair in zip(batch.entities, labels.entities, strict=True)]
        times = np.concatenate([batch.time, labels.time])[order] if len(labels) else batch.time
        marks, state.watermark = advance(state.watermark, times)
        return Part(
            partition=partition,
            offsets=dict(state.offsets),
            answers=answers,
            records=[fresh[i] for i in batch.rows] if n < len(fresh) else fresh,
            batch=batch,
            labels=labels,
            order=order,
            positions=positions,
            entities=entities,
            marks=marks,
            watermark=state.watermark,
        )

    def _pinned(self, partition: int, state: Progress, fresh: list[Record], batch: TransactionBatch
                ) -> tuple[list[Record], TransactionBatch, Ints]:  # fmt: skip
        """The transactions that may go on after a takeover, and the label position of each (int64[n], -1: not emitted).

        One that was emitted before it waits, with all after it, until the labels that it has seen are here.
        """
        pinned, here = np.full(len(batch.rows), -1, np.int64), self._labels_ready(state)
        for i, row in enumerate(batch.rows):
            pinned[i] = self._pin(partition, state, fresh[row])
            if pinned[i] > here:
                fresh, state.held = fresh[:row], [*fresh[row:], *state.held]
                return fresh, self._decoded([(partition, fresh)])[0], pinned[:i]
        return fresh, batch, pinned

    def _pin(self, partition: int, state: Progress, record: Record) -> int:
        """The label position that a transaction was emitted with; -1 for none."""
        emitted = state.emitted.get(source_id((self._transactions, partition), record.offset))
        return -1 if emitted is None else emitted.label_position

    def _labels_ready(self, state: Progress) -> int:
        """The offset after the last label that this cycle can fold."""
        if len(state.labels) > self._records_max:
            return int(state.labels.offset[self._records_max])
        return self._labels_read(state)

    def _decoded(self, fetched: Sequence[tuple[int, Sequence[Record]]]) -> list[TransactionBatch]:
        """The transactions of several partitions, decoded in one go, and each partition's share of them."""
        records = fetched[0][1] if len(fetched) == 1 else [record for _, found in fetched for record in found]
        batch = self._decode_transactions([r.value for r in records], [r.timestamp for r in records])
        sizes = [len(found) for _, found in fetched]
        partitions = np.repeat([partition for partition, _ in fetched], sizes)
        return self._check_partition(batch, partitions[batch.rows]).split(sizes)

    def _check_partition(self, batch: TransactionBatch, partitions: Ints) -> TransactionBatch:
        """Move events whose key belongs to another partition (int64[n]: where each lies) from the good to the bad."""
        if self._accept_mispartitioned or not batch.rows:
            return batch
        wrong = misplaced(batch.entities[0], batch.rows, partitions, self._count, f"{self._key_name} {{!r}}")
        if not wrong:
            return batch
        batch.bad += wrong.values()
        return batch.keep([i for i in range(len(batch.rows)) if i not in wrong])

    def _labels_read(self, state: Progress) -> int:
        """The offset after the last label that waits or was folded."""
        return int(state.labels.offset[-1]) + 1 if len(state.labels) else state.offsets.get(self._labels, 0)

    def _queue_labels(self, partition: int, state: Progress, records: Sequence[Record], tally: Tally) -> None:
        fresh = _from(records, self._labels_read(state))
        if not fresh:
            return
        batch = self._decode_labels([r.value for r in fresh], [r.timestamp for r in fresh])
        batch = self._check_partition(batch, np.full(len(batch.rows), partition))
        tally.unknown_fields += batch.unknown_fields
        n = len(fresh)
        good, time, fraud = np.zeros(n, np.bool_), np.full(n, state.label_clock, np.int64), np.zeros(n, np.int8)
        good[batch.rows], time[batch.rows], fraud[batch.rows] = True, batch.time, batch.fraud
        place = np.zeros(n, np.int64)  # a bad one has the text of any other; nobody reads it
        place[batch.rows] = np.arange(len(batch.rows))
        clock = np.maximum.accumulate(np.maximum(time, state.label_clock))
        state.label_clock = int(clock[-1])
        if not len(batch.rows):
            batch.event_id, batch.entities = Texts.of([""]), [Texts.of([""])] * self._entities
        fresh_labels = Labels(
            offset=np.array([record.offset for record in fresh], np.int64),
            clock=clock,
            time=time,
            fraud=fraud,
            good=good,
            event_id=batch.event_id.take(place),
            entities=[ids.take(place) for ids in batch.entities],
            bad={fresh[bad.index].offset: (fresh[bad.index], bad) for bad in batch.bad},
        )
        state.labels = state.labels.and_then(fresh_labels)

    def _due_labels(self, partition: int, state: Progress, lagging: bool, fresh: list[Record],
                    pinned: Ints | None) -> Labels:  # fmt: skip
        """Labels that the transactions' clock has passed, all where none lags.

        While what was emitted is folded again, also those that the transactions of this cycle, or the first one that
        waits, have seen; and none that the emitted ones of later cycles had not.
        """
        labels = state.labels
        if not len(labels):
            return labels
        due, seen = len(labels), 0
        if lagging or state.held:
            due = int(np.searchsorted(labels.clock, state.clock))
        if state.emitted:
            position = -1 if pinned is None else int(pinned.max(initial=-1))
            if state.held:
                position = max(position, self._pin(partition, state, state.held[0]))
            after = fresh[-1].offset + 1 if fresh else state.offsets.get(self._transactions, 0)
            later = [e.label_position for source, e in state.emitted.items() if int(source.rpartition(":")[2]) >= after]
            unseen = int(np.searchsorted(labels.offset, min(later, default=np.iinfo(np.int64).max)))
            seen = int(np.searchsorted(labels.offset, position))
            due = max(min(due, unseen), seen)
        due = min(due, max(self.limit, seen), self._records_max)
        state.labels = labels.take(slice(due, None))
        return labels.take(slice(due))


def _from(records: Sequence[Record], offset: int) -> Sequence[Record]:
    """The records from an offset on; usually that is all of them."""
    if not records or records[0].offset >= offset:
        return records
    return [record for record in records if record.offset >= offset]


def _labels_seen(clocks: Ints, labels: Labels, pinned: Ints | None) -> Ints:
    """How many of ``labels`` come before each transaction: those of an earlier time, or as it was emitted; int64[n]."""
    by_clock = np.searchsorted(labels.clock, clocks, side="left")
    if pinned is None:
        return by_clock
    by_offset = np.searchsorted(labels.offset, pinned, side="left")
    return np.maximum.accumulate(np.where(pinned >= 0, by_offset, by_clock)).astype(np.int64)
