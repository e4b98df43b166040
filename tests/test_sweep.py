"""The sweep: Redis shrinks, and no answer and no later state shows when it ran."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from features.catalogue import RING, ROW_INTS
from features.codec import encode_rows
from features.engine import Rows
from features.errors import StateConflict
from features.watermark import BLOCK, Watermark, kept_ms
from stream.connections import redis_client
from stream.embedded import Broker, RedisServer
from stream.metrics import Metrics
from stream.store import HEAD, Head, StateStore, Write, encode_head
from stream.sweep import Sweeper
from tests.backends import Backend, Store
from tests.clusters import RedisClusterServers
from tests.fakes import START_MS, FakeWorker, World
from tests.servers import RunningBroker
from tests.test_cycle import _same, facts
from tests.test_worker import payment, send
from tests.workers import Deployment, by_source, wait_until
from tests.world import World as Fitted

DAY_MS = 86_400_000


def years(partitions: int, seed: int, count: int = 800) -> World:
    """A world of most of a year: cards and sessions that come, go, and some of which return, and late events.

    Few events are late, so that there are whole blocks without one, and the watermark rises.
    """
    world, rng = World(partitions), random.Random(seed)
    for i in range(count):
        day = i * 300 // count
        late = rng.choice([1, 20, 150, 200]) if rng.random() < 0.02 else 0
        day = max(day - late, 0)
        time = day * DAY_MS + rng.randrange(DAY_MS)
        returns = rng.random() < 0.04
        card = f"card-{rng.randrange(31) if returns else day // 10}-{rng.randrange(2)}"
        merchant = f"shop-{rng.randrange(16) if returns else day // 20}-{rng.randrange(2)}"
        world.log.pay(f"e{i}", time, card, merchant, rng.randrange(1, 9999) / 100)
        if i % 4 == 3:
            world.log.judge(f"e{i - rng.randrange(4)}", time + DAY_MS, rng.random() < 0.5, card, merchant)
        world.log.click(f"k{i}", time, f"session-{rng.randrange(60) if returns else day // 5}", f"item-{i % 30}")
    return world


def sweeper(worker: FakeWorker) -> Sweeper:
    return Sweeper(worker.pipeline.stations, Metrics(), 3600.0, pause_s=0.0)


def rows(world: World) -> int:
    return sum(len(held) for hashes in world.state().values() for held in hashes.values())


async def told(partitions: int, seed: int, *, sweeps: bool) -> World:
    """Fetches of any size, takeovers and small caches, the same ones whether it is swept or not."""
    world, rng = years(partitions, seed), random.Random(seed)
    worker, removed = world.worker(in_flight=3, cache=rng.choice([1, 10, 1000])), 0
    await worker.take_over()
    while await worker.fetch(rng.choice([3, 17, 60])):
        step = rng.random()
        if step < 0.5:
            await worker.settle()
        if step < 0.1:
            worker = world.worker(in_flight=2, cache=rng.choice([1, 1000]))
            await worker.take_over()
        if rng.random() < 0.4 and sweeps:
            removed += await sweeper(worker).sweep()
    await worker.finish()
    assert (removed > 0) == sweeps
    forget(worker)
    return world


def forget(worker: FakeWorker) -> None:
    """Remove what is past at the end, swept or not, so that the rest can be compared."""
    for station in worker.pipeline.stations:
        for p, (head, _) in station.heads.items():
            held = worker.world.hashes[station.lane.name][p]
            values = {name: value for name, value in held.items() if name != HEAD}
            for name in station.lane.past(values, head.watermark.time):
                del held[name]


async def told_by_two(seed: int, *, sweeps: bool) -> World:
    """Two workers that see each other's shards, the same fetches whether they sweep or not."""
    world, rng, removed = years(3, seed), random.Random(seed), 0
    workers = [world.worker(cache=rng.choice([1, 10, 1000])) for _ in range(2)]
    await workers[0].take_over([0])
    await workers[1].take_over([1, 2])
    busy = True
    while busy:
        count, busy = rng.choice([3, 17, 60]), False
        for worker in workers:
            busy = await worker.fetch(count) or busy
            await worker.settle()
        if rng.random() < 0.4 and sweeps:
            removed += sum([await sweeper(worker).sweep() for worker in workers])
    assert (removed > 0) == sweeps
    for worker in workers:
        forget(worker)
    return world


@pytest.mark.parametrize("seed", range(8))
def test_with_one_partition_every_answer_and_all_state_is_the_same_bit_for_bit_whenever_it_is_swept(seed: int) -> None:
    swept, whole = asyncio.run(told(1, seed, sweeps=True)), asyncio.run(told(1, seed, sweeps=False))
    assert facts(swept) == facts(whole)
    assert swept.state() == whole.state()


@pytest.mark.parametrize("seed", range(4))
def test_with_several_partitions_views_are_the_same_whether_shards_were_removed(seed: int) -> None:
    swept, whole = asyncio.run(told(3, seed, sweeps=True)), asyncio.run(told(3, seed, sweeps=False))
    assert _same(facts(swept), facts(whole))
    assert swept.state() == whole.state()


@pytest.mark.parametrize("seed", range(4))
def test_with_several_workers_a_view_is_the_same_whether_another_one_removed_its_shards(seed: int) -> None:
    swept, whole = asyncio.run(told_by_two(seed, sweeps=True)), asyncio.run(told_by_two(seed, sweeps=False))
    assert facts(swept) == facts(whole)
    assert swept.state() == whole.state()


def test_a_sweep_removes_what_nobody_was_active_in_and_counts_it() -> None:
    async def run() -> None:
        world = years(1, 1)
        worker = world.worker()
        await worker.take_over()
        await worker.finish()
        before, metrics = rows(world), Metrics()
        removed = await Sweeper(worker.pipeline.stations, metrics, 3600.0, pause_s=0.0).sweep()
        assert 0 < removed < before
        assert rows(world) == before - removed
        assert metrics.registry.get_sample_value("headrace_swept_rows_total") == removed
        assert await sweeper(worker).sweep() == 0

    asyncio.run(run())


def test_a_sweep_beside_cycles_in_flight_takes_nothing_that_they_write() -> None:
    async def run(*, sweeps: bool) -> World:
        world = years(1, 5)
        worker = world.worker(in_flight=4, cache=5)
        for store in worker.stores.values():
            store.pause = 7
        await worker.take_over()
        beside = [asyncio.create_task(sweeper(worker).sweep())] if sweeps else []
        while await worker.fetch(9):
            if sweeps and beside[-1].done():
                beside.append(asyncio.create_task(sweeper(worker).sweep()))
        await worker.settle()
        removed = sum(await asyncio.gather(*beside))
        assert (removed > 0) == sweeps
        return world

    async def both() -> None:
        swept, whole = await run(sweeps=True), await run(sweeps=False)
        assert facts(swept) == facts(whole)
        for lane, hashes in swept.state().items():
            assert hashes[0].items() <= whole.state()[lane][0].items()

    asyncio.run(both())


def test_a_worker_that_lost_its_partitions_without_knowing_removes_nothing() -> None:
    async def run() -> None:
        world = years(1, 2)
        first, second = world.worker(), world.worker()
        await first.take_over()
        await first.finish()
        await second.take_over()
        before = rows(world)
        with pytest.raises(StateConflict):
            _ = await sweeper(first).sweep()
        assert rows(world) == before
        assert await sweeper(second).sweep() > 0

    asyncio.run(run())


# -- on servers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["memory", "embedded_redis", "redis_server", "redis_cluster"])
def test_every_place_for_state_shrinks_and_keeps_what_is_alive(request: pytest.FixtureRequest, place: str) -> None:
    backend = Backend(None if place == "memory" else request.getfixturevalue(place))
    lane = World().worker().pipeline.stations[0].lane
    layout = lane.caches[0].layout  # type: ignore[attr-defined]
    table = Rows(layout, 2)
    mark = START_MS + 500 * DAY_MS
    for row, time in enumerate((mark - kept_ms(layout) - 1, mark - kept_ms(layout))):
        table.ints[row, :2] = time
        tiles = time // layout.hops_ms
        table.ints[row, ROW_INTS : ROW_INTS + len(tiles)] = tiles << RING | 1 << (RING - 1)
    table.floats[:] = 1.0
    past, alive = encode_rows(layout, np.arange(2), table.ints, table.floats)
    head = Head({"transactions": 5}, {}, "s", 1, "me:1", Watermark(mark))

    async def story(store: Store) -> None:
        fields = {b"card:%d" % i: past if i % 5 else alive for i in range(3000)}
        await store.apply([Write(0, b"", encode_head(head), fields)])
        size = await memory(store)
        station: Any = SimpleNamespace(lane=lane, store=store, heads={0: (head, encode_head(head))})
        assert await Sweeper([station], Metrics(), 1.0, pause_s=0.0).sweep() == 2400
        found = await store.read({0: [HEAD, *fields]})
        assert found[0] == [encode_head(head), *(None if value == past else value for value in fields.values())]
        assert backend.server is None or await memory(store) < 0.6 * size

    async def memory(store: Store) -> int:
        """What Redis says that the partition takes."""
        if backend.server is None:
            return 0
        client = redis_client(backend.settings)
        used = await client.memory_usage(store.key(0), samples=0)
        await client.aclose()
        return used or 0

    backend.tell(story)


@pytest.mark.parametrize("place", ["memory", "embedded_redis", "redis_server", "redis_cluster"])
def test_a_scan_finds_everything_and_a_removal_takes_only_values_that_did_not_change(
    request: pytest.FixtureRequest, place: str
) -> None:
    async def story(store: Store) -> None:
        head = encode_head(Head({}, {}, "s", 1, "me:1"))
        fields = {b"card:%d" % i: bytes([i % 256, 0xFF, 0]) * 30 for i in range(1000)}
        await store.apply([Write(0, b"", head, fields)])
        found, cursor = await read_all(store)
        assert found == fields and cursor == 0
        changed = {b"card:1": b"other", b"card:2": fields[b"card:2"], b"card:none": b"x"}
        assert await store.remove(0, "me", changed) == 1
        assert await store.remove(0, "me", changed) == 0
        for other in ("m", "me:1", "you", ""):
            with pytest.raises(StateConflict, match="written by another worker"):
                _ = await store.remove(0, other, fields)
        with pytest.raises(StateConflict):
            _ = await store.remove(9, "me", fields)
        del fields[b"card:2"]
        assert await read_all(store) == (fields, 0)
        assert await store.scan(9, 0, 10) == (0, {})

    async def read_all(store: Store) -> tuple[dict[bytes, bytes], int]:
        cursor, found = await store.scan(0, 0, 50)
        while cursor:
            cursor, more = await store.scan(0, cursor, 50)
            found |= more
        return found, cursor

    Backend(None if place == "memory" else request.getfixturevalue(place)).tell(story)


def test_a_write_and_a_removal_are_one_command_each_in_the_log_of_redis(
    redis_cluster: RedisClusterServers, tmp_path: Path
) -> None:
    server = RedisServer(tmp_path, appendonly=True, binary=redis_cluster.binary)
    server.start()

    async def story(store: StateStore) -> None:
        await store.apply([Write(0, b"", encode_head(Head({}, {}, "s", 1, "me:1")), {b"a": b"1", b"b": b"2"})])
        assert await store.remove(0, "me", {b"a": b"1", b"b": b"2"}) == 2

    try:
        Backend(server).tell(story)
    finally:
        server.stop()
    log = b"".join(path.read_bytes() for path in tmp_path.rglob("*.aof"))  # Redis 6 writes every script as MULTI..EXEC
    assert b"HDEL" in log.upper() and b"MULTI" not in log.upper()


def test_a_worker_sweeps_and_goes_on(
    redis_server: RedisServer, embedded_broker: Broker, world: Fitted, tmp_path: Path
) -> None:
    broker = RunningBroker("embedded", embedded_broker.bootstrap, idempotence=False)
    deployment = Deployment(broker, redis_server.url, world.schema, world.artifacts, tmp_path, partitions=1,
                            extra={"WORKER_SWEEP_EVERY_S": "0.3", "WORKER_ACCEPT_MISPARTITIONED": "true",
                                   "WORKER_AHEAD_MAX_S": "31536000"})  # fmt: skip
    deployment.create()
    topics, topic = deployment.topics, deployment.topics.transactions
    old = [payment(f"o{i}", i * 1000, card_id=f"old-{i}", merchant_id=f"past-{i}") for i in range(BLOCK)]
    new = [payment(f"n{i}", 120 * DAY_MS + i * 1000, card_id=f"new-{i}") for i in range(BLOCK)]
    worker = deployment.started()
    try:
        send(deployment, topic, [*old, *new])
        deployment.wait_for({topics.decisions: 2 * BLOCK})
        wait_until(lambda: len(deployment.state()[0]) == BLOCK + 1, "the old cards and shops are gone")
        send(deployment, topic, [payment("again", 121 * DAY_MS, card_id="old-1"), payment("late", 1, card_id="old-2")])
        deployment.wait_for({topics.decisions: 2 * BLOCK + 2})
        worker.stop()
        assert worker.exit_code() == 0, worker.log_tail(50)
        assert any(f"removed {2 * BLOCK} rows" in line for line in worker.log_tail(200))
    finally:
        worker.kill()
    decisions = by_source(deployment.decoded(topics.decisions))
    assert len(decisions) == 2 * BLOCK + 2
    state = deployment.state()[0]
    assert b"card:old-1" in state and b"card:old-2" in state and b"card:old-3" not in state
