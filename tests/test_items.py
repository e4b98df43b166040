"""Every worker keeps its shelf as the items topic says, from before its first answer on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from features.shelf import Shelf
from stream.items import ItemReader
from stream.metrics import Metrics
from stream.settings import KafkaSettings, Settings, TopicSettings
from stream.topics import check_topics, create_topics
from tests import servers
from tests.servers import KafkaServer, RunningBroker, fresh_name


def _settings(broker: RunningBroker | KafkaServer, partitions: int = 1) -> Settings:
    kafka = KafkaSettings(bootstrap=broker.bootstrap, idempotence=getattr(broker, "idempotence", True))
    prefix = fresh_name("items")
    names = [name for name in TopicSettings.__slots__ if isinstance(getattr(TopicSettings(), name), str)]
    named: dict[str, Any] = {name: f"{prefix}-{name}" for name in names}
    return Settings(kafka=kafka, topics=TopicSettings(**named, item_partitions=partitions))


async def send_items(settings: Settings, *records: tuple[str, dict[str, Any] | bytes | None]) -> None:
    """Write records of items, or what stands in their place, as the values of these keys."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap, enable_idempotence=False)
    await producer.start()
    try:
        for key, value in records:
            body = (
                value if value is None or isinstance(value, bytes) else json.dumps({"item_id": key, **value}).encode()
            )
            await producer.send_and_wait(settings.topics.items, body, key.encode())
    finally:
        await producer.stop()


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


def _run(settings: Settings, play: Callable[[ItemReader, Shelf, Metrics], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await create_topics(settings.kafka, settings.topics)
        shelf, metrics = Shelf(), Metrics()
        reader = ItemReader(settings, shelf, metrics)
        try:
            await play(reader, shelf, metrics)
        finally:
            await reader.stop()

    asyncio.run(main())


def _counted(metrics: Metrics, kind: str) -> float:
    return metrics.registry.get_sample_value("headrace_item_records_total", {"kind": kind}) or 0.0


def test_everything_that_the_topic_holds_is_known_when_the_load_ends(broker: RunningBroker) -> None:
    async def play(reader: ItemReader, shelf: Shelf, metrics: Metrics) -> None:
        await send_items(settings, *((f"i{n}", {"title": f"Thing {n}", "category": "toys"}) for n in range(700)),
                    ("i3", {"title": "Other"}), ("i4", None), ("i5", b"{"))  # fmt: skip
        await reader.load()
        assert shelf.listed == 699 and not shelf.open and not shelf.stale
        assert (shelf.title("i2"), shelf.title("i3"), shelf.title("i4")) == ("Thing 2", "Other", None)
        assert [_counted(metrics, kind) for kind in ("changed", "deleted", "malformed_json")] == [701, 1, 1]

    settings = _settings(broker, partitions=3)
    _run(settings, play)


def test_a_topic_that_never_held_a_record_hides_nothing(broker: RunningBroker) -> None:
    async def play(reader: ItemReader, shelf: Shelf, metrics: Metrics) -> None:
        await reader.load()
        assert shelf.open and shelf.listed == 0

    _run(_settings(broker), play)


def test_what_comes_later_is_followed(broker: RunningBroker) -> None:
    async def play(reader: ItemReader, shelf: Shelf, metrics: Metrics) -> None:
        await reader.load()
        following = asyncio.create_task(reader.follow())
        await send_items(settings, ("a", {"title": "A"}), ("b", {"title": "B"}))
        await _until(lambda: shelf.listed == 2)
        await send_items(settings, ("a", None), ("b", {"title": "B2"}))
        await _until(lambda: shelf.listed == 1 and shelf.title("b") == "B2")
        await _until(lambda: not shelf.stale)
        following.cancel()

    settings = _settings(broker)
    _run(settings, play)


def test_a_second_load_forgets_what_the_topic_does_not_hold_any_more(broker: RunningBroker) -> None:
    async def play(reader: ItemReader, shelf: Shelf, metrics: Metrics) -> None:
        await send_items(settings, ("a", {}))
        await reader.load()
        with shelf.lock:
            shelf.apply([reader._decode(b"gone", b'{"item_id":"gone"}')])
        assert shelf.listed == 2
        await reader.load()
        assert shelf.listed == 1 and shelf.holds("a") and not shelf.holds("gone")

    settings = _settings(broker)
    _run(settings, play)


def test_the_topic_is_compacted_and_another_clean_up_is_refused(kafka: KafkaServer) -> None:
    settings = _settings(kafka)

    async def main() -> None:
        await servers.create_topics(kafka.bootstrap, {settings.topics.items: 1}, {"cleanup.policy": "delete"})
        (status,) = [s for s in await check_topics(settings.kafka, settings.topics) if s.name == settings.topics.items]
        assert status.state == "wrong" and "set it to compact" in status.advice
        other = _settings(kafka)
        made = await create_topics(other.kafka, other.topics)
        assert all(s.usable for s in made)

    asyncio.run(main())


@pytest.mark.parametrize("size", [0, 3])
def test_kafka_itself_gives_back_what_was_sent(kafka: KafkaServer, size: int) -> None:
    async def play(reader: ItemReader, shelf: Shelf, metrics: Metrics) -> None:
        await send_items(settings, *((f"i{n}", {}) for n in range(size)))
        await reader.load()
        assert shelf.listed == size

    settings = _settings(kafka)
    _run(settings, play)
