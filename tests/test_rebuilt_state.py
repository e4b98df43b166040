"""State that is rebuilt equals what workers had applied, whatever happened to them: Kafka and Redis in memory."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition

from features.errors import StateMissing
from stream import answered, rebuild
from stream.ab_settings import AbSettings
from stream.lane import Target
from stream.rebuild import Rebuild
from stream.settings import Settings
from tests.fakes import SCHEMA, FakeRecord, FakeWorker, MemoryStore, World
from tests.test_cycle import filled
from tests.test_takeovers import first_of_each, patiently, stormy

LANES = ("fraud", "recommend")


class MemoryConsumer:
    """What is used of aiokafka's consumer, on a world's lists; gives a few records at a time."""

    def __init__(self, world: World, lost: Target | None) -> None:
        self.world, self.lost = world, lost
        self.positions: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    def assign(self, places: list[TopicPartition]) -> None:
        """Begin at the beginning."""
        self.positions = dict.fromkeys(places, 0)

    def seek(self, place: TopicPartition, offset: int) -> None:
        """Go on from there."""
        self.positions[place] = offset

    async def position(self, place: TopicPartition) -> int:
        """The next offset."""
        return self.positions[place]

    async def getmany(self, place: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[FakeRecord]]:
        """The next few records."""
        at = self.positions[place]
        found = records(self.world, place)[at : at + 13]
        self.positions[place] = at + len(found)
        return {} if self.lost == (place.topic, place.partition) else {place: found} if found else {}


def records(world: World, place: TopicPartition) -> list[FakeRecord]:
    if place.topic in ("transactions", "labels", "clicks"):
        return world.log.records[place.topic, place.partition]
    outputs = enumerate(world.outputs[place.topic, place.partition])
    return [FakeRecord(place.topic, place.partition, i, key, value, 0) for i, (key, value) in outputs]


class Servers:
    """Has the modules of the rebuilding see a world in the place of Kafka; ``lost`` is a partition without records."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, lost: Target | None = None) -> None:
        async def ranges(_: object, places: list[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
            return {place: (0, len(records(world, place))) for place in places}

        async def nobody(_: object) -> None:
            pass

        async def committed(_: object) -> dict[Target, int]:
            return self.committed

        @asynccontextmanager
        async def errors(_: object) -> Any:
            yield

        self.committed: dict[Target, int] = {}
        for module in (rebuild, answered):
            monkeypatch.setattr(module, "offset_range", ranges)
            monkeypatch.setattr(module, "kafka_consumer", lambda *_, **__: MemoryConsumer(world, lost))
            monkeypatch.setattr(module, "kafka_errors", errors)
        monkeypatch.setattr(rebuild, "refuse_while_worked", nobody)
        monkeypatch.setattr(rebuild, "committed_offsets", committed)


def snapshot(world: World) -> tuple[dict[str, Any], dict[Target, int]]:
    """The state without heads, and the offsets in the heads."""
    heads = [msgspec.json.decode(held[b"@"]) for lane in LANES for held in world.hashes[lane].values()]
    places = [p for lane in LANES for p in world.hashes[lane]]
    offsets = {(topic, p): offset for p, head in zip(places, heads, strict=True)
               for topic, offset in head["offsets"].items()}  # fmt: skip
    return world.state(), offsets


async def make_anew(world: World, worker: FakeWorker, **how: bool) -> None:
    stores: Any = {lane: MemoryStore(world.hashes[lane], lane) for lane in LANES}
    settings: Settings = worker.settings
    made = Rebuild(settings, SCHEMA, stores, None, None)
    await made.run(replace_state=how.get("replace", False), partial=False, report=lambda done, total: None)


@pytest.mark.parametrize("seed", range(6))
def test_after_any_history_of_faults_the_rebuilt_state_is_that_of_the_last_head(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, world = random.Random(seed), filled(1 + seed % 3, count=120, seed=seed)
    servers = Servers(world, monkeypatch)

    async def story() -> None:
        await stormy(world, rng)
        before, servers.committed = snapshot(world)
        answers = {target: list(found) for target, found in world.outputs.items()}
        for lane in LANES:
            world.hashes[lane].clear()
        worker = world.worker()
        worker.settings = replace(worker.settings, ab=AbSettings(share=seed % 3 / 2))  # of which state knows nothing
        await make_anew(world, worker)
        assert snapshot(world) == (before, servers.committed)
        await make_anew(world, worker, replace=True)
        assert snapshot(world) == (before, servers.committed)
        await worker.take_over()
        await worker.finish()
        assert world.outputs == answers

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(6))
def test_what_was_answered_and_not_committed_is_adopted_by_the_next_worker(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, world = random.Random(seed), filled(1 + seed % 3, count=120, seed=seed)
    servers = Servers(world, monkeypatch)

    async def story() -> None:
        worker = world.worker(in_flight=9, shift=0.1)
        await worker.take_over()
        for _ in range(rng.randrange(1, 6)):
            await worker.settle({topic: rng.randrange(25) for topic in ("transactions", "labels", "clicks")})
        before, servers.committed = snapshot(world)
        for store in worker.stores.values():
            store.pause = 1_000_000
        for _ in range(3):
            _ = await worker.fetch({topic: rng.randrange(9) for topic in ("transactions", "labels", "clicks")})
        await worker.pipeline.abandon()
        for lane in LANES:
            world.hashes[lane].clear()
        await make_anew(world, worker)
        assert snapshot(world) == (before, servers.committed)
        successor = world.worker(shift=0.7)
        await patiently(successor)
        await successor.finish()

    asyncio.run(story())
    inputs = {f"{t}:{r.partition}:{r.offset}" for (t, _), found in world.log.records.items() for r in found}
    answered_ids = set(first_of_each(world.answers("decisions"), "decision_id"))
    answered_ids |= set(first_of_each(world.answers("recommendations"), "recommendation_id"))
    answered_ids |= set(first_of_each(world.answers("dead-letters"), "dead_letter_id"))
    first_of_each(world.answers("alerts"), "decision_id")
    assert answered_ids >= {source for source in inputs if not source.startswith("labels")}


def test_a_transaction_that_was_applied_and_has_no_decision_is_told_and_nothing_is_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = filled(1)
    servers = Servers(world, monkeypatch, lost=("decisions", 0))

    async def story() -> None:
        worker = world.worker()
        await worker.take_over()
        await worker.finish()
        before = snapshot(world)
        servers.committed = before[1]
        with pytest.raises(StateMissing, match="no decision about transactions:0:0, neither in the archive nor in dec"):
            await make_anew(world, worker, replace=True)
        assert snapshot(world) == before

    asyncio.run(story())
