"""Doctor finds what is wrong and says what to do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

import stream.doctor
from features.schema import load_schema
from stream.doctor import Finding, examine
from stream.embedded import RedisServer, free_port
from stream.settings import KafkaSettings, RedisSettings, Settings, TopicSettings
from stream.topics import create_topics
from tests.servers import RunningBroker, fresh_name, produce


def _settings(broker: RunningBroker, redis: RedisServer, artifacts: Path) -> Settings:
    names = ("transactions", "labels", "clicks", "decisions", "alerts", "recommendations", "dead_letters")
    changes: dict[str, Any] = {name: fresh_name(name) for name in names}
    settings = Settings(
        kafka=KafkaSettings(bootstrap=broker.bootstrap, idempotence=broker.idempotence),
        redis=RedisSettings(url=redis.url),
        topics=TopicSettings(**changes, transaction_partitions=2, click_partitions=2),
        artifacts=artifacts,
    )
    return replace(settings, worker=replace(settings.worker, group=fresh_name("group")))


def _examine(settings: Settings) -> dict[str, Finding]:
    findings = asyncio.run(asyncio.wait_for(examine(settings, load_schema()), timeout=120))
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}


def test_a_good_installation_is_ok_but_for_the_models_that_nobody_trained(
    broker: RunningBroker, embedded_redis: RedisServer, tmp_path: Path
) -> None:
    settings = _settings(broker, embedded_redis, tmp_path)
    asyncio.run(create_topics(settings.kafka, settings.topics))
    found = _examine(settings)
    assert [name for name, finding in found.items() if not finding.ok] == ["models"]
    assert "headrace train" in found["models"].text
    assert "noeviction" in found["redis"].text and "version" in found["redis"].text
    assert "no worker has run" in found[f"group {settings.worker.group} on {settings.topics.clicks}"].text
    assert "faust-streaming 0.15" in found["versions"].text
    assert found["clock"].ok
    assert load_schema().hash in found["schema"].text


def test_the_lag_of_the_group_is_what_it_has_not_committed(
    broker: RunningBroker, embedded_redis: RedisServer, tmp_path: Path
) -> None:
    settings = _settings(broker, embedded_redis, tmp_path)
    topic, group = settings.topics.transactions, settings.worker.group
    asyncio.run(create_topics(settings.kafka, settings.topics))
    asyncio.run(produce(broker.bootstrap, topic, [(None, b"x")] * 10, partition=0))
    asyncio.run(produce(broker.bootstrap, topic, [(None, b"x")] * 5, partition=1))

    async def commit() -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=group, enable_auto_commit=False)
        await consumer.start()
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.commit({TopicPartition(topic, 0): 7})
        await consumer.stop()

    asyncio.run(commit())
    assert _examine(settings)[f"group {group} on {topic}"].text == "8 records behind"


def test_missing_topics_and_unreachable_servers_are_named_with_the_way_out(
    broker: RunningBroker, embedded_redis: RedisServer, tmp_path: Path
) -> None:
    settings = _settings(broker, embedded_redis, tmp_path)
    missing = _examine(settings)[f"topic {settings.topics.alerts}"]
    assert not missing.ok and "headrace topics --create" in missing.text
    dead = replace(
        settings,
        kafka=KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}"),
        redis=RedisSettings(url=f"redis://127.0.0.1:{free_port()}/0"),
    )
    found = _examine(dead)
    for name in ("kafka", "redis"):
        assert not found[name].ok and "is it running" in found[name].text
    assert not any(name.startswith("topic ") for name in found), "nothing is said about what cannot be seen"


def test_a_pointer_to_models_that_are_gone_is_found(
    broker: RunningBroker, embedded_redis: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "CURRENT").write_text("000007\n")
    finding = _examine(_settings(broker, embedded_redis, tmp_path))["models"]
    assert not finding.ok and "000007" in finding.text


def test_a_redis_that_evicts_is_found(broker: RunningBroker, tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        settings = _settings(broker, server, tmp_path)

        async def evict() -> None:
            from stream.connections import redis_client

            client = redis_client(settings.redis)
            await client.config_set("maxmemory-policy", "allkeys-lru")
            await client.aclose()

        asyncio.run(evict())
        finding = _examine(settings)["redis"]
        assert not finding.ok and "allkeys-lru" in finding.text and "noeviction" in finding.text
    finally:
        server.stop()


def test_another_version_of_faust_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream.doctor, "version", lambda name: "0.16.0" if name == "faust-streaming" else "1")
    finding = stream.doctor._versions()
    assert not finding.ok and "must be 0.15.x" in finding.text
