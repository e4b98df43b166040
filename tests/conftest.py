"""Servers that tests share. Each is started once, on loopback, in a folder of its own, and stopped by its pid."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from features.schema import load_schema
from stream.embedded import Broker, RedisServer
from tests.clusters import RedisClusterServers
from tests.servers import KafkaServer, RunningBroker, Unavailable, kafka_libs
from tests.world import World, make_world


def give_up(reason: str) -> NoReturn:
    """Skip with the reason, except in CI, where a skipped Kafka would pass for a tested one."""
    if os.environ.get("HEADRACE_REQUIRE_KAFKA") == "1":
        pytest.fail(f"HEADRACE_REQUIRE_KAFKA=1 and {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def embedded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis from the wheel, as ``headrace up`` starts it."""
    server = RedisServer(tmp_path_factory.mktemp("embedded-redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The system's Redis where there is one, else the embedded one."""
    system = shutil.which("redis-server")
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=Path(system) if system else None)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisClusterServers]:
    """Three masters of the system's Redis."""
    system = shutil.which("redis-server")
    if system is None:
        give_up("no redis-server on PATH for a Redis Cluster")
    servers = RedisClusterServers(tmp_path_factory.mktemp("redis-cluster"), Path(system))
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker from the wheel, as ``headrace up`` starts it."""
    server = Broker(tmp_path_factory.mktemp("embedded-broker"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """Real Apache Kafka. Skipped without Java 17 or Maven; with ``HEADRACE_REQUIRE_KAFKA=1`` that is a failure."""
    try:
        server = KafkaServer(tmp_path_factory.mktemp("kafka"), kafka_libs())
    except Unavailable as reason:
        give_up(str(reason))
    server.start()
    yield server
    server.stop(timeout_s=20.0)


@pytest.fixture(params=["kafka", "embedded"])
def broker(request: pytest.FixtureRequest) -> RunningBroker:
    """Each broker in turn: the test runs once on real Kafka and once on the embedded one."""
    if request.param == "kafka":
        return RunningBroker("kafka", request.getfixturevalue("kafka").bootstrap, idempotence=True)
    return RunningBroker("embedded", request.getfixturevalue("embedded_broker").bootstrap, idempotence=False)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small simulated history, and models fitted on its first part."""
    return make_world(tmp_path_factory.mktemp("world"), load_schema())
