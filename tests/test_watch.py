"""What the worker writes can be read by people: filtered, with titles, and harmless to the terminal."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from features.errors import HistoryError, SettingsError, TopicError
from features.messages import Action, Alert, DeadLetter, Decision, Reason, Recommendation, RecommendedItem
from stream.cli import app
from stream.connections import kafka_losses
from stream.embedded import Broker
from stream.render import render
from stream.settings import KafkaSettings, Settings, TopicSettings
from stream.watch import Filter, Shown, read_titles, watch
from tests.servers import RunningBroker, create_topics, fresh_name, produce

TIME_MS = 1_700_000_000_000


def _decision(number: int, score: float = 0.9, action: Action = "block", key: str = "card-1") -> Decision:
    return Decision(
        decision_id=f"transactions:0:{number}",
        event_id=f"t{number}",
        key=key,
        event_time=TIME_MS,
        score=score,
        anomaly=0.25,
        action=action,
        reasons=["9 payments in 10 minutes", "a new shop"],
        model_version="000003",
        label_position=4,
    )


def _alert() -> Alert:
    fields = msgspec.to_builtins(_decision(1)) | {
        "reasons": [Reason(feature="card_count_10m", value=9.0, contribution=1.5, text="9 payments in 10 minutes")],
        "entities": {"card": "card-1", "merchant": "shop-2"},
        "values": {"card_count_10m": 9.0},
    }
    return Alert(**fields)


def _recommendation() -> Recommendation:
    return Recommendation(
        recommendation_id="clicks:0:1",
        event_id="c1",
        session_id="s1",
        user_id="u1",
        item_id="item-1",
        event_time=TIME_MS,
        items=[RecommendedItem(item_id=f"item-{i}", score=1.0 / i) for i in range(2, 10)],
        model_version="000003",
    )


def _dead_letter(value: bytes = b"{nonsense") -> DeadLetter:
    return DeadLetter(
        dead_letter_id="transactions:1:7",
        reason="malformed_json",
        sentence="JSON is malformed",
        topic="transactions",
        partition=1,
        offset=7,
        length=len(value),
        sha256="0" * 64,
        value=base64.b64encode(value).decode(),
        key=base64.b64encode(b"card-1").decode(),
    )


def test_each_message_is_a_line_that_says_what_happened() -> None:
    assert render(_decision(1), {}).plain == (
        "2023-11-14 22:13:20  block   score 0.900  anomaly 0.25  key card-1  event t1  model 000003  "
        "9 payments in 10 minutes; a new shop"
    )
    assert render(_alert(), {}).plain.splitlines()[1] == "    +1.50  9 payments in 10 minutes"
    assert "after item-1: Red socks 0.50, item-3 0.33" in render(_recommendation(), {"item-2": "Red socks"}).plain
    assert "and 3 more" in render(_recommendation(), {}).plain
    assert render(_dead_letter(), {}).plain == (
        "transactions:1:7  malformed_json  JSON is malformed  9 bytes '{nonsense'"
    )


def test_ids_and_values_cannot_drive_the_terminal() -> None:
    for message in (_decision(1, key="\x1b[2J"), _dead_letter(b"\x1b]0;title\x07")):
        assert "\x1b" not in render(message, {}).plain
    assert render(_decision(1, key="[bold]x[/bold]"), {}).plain.count("[bold]") == 1


@pytest.mark.parametrize(
    ("wanted", "message", "accepted"),
    [
        (Filter(), _decision(1), True),
        (Filter(key="card-1"), _decision(1), True),
        (Filter(key="card-2"), _decision(1), False),
        (Filter(key="shop-2"), _alert(), True),
        (Filter(key="u1"), _recommendation(), True),
        (Filter(action="review"), _decision(1), False),
        (Filter(min_score=0.9), _decision(1), True),
        (Filter(min_score=0.91), _decision(1), False),
        (Filter(session="s1"), _recommendation(), True),
        (Filter(session="s2"), _recommendation(), False),
        (Filter(reason="card_count_10m"), _alert(), True),
        (Filter(reason="10 minutes"), _alert(), True),
        (Filter(reason="new shop"), _decision(1), True),
        (Filter(reason="old shop"), _decision(1), False),
        (Filter(reason="oversized"), _dead_letter(), False),
        (Filter(reason="malformed_json", key="card-1"), _dead_letter(), True),
    ],
)
def test_filters_let_through_what_was_asked_for(wanted: Filter, message: Shown, accepted: bool) -> None:
    assert wanted.accepts(message) is accepted


def test_a_filter_that_could_never_match_is_refused_with_those_that_can() -> None:
    with pytest.raises(SettingsError) as caught:
        Filter(session="s", action="block").check("dead-letters")
    assert caught.value.problems == (
        "--action does not apply to dead-letters; there are --key, --reason",
        "--session does not apply to dead-letters; there are --key, --reason",
    )


def _settings(broker: RunningBroker) -> Settings:
    return Settings(
        kafka=KafkaSettings(bootstrap=broker.bootstrap, idempotence=broker.idempotence),
        topics=replace(TopicSettings(transaction_partitions=2), decisions=fresh_name("decisions")),
    )


def test_a_tail_from_the_beginning_stops_at_its_limit_and_survives_what_is_no_decision(broker: RunningBroker) -> None:
    settings = _settings(broker)
    topic = settings.topics.decisions
    values = [msgspec.json.encode(_decision(i, score=i / 10)) for i in range(10)]
    asyncio.run(create_topics(broker.bootstrap, {topic: 2}))
    asyncio.run(produce(broker.bootstrap, topic, [(b"k", value) for value in [*values[:8], b"\xff", *values[8:]]]))
    shown: list[Shown | None] = []
    watching = watch(
        settings, "decisions", Filter(min_score=0.7), lambda message, _: shown.append(message),
        from_beginning=True, limit=4,
    )  # fmt: skip
    asyncio.run(asyncio.wait_for(watching, timeout=30))
    assert [message.event_id if isinstance(message, Decision) else None for message in shown] == [
        "t7",
        None,
        "t8",
        "t9",
    ]


def test_a_tail_shows_only_what_comes_after_it_began(broker: RunningBroker) -> None:
    settings = _settings(broker)
    topic = settings.topics.decisions
    asyncio.run(create_topics(broker.bootstrap, {topic: 2}))
    asyncio.run(produce(broker.bootstrap, topic, [(b"k", msgspec.json.encode(_decision(0)))] * 5))

    async def main() -> list[Shown | None]:
        shown: list[Shown | None] = []
        watching = asyncio.create_task(
            watch(settings, "decisions", Filter(), lambda message, _: shown.append(message), limit=1)
        )
        while not watching.done():
            await produce(broker.bootstrap, topic, [(b"k", msgspec.json.encode(_decision(1)))])
            await asyncio.wait([watching], timeout=0.2)
        await watching
        return shown

    (message,) = asyncio.run(asyncio.wait_for(main(), timeout=30))
    assert isinstance(message, Decision) and message.event_id == "t1"


def test_a_missing_topic_is_refused(broker: RunningBroker) -> None:
    with pytest.raises(TopicError, match="headrace topics --create"):
        asyncio.run(watch(_settings(broker), "decisions", Filter(), lambda *_: None))


def test_titles_come_from_the_items_file_and_another_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["a"], "title": ["Red socks"], "price": [1.0]}), tmp_path / "items.parquet")
    assert read_titles(tmp_path / "items.parquet") == {"a": "Red socks"}
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    for path in (tmp_path / "other.parquet", tmp_path / "absent.parquet"):
        with pytest.raises(HistoryError, match="item_id and title"):
            read_titles(path)


def test_the_command_prints_one_json_object_per_line(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = fresh_name("decisions")
    monkeypatch.setenv("HEADRACE_TOPICS_DECISIONS", topic)
    asyncio.run(create_topics(broker.bootstrap, {topic: 4}))
    asyncio.run(produce(broker.bootstrap, topic, [(b"k", msgspec.json.encode(_decision(i))) for i in range(3)]))
    flags = ["--kafka", broker.bootstrap, "--from-beginning", "--limit", "3", "--json"]
    result = CliRunner().invoke(app, ["watch", "decisions", *flags])
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["event_id"] for line in result.output.splitlines()] == ["t0", "t1", "t2"]


def test_a_broker_that_goes_away_is_told_once_and_waited_for(tmp_path: Path) -> None:
    server = Broker(tmp_path)
    server.start()
    settings = _settings(RunningBroker("embedded", server.bootstrap, idempotence=False))
    told: list[str] = []

    async def main() -> None:
        await create_topics(server.bootstrap, {settings.topics.decisions: 2})
        watching = asyncio.create_task(watch(settings, "decisions", Filter(), lambda *_: None))
        await asyncio.wait([watching], timeout=1)
        server.kill()
        while not told:
            await asyncio.sleep(0.05)
        done, _ = await asyncio.wait([watching], timeout=1)
        assert not done
        watching.cancel()
        await asyncio.wait([watching])

    try:
        with kafka_losses(settings.kafka, told.append):
            asyncio.run(asyncio.wait_for(main(), timeout=60))
    finally:
        server.stop()
    (line,) = told
    assert "waiting for it" in line and server.bootstrap in line
