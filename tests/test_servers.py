"""The servers that tests and ``headrace up`` stand on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from features.errors import ServiceUnavailable
from stream.embedded import Broker, RedisServer, free_port, wheel_binary
from stream.processes import Child, clean_leftovers, start_mark
from tests.servers import KafkaServer, RunningBroker, committed, consume_all, create_topics, fresh_name, produce

_ROOT = Path(__file__).parents[1]
_RECORDS = [(b"card-%d" % (n % 7), b"value-%d" % n) for n in range(50)]


async def _read_as_group(bootstrap: str, group: str, topic: str) -> int:
    """Reads what the group has not committed yet, commits it, and gives its number."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=1500,  # the embedded broker makes a join wait for a share of it
        heartbeat_interval_ms=300,
    )
    await consumer.start()
    try:
        await consumer.seek_to_committed()
        ends = await consumer.end_offsets(consumer.assignment())
        count = 0
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            count += sum(map(len, (await consumer.getmany(timeout_ms=200)).values()))
        await consumer.commit()
        return count
    finally:
        await consumer.stop()


def test_records_come_back_with_their_order_per_key(broker: RunningBroker) -> None:
    async def scenario() -> None:
        topic = fresh_name("roundtrip")
        await create_topics(broker.bootstrap, {topic: 3})
        await produce(broker.bootstrap, topic, _RECORDS)
        found = await consume_all(broker.bootstrap, topic)
        for key in {key for key, _ in _RECORDS}:
            assert [r.value for r in found if r.key == key] == [value for k, value in _RECORDS if k == key]
        assert len(found) == len(_RECORDS)

    asyncio.run(scenario())


def test_a_group_goes_on_where_it_committed(broker: RunningBroker) -> None:
    async def scenario() -> None:
        topic, group = fresh_name("group"), fresh_name("readers")
        await create_topics(broker.bootstrap, {topic: 2})
        await produce(broker.bootstrap, topic, _RECORDS)
        assert await _read_as_group(broker.bootstrap, group, topic) == len(_RECORDS)
        await produce(broker.bootstrap, topic, _RECORDS[:9])
        assert await _read_as_group(broker.bootstrap, group, topic) == 9
        assert sum((await committed(broker.bootstrap, group, topic)).values()) == len(_RECORDS) + 9

    asyncio.run(scenario())


def test_real_kafka_takes_idempotent_producers(kafka: KafkaServer) -> None:
    async def scenario() -> None:
        topic = fresh_name("idempotent")
        await create_topics(kafka.bootstrap, {topic: 1})
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, enable_idempotence=True) as producer:
            await producer.send_and_wait(topic, b"once")
        assert [record.value for record in await consume_all(kafka.bootstrap, topic)] == [b"once"]

    asyncio.run(scenario())


def test_both_redis_servers_answer_and_never_evict(redis_server: RedisServer, embedded_redis: RedisServer) -> None:
    for server in (redis_server, embedded_redis):
        with redis.Redis.from_url(server.url) as client:
            assert client.set("key", "value") and client.get("key") == b"value"
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_a_killed_redis_with_a_log_restarts_on_its_port_with_its_data(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "with space", appendonly=True)
    server.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
        port = server.port
        assert server.kill() == -signal.SIGKILL
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("key") == b"value"
        assert server.port == port
    finally:
        server.stop()


def test_a_broker_restarts_on_its_port(tmp_path: Path) -> None:
    server = Broker(tmp_path)
    server.start()
    try:
        asyncio.run(create_topics(server.bootstrap, {"topic": 1}))
        port = server.port
        server.kill()
        server.start()
        assert server.port == port
        asyncio.run(create_topics(server.bootstrap, {"topic": 1}))  # it forgot the first one
    finally:
        server.stop()


def test_a_server_that_ends_at_start_shows_its_last_words(tmp_path: Path) -> None:
    taken = RedisServer(tmp_path / "first")
    taken.start()
    try:
        with pytest.raises(ServiceUnavailable, match=r"(?s)redis ended at start with exit code 1.*already in use"):
            RedisServer(tmp_path / "second", port=taken.port).start()
    finally:
        taken.stop()


def test_a_missing_server_program_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable, match="no-such-server is missing"):
        RedisServer(tmp_path, binary=tmp_path / "no-such-server").start()
    with pytest.raises(ServiceUnavailable, match="--kafka HOST:PORT"):
        wheel_binary("no_such_package", "tansu")


def test_a_stopped_server_leaves_no_process_and_no_pid_file(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, port=free_port())
    server.start()
    pid = server.pid
    assert start_mark(pid) is not None and server.pid_path.exists()
    assert server.stop() == 0
    assert start_mark(pid) is None and not server.pid_path.exists()


_PARENT = """
import sys, time
from pathlib import Path
from stream.embedded import Broker, RedisServer
servers = [RedisServer(Path(sys.argv[1])), Broker(Path(sys.argv[1]))]
for server in servers:
    server.start()
print(*[server.pid for server in servers], flush=True)
time.sleep(600)
"""


@pytest.fixture
def killed_parent(tmp_path: Path) -> list[int]:
    """The pids of servers whose parent has been killed, as leftovers in ``tmp_path``."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE, cwd=_ROOT)
    with parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    return pids


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_servers_die_with_a_killed_parent(killed_parent: list[int]) -> None:
    _until(lambda: all(start_mark(pid) is None for pid in killed_parent))


def test_the_next_start_clears_the_pid_files_of_a_killed_run(tmp_path: Path, killed_parent: list[int]) -> None:
    assert len(list(tmp_path.glob("*.pid"))) == 2
    clean_leftovers(tmp_path)
    assert not list(tmp_path.glob("*.pid"))
    assert all(start_mark(pid) is None for pid in killed_parent)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def _claim(directory: Path, pid: int, start: str | None, parent: int, parent_start: str | None) -> None:
    facts = {"name": "redis", "pid": pid, "start": start, "parent": parent, "parent_start": parent_start}
    (directory / "redis.pid").write_text(json.dumps(facts), encoding="utf-8")


def test_a_stranger_with_a_recycled_pid_is_never_killed(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    _claim(tmp_path, stranger.pid, "another boot:1", 1, "another boot:0")
    assert clean_leftovers(tmp_path) == []
    assert stranger.poll() is None and not list(tmp_path.iterdir())


def test_a_leftover_without_a_parent_is_ended(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    _claim(tmp_path, stranger.pid, start_mark(stranger.pid), 1, "another boot:0")
    assert clean_leftovers(tmp_path) == ["redis"]
    assert stranger.wait(10) == -signal.SIGTERM


def test_the_directory_of_a_living_run_is_refused(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    parent = os.getppid()
    _claim(tmp_path, stranger.pid, start_mark(stranger.pid), parent, start_mark(parent))
    with pytest.raises(ServiceUnavailable, match=f"in use by process {parent}"):
        clean_leftovers(tmp_path)
    assert stranger.poll() is None


def test_a_torn_pid_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "redis.pid").write_text('{"pid": 1', encoding="utf-8")
    assert clean_leftovers(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    child = Child("deaf", [sys.executable, "-c", deaf], tmp_path)
    child.start()
    child.wait_until(lambda: child.log_tail(1) == ["deaf"], timeout_s=20.0)
    assert child.stop(timeout_s=0.1) == -signal.SIGKILL


def _until(condition: Callable[[], bool], patience_s: float = 10.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
