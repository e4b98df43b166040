"""Keeps a worker's rules up to date with the lists in Redis, and applies the records of ``topics.lists`` to them.

In: Redis, and the topic where one is set. Out: the lists that the rules ask, replaced whole between two cycles. What
the topic says of a list that the rules do not name yet is kept beside them, so that rules which come to name it find
its members. No state but what was read last. While Redis or Kafka cannot be reached, the lists stay as they are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from aiokafka import TopicPartition

from features.errors import BadEvent, ServiceUnavailable, SettingsError, StateConflict
from features.messages import ListChange
from stream.connections import kafka_consumer, kafka_errors
from stream.metrics import Metrics
from stream.rule_lists import UNNAMED_MAX, Entries, RuleLists, change_of, check_room, hashed, unnamed_room
from stream.rules import RulesHolder
from stream.settings import KafkaSettings

log = logging.getLogger("headrace.lists")
_POLL_S = 1.0
_READ_SHARE = 20  # of the time, reading may take one part in so many
_AGAIN_S = 2.0
_RECORDS = 500
_NO_ROOM = (
    f"list {{!r}} is not under [lists] of the rules, and such lists hold {UNNAMED_MAX:,} ids already: name it there, "
    "or take ids out with `headrace list remove`"
)


class ListKeeper:
    """See the module's text."""

    def __init__(self, lists: RuleLists, holder: RulesHolder, kafka: KafkaSettings, metrics: Metrics) -> None:
        self._lists = lists
        self._holder = holder
        self._kafka = kafka
        self._topic = lists.topic
        self._metrics = metrics
        self._head: bytes | None = None
        self._entries: Entries = {}
        self._lock = asyncio.Lock()
        self._decode = msgspec.json.Decoder(ListChange).decode

    async def refresh(self) -> None:
        """Read the lists if they have changed.

        Raises
        ------
        ServiceUnavailable
            If Redis cannot be reached.
        """
        async with self._lock:
            if await self._lists.head() == self._head:
                return
            self._head, self._entries = await self._lists.entries()
            await self._holder.use_lists(await asyncio.to_thread(hashed, self._entries))

    async def run(self) -> None:
        """Look for changes, for ever."""
        lost = False
        while True:
            start = time.monotonic()
            try:
                await self.refresh()
                lost = False
            except (ServiceUnavailable, StateConflict) as error:
                if not lost:
                    lost = True
                    log.warning("lists: %s; they stay as they are", error)
            await asyncio.sleep(max(_POLL_S, _READ_SHARE * (time.monotonic() - start)))

    async def follow(self) -> None:
        """Apply the records of the topic, for ever; returns at once where there is none."""
        while self._topic:
            try:
                async with kafka_errors(self._kafka):
                    await self._follow(TopicPartition(self._topic, 0))
            except (ServiceUnavailable, StateConflict) as error:
                log.warning("lists: topic %s waits: %s", self._topic, error)
            await asyncio.sleep(_AGAIN_S)

    async def _follow(self, place: TopicPartition) -> None:
        consumer = kafka_consumer(self._kafka)
        try:
            await consumer.start()
            consumer.assign([place])
            consumer.seek(place, await self._lists.next_offset())
            while True:
                records = (await consumer.getmany(place, timeout_ms=1000, max_records=_RECORDS)).get(place, [])
                if records and not await self.apply(records):
                    consumer.seek(place, await self._lists.next_offset())
        finally:
            await consumer.stop()

    async def apply(self, records: Sequence[Any]) -> bool:
        """Apply records in their order, unless another worker has applied one of them; whether it was done."""
        applied = await self._lists.next_offset()
        if records[0].offset < applied:
            return False
        await self.refresh()
        changes, refused, named = [], 0, self._holder.current.rules.lists
        room = unnamed_room(self._entries, named)
        for record in records:
            try:
                change = change_of(self._decode(record.value or b""))
                if change.list not in named and change.until is not None:
                    if room <= 0:
                        raise BadEvent("invalid_id", _NO_ROOM.format(change.list))
                    room -= 1
                changes.append(change)
            except (BadEvent, SettingsError, msgspec.DecodeError, UnicodeDecodeError) as error:
                refused += 1
                log.warning("lists: record %s of topic %s changes nothing: %s", record.offset, self._topic, error)
        try:
            check_room(self._entries, changes)
        except SettingsError as error:
            log.error("lists: records %s to %s of topic %s change nothing: %s", records[0].offset, records[-1].offset,
                      self._topic, error)  # fmt: skip
            refused, changes = len(records), []
        if not await self._lists.change(changes, range(records[0].offset, records[-1].offset + 1)):
            return False
        self._metrics.rule_list_changes.labels("applied").inc(len(changes))
        self._metrics.rule_list_changes.labels("refused").inc(refused)
        await self.refresh()
        return True
