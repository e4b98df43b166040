"""The contract of the state's store: the same stories on the twin in memory, on each Redis, and on a Redis Cluster."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from features.errors import RedisUnavailable, StateConflict, StateMismatch
from stream.connections import redis_client
from stream.embedded import LOOPBACK, RedisServer, free_port
from stream.settings import RedisSettings
from stream.store import FIELDS_MAX, HEAD, Head, StateStore, Write, decode_head, encode_head
from tests.backends import Backend, Store, patiently
from tests.clusters import RedisClusterServers
from tests.servers import fresh_name

HEAD_1 = Head({"transactions": 5}, {"decisions": 3}, "schema-1", 4, "w:1")
HEAD_2 = msgspec.structs.replace(HEAD_1, offsets={"transactions": 9}, writer="w:2")
HEAD_3 = msgspec.structs.replace(HEAD_2, writer="x:1")
ONE, TWO, THREE = (encode_head(head) for head in (HEAD_1, HEAD_2, HEAD_3))
SERVERS = {"embedded": "embedded_redis", "system": "redis_server", "cluster": "redis_cluster"}


@pytest.fixture(params=["memory", *SERVERS])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each place for state in turn."""
    return Backend(request.getfixturevalue(SERVERS[request.param]) if request.param in SERVERS else None)


@pytest.fixture
def cluster(redis_cluster: RedisClusterServers) -> Backend:
    """State of its own in the cluster."""
    return Backend(redis_cluster)


def write(expected: bytes, head: bytes, fields: Mapping[bytes, bytes] | None = None, partition: int = 0) -> Write:
    return Write(partition, expected, head, fields or {})


# -- the contract ---------------------------------------------------------------------------------------------------


def test_what_is_applied_is_read_back_and_what_is_not_there_is_none(backend: Backend) -> None:
    async def story(store: Store) -> None:
        values = {b"card:a": bytes(range(256)), b"card:\xc3\xa9\x1fb": b"", b"merchant:m": b"1"}
        await store.apply([write(b"", ONE, values), write(b"", TWO, {b"card:a": b"other"}, partition=3)])
        found = await store.read({0: [HEAD, *values, b"card:none"], 3: [b"card:a", HEAD], 9: [HEAD]})
        assert found == {0: [ONE, *values.values(), None], 3: [b"other", TWO], 9: [None]}
        assert await store.read({}) == {}
        await store.apply([])

    backend.tell(story)


def test_fields_and_values_may_be_any_bytes(backend: Backend) -> None:
    async def story(store: Store) -> None:
        odd = [bytes([byte]) for byte in range(256)] + [b"\r\n$3\r\n", b"{x}", b"\xff\xfe", b"\x00" * 9]
        values = {b"card:" + name: name * 3 for name in odd}
        await store.apply([write(b"", ONE, values)])
        assert await store.read({0: list(values)}) == {0: list(values.values())}

    backend.tell(story)


def test_a_write_on_another_head_changes_nothing_and_says_whose_it_is(backend: Backend) -> None:
    async def story(store: Store) -> None:
        with pytest.raises(StateConflict, match="the state of partition 0 is gone"):
            await store.apply([write(ONE, TWO, {b"card:a": b"2"})])
        await store.apply([write(b"", ONE, {b"card:a": b"1"})])
        for expected in (b"", TWO, ONE[:-1]):
            with pytest.raises(StateConflict, match="partition 0 was written by another worker.*w:1"):
                await store.apply([write(expected, THREE, {b"card:a": b"2", b"card:b": b"2"})])
        assert await store.read({0: [HEAD, b"card:a", b"card:b"]}) == {0: [ONE, b"1", None]}

    backend.tell(story)


def test_what_is_cleared_is_gone_whoever_wrote_it_and_nothing_else(backend: Backend) -> None:
    async def story(store: Store) -> None:
        await store.apply([write(b"", ONE, {b"card:a": b"1"}), write(b"", TWO, partition=3)])
        assert await store.filled([0, 1, 3]) == {0: True, 1: False, 3: True}
        await store.clear(0)
        assert await store.filled([0, 1, 3]) == {0: False, 1: False, 3: True}

    backend.tell(story)


def test_a_repeat_whose_first_reply_was_lost_succeeds_and_writes_once(backend: Backend) -> None:
    async def story(store: Store) -> None:
        await store.apply([write(b"", ONE)])
        await store.apply([write(ONE, TWO, {b"card:a": b"first"})])
        await store.apply([write(ONE, TWO, {b"card:a": b"again"})])
        assert await store.read({0: [HEAD, b"card:a"]}) == {0: [TWO, b"first"]}

    backend.tell(story)


def test_one_lost_partition_does_not_stop_the_writes_of_the_others(backend: Backend) -> None:
    async def story(store: Store) -> None:
        await store.apply([write(b"", ONE, partition=p) for p in range(6)])
        await store.apply([write(ONE, THREE, partition=1)])
        with pytest.raises(StateConflict, match="partition 1"):
            await store.apply([write(ONE, TWO, {b"card:a": b"2"}, partition=p) for p in range(6)])
        found = await store.read({p: [HEAD, b"card:a"] for p in range(6)})
        assert found.pop(1) == [THREE, None]
        assert found == {p: [TWO, b"2"] for p in (0, 2, 3, 4, 5)}

    backend.tell(story)


def test_the_largest_cycle_is_one_write(backend: Backend) -> None:
    async def story(store: Store) -> None:
        fields = {f"card:{i}".encode(): b"%d" % i * 9 for i in range(FIELDS_MAX)}
        await store.apply([write(b"", ONE, fields)])
        assert await store.read({0: list(fields)}) == {0: list(fields.values())}

    backend.tell(story)


def test_two_writers_with_the_same_expectation_cannot_both_win(backend: Backend) -> None:
    async def story(stores: Sequence[Store]) -> None:
        heads = [encode_head(msgspec.structs.replace(HEAD_2, writer=f"w:{i}")) for i in range(8)]
        await stores[0].apply([write(b"", ONE)])
        attempts = [s.apply([write(ONE, head, {b"card:a": head})]) for s, head in zip(stores, heads, strict=True)]
        results = await asyncio.gather(*attempts, return_exceptions=True)
        (winner,) = [head for head, result in zip(heads, results, strict=True) if result is None]
        assert all(isinstance(result, StateConflict) for result in results if result is not None)
        assert await stores[0].read({0: [HEAD, b"card:a"]}) == {0: [winner, winner]}

    backend.tell_many(8, story)


def test_state_begins_with_a_history_only_where_there_is_none(backend: Backend) -> None:
    async def story(store: Store) -> None:
        history = {f"card:{i}".encode(): b"%d" % i for i in range(2 * FIELDS_MAX + 1)}
        assert await store.begin_with(0, history)
        assert not await store.begin_with(0, {b"card:0": b"other"})
        assert await store.read({0: [HEAD, *history]}) == {0: [None, *history.values()]}
        await store.apply([write(b"", ONE, partition=0), write(b"", ONE, partition=1)])
        assert not await store.begin_with(1, history)
        assert await store.read({1: [b"card:0"]}) == {1: [None]}

    backend.tell(story)


# -- servers that die -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", ["embedded", "system"])
def test_a_redis_that_dies_is_unavailable_and_one_that_comes_back_goes_on(
    binary: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    program = Path(request.getfixturevalue(SERVERS[binary]).command[0])
    server = RedisServer(tmp_path, appendonly=True, binary=program)
    server.start()

    async def story(store: Store) -> None:
        await store.apply([write(b"", ONE, {b"card:a": b"1"})])
        server.kill()
        with pytest.raises(RedisUnavailable, match="cannot be used"):
            await store.read({0: [HEAD]})
        with pytest.raises(RedisUnavailable, match="cannot be used"):
            await store.apply([write(ONE, TWO, {b"card:a": b"2"})])
        server.start()
        assert await store.read({0: [HEAD, b"card:a"]}) == {0: [ONE, b"1"]}
        await store.apply([write(ONE, TWO, {b"card:a": b"2"})])
        assert await store.read({0: [HEAD, b"card:a"]}) == {0: [TWO, b"2"]}

    try:
        Backend(server).tell(story)
    finally:
        server.stop()


def test_a_cluster_with_a_dead_master_writes_to_the_others_and_goes_on_when_it_is_back(
    cluster: Backend, redis_cluster: RedisClusterServers
) -> None:
    async def story(store: Store) -> None:
        count = 12
        await store.apply([write(b"", ONE, {b"card:a": b"1"}, partition=p) for p in range(count)])
        owners = {p: redis_cluster.owner(store.key(p)) for p in range(count)}
        dead = owners[0]
        redis_cluster.nodes[dead].kill()
        with pytest.raises(RedisUnavailable, match="cannot be used"):
            await store.apply([write(ONE, TWO, {b"card:a": b"2"}, partition=p) for p in range(count)])
        alive = [p for p in range(count) if owners[p] != dead]
        assert alive
        found = await patiently(lambda: store.read({p: [HEAD, b"card:a"] for p in alive}), RedisUnavailable)
        assert found == {p: [TWO, b"2"] for p in alive}
        redis_cluster.nodes[dead].start()
        redis_cluster.wait_until_whole()
        # The write that failed is repeated whole, as a worker's next owner would not: each part is done once.
        await patiently(lambda: store.apply([write(ONE, TWO, {b"card:a": b"again"}, partition=p)
                                             for p in range(count)]), RedisUnavailable)  # fmt: skip
        found = await store.read({p: [HEAD, b"card:a"] for p in range(count)})
        assert found == {p: [TWO, b"2" if owners[p] != dead else b"again"] for p in range(count)}

    try:
        cluster.tell(story)
    finally:
        for node in redis_cluster.nodes:
            if not node.running():
                node.start()
        redis_cluster.wait_until_whole()


@pytest.mark.parametrize("place", ["redis_server", "redis_cluster"])
def test_a_write_whose_reply_does_not_come_is_not_sent_again_and_its_repeat_is_one_write(
    request: pytest.FixtureRequest, place: str
) -> None:
    servers = request.getfixturevalue(place)
    backend = Backend(servers, timeout_s=0.5)

    async def story(store: Store) -> None:
        await store.apply([write(b"", ONE, {b"card:a": b"0"})])
        node = servers.nodes[servers.owner(store.key(0))] if place == "redis_cluster" else servers
        os.kill(node.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisUnavailable):
                await store.apply([write(ONE, TWO, {b"card:a": b"first"})])
        finally:
            os.kill(node.pid, signal.SIGCONT)
        await patiently(lambda: store.apply([write(ONE, TWO, {b"card:a": b"again"})]), RedisUnavailable)
        (head, value) = (await store.read({0: [HEAD, b"card:a"]}))[0]
        assert head == TWO and value in (b"first", b"again")
        await store.apply([write(TWO, THREE)])
        with pytest.raises(StateConflict):  # what came late is lost, as it would be for a worker that was replaced
            await store.apply([write(ONE, TWO, {b"card:a": b"late"})])
        assert await store.read({0: [HEAD, b"card:a"]}) == {0: [THREE, value]}

    backend.tell(story)


# -- the cluster ----------------------------------------------------------------------------------------------------


def test_partitions_lie_on_different_masters(cluster: Backend, redis_cluster: RedisClusterServers) -> None:
    async def story(store: Store) -> None:
        count = 30
        await store.apply([write(b"", ONE, {b"card:a": b"%d" % p}, partition=p) for p in range(count)])
        held = [0] * len(redis_cluster.nodes)
        for p in range(count):
            owner = redis_cluster.owner(store.key(p))
            assert redis_cluster.nodes[owner].ask("HGET", store.key(p), "card:a") == b"%d" % p
            held[owner] += 1
        assert all(held), held

    cluster.tell(story)


def test_a_slot_that_moves_neither_loses_nor_doubles_a_write(
    cluster: Backend, redis_cluster: RedisClusterServers
) -> None:
    """The counter in the state goes up with each write; a store that has connections to spare keeps writing."""

    async def story(stores: Sequence[Store]) -> None:
        store, reader = stores
        key, applied = store.key(0), 0
        heads = [encode_head(msgspec.structs.replace(HEAD_1, writer=f"w:{i}")) for i in range(200)]
        await store.apply([write(b"", heads[0], {b"card:n": b"0"})])
        # Several at once, so that a pool of connections to each node is open: ASKING must go before its command.
        _ = await asyncio.gather(*(store.read({p: [HEAD] for p in range(9)}) for _ in range(8)))

        async def some_writes() -> None:
            nonlocal applied
            for _ in range(10):
                new = {b"card:n": b"%d" % (applied + 1)}
                await store.apply([write(heads[applied], heads[applied + 1], new), write(b"", ONE, partition=1)])
                applied += 1
                (found, _), *_ = await asyncio.gather(*(s.read({0: [HEAD, b"card:n"], 1: [HEAD]}) for s in stores))
                assert found is not None
            assert await reader.read({0: [HEAD, b"card:n"]}) == {0: [heads[applied], b"%d" % applied]}

        for _ in range(3):
            target = (redis_cluster.owner(key) + 1) % len(redis_cluster.nodes)
            carry = redis_cluster.begin_move(key, target)
            await some_writes()  # the slot is announced to move, the key is still here
            carry()
            await some_writes()  # the key is gone from here: every command is redirected by ASK
            redis_cluster.end_move(key, target)
            await some_writes()  # the slot has moved: the first command is redirected by MOVED
        with pytest.raises(StateConflict):
            await store.apply([write(heads[applied - 1], THREE)])

    cluster.tell_many(2, story)
    redis_cluster.wait_until_whole()


def test_state_that_begins_in_a_moving_slot_begins_where_the_slot_goes(
    cluster: Backend, redis_cluster: RedisClusterServers
) -> None:
    async def story(store: Store) -> None:
        key = store.key(0)
        target = (redis_cluster.owner(key) + 1) % len(redis_cluster.nodes)
        _ = redis_cluster.begin_move(key, target)
        await store.apply([write(b"", ONE, {b"card:a": b"1"})])
        redis_cluster.end_move(key, target)
        assert redis_cluster.nodes[target].ask("HGET", key, "card:a") == b"1"
        assert await store.read({0: [HEAD, b"card:a"]}) == {0: [ONE, b"1"]}

    cluster.tell(story)
    redis_cluster.wait_until_whole()


def test_a_slot_that_moves_to_a_master_that_the_client_has_not_heard_of_is_followed(
    redis_cluster: RedisClusterServers, tmp_path: Path
) -> None:
    servers = RedisClusterServers(tmp_path, redis_cluster.binary, count=2)

    async def story(store: Store) -> None:
        key = store.key(0)
        await store.apply([write(b"", ONE, {b"card:a": b"1"})])
        new = servers.join()
        carry = servers.begin_move(key, new)
        carry()
        await store.apply([write(ONE, TWO, {b"card:a": b"2"})])
        assert await store.read({0: [HEAD, b"card:a"]}) == {0: [TWO, b"2"]}
        servers.end_move(key, new)
        await store.apply([write(TWO, THREE, {b"card:a": b"3"})])
        assert servers.nodes[new].ask("HGET", key, "card:a") == b"3"
        # The node that the settings name may go too: the others are known by now.
        servers.nodes[0].kill()
        found = await patiently(lambda: store.read({0: [HEAD, b"card:a"]}), RedisUnavailable)
        assert found == {0: [THREE, b"3"]}

    try:
        servers.start()
        Backend(servers).tell(story)
    finally:
        servers.stop()


# -- keys and heads -------------------------------------------------------------------------------------------------


def test_partitions_groups_lanes_and_namespaces_do_not_mix_and_a_partition_is_one_slot() -> None:
    redis: Any = None
    keys = {
        StateStore(redis, RedisSettings(namespace=namespace), group, lane).key(partition)
        for namespace in ("a", "b") for group in ("g", "h") for lane in ("fraud", "recommend") for partition in range(3)
    }  # fmt: skip
    assert len(keys) == 24
    assert all(key.count("{") == 1 and key.endswith("}") for key in keys)


def test_a_redis_that_is_gone_is_unavailable_for_reads_and_writes() -> None:
    async def run() -> None:
        settings = RedisSettings(url=f"redis://{LOOPBACK}:{free_port()}/0", timeout_s=1.0)
        redis = redis_client(settings)
        store = StateStore(redis, settings, "g", "fraud")
        with pytest.raises(RedisUnavailable, match="is it running"):
            await store.read({0: [HEAD]})
        with pytest.raises(RedisUnavailable, match="is it running"):
            await store.apply([write(b"", ONE)])
        await redis.aclose()

    asyncio.run(run())


def test_a_key_that_holds_something_else_is_an_error_and_not_state(redis_server: RedisServer) -> None:
    async def run() -> None:
        settings = RedisSettings(url=redis_server.url, namespace=fresh_name("store"))
        redis = redis_client(settings)
        store = StateStore(redis, settings, "g", "fraud")
        await redis.set(store.key(0), "text")
        with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
            await store.read({0: [HEAD]})
        with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
            await store.apply([write(b"", ONE)])
        await redis.aclose()

    asyncio.run(run())


def decoded(value: bytes, schema: str = "schema-1", partitions: int = 4) -> Head:
    return decode_head(value, schema=schema, partitions=partitions, where="headrace:{g:fraud:0}")


def test_a_head_survives_its_bytes() -> None:
    assert decoded(ONE) == HEAD_1


@pytest.mark.parametrize("value", [b"", b"{", b"\xff\xfe", b"[]", b"{}", ONE[:-4], ONE.replace(b"4", b'"4"')])
def test_an_unreadable_head_is_refused_with_the_way_out(value: bytes) -> None:
    with pytest.raises(StateMismatch, match="headrace:{g:fraud:0} has an unreadable head.*another redis.namespace"):
        decoded(value)


def test_state_of_another_schema_or_partition_count_is_refused_with_the_way_out() -> None:
    with pytest.raises(StateMismatch, match="feature schema schema-1, this worker's is other.*redis.namespace"):
        decoded(ONE, schema="other")
    with pytest.raises(StateMismatch, match="4 partitions, there are 8 now.*restore the count.*redis.namespace"):
        decoded(ONE, partitions=8)
