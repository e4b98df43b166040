"""Sends history to the topics as if it happened now: ``headrace replay``, and the live half of ``headrace up``.

In: a :class:`Timeline`. Out: records in Kafka, keyed and partitioned as the worker expects, and :class:`Sent`. No
state: a second replay sends everything again, and the worker recognises repeated events by their ids.

With a rate, message i is due at ``start + i / rate`` whatever happened before (an open loop), so a slow broker makes
the replay catch up instead of slowing down, and latencies measured against it are honest.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from features.errors import HistoryError
from features.hashing import partitions_of
from features.schema import Schema
from stream.connections import kafka_errors, kafka_losses, kafka_producer
from stream.malformed import Spoiler
from stream.outbox import Outbox, Record, by_partition
from stream.progress import progress_bar
from stream.settings import KafkaSettings, Settings, TopicSettings
from stream.timeline import Cursor, Message, RecordedFeed, Timeline, build_timeline, spoil_target
from stream.topics import check_topics, require_topics

_CHUNK = 8192
_AHEAD_PACED = 256  # under a millisecond of encoding at a time, so that the pace stays even
_SLEEP_S_MAX = 0.2  # how long a stop may go unnoticed

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
            outbox = Outbox(producer)
            partitions = {feed.topic: len(await producer.partitions_for(feed.topic)) for feed in timeline.feeds}
            async for start, end in _schedule(len(timeline), rate, stop):
                counts = np.bincount(timeline.order[start:end], minlength=len(cursors)).tolist()
                for feed, cursor, spoiler, count in zip(timeline.feeds, cursors, spoilers, counts, strict=True):
                    if count:
                        records = _spoiled(cursor.take(count), spoiler)
                        places = partitions_of([record.key or b"" for record in records], partitions[feed.topic])
                        for partition, part in by_partition(records, places.tolist()).items():
                            await outbox.send(feed.topic, partition, part)
                        sent.good[feed.topic] += count
                        sent.malformed[feed.topic] += len(records) - count
            await outbox.settle()
        finally:
            await producer.stop()
    return sent


async def _schedule(total: int, rate: float | None, stop: asyncio.Event | None) -> AsyncIterator[tuple[int, int]]:
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


def _spoiled(good: Sequence[Message], spoiler: Spoiler) -> list[Record]:
    records = []
    for key, value in good:
        records.append(Record(key, value))
        records.extend([Record(key, broken) for broken in spoiler.spoil(value)])
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


def archived_timeline(settings: Settings, schema: Schema, target: Target) -> Timeline:
    """The timeline of one topic as the archive has it: the good records, byte for byte, in the order they came in.

    Raises
    ------
    ServiceUnavailable
        If the archive cannot be read.
    """
    from stream.archive import archive_store  # keeps `headrace replay FILE` free of it
    from stream.archive_tables import KEY, OFFSET, TIME, VALUE
    from stream.archived import Archive

    archive = Archive(archive_store(settings))
    topic: str = getattr(settings.topics, target)
    tables = [archive.of_date(target, topic, date) for date in archive.dates(target)]
    if not tables:
        return Timeline((), np.zeros(0, np.int8))
    table = (
        pa.concat_tables(tables)
        .sort_by([(TIME, "ascending"), (OFFSET, "ascending")])
        .rename_columns({KEY: "key", VALUE: "value"})
    )
    times = table[TIME].cast(pa.int64()).to_numpy()
    feed = RecordedFeed(topic, table, times, (), spoil_target(schema.transactions, target))
    return Timeline((feed,), np.zeros(len(times), np.int8))


def run(settings: Settings, timeline: Timeline, *, rate: float | None, malformed: float, seed: int) -> None:
    """Sends a timeline from a command line, with a progress bar and a summary on standard error.

    Raises
    ------
    HistoryError
        If there is nothing to send.
    """
    if not len(timeline):
        raise HistoryError("there is nothing to send: the history has no such messages")
    sent = Sent()

    async def main() -> None:
        await require_feeds(settings.kafka, settings.topics, timeline)
        sending = asyncio.create_task(
            replay_timeline(settings.kafka, timeline, rate=rate, malformed=malformed, seed=seed, sent=sent)
        )
        with progress_bar(f"sending to {', '.join(feed.topic for feed in timeline.feeds)}", len(timeline)) as advance:
            while not (await asyncio.wait([sending], timeout=_SLEEP_S_MAX))[0]:
                advance(sent.messages)
            advance(sent.messages)
        await sending

    try:
        with kafka_losses(settings.kafka):
            asyncio.run(main())
    finally:
        said = [f"{count:,} to {topic}" for topic, count in sent.good.items()]
        broken = f", {sent.malformed.total():,} malformed on top" if malformed else ""
        print(f"sent {' and '.join(said) or 'nothing'}{broken}", file=sys.stderr)
