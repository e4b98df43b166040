"""The state's contract with Redis, on the system's Redis and on the one from the wheel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from features.errors import RedisUnavailable, StateConflict, StateMismatch
from stream.connections import redis_client
from stream.embedded import LOOPBACK, RedisServer, free_port
from stream.settings import RedisSettings
from stream.store import FIELDS_MAX, HEAD, Head, StateStore, Write, decode_head, encode_head
from tests.servers import fresh_name

HEAD_1 = Head({"transactions": 5}, {"decisions": 3}, "schema-1", 4, "w:1")
HEAD_2 = msgspec.structs.replace(HEAD_1, offsets={"transactions": 9}, writer="w:2")
HEAD_3 = msgspec.structs.replace(HEAD_2, writer="x:1")
ONE, TWO, THREE = (encode_head(head) for head in (HEAD_1, HEAD_2, HEAD_3))
Story = Callable[[StateStore, Redis], Awaitable[None]]


@pytest.fixture(params=["system", "embedded"])
def told(request: pytest.FixtureRequest) -> Callable[[Story], None]:
    """Runs a story with a store of its own."""
    server = request.getfixturevalue("redis_server" if request.param == "system" else "embedded_redis")

    def tell(story: Story) -> None:
        async def run() -> None:
            settings = RedisSettings(url=server.url, namespace=fresh_name("store"))
            redis = redis_client(settings)
            try:
                await story(StateStore(redis, settings, "group", "fraud"), redis)
            finally:
                await redis.aclose()

        asyncio.run(run())

    return tell


def write(expected: bytes, head: bytes, fields: Mapping[bytes, bytes] | None = None, partition: int = 0) -> Write:
    return Write(partition, expected, head, fields or {})


def test_what_is_applied_is_read_back_and_what_is_not_there_is_none(told: Any) -> None:
    async def story(store: StateStore, redis: Redis) -> None:
        values = {b"card:a": bytes(range(256)), b"card:\xc3\xa9\x1fb": b"", b"merchant:m": b"1"}
        await store.apply([write(b"", ONE, values), write(b"", TWO, {b"card:a": b"other"}, partition=3)])
        found = await store.read({0: [HEAD, *values, b"card:none"], 3: [b"card:a", HEAD], 9: [HEAD]})
        assert found == {0: [ONE, *values.values(), None], 3: [b"other", TWO], 9: [None]}
        assert await store.read({}) == {}

    told(story)


def test_a_write_on_another_head_changes_nothing_and_says_whose_it_is(told: Any) -> None:
    async def story(store: StateStore, redis: Redis) -> None:
        await store.apply([write(b"", ONE, {b"card:a": b"1"})])
        for expected in (b"", TWO, ONE[:-1]):
            with pytest.raises(StateConflict, match="partition 0 was written by another worker.*w:1"):
                await store.apply([write(expected, THREE, {b"card:a": b"2", b"card:b": b"2"})])
        assert await store.read({0: [HEAD, b"card:a", b"card:b"]}) == {0: [ONE, b"1", None]}

    told(story)


def test_a_repeat_whose_first_reply_was_lost_succeeds_and_writes_once(told: Any) -> None:
    async def story(store: StateStore, redis: Redis) -> None:
        await store.apply([write(b"", ONE)])
        again = write(ONE, TWO, {b"card:a": b"2"})
        await store.apply([again])
        await redis.hset(store.key(0), "card:a", "marked")
        await store.apply([again])
        assert await store.read({0: [HEAD, b"card:a"]}) == {0: [TWO, b"marked"]}

    told(story)


def test_one_lost_partition_does_not_stop_the_writes_of_the_others(told: Any) -> None:
    async def story(store: StateStore, redis: Redis) -> None:
        await store.apply([write(b"", ONE, partition=p) for p in range(3)])
        await store.apply([write(ONE, THREE, partition=1)])
        with pytest.raises(StateConflict, match="partition 1"):
            await store.apply([write(ONE, TWO, {b"card:a": b"2"}, partition=p) for p in range(3)])
        found = await store.read({p: [HEAD, b"card:a"] for p in range(3)})
        assert found == {0: [TWO, b"2"], 1: [THREE, None], 2: [TWO, b"2"]}

    told(story)


def test_the_largest_cycle_is_one_write(told: Any) -> None:
    async def story(store: StateStore, redis: Redis) -> None:
        fields = {f"card:{i}".encode(): bytes(50) for i in range(FIELDS_MAX)}
        await store.apply([write(b"", ONE, fields)])
        assert await redis.hlen(store.key(0)) == FIELDS_MAX + 1

    told(story)


def test_two_writers_with_the_same_expectation_cannot_both_win(told: Any) -> None:
    async def story(store: StateStore, redis: Redis) -> None:
        heads = [encode_head(msgspec.structs.replace(HEAD_2, writer=f"w:{i}")) for i in range(8)]
        await store.apply([write(b"", ONE)])
        settings = RedisSettings(url=f"redis://{LOOPBACK}:{redis.connection_pool.connection_kwargs['port']}/0")
        clients = [redis_client(settings) for _ in heads]
        stores = [StateStore(client, settings, "group", "fraud") for client in clients]
        for other in stores:
            other._prefix = store._prefix
        attempts = [s.apply([write(ONE, head, {b"card:a": head})]) for s, head in zip(stores, heads, strict=True)]
        results = await asyncio.gather(*attempts, return_exceptions=True)
        for client in clients:
            await client.aclose()
        (winner,) = [head for head, result in zip(heads, results, strict=True) if result is None]
        assert all(isinstance(result, StateConflict) for result in results if result is not None)
        assert await store.read({0: [HEAD, b"card:a"]}) == {0: [winner, winner]}

    told(story)


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
