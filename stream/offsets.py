"""Where partitions begin and end.

In: partitions. Out: offsets. No state.

The embedded broker answers ListOffsets with one past the *first* record of its last batch. The high watermark in its
fetch answers is right, as it is on every broker, so the end is taken from a fetch of what ListOffsets calls the last
record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.connections import kafka_consumer, kafka_errors
from stream.settings import KafkaSettings

_ANSWER_S = 10.0


async def offset_range(kafka: KafkaSettings, places: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
    """The first offset and the next offset of each partition, asked over a connection of its own.

    Raises
    ------
    ServiceUnavailable
        If Kafka cannot be reached, or does not answer a fetch within 10 s.
    """
    async with kafka_errors(kafka):
        consumer = kafka_consumer(kafka)
        try:
            await consumer.start()
            return await offset_range_by(consumer, places)
        finally:
            await consumer.stop()


async def offset_range_by(
    consumer: AIOKafkaConsumer, places: Sequence[TopicPartition]
) -> dict[TopicPartition, tuple[int, int]]:
    """The same by a consumer that nobody else uses at this moment; its assignment is changed."""
    # Naming the topics first saves 0.1 s for each: aiokafka would learn of it from a failure, and wait before a retry.
    consumer.assign(places)
    consumer.pause(*places)
    begins, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    filled = [place for place in places if begins[place] < ends[place]]
    if filled:
        consumer.assign(filled)
        for place in filled:
            consumer.seek(place, ends[place] - 1)
        async with asyncio.timeout(_ANSWER_S):
            while unknown := [place for place in filled if consumer.highwater(place) is None]:
                await consumer.getmany(*unknown, timeout_ms=100, max_records=1)
        ends = ends | {place: max(ends[place], consumer.highwater(place)) for place in filled}
    return {place: (begins[place], ends[place]) for place in places}
