"""Reads the items topic, all of it, for every worker: outside of the group, from the first record on, for ever.

In: the records of the items topic. Out: :class:`features.shelf.Shelf`, kept as the topic says. The worker is ready only
once all records that the topic held at its start are applied; what comes later is applied as soon as it is read, so it
holds for every answer after that. Records that cannot be read are counted and told, not written to dead letters: every
worker reads every record, so nobody would write them once. The item of their key is not shown until a good one comes.

State owned: the shelf. On a lost position (the broker has dropped what was not read yet) everything is read again, and
what the topic does not hold any more is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from features.decode import Limits
from features.errors import ServiceUnavailable
from features.item_records import Faulty, Gone, ItemDecoder, ItemFacts
from features.shelf import Shelf
from stream.connections import kafka_consumer, kafka_errors
from stream.metrics import Metrics
from stream.offsets import offset_range
from stream.settings import Settings

log = logging.getLogger("headrace.items")
_AT_ONCE = 500  # records applied while nobody can be answered: some milliseconds
_TOLD_EVERY_S = 2.0
_REFRESH_EVERY_S = 1.0
_WAIT_MS = 500
_PAUSE_S = 1.0


class ItemReader:
    """Keeps a shelf as the topic says; see the module's text."""

    def __init__(self, settings: Settings, shelf: Shelf, metrics: Metrics) -> None:
        topics = settings.topics
        self.shelf = shelf
        self._kafka = settings.kafka
        self._metrics = metrics
        self._places = [TopicPartition(topics.items, number) for number in range(topics.item_partitions)]
        self._decode = ItemDecoder(Limits(settings.worker.message_bytes_max)).decode
        self._consumer: Any = None
        self._told = ""

    async def load(self) -> None:
        """Read everything that the topic holds now.

        Raises
        ------
        ServiceUnavailable
            If Kafka cannot be reached.
        """
        await self.stop()
        ranges = await offset_range(self._kafka, self._places)
        self._consumer = kafka_consumer(self._kafka, fetch_max_wait_ms=_WAIT_MS, auto_offset_reset="none")
        async with kafka_errors(self._kafka):
            await self._consumer.start()
            self._consumer.assign(self._places)
            for place, (first, _) in ranges.items():
                self._consumer.seek(place, first)
            await self._read_to({place: end for place, (first, end) in ranges.items() if first < end})
        with self.shelf.lock:
            self.shelf.used = self.shelf.used or any(end > 0 for _, end in ranges.values())
        await asyncio.to_thread(self.shelf.refresh)
        self._count()
        if self.shelf.used:
            log.info("items: %d are known", self.shelf.listed)

    async def _read_to(self, ends: dict[TopicPartition, int]) -> None:
        """Apply records up to these offsets; what the shelf knew before and they do not hold is gone."""
        loop = asyncio.get_running_loop()
        total, told_s = sum(ends.values()), loop.time()
        before, read = {id_ for id_ in self.shelf.ids if self.shelf.holds(id_)}, 0
        while ends:
            found = await self._consumer.getmany(timeout_ms=_WAIT_MS)
            records = [record for part in found.values() for record in part]
            before -= {fact.item_id or "" for fact in await self._apply(records)}
            read += len(records)
            for place in list(ends):
                if await self._consumer.position(place) >= ends[place]:
                    del ends[place]
            if ends and loop.time() - told_s >= _TOLD_EVERY_S:
                told_s = loop.time()
                log.info("items: %d records read, at most %d in all", read, total)
        with self.shelf.lock:
            self.shelf.apply([Gone(id_) for id_ in sorted(before)])

    async def follow(self) -> NoReturn:
        """Apply what comes, for ever."""
        loop = asyncio.get_running_loop()
        refreshed_s = loop.time()
        while True:
            try:
                if self._consumer is None:
                    await self.load()
                found = await self._consumer.getmany(timeout_ms=_WAIT_MS)
            except OffsetOutOfRangeError:
                log.warning("items: the broker has dropped records that were not read; all are read again")
                await self.stop()
                continue
            except (KafkaError, ServiceUnavailable) as error:
                self._tell(f"items cannot be read: {error!r}; what was read so far holds meanwhile")
                await asyncio.sleep(_PAUSE_S)
                continue
            self._told = ""
            if found:
                await self._apply([record for part in found.values() for record in part])
                self._count()
            if self.shelf.stale and loop.time() - refreshed_s >= _REFRESH_EVERY_S:
                await asyncio.to_thread(self.shelf.refresh)
                refreshed_s = loop.time()

    async def _apply(self, records: Sequence[Any]) -> list[ItemFacts | Gone | Faulty]:
        applied: list[ItemFacts | Gone | Faulty] = []
        for start in range(0, len(records), _AT_ONCE):
            applied += await asyncio.to_thread(self._apply_some, records[start : start + _AT_ONCE])
        return applied

    def _apply_some(self, records: Sequence[Any]) -> list[ItemFacts | Gone | Faulty]:
        facts = [self._decode(record.key, record.value) for record in records]
        with self.shelf.lock:
            self.shelf.apply(facts)
        for record, fact in zip(records, facts, strict=True):
            self._metrics.item_records.labels(_kind(fact)).inc()
            if isinstance(fact, Faulty):
                shown = "" if fact.item_id is None else f"; {fact.item_id!r} is not shown until a good one comes"
                log.warning("items: %s:%d:%d cannot be read (%s): %s%s", record.topic, record.partition, record.offset,
                            fact.code, fact.sentence, shown)  # fmt: skip
        return facts

    def _count(self) -> None:
        self._metrics.items.set(self.shelf.listed)

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._told = line
            log.warning("%s", line)

    async def stop(self) -> None:
        """Disconnect."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()


def _kind(fact: ItemFacts | Gone | Faulty) -> str:
    if isinstance(fact, Faulty):
        return fact.code
    return "deleted" if isinstance(fact, Gone) else "changed"
