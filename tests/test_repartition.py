"""A copied topic lies where the worker expects it, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from features.errors import TopicError
from features.partitioner import partition_of
from features.schema import load_schema
from stream.repartition import Copied, key_reader, kind_of, repartition
from stream.settings import KafkaSettings, TopicSettings
from tests.servers import RunningBroker, consume_all, create_topics, fresh_name, produce

START_MS = 1_700_000_000_000
LOGINS = Path(__file__).parents[1] / "examples" / "logins.toml"


def _transaction(number: int, card: object) -> bytes:
    fields = {"event_id": number, "event_time": START_MS, "card_id": card, "merchant_id": "m", "amount": 1}
    return json.dumps(fields).encode()


async def _scatter(bootstrap: str, topic: str, values: list[bytes | None]) -> None:
    """Round robin over three partitions, without keys (but for tombstones), one millisecond apart."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        for i, value in enumerate(values):
            headers = [("n", str(i).encode())]
            key = None if value is not None else b"gone"
            await producer.send_and_wait(
                topic, value, key, partition=i % 3, timestamp_ms=START_MS + i, headers=headers
            )  # fmt: skip
    finally:
        await producer.stop()


def _copy(broker: RunningBroker, source: str, target: str, partitions: int = 4) -> Copied:
    kafka = KafkaSettings(bootstrap=broker.bootstrap, idempotence=broker.idempotence)
    copying = repartition(
        kafka, TopicSettings(), load_schema(), source, target, kind="transactions", partitions=partitions
    )
    return asyncio.run(asyncio.wait_for(copying, timeout=60))


def test_scattered_records_come_together_by_card_in_the_order_of_their_timestamps(broker: RunningBroker) -> None:
    source, target = fresh_name("source"), fresh_name("target")
    asyncio.run(create_topics(broker.bootstrap, {source: 3}))
    asyncio.run(_scatter(broker.bootstrap, source, [_transaction(i, f"card-{i % 7}") for i in range(100)]))
    copied = _copy(broker, source, target)
    assert (copied.records, copied.moved, copied.undecodable) == (100, 100, 0)
    records = asyncio.run(consume_all(broker.bootstrap, target))
    by_card = defaultdict(list)
    for record in records:
        number = json.loads(record.value)["event_id"]
        assert record.key == f"card-{number % 7}".encode()
        assert record.partition == partition_of(record.key, 4)
        assert record.timestamp == START_MS + number
        assert list(record.headers) == [("n", str(number).encode())]
        by_card[record.key].append(number)
    assert len(records) == 100
    assert all(numbers == sorted(numbers) for numbers in by_card.values())


def test_what_cannot_be_decoded_is_copied_as_it_is_and_counted(broker: RunningBroker) -> None:
    source, target = fresh_name("source"), fresh_name("target")
    asyncio.run(create_topics(broker.bootstrap, {source: 3}))
    values = [b"{nonsense", _transaction(1, "a"), None, _transaction(3, "x\x00y"), _transaction(4, 17)]
    asyncio.run(_scatter(broker.bootstrap, source, values))
    copied = _copy(broker, source, target)
    assert (copied.records, copied.undecodable) == (5, 3)
    records = {int(r.headers[0][1]): r for r in asyncio.run(consume_all(broker.bootstrap, target))}
    assert [records[i].value for i in range(5)] == values
    assert (records[0].key, records[0].partition) == (None, 0)
    assert (records[2].key, records[2].partition) == (b"gone", partition_of(b"gone", 4))
    assert (records[3].key, records[3].partition) == (None, 0)
    assert records[4].key == b"17"


def test_a_well_partitioned_topic_moves_nothing_when_its_count_stays(broker: RunningBroker) -> None:
    source, target = fresh_name("source"), fresh_name("target")
    asyncio.run(create_topics(broker.bootstrap, {source: 4}))
    good = [(f"card-{i}".encode(), _transaction(i, f"card-{i}")) for i in range(40)]
    asyncio.run(produce(broker.bootstrap, source, good))
    copied = _copy(broker, source, target)
    assert (copied.records, copied.moved) == (40, 0)


def test_an_empty_topic_can_be_copied_once_filled_the_target_is_refused(broker: RunningBroker) -> None:
    source, target = fresh_name("source"), fresh_name("target")
    asyncio.run(create_topics(broker.bootstrap, {source: 3}))
    assert _copy(broker, source, target).records == 0
    asyncio.run(produce(broker.bootstrap, source, [(b"a", _transaction(1, "a"))]))
    assert _copy(broker, source, target).records == 1
    with pytest.raises(TopicError, match="holds records already"):
        _copy(broker, source, target)
    with pytest.raises(TopicError, match="4 partitions, 5 are asked for"):
        _copy(broker, source, target, partitions=5)


def test_a_missing_source_and_a_copy_onto_itself_are_refused(broker: RunningBroker) -> None:
    nowhere = fresh_name("nowhere")
    with pytest.raises(TopicError, match="is missing"):
        _copy(broker, nowhere, fresh_name("target"))
    with pytest.raises(TopicError, match="both source and target"):
        _copy(broker, nowhere, nowhere)


def test_keys_are_made_of_the_fields_of_the_first_entity_and_of_user_else_session() -> None:
    clicks = key_reader(load_schema(), "clicks")
    click = {"event_id": 1, "event_time": START_MS, "session_id": "s", "item_id": "i"}
    assert clicks(json.dumps(click).encode()) == b"s"
    assert clicks(json.dumps(click | {"user_id": 5}).encode()) == b"5"
    labels = key_reader(load_schema([LOGINS]), "labels")
    label = {
        "login_id": 1, "label_time": START_MS, "is_takeover": True,
        "account_id": "anna", "device_id": "d", "asn": 1, "country": "de",
    }  # fmt: skip
    assert labels(json.dumps(label).encode()) == b"anna"


def test_what_a_topic_holds_follows_from_its_name_or_must_be_said() -> None:
    topics = TopicSettings()
    assert kind_of(topics, "labels", "labels-8", None) == "labels"
    assert kind_of(topics, "old", "clicks", None) == "clicks"
    assert kind_of(topics, "old", "new", "transactions") == "transactions"
    with pytest.raises(TopicError, match="--kind"):
        kind_of(topics, "old", "new", None)
