"""What an operator does to topics and groups, by the broker's own listener."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from chaos.traffic import Input
from stream.connections import kafka_admin, kafka_consumer
from stream.settings import KafkaSettings
from tests.workers import Deployment

_TOLD_S = 30.0


def configure(deployment: Deployment, topic: str, settings: Mapping[str, str]) -> None:
    """Set a topic's settings; the others go back to their defaults."""

    async def change() -> None:
        async with kafka_admin(deployment.kafka) as admin:
            for answer in await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, dict(settings))]):
                failed = [resource for resource in answer.resources if resource[0] != 0]
                if failed:
                    raise RuntimeError(f"the settings of {topic} could not be changed: {failed}")

    asyncio.run(change())


def add_partitions(deployment: Deployment, topic: str, total: int) -> None:
    """Give a topic more partitions; returns when the broker tells of them, which is a moment after it made them."""

    async def change() -> None:
        async with kafka_admin(deployment.kafka) as admin, asyncio.timeout(_TOLD_S):
            _ = await admin.create_partitions({topic: NewPartitions(total)})
            while len((await admin.describe_topics([topic]))[0]["partitions"]) < total:
                await asyncio.sleep(0.05)

    asyncio.run(change())


def move_committed(deployment: Deployment, by: int) -> dict[TopicPartition, int]:
    """Move the committed offsets of a group that has no member, as ``kafka-consumer-groups --reset-offsets`` does."""

    async def move() -> dict[TopicPartition, int]:
        topics = deployment.topics
        places = [TopicPartition(name, p) for name in (topics.transactions, topics.labels, topics.clicks)
                  for p in range(deployment.partitions)]  # fmt: skip
        consumer: AIOKafkaConsumer = kafka_consumer(deployment.kafka, group_id=deployment.name)
        await consumer.start()
        try:
            consumer.assign(places)
            found = {tp: offset for tp in places if (offset := await consumer.committed(tp)) is not None}
            ends = await consumer.end_offsets(places)
            wanted = {tp: min(max(offset + by, 0), ends[tp]) for tp, offset in found.items()}
            await consumer.commit(wanted)
            return wanted
        finally:
            await consumer.stop()

    return asyncio.run(move())


def send_transactional(kafka: KafkaSettings, name: str, batches: list[list[tuple[str, Input]]]) -> None:
    """Send each batch (topic and input) in a Kafka transaction, which leaves a gap behind it in each partition."""

    async def send() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=name)
        await producer.start()
        try:
            for batch in batches:
                async with producer.transaction():
                    for topic, item in batch:
                        _ = await producer.send(topic, item.value, item.key)
        finally:
            await producer.stop()

    asyncio.run(send())
