"""Headrace on a Redis Cluster: what is checked before it starts, and a worker whose state moves between masters."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.errors import ServiceUnavailable, SettingsError, StateConflict, StateError
from features.schema import load_schema
from stream.connections import check_redis, redis_client
from stream.doctor import examine
from stream.embedded import LOOPBACK, Broker, RedisServer, free_port
from stream.settings import KafkaSettings, RedisSettings, Settings, load_settings
from stream.store import HEAD, StateStore, Write
from tests.clusters import RedisClusterServers
from tests.servers import RunningBroker, fresh_name
from tests.workers import Deployment, assert_state_is_exact, by_source
from tests.world import World

PASSWORD = "open: sesame/@%"


async def _check(settings: RedisSettings) -> None:
    client = redis_client(settings)
    try:
        await check_redis(client, settings)
    finally:
        await client.aclose()


async def _write(settings: RedisSettings, partitions: int) -> None:
    client = redis_client(settings)
    try:
        store = StateStore(client, settings, "g", "fraud")
        await store.apply([Write(p, b"", b"head", {b"card:a": b"1"}) for p in range(partitions)])
        assert await store.read({p: [HEAD] for p in range(partitions)}) == {p: [b"head"] for p in range(partitions)}
        assert not await store.begin_with(0, {b"card:a": b"2"})
        assert await store.scan(0, 0, 10) == (0, {b"card:a": b"1"})
        with pytest.raises(StateConflict):
            _ = await store.remove(0, "nobody", {b"card:a": b"1"})
    finally:
        await client.aclose()


@pytest.fixture
def settings(redis_cluster: RedisClusterServers) -> RedisSettings:
    return RedisSettings(url=redis_cluster.url, cluster=True, namespace=fresh_name("cluster"))


def test_a_cluster_that_evicts_nothing_is_accepted(settings: RedisSettings) -> None:
    asyncio.run(_check(settings))


def test_every_master_is_asked_whether_it_may_evict(
    settings: RedisSettings, redis_cluster: RedisClusterServers
) -> None:
    last = redis_cluster.nodes[-1]
    _ = last.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StateError, match=f"{LOOPBACK}:{last.port} has maxmemory-policy allkeys-lru.*noeviction"):
            asyncio.run(_check(settings))
    finally:
        _ = last.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_a_setting_that_does_not_say_what_the_server_is_is_refused_and_named(
    settings: RedisSettings, redis_server: RedisServer, embedded_redis: RedisServer
) -> None:
    alone = RedisSettings(url=settings.url)
    for attempt in (_check(alone), _write(alone, 12)):
        with pytest.raises(SettingsError, match=r"redis\.cluster = false: expected true.*node of a Redis Cluster"):
            asyncio.run(attempt)
    for server in (redis_server, embedded_redis):
        of_cluster = RedisSettings(url=server.url, cluster=True)
        for attempt in (_check(of_cluster), _write(of_cluster, 1)):
            with pytest.raises(SettingsError, match=r"redis\.cluster = true: expected false.*no node of a Redis Clus"):
                asyncio.run(attempt)


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    settings = RedisSettings(url=f"redis://{LOOPBACK}:{free_port()}", cluster=True)
    with pytest.raises(ServiceUnavailable, match="is it running") as caught:
        asyncio.run(_check(settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["unix:///run/redis.sock", "redis://h:1/3", "redis://h:1?db=3"])
def test_what_a_cluster_does_not_have_is_told_with_the_other_problems(url: str) -> None:
    with pytest.raises(SettingsError, match=r"redis\.cluster = true.*only database 0"):
        load_settings(None, {"HEADRACE_REDIS_URL": url, "HEADRACE_REDIS_CLUSTER": "true"})
    assert load_settings(None, {"HEADRACE_REDIS_URL": "redis://h:1/0", "HEADRACE_REDIS_CLUSTER": "true"}).redis.cluster


@pytest.fixture
def bob(redis_cluster: RedisClusterServers) -> Iterator[str]:
    """A user with no more rights than the manual names."""
    manual = Path(__file__).parents[1].joinpath("docs/operations.md").read_text(encoding="utf-8")
    (rule,) = (line.split() for line in manual.splitlines() if "ACL SETUSER" in line)
    (more,) = (line.strip().split() for line in manual.splitlines() if line.strip().startswith("+cluster|slots"))
    words = [*(word for word in rule[3:] if word[0] in "+"), *more]
    for node in redis_cluster.nodes:
        _ = node.ask("ACL", "SETUSER", "bob", "on", f">{PASSWORD}", "~cluster*", *words)
    yield "bob"
    for node in redis_cluster.nodes:
        _ = node.ask("ACL", "DELUSER", "bob")


def test_a_user_needs_no_more_than_the_manual_says(
    settings: RedisSettings, bob: str, redis_cluster: RedisClusterServers
) -> None:
    own = RedisSettings(url=settings.url, cluster=True, namespace=settings.namespace, username=bob, password=PASSWORD)
    asyncio.run(_check(own))
    asyncio.run(_write(own, 12))
    for wrong in (RedisSettings(url=settings.url, cluster=True, username=bob, password="guess"),
                  RedisSettings(url=settings.url, cluster=True, namespace="other", username=bob,
                                password=PASSWORD)):  # fmt: skip
        with pytest.raises(ServiceUnavailable, match="redis.password") as caught:
            asyncio.run(_write(wrong, 3))
        assert "\n" not in str(caught.value) and "guess" not in str(caught.value)


def test_doctor_asks_every_master(
    settings: RedisSettings, redis_cluster: RedisClusterServers, embedded_broker: Broker, tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap=embedded_broker.bootstrap, idempotence=False)
    everything = Settings(kafka=kafka, redis=settings, artifacts=tmp_path)
    found = {f.name: f for f in asyncio.run(asyncio.wait_for(examine(everything, load_schema()), timeout=60))}
    for node in redis_cluster.nodes:
        finding = found[f"redis {LOOPBACK}:{node.port}"]
        assert finding.ok and "noeviction" in finding.text
    assert found["clock"].ok


def test_a_worker_keeps_exact_state_while_slots_move_and_a_master_dies(
    redis_cluster: RedisClusterServers, embedded_broker: Broker, world: World, tmp_path: Path
) -> None:
    broker = RunningBroker("embedded", embedded_broker.bootstrap, idempotence=False)
    deployment = Deployment(broker, redis_cluster.url, world.schema, world.artifacts, tmp_path,
                            extra={"REDIS_CLUSTER": "true"})  # fmt: skip
    deployment.create()
    topics, nodes = deployment.topics, redis_cluster.nodes
    keys = [f"{deployment.name}:{{{deployment.name}:fraud:{p}}}" for p in range(deployment.partitions)]
    worker = deployment.started()
    try:
        feeder = threading.Thread(target=deployment.replay, args=(world.timeline(topics, 2400, 800),),
                                  kwargs={"rate": 400.0})  # fmt: skip
        feeder.start()
        deployment.wait_for({topics.decisions: 300})
        for key in keys[:2]:
            target = (redis_cluster.owner(key) + 1) % len(nodes)
            carry = redis_cluster.begin_move(key, target)
            carry()
            deployment.wait_for({topics.decisions: deployment.count(topics.decisions) + 100})
            redis_cluster.end_move(key, target)
        dead = nodes[redis_cluster.owner(keys[0])]
        dead.kill()
        dead.start()
        redis_cluster.wait_until_whole()
        feeder.join()
        deployment.wait_for({topics.decisions: 2400, topics.recommendations: 800})
        worker.stop()
        assert worker.exit_code() == 0, worker.log_tail(50)
    finally:
        worker.kill()
        for node in nodes:
            if not node.running():
                node.start()
        redis_cluster.wait_until_whole()
    emitted = deployment.decoded(topics.decisions)
    decisions = by_source(emitted)
    assert len(emitted) == len(decisions) == 2400
    assert len(by_source(deployment.decoded(topics.recommendations), "recommendation_id")) == 800
    assert_state_is_exact(deployment, decisions)
