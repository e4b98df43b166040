"""What the topics have brought so far, in order: from the archive, and from the topics where the archive ends.

In: an archive (or none) and a consumer of its own. Out: records, and what was decided about transactions. State owned:
the position in each partition. Nothing is committed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from features.errors import ServiceUnavailable
from stream.archive_store import Kind, joined
from stream.archived import Archive
from stream.intake import Emitted
from stream.lane import Record

_WINDOW = 20_000  # offsets that are read from the archive at once
_FETCH_MS = 500
_WAIT_S = 60.0
_EMITTED = ["source_offset", "score", "anomaly", "action", "model_version", "label_position", "rules",
            "shadow_rules"]  # fmt: skip


class About(NamedTuple):
    """A decision, and the offset of the transaction that it is about."""

    offset: int
    emitted: Emitted


@dataclass(frozen=True, slots=True)
class Reach:
    """Where one partition can be read: ``archived`` ranges, and the topic's ``first`` and ``end`` offset."""

    place: TopicPartition
    kind: Kind
    archived: Sequence[tuple[int, int]]
    first: int
    end: int

    @property
    def start(self) -> int:
        """The oldest offset that is anywhere."""
        return min(self.first, *(first for first, _ in self.archived)) if self.archived else self.first

    @property
    def switch(self) -> int:
        """Where in the topic to go on after the archive."""
        archived = self.archived[-1][1] if self.archived else 0
        return max(self.first, min(archived, self.end))

    def gaps(self, end: int) -> list[tuple[int, int]]:
        """The ranges below ``end`` that are nowhere, as one that begins with the topic would need them."""
        end = max(end, self.start)
        there = joined([*self.archived, (self.first, max(self.first, self.end))])
        bounds = [0, *(offset for range_ in there for offset in range_), end]
        return [(a, min(b, end)) for a, b in zip(bounds[::2], bounds[1::2], strict=True) if a < min(b, end)]


class Reader:
    """One partition from its oldest offset up to ``end``, window by window."""

    def __init__(self, reach: Reach, end: int, archive: Archive | None, consumer: AIOKafkaConsumer) -> None:
        self.at = reach.start
        self.end = end
        self.from_archive = self.from_topic = 0
        self._reach = reach
        self._archive = archive
        self._consumer = consumer
        self._seeked = False

    def _archived_until(self) -> int:
        """The end of the archived range that :attr:`at` lies in; ``at`` if it lies in none."""
        return next((end for first, end in self._reach.archived if first <= self.at < end), self.at)

    async def window(self) -> list[Any]:
        """The next records, or rows of the archive's decisions; may be empty before ``at`` has reached ``end``."""
        until = min(self._archived_until(), self.at + _WINDOW, self.end)
        if until > self.at and self._archive is not None:
            found = await asyncio.to_thread(self._from_archive, self._archive, self.at, until)
            self.at = until
            self.from_archive += len(found)
            return found
        later = [first for first, _ in self._reach.archived if first > self.at]
        if self.at < self._reach.first:
            self.at = min([self._reach.first, *later])  # a gap, which was allowed
            return []
        found = await self._from_topic(min([self.end, *later]))
        self.from_topic += len(found)
        return found

    def _from_archive(self, archive: Archive, first: int, end: int) -> list[Any]:
        place, kind = self._reach.place, self._reach.kind
        if kind != "decisions":
            return list(archive.records(kind, place.topic, place.partition, first, end))
        table = archive.table(kind, place.topic, place.partition, first, end, _EMITTED)
        found = []
        for offset, *scores, rules, shadow in zip(*(table[name].to_pylist() for name in _EMITTED), strict=True):
            if offset is not None:  # known by its offset
                score, anomaly, action, version, position = scores
                emitted = Emitted("", score, anomaly, action, version, position)
                # Archives from before rules have null.
                found.append(
                    About(offset, msgspec.structs.replace(emitted, rules=rules or [], shadow_rules=shadow or []))
                )
        return found

    async def _from_topic(self, end: int) -> list[Any]:
        place, deadline = self._reach.place, asyncio.get_running_loop().time() + _WAIT_S
        if not self._seeked:
            self._consumer.seek(place, self.at)
            self._seeked = True
        while True:
            fetched = await self._consumer.getmany(place, timeout_ms=_FETCH_MS)
            self.at = min(await self._consumer.position(place), end)
            if fetched or self.at >= end:
                return [record for records in fetched.values() for record in records if record.offset < end]
            if asyncio.get_running_loop().time() > deadline:
                raise ServiceUnavailable(f"{place.topic} partition {place.partition} gave nothing for {_WAIT_S:.0f} s")


class Records:
    """The records of an input partition, taken in order."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._held: deque[Record] = deque()

    async def peek(self, count: int) -> list[Record]:
        """The next records, fewer than ``count`` only at the end."""
        while len(self._held) < count and self.reader.at < self.reader.end:
            self._held.extend(await self.reader.window())
        return [self._held[i] for i in range(min(count, len(self._held)))]

    async def below(self, offset: int) -> list[Record]:
        """Take all records below an offset."""
        while self.reader.at < min(offset, self.reader.end):
            self._held.extend(await self.reader.window())
        found = []
        while self._held and self._held[0].offset < offset:
            found.append(self._held.popleft())
        return found


class Decided:
    """What was decided about the transactions of one partition; of several copies the first counts."""

    def __init__(self, reader: Reader, source: str) -> None:
        self.reader = reader
        self._prefix = f"{source}:{reader._reach.place.partition}:"
        self._known: dict[int, Emitted] = {}
        self._newest = -1
        self._decode = msgspec.json.Decoder(Emitted).decode

    async def about(self, first: int, end: int) -> dict[int, Emitted]:
        """The decisions about the transactions of the offsets ``[first, end)``; earlier ones are forgotten."""
        self._known = {offset: emitted for offset, emitted in self._known.items() if offset >= first}
        while self._newest < end - 1 and self.reader.at < self.reader.end:
            for item in await self.reader.window():
                offset, emitted = item if isinstance(item, About) else self._read(item)
                if emitted is not None and offset >= first:
                    self._known.setdefault(offset, emitted)
                    self._newest = max(self._newest, offset)
        return {offset: emitted for offset, emitted in self._known.items() if offset < end}

    def _read(self, record: Any) -> tuple[int, Emitted | None]:
        try:
            emitted = self._decode(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return -1, None
        number = emitted.decision_id.removeprefix(self._prefix)
        return (int(number), emitted) if number.isdecimal() else (-1, None)


@dataclass(slots=True)
class Chunk:
    """What one cycle takes of a partition: records by topic, and the decisions about them by offset."""

    records: dict[str, list[Record]] = field(default_factory=dict)
    emitted: Mapping[int, Emitted] = field(default_factory=dict)


class FraudFeed:
    """Transactions with the labels that each had seen, as its decision says."""

    def __init__(self, topics: tuple[str, str], transactions: Records, labels: Records, decided: Decided,
                 labels_end: int) -> None:  # fmt: skip
        self._topics = topics
        self._transactions = transactions
        self._labels = labels
        self._decided = decided
        self._labels_end = labels_end
        self._label_at = labels.reader.at

    async def chunk(self, limit: int) -> Chunk | None:
        """The next records, at most ``limit`` of each topic; None at the end.

        All labels come that a transaction of the chunk has seen, and no label that its last one had not.
        """
        records = await self._transactions.peek(limit)
        if not records and self._label_at >= self._labels_end:
            return None
        emitted: Mapping[int, Emitted] = {}
        until, count = -1, 0
        if records:
            emitted = await self._decided.about(records[0].offset, records[-1].offset + 1)
            for record in records:
                decision = emitted.get(record.offset)
                if decision is not None and decision.label_position > self._label_at + limit:
                    break
                until = max(until, decision.label_position if decision is not None else -1)
                count += 1
        if not count:
            until = self._label_at + limit if records else min(self._label_at + limit, self._labels_end)
        until = max(until, self._label_at)
        labels = await self._labels.below(until)
        self._label_at = until
        taken = await self._transactions.below(records[count - 1].offset + 1) if count else []
        return Chunk({self._topics[0]: taken, self._topics[1]: labels}, emitted)


class ClickFeed:
    """Clicks as they came."""

    def __init__(self, topic: str, clicks: Records) -> None:
        self._topic = topic
        self._clicks = clicks

    async def chunk(self, limit: int) -> Chunk | None:
        """The next clicks, at most ``limit``; None at the end."""
        records = await self._clicks.peek(limit)
        if not records:
            return None
        return Chunk({self._topic: await self._clicks.below(records[-1].offset + 1)})
