"""Topics are created as the settings say, and never accepted in another shape."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from features.errors import ServiceUnavailable, TopicError
from stream.embedded import free_port
from stream.settings import KafkaSettings, TopicSettings
from stream.topics import check_topics, create_topics, require_topics
from tests import servers
from tests.servers import KafkaServer, RunningBroker, fresh_name


def _topics(**changes: Any) -> TopicSettings:
    prefix = fresh_name("topics")
    names = ("transactions", "labels", "clicks", "items", "decisions", "alerts", "recommendations", "dead_letters")
    return TopicSettings(**({name: f"{prefix}-{name}" for name in names} | changes))


def _settings(broker: RunningBroker) -> KafkaSettings:
    return KafkaSettings(bootstrap=broker.bootstrap, idempotence=broker.idempotence)


def test_missing_topics_are_reported_and_not_created_by_a_check(broker: RunningBroker) -> None:
    kafka, topics = _settings(broker), _topics()
    for _ in range(2):
        statuses = asyncio.run(check_topics(kafka, topics))
        assert [status.state for status in statuses] == ["missing"] * 8
    with pytest.raises(TopicError, match="headrace topics --create"):
        require_topics(statuses)


def test_create_makes_each_topic_with_its_partitions_and_a_second_create_changes_nothing(broker: RunningBroker) -> None:
    kafka, topics = _settings(broker), _topics(transaction_partitions=3, click_partitions=5)
    first = asyncio.run(create_topics(kafka, topics))
    assert [status.state for status in first] == ["created"] * 8
    assert [status.partitions for status in first] == [3, 3, 5, 1, 3, 3, 5, 5]
    second = asyncio.run(create_topics(kafka, topics))
    assert [(status.state, status.advice) for status in second] == [("ok", "")] * 8
    require_topics(second)


def test_create_adds_only_what_is_missing_and_refuses_another_partition_count_with_the_way_out(
    broker: RunningBroker,
) -> None:
    kafka, topics = _settings(broker), _topics()
    asyncio.run(servers.create_topics(broker.bootstrap, {topics.labels: 2, topics.clicks: 4}))
    states = {status.name: status for status in asyncio.run(create_topics(kafka, topics))}
    assert states[topics.transactions].state == "created"
    assert states[topics.clicks].state == "ok"
    wrong = states[topics.labels]
    assert (wrong.state, wrong.partitions, wrong.expected) == ("wrong", 2, 4)
    assert "topics.transaction_partitions = 2" in wrong.advice
    assert f"headrace repartition {topics.labels}" in wrong.advice
    with pytest.raises(TopicError, match=topics.labels):
        require_topics(states.values())


def test_retention_and_replication_reach_kafka(kafka: KafkaServer) -> None:
    settings = KafkaSettings(bootstrap=kafka.bootstrap)
    topics = _topics(retention_hours=5)
    asyncio.run(create_topics(settings, topics))
    kept_longer = asyncio.run(check_topics(settings, replace(topics, retention_hours=9)))
    assert "keeps records for 5 h" in kept_longer[0].advice
    copied_more = asyncio.run(check_topics(settings, replace(topics, replication=3)))
    assert "1 of 3 copies" in copied_more[0].advice
    assert copied_more[0].usable


def test_a_refused_topic_says_what_the_broker_said(kafka: KafkaServer) -> None:
    with pytest.raises(TopicError, match="replication factor of 3"):
        asyncio.run(create_topics(KafkaSettings(bootstrap=kafka.bootstrap), _topics(replication=3)))


def test_a_compacted_input_topic_is_refused(kafka: KafkaServer) -> None:
    topics = _topics()
    compacted = {"cleanup.policy": "compact"}
    asyncio.run(servers.create_topics(kafka.bootstrap, {topics.transactions: 4}, compacted))
    status = asyncio.run(check_topics(KafkaSettings(bootstrap=kafka.bootstrap), topics))[0]
    assert status.state == "wrong"
    assert "compact" in status.advice


def test_an_unreachable_broker_is_one_clear_line() -> None:
    kafka = KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}", request_timeout_s=2)
    with pytest.raises(ServiceUnavailable) as caught:
        asyncio.run(check_topics(kafka, TopicSettings()))
    text = str(caught.value)
    assert kafka.bootstrap in text and "Connect" in text and "\n" not in text
