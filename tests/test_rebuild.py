"""After the loss of Redis ``headrace rebuild`` gives back the state that was, and the worker goes on as if nothing was.

On real Kafka and a Redis of its own, which these tests empty.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from redis import Redis

from features.errors import StateConflict
from features.schema import load_schema
from stream.connections import kafka_admin, redis_client
from stream.embedded import RedisServer
from stream.processes import Child
from stream.settings import RedisSettings
from stream.store import HEAD, StateStore, Write
from stream.timeline import Timeline, build_timeline
from tests.servers import KafkaServer, RunningBroker
from tests.workers import Deployment, assert_state_is_exact, by_source, refold, wait_until
from tests.world import World

LANES = ("fraud", "recommend")


@pytest.fixture
def redis_to_lose(redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that no other test uses."""
    server = RedisServer(tmp_path / "redis", binary=Path(redis_server.command[0]))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def deployment(kafka: KafkaServer, redis_to_lose: RedisServer, world: World, tmp_path: Path) -> Deployment:
    broker = RunningBroker("kafka", kafka.bootstrap, idempotence=True)
    extra = {"ARCHIVE_URL": str(tmp_path / "archive"), "ARCHIVE_EVERY_S": "0.3", "ARCHIVE_METRICS_PORT": "0"}
    found = Deployment(broker, redis_to_lose.url, world.schema, world.artifacts, tmp_path, 2, extra=extra)
    found.create()
    return found


def run(deployment: Deployment, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stream.cli", *words], env=deployment.environment(), timeout=120,
                          capture_output=True, text=True, check=False)  # fmt: skip


def flush(deployment: Deployment) -> None:
    with Redis.from_url(deployment.redis_url) as redis:
        redis.flushall()


def applied(deployment: Deployment) -> dict[str, dict[int, dict[str, int]]]:
    return {lane: deployment.applied(lane) for lane in LANES}


def state(deployment: Deployment) -> dict[str, dict[int, dict[bytes, bytes]]]:
    return {lane: deployment.state(lane) for lane in LANES}


def ends(deployment: Deployment, topic: str) -> dict[int, int]:
    return {r.partition: r.offset + 1 for r in deployment.read(topic)}


def wait_applied(deployment: Deployment) -> None:
    topics = deployment.topics
    wanted = {"fraud": (topics.transactions, topics.labels), "recommend": (topics.clicks,)}
    goal = {lane: {t: ends(deployment, t) for t in names} for lane, names in wanted.items()}

    def done() -> bool:
        now = applied(deployment)
        return all(now[lane].get(p, {}).get(topic, 0) >= end for lane, topics in goal.items()
                   for topic, found in topics.items() for p, end in found.items())  # fmt: skip

    wait_until(done, "everything is applied")


def forget(deployment: Deployment, records: list[Any]) -> None:
    """Have the broker delete records, as its retention would: all but the last of each partition."""
    last = {(r.topic, r.partition): r.offset for r in records}

    async def delete() -> None:
        async with kafka_admin(deployment.kafka) as admin:
            await admin.delete_records({TopicPartition(*place): RecordsToDelete(before_offset=offset)
                                        for place, offset in last.items()})  # fmt: skip

    asyncio.run(delete())


def parts(world: World, deployment: Deployment, count: int, payments: int, clicks: int) -> list[Timeline]:
    """So many timelines that follow each other, each with transactions, labels and clicks of its own."""
    found = []
    for i in range(count):
        table = world.later_payments.slice(i * payments, payments)
        clicked = world.later_clicks.slice(i * clicks, clicks)
        found.append(build_timeline(world.schema, deployment.topics, transactions=table, labels=table, clicks=clicked))
    return found


def test_an_emptied_redis_is_refused_then_rebuilt_bit_for_bit_and_every_decision_is_made_once(
    deployment: Deployment, world: World, tmp_path: Path
) -> None:
    topics, three = deployment.topics, parts(world, deployment, 3, 1000, 600)
    worker, archive = deployment.started(), Child("archive", [sys.executable, "-m", "stream.cli", "archive"], tmp_path,
                                                  env=deployment.environment())  # fmt: skip
    archive.start()
    try:
        deployment.replay(three[0], malformed=0.02)
        wait_applied(deployment)
        assert run(deployment, "rebuild", "--replace").returncode == 2, "a worker runs"
        archive.stop()
        assert archive.exit_code() == 0
        names = (topics.transactions, topics.labels, topics.clicks, topics.decisions)
        inputs = [record for name in names for record in deployment.read(name)]
        forget(deployment, inputs)  # from here on only the archive has them
        deployment.replay(three[1], malformed=0.02)
        wait_applied(deployment)
        worker.stop()
        assert worker.exit_code() == 0
        before, offsets = state(deployment), applied(deployment)

        flush(deployment)
        worker.start()
        wait_until(lambda: worker.exit_code() is not None, "the worker refuses")
        assert worker.exit_code() == 2
        assert "`headrace rebuild`" in worker.log_tail(1)[0]

        done = run(deployment, "rebuild")
        assert done.returncode == 0, done.stderr
        assert "of the archive" in done.stderr
        assert state(deployment) == before
        assert applied(deployment) == offsets
        again = run(deployment, "rebuild")
        assert again.returncode == 2 and "--replace" in again.stderr

        deployment.replay(three[2])
        goes_on(deployment, worker)
    finally:
        worker.kill()
        archive.kill()
    held = {
        (r.topic, r.partition, r.offset): r for r in [*inputs, *(r for name in names for r in deployment.read(name))]
    }
    records = [held[place] for place in sorted(held)]
    emitted = [r for r in records if r.topic == topics.decisions]
    decisions = by_source(msgspec.json.decode(r.value) for r in emitted)
    assert len(decisions) == len(emitted) == 3000
    assert_state_is_that_of(deployment, decisions, records)

    other = tmp_path / "other.toml"
    entities = "".join(f'[[transactions.entities]]\nname = "{name}"\nfields = ["{name}_id"]\nwindows = ["2h", "5d"]\n'
                       for name in ("card", "merchant"))  # fmt: skip
    other.write_text(f"[transactions]\nmemory = 7\n{entities}", encoding="utf-8")
    deployment.schema_files, deployment.schema = (other,), load_schema([other])
    done = run(deployment, "rebuild", "--replace")
    assert done.returncode == 0, done.stderr
    assert_state_is_that_of(deployment, decisions, records)


def goes_on(deployment: Deployment, worker: Any) -> None:
    """Start a worker on rebuilt state, let it apply everything, and stop it in order."""
    worker.start()
    wait_until(lambda: any(" reading " in line for line in worker.log_tail(3)), "it reads")
    wait_applied(deployment)
    worker.stop()
    assert worker.exit_code() == 0


def assert_state_is_that_of(deployment: Deployment, decisions: dict[str, dict[str, Any]], records: list[Any]) -> None:
    """Redis holds what folding these records by the deployment's schema gives, byte by byte."""
    topics = deployment.topics
    # What was a dead letter stays one, also where this schema could read it.
    transactions = [r for r in records if r.topic == topics.transactions
                    and f"{r.topic}:{r.partition}:{r.offset}" in decisions]  # fmt: skip
    labels = [r for r in records if r.topic == topics.labels]
    for partition in range(deployment.partitions):
        expected = refold(deployment, partition, decisions, transactions, labels).state
        assert deployment.state()[partition] == expected


def test_state_that_a_worker_has_written_meanwhile_is_not_replaced(redis_to_lose: RedisServer) -> None:
    async def story() -> None:
        settings = RedisSettings(url=redis_to_lose.url)
        client = redis_client(settings)
        store = StateStore(client, settings, "group", "fraud")
        draft = store.draft()
        await store.apply([Write(0, b"", b"old", {b"card:a": b"1"})])
        await draft.apply([Write(0, b"", b"new", {b"card:a": b"2"}), Write(1, b"", b"new", {b"card:b": b"3"})])
        for expected in (b"", b"older"):
            with pytest.raises(StateConflict):
                await store.replace_by(draft, 0, expected)
        await store.replace_by(draft, 0, b"old")
        with pytest.raises(StateConflict, match="is gone"):
            await store.replace_by(draft, 1, b"old")
        await store.replace_by(draft, 1, b"")
        found = await store.read({0: [HEAD, b"card:a"], 1: [HEAD, b"card:b"]})
        assert found == {0: [b"new", b"2"], 1: [b"new", b"3"]}
        assert await draft.filled([0, 1]) == {0: False, 1: False}
        await client.aclose()

    asyncio.run(story())


def test_a_worker_that_is_killed_while_redis_is_emptied_is_rebuilt_without_an_archive_and_answers_the_rest_once(
    deployment: Deployment, world: World
) -> None:
    deployment.extra = {}
    topics = deployment.topics
    timeline = parts(world, deployment, 1, 3000, 1500)[0]
    worker = deployment.started()
    feeder = threading.Thread(target=deployment.replay, args=(timeline,), kwargs={"rate": 1800.0, "malformed": 0.02})
    feeder.start()
    try:
        time.sleep(2.3)
        flush(deployment)
        worker.kill()
        feeder.join()
        wait_until(lambda: run(deployment, "rebuild").returncode == 0, "the group is empty, and it is rebuilt")
        goes_on(deployment, worker)
    finally:
        feeder.join()
        worker.kill()
    for topic, name, count in (
        (topics.decisions, "decision_id", 3000),
        (topics.recommendations, "recommendation_id", 1500),
    ):
        emitted = deployment.decoded(topic)
        assert len(by_source(emitted, name)) == len(emitted) == count
    decisions = by_source(deployment.decoded(topics.decisions))
    flagged = {id_ for id_, decision in decisions.items() if decision["action"] != "allow"}
    alerts = deployment.decoded(topics.alerts)
    assert by_source(alerts).keys() == flagged and len(alerts) == len(flagged)
    letters = deployment.decoded(topics.dead_letters)
    assert len(by_source(letters, "dead_letter_id")) == len(letters)
    assert_state_is_exact(deployment, decisions)

    # What nobody has any more is told, and nothing is changed, unless one asks for it.
    before = state(deployment)
    forget(deployment, deployment.read(topics.decisions))
    refused = run(deployment, "rebuild", "--replace")
    assert refused.returncode == 2 and f"no decision about {topics.transactions}:" in refused.stderr, refused.stderr
    forget(deployment, deployment.read(topics.transactions))
    refused = run(deployment, "rebuild", "--replace")
    assert refused.returncode == 2 and f"of {topics.transactions} partition 0; records 0 to" in refused.stderr
    assert state(deployment) == before
