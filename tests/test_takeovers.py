"""Random histories of faults, crashes and takeovers: one answer for each record, and the state that they imply."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from chaos.fold import Taken, fold_clicks
from chaos.plain import read_clicked
from features.errors import ServiceUnavailable, StateConflict
from stream.settings import TopicSettings
from tests.fakes import SCHEMA, FakeWorker, World
from tests.test_cycle import filled
from tests.workers import by_source, refold

FAULTS = ("refused", "half written", "written")


async def stormy(world: World, rng: random.Random) -> None:
    """Workers that fetch a little of this and that, fail, crash, wake up as zombies, and at last finish."""
    zombies: list[FakeWorker] = []
    worker = await started(world, rng)
    for _ in range(60):
        step = rng.random()
        if step < 0.06:
            worker.publisher.fault = rng.choice(FAULTS)
        elif step < 0.12:
            rng.choice(list(worker.stores.values())).fault = rng.choice(["down", "lost reply"])
        elif step < 0.18:
            zombies.append(worker)
            worker = await started(world, rng)
        counts = {topic: rng.choice([0, 0, 1, 5, 25]) for topic in ("transactions", "labels", "clicks")}
        try:
            _ = await worker.fetch(counts)
            if rng.random() < 0.4:
                await worker.settle()
        except (ServiceUnavailable, StateConflict):
            await patiently(worker)
    for zombie in zombies:
        await zombie.pipeline.abandon()
    await worker.finish()


async def started(world: World, rng: random.Random) -> FakeWorker:
    """A new worker with a model of its own, whose predecessor may still be at it."""
    worker = world.worker(in_flight=rng.choice([1, 3]), cache=rng.choice([1, 1000]), shift=rng.random())
    for store in worker.stores.values():
        store.pause = rng.choice([0, 3])
    await patiently(worker)
    return worker


async def patiently(worker: FakeWorker) -> None:
    """Take over, again where the predecessor wrote in between."""
    while True:
        try:
            return await worker.take_over()
        except (ServiceUnavailable, StateConflict):
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_each_record_is_answered_and_the_state_is_what_the_answers_imply(seed: int) -> None:
    partitions = 1 + 2 * (seed % 2)
    world = filled(partitions, count=120, seed=seed)
    asyncio.run(stormy(world, random.Random(seed)))
    log = world.log.records
    decisions = first_of_each(world.answers("decisions"), "decision_id")
    letters = first_of_each(world.answers("dead-letters"), "dead_letter_id")
    recommended = first_of_each(world.answers("recommendations"), "recommendation_id")
    for topic, answered in (("transactions", decisions), ("clicks", recommended)):
        inputs = [record for (name, _), records in log.items() if name == topic for record in records]
        refused = {source for source in letters if source.startswith(topic)}
        assert answered.keys() | refused == {f"{topic}:{r.partition}:{r.offset}" for r in inputs}
    deployment: Any = SimpleNamespace(schema=SCHEMA, topics=TopicSettings())
    for partition in range(partitions):
        transactions, labels = log["transactions", partition], log["labels", partition]
        expected = refold(deployment, partition, decisions, transactions, labels).state
        held = {name: value for name, value in world.hashes["fraud"][partition].items() if name != b"@"}
        assert held.keys() == expected.keys()
        assert held == expected
        good = [r for r in log["clicks", partition] if f"clicks:{partition}:{r.offset}" in recommended]
        clicks = [Taken("", r.offset, msgspec.json.decode(r.value or b"")) for r in good]
        fields = {name.decode(): value for name, value in world.hashes["recommend"][partition].items() if name != b"@"}
        assert {name: read_clicked(name, value) for name, value in fields.items()} == fold_clicks(clicks)


def first_of_each(messages: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Messages by source, none of them emitted twice."""
    found = by_source(messages, name)
    assert len(found) == len(messages)
    return found


def judged_twice(labels_between: int, *, more: int) -> World:
    """A card whose first transaction is judged, then ``more`` come, then many labels, and it is judged again."""
    world = World()
    world.log.pay("x", 0)
    world.log.judge("x", 1, True)
    for i in range(more):
        world.log.pay(f"p{i}", 10_000 + i)
    for i in range(labels_between):
        world.log.judge(f"unknown{i}", 2, False)
    world.log.judge("x", 3, True)
    return world


async def emitted_but_not_applied(world: World, steps: Sequence[dict[str, int] | Callable[[], None]]) -> FakeWorker:
    """The successor of a worker that answered what it fetched in turn and died before it applied any of it."""
    worker = world.worker(in_flight=9)
    await worker.take_over()
    await worker.settle({"transactions": 1})
    await worker.settle({"labels": 1})
    for store in worker.stores.values():
        store.pause = 1_000_000
    for step in steps:
        _ = await worker.fetch(step) if isinstance(step, dict) else step()
    await worker.pipeline.abandon()
    successor = world.worker()
    await successor.take_over()
    return successor


def assert_as_emitted(world: World) -> None:
    decisions = first_of_each(world.answers("decisions"), "decision_id")
    deployment: Any = SimpleNamespace(schema=SCHEMA, topics=TopicSettings())
    log = world.log.records
    expected = refold(deployment, 0, decisions, log["transactions", 0], log["labels", 0]).state
    assert {name: value for name, value in world.hashes["fraud"][0].items() if name != b"@"} == expected


def test_labels_that_emitted_transactions_had_not_seen_wait_for_all_of_them_after_a_takeover() -> None:
    world = judged_twice(0, more=40)

    async def story() -> None:
        worker = await emitted_but_not_applied(world, [{"transactions": 40}])
        for _ in range(40):
            _ = await worker.fetch({"transactions": 1, "labels": 1})
        await worker.finish()

    asyncio.run(story())
    assert_as_emitted(world)


def test_emitted_transactions_wait_for_more_labels_than_one_cycle_can_fold() -> None:
    world = judged_twice(2000, more=0)

    def later() -> None:
        for i in range(40):
            world.log.pay(f"p{i}", 10_000 + i)

    async def story() -> None:
        worker = await emitted_but_not_applied(world, [{"labels": 10_000}, later, {"transactions": 40}])
        await worker.finish()

    asyncio.run(story())
    assert {d["label_position"] for d in world.answers("decisions")} == {0, 2002}
    assert_as_emitted(world)
