"""Copies a topic so that every record lies where the worker expects it: ``headrace repartition``.

In: a topic whose producer chose keys or partitions otherwise, or that has another partition count. Out: a new topic;
the source is not touched. The key is made from the record's own fields. Records keep their timestamps and headers, and
partitions of the source are merged by timestamp, so that a card whose events lay in several of them keeps their order.

A record that cannot be decoded is copied as it is, by its old key (without one: to the partition of its old number),
and counted: the worker dead-letters it from there, so nothing disappears between two topics.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from features.checks import Refused, clean_id
from features.errors import BadEvent, TopicError
from features.hashing import partitions_of
from features.messages import Click, label_type, transaction_type
from features.schema import ID_SEPARATOR, Schema
from stream.connections import kafka_admin, kafka_consumer, kafka_errors, kafka_losses, kafka_producer
from stream.offsets import offset_range
from stream.outbox import Outbox, Record, by_partition
from stream.progress import progress_bar
from stream.settings import KafkaSettings, Settings, TopicSettings
from stream.topics import describe_topics, make_topics

Kind = Literal["transactions", "labels", "clicks"]
_CHUNK = 4096


@dataclass(slots=True)
class Copied:
    """How a copy went: all ``records``, those whose key or partition was wrong, and those that cannot be decoded.

    ``skipped`` counts batches that could not be unpacked, see :mod:`stream.unpacking`; nothing of them is copied.
    """

    records: int = 0
    moved: int = 0
    undecodable: int = 0
    skipped: int = 0


def key_reader(schema: Schema, kind: Kind) -> Callable[[bytes | None], bytes | None]:
    """A function from a record's value to the key it should have; None where there is none to be read."""
    types: Mapping[Kind, Callable[[], type[msgspec.Struct]]] = {
        "transactions": lambda: transaction_type(schema.transactions),
        "labels": lambda: label_type(schema.transactions),
        "clicks": lambda: Click,
    }
    decode = msgspec.json.Decoder(types[kind]()).decode

    def fields(message: Any) -> tuple[str, ...]:
        if kind == "clicks":
            return ("session_id",) if message.user_id is None else ("user_id",)
        return schema.transactions.key.fields

    def read(value: bytes | None) -> bytes | None:
        try:
            message = decode(value or b"")
            return ID_SEPARATOR.join([clean_id(name, getattr(message, name)) for name in fields(message)]).encode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadEvent):
            return None

    return read


async def repartition(
    kafka: KafkaSettings,
    topics: TopicSettings,
    schema: Schema,
    source: str,
    target: str,
    *,
    kind: Kind,
    partitions: int,
    copied: Copied | None = None,
    total: Callable[[int], None] = lambda _: None,
) -> Copied:
    """Copies what ``source`` holds now to ``target``, which is created, or is empty and of the right shape.

    Raises
    ------
    TopicError
        If the source is missing, or the target is the source, holds records or has another partition count.
    ServiceUnavailable
        If Kafka cannot be reached. The target is then incomplete: delete it and repeat.
    """
    copied = copied if copied is not None else Copied()
    read_key = key_reader(schema, kind)
    async with kafka_admin(kafka) as admin:
        found = await describe_topics(admin)
        if source == target or source not in found:
            raise TopicError(f"topic {source}: " + ("is both source and target" if source == target else "is missing"))
        if target not in found:
            await make_topics(admin, {target: partitions}, topics)
    async with kafka_errors(kafka):
        consumer, producer = kafka_consumer(kafka), kafka_producer(kafka)
        try:
            await consumer.start()
            await producer.start()
            await _require_empty(kafka, target, len(await producer.partitions_for(target)), partitions)
            places = [TopicPartition(source, number) for number in range(len(found[source]["partitions"]))]
            ranges = await offset_range(kafka, places)
            total(sum(end - begin for begin, end in ranges.values()))
            outbox = Outbox(producer)
            async for chunk in _merged(consumer, ranges):
                records, numbers = _rekeyed(chunk, read_key, partitions, copied)
                for partition, part in by_partition(records, numbers).items():
                    await outbox.send(target, partition, part)
            await outbox.settle()
        finally:
            await consumer.stop()
            await producer.stop()
    return copied


async def _require_empty(kafka: KafkaSettings, target: str, count: int, expected: int) -> None:
    if count != expected:
        raise TopicError(f"topic {target}: has {count} partitions, {expected} are asked for; name a new topic")
    places = [TopicPartition(target, number) for number in range(count)]
    if any(end for _, end in (await offset_range(kafka, places)).values()):
        raise TopicError(f"topic {target}: holds records already, a copy on top would repeat events; name a new topic")


async def _merged(
    consumer: AIOKafkaConsumer,
    ranges: Mapping[TopicPartition, tuple[int, int]],
) -> AsyncIterator[list[ConsumerRecord[bytes, bytes]]]:
    """All records of the ranges in chunks, merged by timestamp; the order within a partition is kept."""
    queues: dict[TopicPartition, deque[ConsumerRecord[bytes, bytes]]] = {
        place: deque() for place, (begin, end) in ranges.items() if begin < end
    }
    if not queues:
        return
    consumer.assign(list(queues))
    for place in queues:
        consumer.seek(place, ranges[place][0])
    chunk: list[ConsumerRecord[bytes, bytes]] = []
    while queues:
        for place in [place for place, queue in queues.items() if not queue]:
            if not await _fill(consumer, place, queues[place], ranges[place][1]):
                del queues[place]
        while queues and all(queues.values()) and len(chunk) < _CHUNK:
            chunk.append(min(queues.values(), key=lambda queue: (queue[0].timestamp, queue[0].partition)).popleft())
        if len(chunk) >= _CHUNK or not queues:
            yield chunk
            chunk = []


async def _fill(
    consumer: AIOKafkaConsumer, place: TopicPartition, queue: deque[ConsumerRecord[bytes, bytes]], end: int
) -> bool:
    """Fetches more of one partition; False at its end, which compaction or markers may leave without a record."""
    while not queue and await consumer.position(place) < end:
        for records in (await consumer.getmany(place, timeout_ms=500)).values():
            queue.extend(record for record in records if record.offset < end)
    return bool(queue)


def _rekeyed(
    chunk: Sequence[ConsumerRecord[bytes, bytes]],
    read_key: Callable[[bytes | None], bytes | None],
    partitions: int,
    copied: Copied,
) -> tuple[list[Record], list[int]]:
    copied.skipped += sum(isinstance(record.value, Refused) for record in chunk)
    chunk = [record for record in chunk if not isinstance(record.value, Refused)]
    keys = [read_key(record.value) for record in chunk]
    chosen = [record.key if key is None else key for record, key in zip(chunk, keys, strict=True)]
    numbers: list[int] = partitions_of([key or b"" for key in chosen], partitions).tolist()
    for i, (record, key) in enumerate(zip(chunk, chosen, strict=True)):
        if key is None:
            numbers[i] = record.partition % partitions
    copied.records += len(chunk)
    copied.undecodable += sum(key is None for key in keys)
    copied.moved += sum(
        record.key != key or record.partition != number
        for record, key, number in zip(chunk, chosen, numbers, strict=True)
    )
    records = [
        Record(key, record.value, record.timestamp, record.headers) for key, record in zip(chosen, chunk, strict=True)
    ]
    return records, numbers


def kind_of(topics: TopicSettings, source: str, target: str, kind: Kind | None) -> Kind:
    """What the topics hold: as told, else by the name that one of them has in the settings.

    Raises
    ------
    TopicError
        If neither says it.
    """
    names: dict[str, Kind] = {topics.transactions: "transactions", topics.labels: "labels", topics.clicks: "clicks"}
    found = kind or names.get(source) or names.get(target)
    if found is None:
        raise TopicError(
            f"neither {source} nor {target} is an input topic of the settings; "
            "say --kind transactions, --kind labels or --kind clicks"
        )
    return found


def run(
    settings: Settings, schema: Schema, source: str, target: str, *, kind: Kind | None, partitions: int | None
) -> None:
    """Copies from a command line, with a progress bar and a summary."""
    topics = settings.topics
    kind = kind_of(topics, source, target, kind)
    count = partitions or (topics.click_partitions if kind == "clicks" else topics.transaction_partitions)
    copied = Copied()
    totals: list[int] = []

    async def main() -> None:
        copying = asyncio.create_task(
            repartition(
                settings.kafka, topics, schema, source, target,
                kind=kind, partitions=count, copied=copied, total=totals.append,
            )
        )  # fmt: skip
        with progress_bar(f"{source} to {target}", 0) as advance:
            while not (await asyncio.wait([copying], timeout=0.2))[0]:
                advance(copied.records, *totals)
            advance(copied.records, *totals)
        await copying

    with kafka_losses(settings.kafka):
        asyncio.run(main())
    print(
        f"copied {copied.records:,} records to {target} with {count} partitions; {copied.moved:,} had another key or "
        f"partition; {copied.undecodable:,} cannot be decoded and were copied as they are",
        file=sys.stderr,
    )
    if copied.skipped:
        print(
            f"{copied.skipped:,} batches unpack to more than kafka.batch_bytes_max = {settings.kafka.batch_bytes_max}, "
            "or not at all, and were left out; to have them, delete the target, raise the limit, and repeat",
            file=sys.stderr,
        )
