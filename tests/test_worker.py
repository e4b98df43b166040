"""A real worker on real servers: what it answers, what it refuses, and how it lives through outages."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from features.hashing import partitions_of
from features.messages import Decision, Recommendation
from features.schema import load_schema
from stream.embedded import Broker, RedisServer
from stream.processes import Child
from stream.timeline import build_timeline
from tests.servers import KafkaServer, RunningBroker, kafka_libs, produce
from tests.workers import Deployment, assert_state_is_exact, by_source, wait_until
from tests.world import QUICK, World
from trainer.fit import fit
from trainer.history import read_transactions

EXAMPLES = Path(__file__).parents[1] / "examples"
START_MS = 1_600_000_000_000


def payment(id_: str, after_ms: int = 0, **more: Any) -> dict[str, Any]:
    facts = {"event_id": id_, "event_time": START_MS + after_ms, "card_id": "card", "merchant_id": "shop", "amount": 5}
    return facts | more


def verdict(id_: str, after_ms: int, fraud: bool, **more: Any) -> dict[str, Any]:
    facts = {"event_id": id_, "label_time": START_MS + after_ms, "card_id": "card", "merchant_id": "shop"}
    return facts | {"is_fraud": fraud} | more


def send(deployment: Deployment, topic: str, messages: list[Any], partition: int | None = None) -> None:
    records = [(b"card", m if isinstance(m, bytes | None) else json.dumps(m).encode()) for m in messages]
    asyncio.run(
        produce(deployment.broker.bootstrap, topic, records, partition=partition, timestamp_ms=START_MS + 10**9)
    )


def wait_for_labels(deployment: Deployment, count: int) -> None:
    labels = deployment.topics.labels
    wait_until(lambda: sum(offsets[labels] for offsets in deployment.applied().values()) == count, f"{count} labels")


def says(worker: Child, *texts: str) -> None:
    """Wait until the worker's log holds all the texts."""
    wait_until(lambda: all(any(text in line for line in worker.log_tail(200)) for text in texts), f"log says {texts}")


def refusal(worker: Child) -> str:
    """What a worker says that cannot start: exit code 2, one line, no stack trace."""
    worker.start()
    wait_until(lambda: not worker.running(), "the worker ends")
    lines = worker.log_tail(100)
    assert worker.exit_code() == 2, lines
    assert not any("Traceback" in line for line in lines), lines
    return lines[-1]


@pytest.fixture
def embedded(embedded_broker: Broker) -> RunningBroker:
    return RunningBroker("embedded", embedded_broker.bootstrap, idempotence=False)


def test_each_record_is_answered_or_a_dead_letter_and_labels_and_repeats_count_as_they_should(
    embedded: RunningBroker, redis_server: RedisServer, world: World, tmp_path: Path
) -> None:
    deployment = Deployment(embedded, redis_server.url, world.schema, world.artifacts, tmp_path, partitions=2,
                            extra={"WORKER_REVIEW_SCORE": "0", "WORKER_MESSAGE_BYTES_MAX": "2000"})  # fmt: skip
    deployment.create()
    topics = deployment.topics
    worker = deployment.started()
    wrong = 1 - int(partitions_of([b"card"], 2)[0])
    try:
        send(deployment, topics.transactions, [
            payment("e1"), b"{", payment("e2", 1000), payment("bad", amount=-1), None, payment("e1", 2000, amount=99),
            payment("bad", event_time=START_MS // 1000), b"x" * 2001, payment("e3", 3000, colour="red"),
            {k: v for k, v in payment("bad").items() if k != "card_id"}, payment("bad", card_id="\n"),
            payment("bad", amount="1"),
        ])  # fmt: skip
        send(deployment, topics.transactions, [payment("lost")], partition=wrong)
        send(deployment, topics.labels, [b"[]", verdict("e1", 10, True, card_id=None)])
        click = {"event_id": "k1", "event_time": START_MS, "session_id": "card", "item_id": "item-1"}
        send(deployment, topics.clicks, [click, click | {"item_id": ""}, click | {"event_id": "k2", "action": "buy"}])
        deployment.wait_for({topics.decisions: 4, topics.dead_letters: 12, topics.recommendations: 2})
        steps: list[tuple[Any, float]] = [(True, 1.0), (True, 1.0), (False, 0.0), (True, 1.0)]
        for number, (fraud, _) in enumerate(steps):
            send(deployment, topics.labels, [verdict("e2", 5000 + number, fraud)])
            wait_for_labels(deployment, 3 + number)
            send(deployment, topics.transactions, [payment(f"after-{number}", 10_000 + number)])
        deployment.wait_for({topics.decisions: 8, topics.alerts: 8})
        worker.stop()
        assert worker.exit_code() == 0
    finally:
        worker.kill()
    decisions = by_source(deployment.decoded(topics.decisions))
    always = set(Decision.__struct_fields__) - {"values"}  # those of a sample only, see worker.vector_sample
    assert all(decision.keys() == always for decision in decisions.values())
    assert [d["event_id"] for d in decisions.values()] == ["e1", "e2", "e1", "e3", *(f"after-{n}" for n in range(4))]
    first, _, repeat, *_ = decisions.values()
    assert repeat["duplicate"] and not first["duplicate"]
    assert [repeat[k] for k in ("score", "anomaly", "action")] == [first[k] for k in ("score", "anomaly", "action")]
    letters = deployment.decoded(topics.dead_letters)
    assert Counter(letter["reason"] for letter in letters) == {
        "malformed_json": 1, "number_out_of_range": 1, "empty": 1, "time_out_of_range": 1, "oversized": 1,
        "missing_field": 1, "invalid_id": 2, "wrong_type": 3, "wrong_partition": 1,
    }  # fmt: skip
    (misplaced,) = [letter for letter in letters if letter["reason"] == "wrong_partition"]
    assert misplaced["partition"] == wrong and "does not use murmur2" in misplaced["sentence"]
    assert any("another partition than murmur2" in line for line in worker.log_tail(50))
    alerts = {alert["event_id"]: alert["values"] for alert in deployment.decoded(topics.alerts)}
    assert [alerts[f"after-{n}"]["merchant_fraud_count_30d"] for n in range(4)] == [wanted for _, wanted in steps]
    assert alerts["e3"]["card_count_1h"] == 2.0  # the repeat is not counted
    answers = deployment.decoded(topics.recommendations)
    always = set(Recommendation.__struct_fields__) - {"experiment", "variant", "left_out"}
    assert [(a["event_id"], a.keys() == always) for a in answers] == [("k1", True), ("k2", True)]


def test_redis_may_go_away_and_come_back_and_nothing_is_lost(
    broker: RunningBroker, world: World, tmp_path: Path
) -> None:
    binary = shutil.which("redis-server")
    redis = RedisServer(tmp_path / "redis", appendonly=True, binary=Path(binary) if binary else None)
    redis.start()
    deployment = Deployment(broker, redis.url, world.schema, world.artifacts, tmp_path)
    deployment.create()
    topics = deployment.topics
    worker = deployment.started()
    try:
        _ = deployment.replay(world.timeline(topics, 600, 300), rate=None)
        deployment.wait_for({topics.decisions: 600})
        redis.stop()
        _ = deployment.replay(world.timeline(topics, 900, 0), rate=None)
        says(worker, "retrying, nothing is lost")
        time.sleep(1.0)
        redis.start()
        deployment.wait_for({topics.decisions: 1500, topics.recommendations: 300})
        worker.stop()
        assert worker.exit_code() == 0
        lines = [line for line in worker.log_tail(200) if " reading " not in line]
        decisions = by_source(deployment.decoded(topics.decisions))
        assert len(decisions) == 1500 == len(deployment.decoded(topics.decisions))
        assert_state_is_exact(deployment, decisions)
        assert not any("Traceback" in line for line in lines), lines
        assert sum("retrying, nothing is lost" in line for line in lines) <= 2, lines
    finally:
        worker.kill()
        redis.stop()


@pytest.mark.usefixtures("kafka")
def test_kafka_may_go_away_and_come_back_and_nothing_is_lost(
    redis_server: RedisServer, world: World, tmp_path: Path
) -> None:
    server = KafkaServer(tmp_path / "kafka", kafka_libs())
    server.start()
    broker = RunningBroker("kafka", server.bootstrap, idempotence=True)
    deployment = Deployment(broker, redis_server.url, world.schema, world.artifacts, tmp_path)
    deployment.create()
    topics = deployment.topics
    worker = deployment.started()
    try:
        _ = deployment.replay(world.timeline(topics, 600, 300), rate=None)
        deployment.wait_for({topics.decisions: 600, topics.recommendations: 300})
        server.stop(timeout_s=20.0)
        says(worker, "cannot be reached; waiting for it")
        server.start()
        _ = deployment.replay(world.timeline(topics, 900, 0), rate=None)
        deployment.wait_for({topics.decisions: 1500})
        worker.stop()
        assert worker.exit_code() == 0
        decisions = by_source(deployment.decoded(topics.decisions))
        assert len(decisions) == 1500
        assert_state_is_exact(deployment, decisions)
        assert not any("Traceback" in line for line in worker.log_tail(200)), worker.log_tail(200)
    finally:
        worker.kill()
        server.stop(timeout_s=20.0)


def test_an_emptied_redis_and_a_schema_that_changed_are_refused_with_the_way_out(
    embedded: RunningBroker, redis_server: RedisServer, world: World, tmp_path: Path
) -> None:
    deployment = Deployment(embedded, redis_server.url, world.schema, world.artifacts, tmp_path)
    deployment.create()
    topics = deployment.topics
    worker = deployment.started()
    _ = deployment.replay(world.timeline(topics, 300, 0), rate=None)
    deployment.wait_for({topics.decisions: 300})
    worker.stop()
    with Redis.from_url(redis_server.url) as redis:
        keys: Any = redis.keys(f"{deployment.name}:*")
        head: Any = redis.hget(f"{deployment.name}:{{{deployment.name}:fraud:0}}", "@")
        _ = redis.delete(*keys)
        text = refusal(worker)
        assert "Redis has no state at" in text and "Was Redis emptied?" in text and "redis.namespace" in text
        assert len(deployment.decoded(topics.decisions)) == 300
        other = head.replace(world.schema.hash.encode(), b"0" * 16)
        _ = redis.hset(f"{deployment.name}:{{{deployment.name}:fraud:0}}", "@", other)
        assert f"is of feature schema {'0' * 16}, this worker's is {world.schema.hash}" in refusal(worker)


def test_models_that_must_not_be_served_are_refused_at_start(world: World, tmp_path: Path) -> None:
    nowhere = RunningBroker("none", "127.0.0.1:1", idempotence=True)

    def started_on(artifacts: Path, schemas: tuple[Path, ...] = ()) -> str:
        return refusal(Deployment(nowhere, "redis://127.0.0.1:1/0", world.schema, artifacts, tmp_path,
                                  schema_files=schemas).worker())  # fmt: skip

    assert "no model is published in" in started_on(tmp_path / "none")
    damaged = Path(shutil.copytree(world.artifacts, tmp_path / "damaged"))
    model = damaged / "000001" / "fraud.txt"
    model.write_bytes(model.read_bytes().replace(b"leaf_value=", b"leaf_value=9", 1))
    text = started_on(damaged)
    assert "fraud.txt" in text and "SHA-256" in text
    assert "was fitted for schema" in started_on(world.artifacts, (EXAMPLES / "logins.toml",))


def logins(path: Path, count: int) -> None:
    """Logins of 60 accounts; takeovers come from a device of their own."""
    rng = np.random.default_rng(5)
    lines = ["login_id,login_time,account_id,device_id,asn,country,method,is_takeover"]
    for i in range(count):
        account, taken = int(rng.integers(60)), rng.random() < 0.06
        device = f"thief-{rng.integers(4)}" if taken else f"device-{account}"
        lines.append(f"l{i},{START_MS + i * 60_000},account-{account},{device},{rng.integers(5)},"
                     f"{rng.choice(['DE', 'FR'])},{rng.choice(['password', 'code', ''])},{int(taken)}")  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_another_world_runs_the_whole_way_on_twenty_lines_of_toml(
    embedded: RunningBroker, redis_server: RedisServer, tmp_path: Path
) -> None:
    toml = EXAMPLES / "logins.toml"
    schema = load_schema([toml])
    logins(tmp_path / "logins.csv", 3000)
    table = read_transactions(tmp_path / "logins.csv", schema.transactions, 3_600_000)
    early, later = table.slice(0, 2500), table.slice(2500)
    as_of_ms = int(later["login_time"][0].as_py())
    artifacts = tmp_path / "artifacts"
    fit(early, None, schema, artifacts, as_of_ms=as_of_ms, created_ms=as_of_ms, settings=QUICK)
    deployment = Deployment(embedded, redis_server.url, schema, artifacts, tmp_path, partitions=3, schema_files=(toml,),
                            extra={"WORKER_REVIEW_SCORE": "0.3"})  # fmt: skip
    deployment.create()
    worker = deployment.started()
    try:
        timeline = build_timeline(schema, deployment.topics, transactions=later, labels=later, clicks=None)
        # At a pace: sent at once, all logins may be decided before any label is there, and the scores stand on labels.
        sent = deployment.replay(timeline, rate=400, malformed=0.02)
        assert sent.good[deployment.topics.transactions] == 500
        deployment.wait_for({deployment.topics.decisions: 500})
        worker.stop()
        assert worker.exit_code() == 0
    finally:
        worker.kill()
    decisions = by_source(deployment.decoded(deployment.topics.decisions))
    letters = deployment.decoded(deployment.topics.dead_letters)
    assert len(decisions) == 500 and len(letters) == sum(sent.malformed.values()) > 0
    assert_state_is_exact(deployment, decisions)
    takeovers = {id_ for id_, bad in zip(later["login_id"].to_pylist(), later["is_takeover"].to_pylist(), strict=True)
                 if bad}  # fmt: skip
    scores = {bad: np.mean([d["score"] for d in decisions.values() if (d["event_id"] in takeovers) == bad])
              for bad in (True, False)}  # fmt: skip
    assert scores[True] > 3 * scores[False]
    alert = deployment.decoded(deployment.topics.alerts)[0]
    assert alert["entities"].keys() == {"account", "device", "network"} and alert["reasons"]
    assert all("thief" not in key for key in alert["values"])
