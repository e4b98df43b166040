"""A replay sends what the contract says, keyed as the worker expects, in the order of the world."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from features.decode import ClickDecoder, LabelDecoder, Limits, TransactionDecoder
from features.partitioner import partition_of
from features.schema import Schema, load_schema
from stream.malformed import kinds
from stream.replay import Sent, read_timeline, replay_timeline, require_feeds
from stream.settings import KafkaSettings, Settings, TopicSettings
from stream.timeline import Cursor, Timeline, build_timeline
from stream.topics import create_topics
from tests.servers import RunningBroker, consume_all, fresh_name

START_MS = 1_700_000_000_000
LOGINS = Path(__file__).parents[1] / "examples" / "logins.toml"


def _transactions(n: int, label_delay_ms: int = 5_000) -> pa.Table:
    times = START_MS + 1_000 * np.arange(n)
    judged = np.arange(n) % 3 != 0
    return pa.table(
        {
            "event_id": [f"t{i}" for i in range(n)],
            "event_time": times,
            "card_id": [f"card-{i % 7}" for i in range(n)],
            "merchant_id": [f"shop-{i % 3}" for i in range(n)],
            "amount": [1.5 * i for i in range(n)],
            "is_fraud": pa.array([int(i % 5 == 0) for i in range(n)], pa.int8(), mask=~judged),
            "label_time": pa.array(times + label_delay_ms, pa.int64(), mask=~judged),
        }
    )


def _clicks(n: int) -> pa.Table:
    return pa.table(
        {
            "event_id": [f"c{i}" for i in range(n)],
            "event_time": START_MS + 500 + 1_000 * np.arange(n),
            "session_id": [f"s{i % 4}" for i in range(n)],
            "user_id": pa.array([None if i % 2 else f"u{i % 3}" for i in range(n)], pa.string()),
            "card_id": pa.nulls(n, pa.string()),
            "item_id": [f"item-{i}" for i in range(n)],
            "action": ["view"] * n,
        }
    )


def _messages(timeline: Timeline) -> list[tuple[str, bytes, dict[str, Any]]]:
    cursors = [Cursor(feed, 3) for feed in timeline.feeds]
    found = []
    for number in timeline.order.tolist():
        ((key, value),) = cursors[number].take(1)
        found.append((timeline.feeds[number].topic, key, json.loads(value)))
    return found


def test_everything_is_on_one_timeline_and_a_label_stands_where_it_became_known() -> None:
    table = _transactions(12)
    timeline = build_timeline(load_schema(), TopicSettings(), transactions=table, labels=table, clicks=_clicks(5))
    found = _messages(timeline)
    times = [m["label_time"] if topic == "labels" else m["event_time"] for topic, _, m in found]
    assert times == sorted(times)
    count = Counter(topic for topic, _, _ in found)
    assert count["transactions"] == 12 and count["clicks"] == 5
    labels = [m for topic, _, m in found if topic == "labels"]
    assert [m["event_id"] for m in labels] == ["t1", "t2", "t4", "t5"], "t7 and later become known after the last event"
    at_once = found.index(("transactions", b"card-6", next(m for _, _, m in found if m["event_id"] == "t6")))
    assert found[at_once + 1][0] == "labels", "at the same time the transaction comes first"


def test_labels_known_before_the_replay_are_left_out_and_older_ones_that_fall_due_are_sent() -> None:
    history, live = _transactions(20).slice(0, 10), _transactions(20).slice(10)
    both = pa.concat_tables([history, live])
    timeline = build_timeline(
        load_schema(), TopicSettings(), transactions=live, labels=both, labels_from_ms=START_MS + 10_000
    )
    ids = [m["event_id"] for topic, _, m in _messages(timeline) if topic == "labels"]
    assert ids == ["t5", "t7", "t8", "t10", "t11", "t13", "t14"]


def test_messages_are_keyed_by_the_key_entity_and_clicks_by_user_else_session() -> None:
    table = _transactions(6)
    timeline = build_timeline(load_schema(), TopicSettings(), transactions=table, labels=table, clicks=_clicks(6))
    for topic, key, message in _messages(timeline):
        if topic == "clicks":
            assert key.decode() == message.get("user_id", message["session_id"])
            assert "card_id" not in message, "what is missing is left out"
        else:
            assert key.decode() == message["card_id"]


def test_a_key_of_several_fields_is_joined_by_the_separator() -> None:
    schema = load_schema([LOGINS])
    pair = replace(schema.transactions, entities=schema.transactions.entities[::-1])
    table = pa.table(
        {
            "login_id": ["a"],
            "login_time": [START_MS],
            "asn": ["AS1"],
            "country": ["de"],
            "device_id": ["d"],
            "account_id": ["x"],
            "method": ["otp"],
        }
    )
    timeline = build_timeline(Schema(pair, schema.clicks), TopicSettings(), transactions=table)
    ((_, key, message),) = _messages(timeline)
    assert key == b"AS1\x1fde"
    assert message["method"] == "otp"


@pytest.mark.parametrize("topic", ["transactions", "labels", "clicks"])
def test_every_message_is_accepted_and_every_kind_of_broken_copy_is_refused(topic: str) -> None:
    schema = load_schema()
    table = _transactions(3) if topic != "clicks" else _clicks(3)
    timeline = build_timeline(schema, TopicSettings(), **{topic: table})
    (feed,) = timeline.feeds
    decoders: dict[str, Any] = {
        "transactions": TransactionDecoder(schema.transactions, Limits()),
        "labels": LabelDecoder(schema.transactions, Limits()),
        "clicks": ClickDecoder(Limits()),
    }
    decode = decoders[topic].decode
    good = [value for _, value in feed.messages(0, len(feed.times))]
    whole = decode(good, [START_MS + 60_000] * len(good))
    assert whole.bad == [] and whole.unknown_fields == 0
    accepted = [
        name
        for name, spoil in kinds(feed.target).items()
        if decode([good[0], spoil(json.loads(good[0])), good[1]], [START_MS + 60_000] * 3).rows != [0, 2]
    ]
    assert accepted == []
    assert len(kinds(feed.target)) >= 12


@settings(deadline=None)  # the first example compiles
@given(st.binary(min_size=0, max_size=40), st.integers(1, 64))
def test_the_partitioner_is_the_one_of_every_kafka_client(key: bytes, partitions: int) -> None:
    numbers = list(range(partitions))
    assert partition_of(key, partitions) == DefaultPartitioner()(key, numbers, numbers)


def _prepare(broker: RunningBroker) -> tuple[KafkaSettings, TopicSettings]:
    prefix = fresh_name("replay")
    names = ("transactions", "labels", "clicks", "decisions", "alerts", "recommendations", "dead_letters")
    changes: dict[str, Any] = {name: f"{prefix}-{name}" for name in names}
    topics = TopicSettings(**changes, transaction_partitions=3, click_partitions=2)
    kafka = KafkaSettings(bootstrap=broker.bootstrap, idempotence=broker.idempotence)
    asyncio.run(create_topics(kafka, topics))
    return kafka, topics


@pytest.mark.parametrize("rate", [None, 2_000.0])
def test_a_replay_reaches_the_broker_whole_in_order_and_in_the_right_partitions(
    broker: RunningBroker, rate: float | None
) -> None:
    kafka, topics = _prepare(broker)
    table = _transactions(600)
    timeline = build_timeline(load_schema(), topics, transactions=table, labels=table, clicks=_clicks(100))
    sent = asyncio.run(replay_timeline(kafka, timeline, rate=rate))
    assert sent.good == Counter(feed.topic for number in timeline.order for feed in [timeline.feeds[number]])
    assert sent.malformed.total() == 0
    for feed in timeline.feeds:
        records = asyncio.run(consume_all(kafka.bootstrap, feed.topic))
        expected = feed.messages(0, len(feed.times))
        assert Counter((r.key, r.value) for r in records) == Counter(expected)
        count = topics.partitions()[feed.topic]
        assert all(r.partition == partition_of(r.key, count) for r in records)
        for number in range(count):
            arrived = [(r.key, r.value) for r in records if r.partition == number]
            assert arrived == [m for m in expected if partition_of(m[0], count) == number]


def test_malformed_copies_come_on_top_and_the_same_seed_breaks_the_same_messages(broker: RunningBroker) -> None:
    counts = []
    for _ in range(2):
        kafka, topics = _prepare(broker)
        timeline = build_timeline(load_schema(), topics, transactions=_transactions(400))
        sent = asyncio.run(replay_timeline(kafka, timeline, malformed=0.2, seed=7))
        records = asyncio.run(consume_all(kafka.bootstrap, topics.transactions))
        broken = sent.malformed[topics.transactions]
        assert sent.messages == 400 and 40 < broken < 120
        assert len(records) == 400 + broken
        counts.append((broken, sorted(str(r.value) for r in records)))
    assert counts[0] == counts[1]


def test_a_replay_can_be_limited_and_stopped(broker: RunningBroker) -> None:
    kafka, topics = _prepare(broker)
    timeline = build_timeline(load_schema(), topics, transactions=_transactions(500))
    assert asyncio.run(replay_timeline(kafka, timeline.first(40))).messages == 40

    async def stopped() -> Sent:
        stop, sent = asyncio.Event(), Sent()
        task = asyncio.create_task(replay_timeline(kafka, timeline, rate=20, sent=sent, stop=stop))
        while not sent.messages:
            await asyncio.sleep(0.01)
        stop.set()
        return await task

    assert 0 < asyncio.run(stopped()).messages < 500


def test_missing_topics_are_refused_before_anything_is_sent(broker: RunningBroker) -> None:
    kafka = KafkaSettings(bootstrap=broker.bootstrap, idempotence=broker.idempotence)
    topics = TopicSettings(transactions=fresh_name("nowhere"))
    timeline = build_timeline(load_schema(), topics, transactions=_transactions(2))
    with pytest.raises(Exception, match="is missing; create it"):
        asyncio.run(require_feeds(kafka, topics, timeline))


def test_history_files_become_timelines(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(
        "event_id,event_time,card_id,merchant_id,amount,is_fraud\n"
        "b,2024-01-02T00:00:00Z,c,m,2,0\na,2024-01-01T00:00:00Z,c,m,1,1\nd,2024-01-03T00:00:00Z,c,m,3,\n"
    )
    for target, ids in (("transactions", ["a", "b", "d"]), ("labels", ["a", "b"])):
        timeline = read_timeline(Settings(), load_schema(), file, target)  # type: ignore[arg-type]
        assert [message["event_id"] for _, _, message in _messages(timeline)] == ids
