"""The feature vector of one past transaction, replayed from the archive.

In: an archive, the partition and offset of a decision. Out: :class:`PastVector`. Only reads.

All that came before is folded by the code that serves: the transactions that were decided, each after the labels that
its decision had seen, and watermarks as they rose. With one partition that is what the worker did, bit for bit. Of
several partitions the records are merged by time, as a worker that holds them all and keeps up merges them; entities
that several partitions share may then differ in the last bits, or by what a worker had not read yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from features import engine
from features.catalogue import Catalogue
from features.decode import LabelDecoder, Limits, TransactionBatch, TransactionDecoder
from features.engine import Operations, Rows
from features.errors import StateMissing
from features.kernel import LABEL, TRANSACTION
from features.texts import Texts
from features.watermark import UNMARKED, advance
from stream.archived import Archive, ArchivedRecord
from stream.lane import misplaced
from stream.settings import Settings

_AT_ONCE = 50_000
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PastVector:
    """``x`` float64[F] as the models saw it; ``folded`` records before it; ``ids`` of its entities; ``repeat``.

    ``texts`` int64[texts]: hashes of the ids of every entity and then of every categorical field, as rules ask them.
    """

    x: NDArray[np.float64]
    folded: int
    ids: tuple[str, ...]
    repeat: bool
    texts: Longs


@dataclass(slots=True)
class _Stream:
    """One partition's good records in the order in which they were folded; ``clock`` is the newest time so far."""

    columns: dict[str, NDArray[Any]]
    ids: list[Texts]
    texts: Longs
    clock: Longs
    marks: Longs


class Replayer:
    """Replays the partitions of an archive up to one transaction."""

    def __init__(self, settings: Settings, catalogue: Catalogue, archive: Archive) -> None:
        self._settings, self._catalogue, self._archive = settings, catalogue, archive
        limits = Limits(settings.worker.message_bytes_max, int(settings.worker.ahead_max_s * 1000))
        self._transactions = TransactionDecoder(catalogue.schema, limits)
        self._labels = LabelDecoder(catalogue.schema, limits)

    def vector(self, partition: int, offset: int, label_position: int, progress: Callable[[int, int], None]
               ) -> PastVector:  # fmt: skip
        """Replay up to the transaction at an offset, which was decided at a label position.

        Raises
        ------
        StateMissing
            If records before it are not in the archive.
        """
        mine = self._stream(partition, offset + 1, label_position)
        until = int(mine.clock[-1])
        others = [self._stream(p, None, None) for p in range(self._settings.topics.transaction_partitions)
                  if p != partition]  # fmt: skip
        cut = [int(np.searchsorted(other.clock, until, side="right")) for other in others]
        streams = [mine, *others]
        ends = [len(mine.clock), *cut]
        clock = np.concatenate([s.clock[:end] for s, end in zip(streams, ends, strict=True)])
        order = np.argsort(clock, kind="stable")
        target = int(np.flatnonzero(order == ends[0] - 1)[0])  # its own partition comes first among equal times
        order = order[: target + 1]
        columns = {name: np.concatenate([s.columns[name][:end] for s, end in zip(streams, ends, strict=True)])[order]
                   for name in mine.columns}  # fmt: skip
        marks = np.concatenate([s.marks[:end] for s, end in zip(streams, ends, strict=True)])[order]
        x, repeat = self._fold(columns, marks, progress)
        return PastVector(x, len(order), tuple(ids[-1] for ids in mine.ids), repeat, mine.texts)

    def _fold(self, columns: dict[str, NDArray[Any]], marks: Longs, progress: Callable[[int, int], None]
              ) -> tuple[NDArray[np.float64], bool]:  # fmt: skip
        """The vector of the last operation, and whether it repeats another."""
        layouts, n = self._catalogue.layouts, len(marks)
        # Equal hashes of 64 bits are equal ids.
        numbered = [np.unique(columns["entity_hash"][:, e], return_inverse=True) for e in range(len(layouts))]
        slots = np.stack([inverse for _, inverse in numbered], axis=1).astype(np.int64)
        tables = tuple(Rows(layout, len(ids)) for layout, (ids, _) in zip(layouts, numbered, strict=True))
        for start in range(0, n, _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            part = Operations(**{name: column[some] for name, column in columns.items()}, slots=slots[some],
                              views=slots[some])  # fmt: skip
            folded = engine.fold(self._catalogue, tables, part, marks[some])
            zero = np.zeros(len(part))
            engine.remember(self._catalogue, tables, part, folded, zero, zero, np.zeros(len(part), np.int8))
            progress(min(start + _AT_ONCE, n), n)
        return folded.x[-1].copy(), bool(folded.repeat[-1])

    def _stream(self, partition: int, end: int | None, labels_end: int | None) -> _Stream:
        """One partition up to an offset of its transactions and one of its labels; all of it where they are None."""
        topics = self._settings.topics
        end = self._archive.end(topics.transactions, partition) or 0 if end is None else end
        decided = self._decided(partition)
        records = self._records("transactions", topics.transactions, partition, end)
        batch = self._good(self._transactions, records, partition)
        offsets = np.array([records[row].offset for row in batch.rows], np.int64)
        kept = [i for i, offset in enumerate(offsets.tolist()) if offset in decided]
        batch, offsets = batch.keep(kept), offsets[kept]
        positions = np.maximum.accumulate(np.array([decided[offset] for offset in offsets.tolist()], np.int64))
        if labels_end is None:
            labels_end = self._archive.end(topics.labels, partition) or 0
        verdict_records = self._records("labels", topics.labels, partition, labels_end)
        verdicts = self._good(self._labels, verdict_records, partition)
        at = np.array([verdict_records[row].offset for row in verdicts.rows], np.int64)
        return _joined(batch, positions, verdicts, at, len(self._catalogue.layouts))

    def _good(self, decoder: Any, records: Sequence[ArchivedRecord], partition: int) -> TransactionBatch:
        batch: TransactionBatch = decoder.decode([r.value for r in records], [r.timestamp for r in records])
        if self._settings.worker.accept_mispartitioned or not batch.rows:
            return batch
        lie = np.full(len(batch.rows), partition)
        wrong = misplaced(batch.entities[0], batch.rows, lie, self._settings.topics.transaction_partitions, "{!r}")
        return batch.keep([i for i in range(len(batch.rows)) if i not in wrong])

    def _records(self, kind: Any, topic: str, partition: int, end: int) -> list[ArchivedRecord]:
        ranges = self._archive.ranges(topic, partition)
        at = 0
        for first, stop in ranges:
            if first <= at < stop:
                at = stop
        if at < end:
            raise StateMissing(
                f"records {at} to {end - 1} of {topic} partition {partition} are not in the archive: what the "
                "transaction was judged by cannot be replayed without all that came before it"
            )
        return self._archive.records(kind, topic, partition, 0, end)

    def _decided(self, partition: int) -> dict[int, int]:
        """The label position of each decided transaction, by offset; of several copies the first counts."""
        topic = self._settings.topics.decisions
        table = self._archive.table("decisions", topic, partition, 0, self._archive.end(topic, partition) or 0,
                                    ["source_offset", "label_position"])  # fmt: skip
        if not table.num_rows:
            return {}
        table = table.filter(pc.is_valid(table["source_offset"]))
        pairs = zip(table["source_offset"].to_pylist(), table["label_position"].to_pylist(), strict=True)
        found: dict[int, int] = {}
        for offset, position in pairs:
            found.setdefault(offset, position)
        return found


def _joined(batch: TransactionBatch, positions: Longs, verdicts: TransactionBatch, at: Longs, entities: int) -> _Stream:
    """Transactions, each after the labels below its position."""
    n, extra = len(batch.rows), len(verdicts.rows)
    seen = np.searchsorted(at, positions)
    order = np.argsort(np.concatenate([2 * seen, 2 * np.arange(extra) + 1]), kind="stable")
    blank = [np.full((extra, column.shape[1]), np.nan) for column in (batch.values, batch.categories)]
    hashes = [[side.entities[e].hashes() if len(side.rows) else np.zeros(0, np.int64) for e in range(entities)]
              for side in (batch, verdicts)]  # fmt: skip
    columns: dict[str, NDArray[Any]] = {
        "kind": np.concatenate([np.full(n, TRANSACTION, np.int8), np.full(extra, LABEL, np.int8)]),
        "time": np.concatenate([batch.time, verdicts.time]),
        "event_hash": np.concatenate([side.event_id.hashes() if len(side.rows) else np.zeros(0, np.int64)
                                      for side in (batch, verdicts)]),
        "values": np.concatenate([batch.values, blank[0]]),
        "categories": np.concatenate([batch.categories, blank[1]]),
        "fraud": np.concatenate([batch.fraud, verdicts.fraud]).astype(np.int8),
        "entity_hash": np.concatenate([np.stack(side, axis=1) for side in hashes]),
    }  # fmt: skip
    columns = {name: column[order] for name, column in columns.items()}
    marks, _ = advance(UNMARKED, columns["time"])
    clock = np.maximum.accumulate(columns["time"]) if len(order) else columns["time"]
    newest = [ids.part(slice(-1, None)).hashes() for ids in batch.entities]
    texts = np.concatenate([*newest, batch.category_hash[-1:].reshape(-1)])
    return _Stream(columns, list(batch.entities), texts, clock, marks)
