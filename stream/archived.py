"""Reads an archive: the records of a partition in the order of their offsets, and the newest history for training.

In: an :class:`~stream.archive_store.ArchiveStore`. Out: tables, records. State owned: the newest listing. Only what is
committed is read, each offset once. A file that a compaction has just removed is found again by another listing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import ArchiveUnavailable
from stream.archive_store import KINDS, ArchiveFile, ArchiveStore, Kind, clipped
from stream.archive_tables import FAULT, KEY, OFFSET, TIME, VALUE

_TRIES = 5
_T = TypeVar("_T")


class ArchivedRecord(NamedTuple):
    """A record as Kafka held it, as far as decoders and lanes look at one."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Archive:
    """What an archive holds, as of the last listing."""

    def __init__(self, store: ArchiveStore) -> None:
        self._store = store
        self._files: dict[Kind, list[ArchiveFile]] = {}
        self._committed: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self.refresh()

    def refresh(self) -> None:
        """List anew."""
        # Markers first: the files of what is committed by then are there, or in one that was made of them.
        self._committed = self._store.committed()
        self._files = {kind: self._store.files(kind) for kind in KINDS}

    def ranges(self, topic: str, partition: int) -> list[tuple[int, int]]:
        """The offsets ``[first, end)`` that are archived, in order; gaps are what the topic lost before."""
        return self._committed.get((topic, partition), [])

    def end(self, topic: str, partition: int) -> int | None:
        """The offset after the last archived one; None if there is none."""
        ranges = self.ranges(topic, partition)
        return ranges[-1][1] if ranges else None

    def table(self, kind: Kind, topic: str, partition: int, first: int, end: int, columns: Sequence[str]) -> pa.Table:
        """The given columns (with the offset) of what is archived of the offsets ``[first, end)``, in order."""

        def read() -> pa.Table:
            files = [f for f in self._files[kind] if f.span.place == (topic, partition)
                     and f.span.first < end and f.span.end > first]  # fmt: skip
            parts = []
            for date in sorted({file.date for file in files}):
                mine = [file for file in files if file.date == date]
                for start, stop in self.ranges(topic, partition):
                    parts += self._parts(mine, max(first, start), min(end, stop), [OFFSET, *columns])
            return _joined(parts).sort_by(OFFSET) if parts else pa.table({n: [] for n in (OFFSET, *columns)})

        return self._again(read)

    def records(self, kind: Kind, topic: str, partition: int, first: int, end: int) -> list[ArchivedRecord]:
        """The records of the offsets ``[first, end)``; of decisions only those without columns have a value."""
        table = self.table(kind, topic, partition, first, end, [TIME, KEY, VALUE])
        return records_of(table)

    def dates(self, kind: Kind) -> list[str]:
        """The event dates (ISO) of which there are records, in order."""
        return sorted({file.date for file in self._files[kind]})

    def newest_dates(self, kind: Kind, topic: str, rows_max: int) -> list[str]:
        """The newest event dates that together have ``rows_max`` good records, or all; in order."""
        found, count = list[str](), 0
        for date in reversed(self.dates(kind)):
            if count < rows_max:
                found.append(date)
                count += self.of_date(kind, topic, date, ()).num_rows
        return found[::-1]

    def of_date(self, kind: Kind, topic: str, date: str, columns: Sequence[str] = (KEY, VALUE)) -> pa.Table:
        """Offset, timestamp and more columns of the good records of an event date, in the order of timestamps."""
        wanted = [OFFSET, TIME, FAULT, *columns]

        def read() -> pa.Table:
            parts = []
            for place in sorted({f.span.place for f in self._files[kind] if f.date == date and f.span.topic == topic}):
                files = [f for f in self._files[kind] if f.date == date and f.span.place == place]
                for first, end in self.ranges(*place):
                    parts += self._parts(files, first, end, wanted)
            if not parts:
                return pa.table({name: pa.array([], pa.null()) for name in wanted if name != FAULT})
            table = _joined(parts)
            table = table.filter(pc.is_null(table[FAULT])).drop_columns([FAULT])
            return table.sort_by([(TIME, "ascending"), (OFFSET, "ascending")])

        return self._again(read)

    def _parts(self, files: Sequence[ArchiveFile], first: int, end: int, columns: Sequence[str]) -> list[pa.Table]:
        """The rows of one date, each offset once; a column that an older file lacks is null."""
        parts = []
        for file, start, stop in clipped(files, first, end):
            with self._store.open(file.path) as stream:
                wanted = [(OFFSET, ">=", start), (OFFSET, "<", stop)]
                held = set(pq.read_schema(stream).names)
                table = pq.read_table(stream, columns=[name for name in columns if name in held], filters=wanted,
                                      use_threads=False, partitioning=None)  # fmt: skip
            for name in columns:
                if name not in held:
                    table = table.append_column(name, pa.nulls(table.num_rows))
            parts.append(table.select(columns))
        return parts

    def _again(self, read: Callable[[], _T]) -> _T:
        for _ in range(_TRIES):
            try:
                return read()
            except FileNotFoundError:
                self.refresh()
        raise ArchiveUnavailable(f"files of the archive at {self._store.url} vanish as fast as they are listed")


def _joined(parts: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts, promote_options="default")


def records_of(table: pa.Table) -> list[ArchivedRecord]:
    """The rows of a table with offset, timestamp, key and value."""
    times = pc.cast(table[TIME], pa.int64()).to_pylist()
    columns = (table[OFFSET].to_pylist(), times, table[KEY].to_pylist(), table[VALUE].to_pylist())
    return [ArchivedRecord(*row) for row in zip(*columns, strict=True)]
