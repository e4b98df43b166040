"""Cycles without servers: faults between any two steps, fetches of any size, small caches, zombies."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from features.errors import ServiceUnavailable, StateConflict, StateMissing, TopicError
from stream.station import Bounds
from tests.fakes import FakeWorker, World, item_number


def filled(partitions: int = 1, count: int = 150, seed: int = 1) -> World:
    """A world with payments of some cards, labels, clicks, repeats, and a few broken records."""
    world, rng = World(partitions), random.Random(seed)
    cards = {f"e{i}": f"card-{rng.randrange(8)}" for i in range(count)}
    for i in range(count):
        time, card = i * 40_000 - rng.choice([0, 0, 0, 90_000]), cards[f"e{i}"]
        world.log.pay(f"e{i}", time, card, f"shop-{rng.randrange(5)}", rng.randrange(1, 9999) / 100)
        if i % 9 == 4:
            again = rng.randrange(max(i - 20, 0), i + 1)
            world.log.pay(f"e{again}", time, cards[f"e{again}"])
        if i % 5 == 3:
            judged = rng.randrange(i)
            world.log.judge(f"e{judged}", time, rng.random() < 0.5, cards[f"e{judged}"], "shop-1")
        if i % 20 == 7:
            for topic in ("transactions", "labels", "clicks"):
                world.log.append(topic, card, b"{broken")
        session, item = rng.randrange(6), rng.randrange(30)
        world.log.click(f"k{i - (i % 11 == 7)}", time, f"session-{session}", f"item-{item}",
                        f"user-{session % 4}" if session % 2 else None, "buy" if item % 4 == 0 else "view")  # fmt: skip
    return world


def facts(world: World, *topics: str) -> dict[str, list[Any]]:
    """The answers without what may differ between runs: the position among answers."""
    names = topics or ("decisions", "alerts", "recommendations", "dead-letters")
    return {topic: sorted(world.answers(topic), key=str) for topic in names}


async def uninterrupted(world: World, **how: Any) -> World:
    worker = world.worker(**how)
    await worker.take_over()
    await worker.finish()
    return world


@pytest.mark.parametrize(("counts", "in_flight", "cache"), [(1, 1, 1000), (7, 4, 1000), (50, 2, 3), (13, 4, 1)])
def test_fetches_of_any_size_and_caches_of_any_size_give_the_same_answers_and_state(
    counts: int, in_flight: int, cache: int
) -> None:
    async def run() -> None:
        whole = await uninterrupted(filled())
        world = filled()
        worker = world.worker(in_flight=in_flight, cache=cache)
        worker.stores["fraud"].pause = worker.stores["recommend"].pause = 3
        await worker.take_over()
        await worker.finish(counts)
        assert facts(world) == facts(whole)
        assert world.state() == whole.state()

    asyncio.run(run())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == pytest.approx(other, rel=1e-12) if isinstance(one, float) else one == other)


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("counts", [1, 10])
def test_a_cache_that_holds_next_to_nothing_changes_nothing(partitions: int, counts: int) -> None:
    async def run(cache: int) -> World:
        world = filled(partitions)
        worker = world.worker(cache=cache, in_flight=3)
        for store in worker.stores.values():
            store.pause = 5  # so that earlier cycles settle while a later one reads
        await worker.take_over()
        await worker.finish(counts)
        return world

    async def both() -> None:
        large, small = await run(10_000), await run(1)
        # A view that was built again adds the shards' sums in another order: the last bits of a mean may differ.
        assert _same(facts(large), facts(small))
        assert large.state() == small.state()

    asyncio.run(both())


FAULTS = [("publisher", "refused"), ("publisher", "half written"), ("publisher", "written"), ("fraud", "down"),
          ("fraud", "lost reply"), ("recommend", "down"), ("recommend", "lost reply")]  # fmt: skip


@pytest.mark.parametrize(("where", "fault"), FAULTS)
@pytest.mark.parametrize("pause", [0, 4])
def test_whatever_fails_in_a_cycle_each_answer_is_given_once_and_the_state_is_exact(
    where: str, fault: str, pause: int
) -> None:
    async def run(broken: bool) -> World:
        world = filled()
        worker = world.worker(in_flight=3)
        for store in worker.stores.values():
            store.pause = pause
        await worker.take_over()
        rng, faults = random.Random(pause), 12
        while True:
            if broken and faults and rng.random() < 0.3:
                faults -= 1
                target: Any = worker.publisher if where == "publisher" else worker.stores[where]
                target.fault = fault
            try:
                if not await worker.fetch({"transactions": 10, "labels": 1000, "clicks": 10}):
                    break
                if pause == 0:
                    await worker.settle()
            except ServiceUnavailable:
                await worker.take_over()
        await worker.finish()
        return world

    async def both() -> None:
        calm, stormy = await run(False), await run(True)
        for topic, name in (("decisions", "decision_id"), ("alerts", "decision_id"),
                            ("recommendations", "recommendation_id"), ("dead-letters", "dead_letter_id")):  # fmt: skip
            ids = [answer[name] for answer in stormy.answers(topic)]
            assert sorted(ids) == sorted(answer[name] for answer in calm.answers(topic))
        assert facts(calm) == facts(stormy)
        assert calm.state() == stormy.state()

    asyncio.run(both())


def test_small_cycles_that_wait_together_are_applied_in_one_write() -> None:
    async def run() -> None:
        world, heads = filled(), list[bytes]()
        worker = world.worker(in_flight=4)
        store: Any = worker.stores["fraud"]
        apply = store.apply

        async def counted(writes: Any) -> None:
            heads.extend(write.head for write in writes if write.fields)
            await apply(writes)

        store.apply = counted
        await worker.take_over()
        cycles = 0
        while await worker.fetch(5):
            cycles += 1
        await worker.settle()
        assert cycles > 20 and len(heads) <= cycles / 2
        whole = await uninterrupted(filled())
        assert facts(world) == facts(whole) and world.state() == whole.state()

    asyncio.run(run())


def test_a_cycle_goes_in_a_write_of_its_own_where_several_would_exceed_the_fields_of_a_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        world, sizes = filled(), list[int]()
        worker = world.worker(in_flight=4)
        store: Any = worker.stores["fraud"]
        apply = store.apply

        async def measured(writes: Any) -> None:
            sizes.extend(len(write.fields) for write in writes)
            await apply(writes)

        store.apply = measured
        await worker.take_over()
        while await worker.fetch(5):
            pass
        await worker.settle()
        assert 10 < max(sizes) <= 24

    monkeypatch.setattr("stream.applying.FIELDS_MAX", 24)
    asyncio.run(run())


def test_answers_already_given_hold_when_the_models_changed_meanwhile() -> None:
    async def run() -> None:
        world = filled(count=60)
        first = world.worker()
        await first.take_over()
        first.stores["fraud"].fault = "down"  # answered, not applied
        with pytest.raises(ServiceUnavailable, match="down"):
            await first.settle(1000)
        given = {d["decision_id"]: d for d in world.answers("decisions")}
        assert given
        second = world.worker(shift=0.37)
        await second.take_over()
        await second.finish()
        assert {d["decision_id"]: d for d in world.answers("decisions")} == given
        other = await uninterrupted(filled(count=60))
        assert world.state()["fraud"] == other.state()["fraud"]

    asyncio.run(run())


def test_a_worker_that_lost_its_partition_can_apply_nothing_more() -> None:
    async def run() -> None:
        world = filled(count=40)
        zombie, owner = world.worker(), world.worker()
        await zombie.take_over()
        await zombie.settle(10)
        await owner.take_over()
        before = world.state()
        with pytest.raises(StateConflict):
            await zombie.settle(10)
        assert world.state() == before
        await owner.finish()
        ids = [d["decision_id"] for d in world.answers("decisions")]
        assert len(set(ids)) == len(world.log.records["transactions", 0]) - len(
            [letter for letter in world.answers("dead-letters") if letter["topic"] == "transactions"]
        )

    asyncio.run(run())


def test_a_worker_that_wakes_up_asks_before_it_answers_again() -> None:
    async def run() -> None:
        world = filled()
        sleeper, owner = world.worker(lease_s=0.0), world.worker()
        await sleeper.take_over()
        for _ in range(5):
            await sleeper.settle(10)  # awake and the owner: asking changes nothing
        await owner.take_over()
        answered = len(world.answers("decisions"))
        with pytest.raises(StateConflict):
            await sleeper.fetch(10)
        assert len(world.answers("decisions")) == answered
        await owner.finish()
        await sleeper.take_over()
        await sleeper.finish()
        assert facts(world) == facts(await uninterrupted(filled()))

    asyncio.run(run())


def test_nothing_is_answered_from_rows_that_redis_came_back_with_older_than_they_were() -> None:
    async def run() -> None:
        world = filled()
        worker = world.worker(cache=1)  # so that the next cycle has to read what was applied
        await worker.take_over()
        await worker.settle(10)
        older = {lane: {p: dict(fields) for p, fields in found.items()} for lane, found in world.hashes.items()}
        await worker.settle(30)
        for lane, found in older.items():
            world.hashes[lane].clear()
            world.hashes[lane].update(found)
        answered = {topic: len(world.answers(topic)) for topic in ("decisions", "alerts", "recommendations")}
        with pytest.raises(StateConflict):
            await worker.settle(10)
        assert {topic: len(world.answers(topic)) for topic in answered} == answered
        await worker.take_over()
        await worker.finish()
        assert facts(world) == facts(await uninterrupted(filled()))

    asyncio.run(run())


def test_records_fetched_before_a_takeover_are_not_taken_after_it() -> None:
    async def run() -> None:
        world = filled(count=50)
        worker = world.worker(in_flight=1)
        worker.stores["fraud"].pause = 20
        await worker.take_over()
        await worker.fetch(10)
        late = asyncio.create_task(worker.fetch(10))  # waits for its slot
        await asyncio.sleep(0)
        await worker.take_over()
        await late
        await worker.finish()
        other = await uninterrupted(filled(count=50))
        assert len(world.answers("decisions")) == len(other.answers("decisions"))
        assert world.state() == other.state()

    asyncio.run(run())


def test_a_label_of_the_future_waits_while_transactions_lag() -> None:
    async def run() -> None:
        world = World()
        for i in range(10):
            world.log.pay(f"e{i}", i * 1000)
        world.log.judge("e0", 4500, True)
        worker = world.worker()
        await worker.take_over()
        await worker.fetch({"transactions": 3, "labels": 1})
        await worker.finish(1)
        positions = [decision["label_position"] for decision in world.answers("decisions")]
        assert positions == [0] * 5 + [1] * 5

    asyncio.run(run())


def test_a_corrected_label_is_followed_by_the_merchants_of_all_partitions() -> None:
    async def run() -> None:
        world = World(4)
        worker = world.worker()
        await worker.take_over()

        async def alerts_after(*steps: Any) -> list[float]:
            for step in steps:
                step()
                await worker.finish()
            return [alert["values"]["merchant_fraud_count_30d"] for alert in world.answers("alerts")[-1:]]

        object.__setattr__(worker.settings.worker, "review_score", 0.0)
        log = world.log
        assert await alerts_after(lambda: log.pay("a", 0, "one")) == [0.0]
        assert worker.pipeline.stations[0].lane.partitions == 4
        for fraud, wanted in ((True, 1.0), (True, 1.0), (False, 0.0), (True, 1.0)):
            found = await alerts_after(
                lambda fraud=fraud: log.judge("a", 1000, fraud, "one"),
                lambda wanted=wanted, fraud=fraud: log.pay(f"b{len(world.answers('alerts'))}", 2000, "two"),
            )
            values = [a["values"]["merchant_fraud_count_30d"] for a in world.answers("alerts") if a["key"] == "two"]
            assert found and values[-1] == wanted

    asyncio.run(run())


def test_a_click_counts_in_its_own_answer_and_once_when_sent_twice() -> None:
    async def run() -> None:
        world = World()
        for id_, item in (("k1", "apple"), ("k2", "pear"), ("k2", "pear"), ("k3", "fig")):
            world.log.click(id_, 0, "s", item)
        await uninterrupted(world)
        found = [[item["item_id"] for item in answer["items"]] for answer in world.answers("recommendations")]
        apple, pear, fig = map(item_number, ("apple", "pear", "fig"))
        assert found == [[apple], [pear, apple], [pear, apple], [fig, pear, apple]]

    asyncio.run(run())


def bounds_of(worker: FakeWorker, **changes: dict[Any, Any]) -> Bounds:
    targets = [(t, 0) for t in ("transactions", "labels", "clicks")]
    plain: dict[str, Any] = {"first": dict.fromkeys(targets, 0), "end": dict.fromkeys(targets, 10**6),
                             "committed": dict.fromkeys(targets)}  # fmt: skip
    return Bounds(**{name: plain[name] | changes.get(name, {}) for name in plain})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"end": {("transactions", 0): 3}}, "beyond its end 3.*emptied or recreated.*redis.namespace"),
        ({"first": {("transactions", 0): 10**5}}, "were deleted before they were applied.*retention"),
    ],
)
def test_state_that_does_not_fit_the_topics_is_refused_with_the_way_out(changes: Any, text: str) -> None:
    async def run() -> None:
        world = await uninterrupted(filled(count=30))
        worker = world.worker()
        with pytest.raises(StateMissing, match=text):
            await worker.pipeline.assign({"fraud": [0]}, bounds_of(worker, **changes))

    asyncio.run(run())


def test_an_empty_redis_under_committed_offsets_is_refused_and_under_none_is_a_first_start() -> None:
    async def run() -> None:
        worker = filled(count=5).worker()
        with pytest.raises(StateMissing, match="committed offset 3 of labels partition 0.*Was Redis emptied"):
            await worker.pipeline.assign({"fraud": [0]}, bounds_of(worker, committed={("labels", 0): 3}))
        await worker.pipeline.assign({"fraud": [0]}, bounds_of(worker, committed={("labels", 0): 0}))

    asyncio.run(run())


def test_a_partition_beyond_the_count_that_state_is_sharded_by_is_refused() -> None:
    worker = World(partitions=2).worker()
    with pytest.raises(TopicError, match="has a partition 2, but the settings say 2 .* fixed at creation"):
        asyncio.run(worker.take_over([0, 1, 2]))
