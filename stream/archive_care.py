"""Keeps an archive in order: small files become one, and what is too old goes.

In: listings. Out: files put and removed. State owned: none. Every step may be cut off, and several processes may do it
at once: readers read each offset once whichever files they find. A file that covers others is put one round before
these are removed, so that no reader's listing can miss both.
"""

from __future__ import annotations

import datetime
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stream.archive_store import KINDS, ArchiveFile, ArchiveStore, Kind, Span, clipped, joined
from stream.archive_tables import OFFSET, parquet_bytes
from stream.metrics import ArchiveMetrics
from stream.settings import ArchiveSettings

log = logging.getLogger("headrace.archive")
Committed = Mapping[tuple[str, int], list[tuple[int, int]]]


class Caretaker:
    """Looks after one archive."""

    def __init__(self, store: ArchiveStore, settings: ArchiveSettings, metrics: ArchiveMetrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics

    def tend(self) -> None:
        """Remove what is too old, then compact files and markers."""
        try:
            old = self._remove_old()
            committed = self._store.committed()
            merged = sum(self._compact(kind, committed) for kind in KINDS)
            self._compact_markers()
        except FileNotFoundError as error:
            log.warning("another process compacts the same archive (%s is gone); it is tried again", error)
            return
        if old or merged:
            log.info("removed %d files that were too old; made %d files of small ones", old, merged)

    def _remove_old(self) -> int:
        """Remove event dates before the newest one less the retention; inputs first, as decisions say how to fold them.

        The newest date of the archive, not today: a history that is replayed is as old as its events.
        """
        if self._settings.retention_days is None:
            return 0
        files = {kind: self._store.files(kind) for kind in KINDS}
        newest = max((file.date for found in files.values() for file in found), default=None)
        if newest is None:
            return 0
        day = datetime.date.fromisoformat(newest) - datetime.timedelta(days=self._settings.retention_days)
        gone = [file.path for kind in KINDS for file in files[kind] if file.date < day.isoformat()]
        self._store.remove(gone)
        self._metrics.removed.labels("old").inc(len(gone))
        return len(gone)

    def _compact(self, kind: Kind, committed: Committed) -> int:
        """Make one file of small ones of a date and partition that follow each other; how many were made."""
        files = [file for file in self._store.files(kind) if _covers(committed, file.span)]
        made = 0
        for _, group in itertools.groupby(files, key=lambda file: (file.date, file.span.place)):
            needed, longest = list[ArchiveFile](), 0
            for file in sorted(group, key=lambda file: (file.span.first, -file.span.end)):
                if file.span.end <= longest:  # within another, which the last round has made
                    self._store.remove([file.path])
                    self._metrics.removed.labels("compacted").inc()
                else:
                    needed.append(file)
                    longest = file.span.end
            for run in self._runs(needed):
                if self._covered(committed, run) and self._merge(kind, run):
                    made += 1
        return made

    def _runs(self, files: Sequence[ArchiveFile]) -> Iterator[list[ArchiveFile]]:
        """Neighbours that are small, each run long enough to be worth it, none larger than need be."""
        limit, run, size = self._settings.compact_mb * 1_000_000, list[ArchiveFile](), 0
        for file in [*files, None]:
            if file is None or file.nbytes >= limit or size >= limit:
                if len(run) >= self._settings.compact_files:
                    yield run
                run, size = [], 0
            if file is not None and file.nbytes < limit:
                run.append(file)
                size += file.nbytes

    @staticmethod
    def _covered(committed: Committed, run: Sequence[ArchiveFile]) -> bool:
        """Whether no offset is missing between the first and the last: the new file must hold all of its range."""
        span = run[0].span
        return _covers(committed, span._replace(end=max(file.span.end for file in run)))

    def _merge(self, kind: Kind, run: Sequence[ArchiveFile]) -> bool:
        span = run[0].span._replace(end=max(file.span.end for file in run))
        parts = []
        for file, first, end in clipped(run, span.first, span.end):
            with self._store.open(file.path) as stream:
                table = pq.read_table(stream, partitioning=None, use_threads=False)
            offsets = table[OFFSET]
            parts.append(table.filter(pc.and_(pc.greater_equal(offsets, first), pc.less(offsets, end))))
        try:
            table = pa.concat_tables(parts, promote_options="default")
        except pa.ArrowException as error:
            log.warning("%d files of %s, %s are left as they are: their schemas do not go together (%s)", len(run),
                        kind, run[0].date, error)  # fmt: skip
            return False
        data = parquet_bytes(table)
        self._store.put(self._store.data_path(kind, run[0].date, span), data)
        self._metrics.files.labels("compaction").inc()
        self._metrics.nbytes.labels("compaction").inc(len(data))
        return True

    def _compact_markers(self) -> None:
        """One marker for each stretch of offsets, where there are many."""
        for _, group in itertools.groupby(self._store.markers(), key=lambda marker: marker[0].place):
            needed, longest = list[Span](), 0
            for span, path in sorted(group, key=lambda marker: (marker[0].first, -marker[0].end)):
                if span.end <= longest:
                    self._store.remove([path])
                else:
                    needed.append(span)
                    longest = span.end
            for first, end in joined((span.first, span.end) for span in needed):
                count = sum(first <= span.first and span.end <= end for span in needed)
                if count >= self._settings.compact_files:
                    self._store.commit(needed[0]._replace(first=first, end=end), {"markers": count})


def _covers(committed: Committed, span: Span) -> bool:
    return any(first <= span.first and span.end <= end for first, end in committed.get(span.place, []))
