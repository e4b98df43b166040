"""Sends history to the topics as if it happened now: ``headrace replay``, and the live half of ``headrace up``.

In: a :class:`Timeline`. Out: records in Kafka, keyed and partitioned as the worker expects, and :class:`Sent`. No
state: a second replay sends everything again, and the worker recognises repeated events by their ids.

With a rate, message i is due at ``start + i / rate`` whatever happened before (an open loop), so a slow broker makes
the replay catch up instead of slowing down, and latencies measured against it are honest.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from features.errors import TopicError
from features.hashing import partitions_of
from features.schema import Schema
from stream.connections import kafka_errors, kafka_producer
from stream.malformed import Spoiler
from stream.settings import KafkaSettings, Settings, TopicSettings
from stream.timeline import Cursor, Timeline, build_timeline
from stream.topics import check_topics, require_topics

_CHUNK = 8192
_AHEAD_PACED = 256  # under a millisecond of encoding at a time, so that the pace stays even
_SLEEP_S_MAX = 0.2  # how long a stop may go unnoticed
_ACKS_PENDING_MAX = 64

Target = Literal["transactions", "labels", "clicks"]


@dataclass(slots=True)
class Sent:
    """What a replay has sent so far; updated while it runs. Both count by topic name."""

    good: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)

    @property
    def messages(self) -> int:
        """Good messages sent to all topics."""
        return self.good.total()


class _Outbox:
    """Sends chunks of records in whole batches per partition: a tenth of the cost of one ``send`` each."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._pending: deque[asyncio.Future[Any]] = deque()

    async def send(self, topic: str, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Hands records over in order; waits only while a partition's previous batch is still queued."""
        count = len(await self._producer.partitions_for(topic))
        by_partition: dict[int, list[tuple[bytes, bytes | None]]] = {}
        for record, partition in zip(records, partitions_of([key for key, _ in records], count).tolist(), strict=True):
            by_partition.setdefault(partition, []).append(record)
        for partition, part in by_partition.items():
            batch = self._producer.create_batch()
            for key, value in part:
                if batch.append(key=key, value=value, timestamp=None) is None:
                    await self._submit(batch, topic, partition)
                    batch = self._producer.create_batch()
                    batch.append(key=key, value=value, timestamp=None)
            await self._submit(batch, topic, partition)

    async def _submit(self, batch: Any, topic: str, partition: int) -> None:
        self._pending.append(await self._producer.send_batch(batch, topic, partition=partition))
        await self.settle(_ACKS_PENDING_MAX)

    async def settle(self, pending_max: int = 0) -> None:
        """Waits until at most ``pending_max`` batches are unacknowledged."""
        while self._pending and (len(self._pending) > pending_max or self._pending[0].done()):
            await self._pending.popleft()


async def replay_timeline(
    kafka: KafkaSettings,
    timeline: Timeline,
    *,
    rate: float | None = None,
    malformed: float = 0.0,
    seed: int = 1,
    sent: Sent | None = None,
    stop: asyncio.Event | None = None,
) -> Sent:
    """Sends a timeline; returns when the last record is acknowledged.

    Parameters
    ----------
    rate : float, optional
        Good messages per second over all topics; as fast as possible for None.
    malformed : float
        Probability, 0..1, that a good message is followed by a broken copy of it with the same key.
    seed : int
        Decides which messages are broken and how.
    sent : Sent, optional
        Updated while it runs, for a display.
    stop : asyncio.Event, optional
        Ends the replay early, after what is due has been sent.

    Raises
    ------
    ServiceUnavailable
        If Kafka cannot be reached for longer than ``kafka.request_timeout_s``.
    """
    sent = sent if sent is not None else Sent()
    ahead = _CHUNK if rate is None else _AHEAD_PACED
    cursors = [Cursor(feed, ahead) for feed in timeline.feeds]
    spoilers = [Spoiler(feed.target, malformed, seed + i) for i, feed in enumerate(timeline.feeds)]
    async with kafka_errors(kafka):
        producer = kafka_producer(kafka)
        try:
            await producer.start()
            outbox = _Outbox(producer)
            async for start, end in _schedule(len(timeline), rate, stop):
                counts = np.bincount(timeline.order[start:end], minlength=len(cursors)).tolist()
                for feed, cursor, spoiler, count in zip(timeline.feeds, cursors, spoilers, counts, strict=True):
                    if count:
                        good = cursor.take(count)
                        records = _spoiled(good, spoiler) if malformed else good
                        await outbox.send(feed.topic, records)
                        sent.good[feed.topic] += count
                        sent.malformed[feed.topic] += len(records) - count
            await outbox.settle()
        finally:
            await producer.stop()
    return sent


async def _schedule(total: int, rate: float | None, stop: asyncio.Event | None) -> Any:
    """Ranges of messages as they fall due."""
    clock = asyncio.get_running_loop().time
    began, done = clock(), 0
    while done < total and not (stop is not None and stop.is_set()):
        due = total if rate is None else min(total, int((clock() - began) * rate) + 1)
        if due > done or rate is None:
            end = min(due, done + _CHUNK)
            yield done, end
            done = end
        else:
            await asyncio.sleep(min(_SLEEP_S_MAX, max(0.0, began + done / rate - clock())))


def _spoiled(good: Sequence[tuple[bytes, bytes]], spoiler: Spoiler) -> list[tuple[bytes, bytes | None]]:
    records: list[tuple[bytes, bytes | None]] = []
    for key, value in good:
        records.append((key, value))
        records.extend((key, broken) for broken in spoiler.spoil(value))
    return records


async def require_feeds(kafka: KafkaSettings, topics: TopicSettings, timeline: Timeline) -> None:
    """Refuses to send to topics that are missing or of the wrong shape.

    Raises
    ------
    TopicError
        With what to do.
    """
    names = {feed.topic for feed in timeline.feeds}
    require_topics(status for status in await check_topics(kafka, topics) if status.name in names)


def read_timeline(settings: Settings, schema: Schema, file: Path, target: Target) -> Timeline:
    """The timeline of one history file for one topic.

    Raises
    ------
    HistoryError
        If the file cannot be used.
    """
    from trainer.history import read_clicks, read_transactions  # keeps the worker free of it

    tables: dict[str, pa.Table]
    if target == "clicks":
        tables = {"clicks": read_clicks(file, schema.clicks)}
    else:
        delay_ms = int(settings.trainer.label_delay_days * 86_400_000)
        tables = {target: read_transactions(file, schema.transactions, delay_ms)}
    return build_timeline(schema, settings.topics, **tables)


def run(
    settings: Settings,
    timeline: Timeline,
    *,
    rate: float | None,
    malformed: float,
    seed: int,
    show: Callable[[Sent, int], Any],
) -> Sent:
    """Sends a timeline from a command line, calling ``show(sent, total)`` a few times a second."""

    async def main() -> Sent:
        await require_feeds(settings.kafka, settings.topics, timeline)
        sent = Sent()
        sending = asyncio.create_task(
            replay_timeline(settings.kafka, timeline, rate=rate, malformed=malformed, seed=seed, sent=sent)
        )
        while not (await asyncio.wait([sending], timeout=_SLEEP_S_MAX))[0]:
            show(sent, len(timeline))
        show(sent, len(timeline))
        return sending.result()

    if not len(timeline):
        raise TopicError("there is nothing to send: the history has no such messages")
    return asyncio.run(main())
