"""Where in the output topics the answers begin that a state does not include: what a worker then reads as its tails.

In: output partitions, and how far their inputs are applied. Out: positions. No state, no group. Read from the end
backwards, since few answers lie beyond what is applied.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.connections import kafka_consumer, kafka_errors
from stream.lane import Target
from stream.offsets import offset_range
from stream.settings import KafkaSettings

_STEP = 8_192
_FETCH_MS = 500


class _Source(msgspec.Struct):
    """Of any answer, what it answers."""

    decision_id: str = ""
    recommendation_id: str = ""
    dead_letter_id: str = ""


_decode = msgspec.json.Decoder(_Source).decode


async def unapplied_answers(kafka: KafkaSettings, wanted: Mapping[Target, Mapping[str, int]]) -> dict[Target, int]:
    """The position of the first answer, in each output partition, to an input at or after its applied offset.

    ``wanted`` has, by output partition, the applied offset of each input topic's partition of the same number. Where
    there is no such answer, it is the end.

    Raises
    ------
    ServiceUnavailable
        If Kafka cannot be reached.
    """
    ranges = await offset_range(kafka, [TopicPartition(*target) for target in wanted])
    found: dict[Target, int] = {}
    async with kafka_errors(kafka):
        consumer = kafka_consumer(kafka)
        try:
            await consumer.start()
            for place, (first, end) in ranges.items():
                target = (place.topic, place.partition)
                found[target] = await _first_after(consumer, place, first, end, wanted[target])
        finally:
            await consumer.stop()
    return found


async def _first_after(
    consumer: AIOKafkaConsumer, place: TopicPartition, first: int, end: int, applied: Mapping[str, int]
) -> int:
    position, until, step = end, end, _STEP
    while until > first:
        start = max(first, until - step)
        newer, older = await _look(consumer, place, start, until, applied)
        if newer is not None:
            position = newer
        elif older >= applied.keys():
            break  # a whole step of answers that are applied; those before it are older still
        until, step = start, step * 2
    return position


async def _look(
    consumer: AIOKafkaConsumer, place: TopicPartition, start: int, until: int, applied: Mapping[str, int]
) -> tuple[int | None, set[str]]:
    """The first position in ``[start, until)`` of an answer that is not applied, and topics with ones that are."""
    newer, older = None, set[str]()
    consumer.assign([place])
    consumer.seek(place, start)
    while await consumer.position(place) < until:
        for record in (await consumer.getmany(place, timeout_ms=_FETCH_MS)).get(place, ()):
            if record.offset >= until:
                break
            try:
                message = _decode(record.value or b"")
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # somebody else's
            source = message.decision_id or message.recommendation_id or message.dead_letter_id
            topic, _, offset = source.rpartition(f":{place.partition}:")
            if topic in applied and offset.isdecimal():
                if int(offset) < applied[topic]:
                    older.add(topic)
                elif newer is None:
                    newer = record.offset
    return newer, older
