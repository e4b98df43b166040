"""``headrace archive``: writes inputs and decisions to Parquet files, each record once, whatever kills it.

In: the topics of transactions, labels, clicks and decisions, without a consumer group. Out: files and markers in an
:class:`~stream.archive_store.ArchiveStore`. State owned: the records that wait in memory; the listing of the archive
says which offsets are there. On redelivery: a killed process goes on at the end of the last committed range, and what
it had written without a marker counts for nothing.

A range of offsets is written in this order, and a crash between two steps leaves nothing that counts:

1. one file for each event date among its records;
2. the marker of the range.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from features.errors import ArchiveError, ServiceUnavailable, SettingsError
from features.schema import Schema
from stream.archive_care import Caretaker
from stream.archive_store import ArchiveStore, Kind, Span
from stream.archive_tables import FAULT, Tables, parquet_bytes
from stream.connections import BACKOFF_S, kafka_consumer, kafka_errors, kafka_losses, patiently
from stream.metrics import ArchiveMetrics
from stream.offsets import offset_range
from stream.settings import Settings, TopicSettings
from stream.topics import require_all_topics

log = logging.getLogger("headrace.archive")
_FETCH_MS = 200
_FETCH_RECORDS = 5_000
_RANGE_BYTES_MAX = 64_000_000  # of one partition, from which on it is written whatever the time
_HELD_BYTES_MAX = 256_000_000  # of all partitions together
_LAG_EVERY_S = 1.0
_WELL_S = 30.0  # what fails after so long is a new trouble, to be told again


def archived_topics(topics: TopicSettings) -> dict[str, Kind]:
    """What is archived: kinds by topic."""
    return {topics.transactions: "transactions", topics.labels: "labels", topics.clicks: "clicks",
            topics.decisions: "decisions"}  # fmt: skip


def archive_store(settings: Settings) -> ArchiveStore:
    """The archive that the settings name.

    Raises
    ------
    SettingsError
        If they name none.
    """
    if settings.archive.url is None:
        raise SettingsError(["archive.url: expected a URL or a directory: give --archive URL, or set it"])
    return ArchiveStore(settings.archive.url)


@dataclass(slots=True)
class _Waiting:
    """Records of one partition that are read and not written: those of the offsets ``[first, end)``."""

    first: int
    end: int
    records: list[Any] = field(default_factory=list)
    nbytes: int = 0
    since_s: float = 0.0

    def add(self, records: Sequence[Any], end: int, now_s: float) -> None:
        """Take in what was fetched; the next record has the offset ``end`` or a later one."""
        if not self.records:
            self.since_s = now_s
        self.records.extend(records)
        self.nbytes += sum(len(r.value or b"") + len(r.key or b"") + 100 for r in records)
        self.end = end

    def clear(self) -> None:
        """Begin the next range."""
        self.first, self.records, self.nbytes = self.end, [], 0


class RangeWriter:
    """Writes ranges of offsets."""

    def __init__(self, settings: Settings, schema: Schema, store: ArchiveStore, metrics: ArchiveMetrics) -> None:
        self._schema_hash = schema.hash
        self._tables = Tables(settings, schema)
        self._store = store
        self._metrics = metrics

    def write(self, kind: Kind, span: Span, records: Sequence[Any]) -> None:
        """Steps 1 and 2 of the module's text; ``records`` are all that the offsets of ``span`` hold.

        Raises
        ------
        ArchiveUnavailable
            If the filesystem fails; the range may then be written again, or another that overlaps it.
        """
        began_s = time.perf_counter()
        rows, faulty = dict[str, int](), 0
        for date, table in self._tables.by_date(kind, span.partition, records).items():
            data = parquet_bytes(table)
            self._store.put(self._store.data_path(kind, date, span), data)
            rows[date] = table.num_rows
            faulty += table.num_rows - table[FAULT].null_count
            self._metrics.files.labels("archive").inc()
            self._metrics.nbytes.labels("archive").inc(len(data))
        self._store.commit(span, {"kind": kind, "schema": self._schema_hash, "rows": rows, "faulty": faulty})
        self._metrics.records.labels(kind).inc(len(records))
        self._metrics.faulty.labels(kind).inc(faulty)
        self._metrics.write.observe(time.perf_counter() - began_s)


class Archiver:
    """Reads all partitions and writes them, see the module's text."""

    def __init__(self, settings: Settings, schema: Schema, store: ArchiveStore, metrics: ArchiveMetrics) -> None:
        self._settings = settings
        self._kinds = archived_topics(settings.topics)
        counts = settings.topics.partitions()
        self._places = [TopicPartition(topic, n) for topic in self._kinds for n in range(counts[topic])]
        self._writer = RangeWriter(settings, schema, store, metrics)
        self._store = store
        self._metrics = metrics
        self._care = Caretaker(store, settings.archive, metrics)
        self._waiting: dict[TopicPartition, _Waiting] = {}
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Have :meth:`run` write what waits, and return."""
        self._stop.set()

    async def run(self, *, once: bool = False) -> None:
        """Archive until :meth:`stop`, or (``once``) up to what the topics hold now.

        Raises
        ------
        ArchiveError
            If the archive holds offsets that the topics never had.
        """
        tries = 0
        while True:
            began_s = time.monotonic()
            try:
                await self._run(once=once)
                return
            except ServiceUnavailable as error:
                self._metrics.errors.inc()
                if once:
                    raise
                tries = 0 if time.monotonic() > began_s + _WELL_S else tries
                if tries == 0:
                    log.warning("%s; trying again from the last committed range", error)
                if self._stop.is_set():
                    return
                await self._pause(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)])
                tries += 1

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    async def _run(self, *, once: bool) -> None:
        """From the listing on, until it is over or something fails."""
        async with kafka_errors(self._settings.kafka):
            ranges = await offset_range(self._settings.kafka, self._places)
            await self._begin(ranges)
            consumer = kafka_consumer(self._settings.kafka, auto_offset_reset="none", max_poll_records=_FETCH_RECORDS)
            try:
                await consumer.start()
                consumer.assign(self._places)
                for place, waiting in self._waiting.items():
                    consumer.seek(place, waiting.first)
                self._metrics.ready.set(1)
                await asyncio.sleep(0)  # aiokafka cannot stop a consumer whose tasks have not begun
                ends = {place: end for place, (_, end) in ranges.items()} if once else None
                await self._read(consumer, ends)
                await self._write_due(everything=True)
            finally:
                self._metrics.ready.set(0)
                await consumer.stop()
        if once:
            await asyncio.to_thread(self._care.tend)

    async def _begin(self, ranges: dict[TopicPartition, tuple[int, int]]) -> None:
        """Go on where the committed ranges end."""
        committed = await asyncio.to_thread(self._store.committed)
        self._waiting = {}
        for place, (first, end) in ranges.items():
            archived = committed.get((place.topic, place.partition), [])
            at = archived[-1][1] if archived else first
            if at > end:
                raise ArchiveError(
                    f"the archive at {self._store.url} holds {place.topic} partition {place.partition} up to offset "
                    f"{at}, but the topic ends at {end}: it was emptied or recreated. Use another archive.url"
                )
            if at < first:
                log.error("records %d to %d of %s partition %d were deleted before they were archived; retention must "
                          "exceed the longest stop", at, first, place.topic, place.partition)  # fmt: skip
            start = max(at, first)
            self._waiting[place] = _Waiting(start, start)
        log.info("archiving to %s from %s", self._store.url,
                 ", ".join(f"{p.topic}-{p.partition}@{w.first}" for p, w in self._waiting.items()))  # fmt: skip

    async def _read(self, consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int] | None) -> None:
        care_s, lag_s = time.monotonic(), 0.0
        while not self._stop.is_set():
            if ends is not None and all(w.end >= ends[place] for place, w in self._waiting.items()):
                return
            try:
                fetched = await consumer.getmany(timeout_ms=_FETCH_MS)
            except OffsetOutOfRangeError as error:
                raise ServiceUnavailable(f"offsets are gone from the topics: {error}") from None  # begins again
            now_s = time.monotonic()
            for place, waiting in self._waiting.items():
                position = await consumer.position(place)  # also past control records, which nobody is given
                if place in fetched or position > waiting.end:
                    waiting.add(fetched.get(place, ()), position, now_s)
            await self._write_due()
            if now_s >= lag_s + _LAG_EVERY_S:
                lag_s = now_s
                self._set_lag(consumer)
            if ends is None and now_s >= care_s + self._settings.archive.care_every_s:
                await asyncio.to_thread(self._care.tend)
                care_s = time.monotonic()

    def _set_lag(self, consumer: AIOKafkaConsumer) -> None:
        for place, waiting in self._waiting.items():
            end = consumer.highwater(place)
            if end is not None:
                self._metrics.lag.labels(place.topic, str(place.partition)).set(max(end - waiting.first, 0))

    async def _write_due(self, *, everything: bool = False) -> None:
        """Write the ranges that are large or old enough; the largest ones where memory gets scarce."""
        archive, now_s = self._settings.archive, time.monotonic()
        held = sum(waiting.nbytes for waiting in self._waiting.values())
        for place, waiting in sorted(self._waiting.items(), key=lambda item: -item[1].nbytes):
            due = len(waiting.records) >= archive.rows_max or waiting.nbytes >= _RANGE_BYTES_MAX
            due = due or now_s >= waiting.since_s + archive.every_s or held > _HELD_BYTES_MAX or everything
            if waiting.records and due:
                held -= waiting.nbytes
                span = Span(place.topic, place.partition, waiting.first, waiting.end)
                await asyncio.to_thread(self._writer.write, self._kinds[place.topic], span, waiting.records)
                waiting.clear()


def run(settings: Settings, schema: Schema, *, once: bool) -> None:
    """Archive until SIGTERM or Ctrl-C, or (``once``) what the topics hold now.

    Raises
    ------
    HeadraceError
        If the archive or the topics cannot be used.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("headrace").setLevel(logging.INFO)
    logging.getLogger("aiokafka").propagate = False  # kafka_losses says it in one line
    store, metrics = archive_store(settings), ArchiveMetrics()

    async def main() -> None:
        archiver = Archiver(settings, schema, store, metrics)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, archiver.stop)
        if not once:
            port = metrics.serve(settings.worker.metrics_host, settings.archive.metrics_port)
            log.info("metrics on http://%s:%d/metrics", settings.worker.metrics_host, port)
        await patiently(lambda: require_all_topics(settings), log)
        await archiver.run(once=once)
        log.info("stopped")

    with kafka_losses(settings.kafka, log.warning):
        asyncio.run(main())
