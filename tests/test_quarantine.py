"""A record that makes our own code raise becomes a dead letter; all others are answered as if it had not been there."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest

from features import engine
from features.errors import ComputeFailed, HeadraceError, ServiceUnavailable
from features.hashing import hash_strings
from features.kernel import LABEL, TRANSACTION
from stream.entities import EntityCache
from stream.quarantine import Quarantine
from tests.fakes import FakeRecommender, FakeWorker, World, item_number

T = ("transactions", 0)


def filled(count: int = 60, partitions: int = 1) -> World:
    """Payments of a few cards, verdicts and clicks; the ids tell their kind and number."""
    world = World(partitions)
    for i in range(count):
        world.log.pay(f"e{i}", i * 60_000, f"card-{i % 7}", f"shop-{i % 3}", 5.0 + i)
        if i % 4 == 3:
            world.log.judge(f"e{i - 3}", i * 60_000 - 30_000, i % 8 == 3, f"card-{(i - 3) % 7}", f"shop-{i % 3}")
        world.log.click(f"k{i}", i * 60_000, f"session-{i % 5}", f"item-{i % 11}")
    return world


def without(world: World, *ids: str, topic: str = "transactions") -> World:
    """The same world with the named records broken from the beginning, so that they are dead letters anyway."""
    records = world.log.records[topic, 0]
    for i, record in enumerate(records):
        if any(f'"event_id":"{id_}"'.encode() in (record.value or b"") for id_ in ids):
            records[i] = record._replace(value=b"{broken")
    return world


def poison(monkeypatch: pytest.MonkeyPatch, *ids: str, kind: int = TRANSACTION) -> list[int]:
    """Let the kernel raise in the middle of every batch that holds one of these; how large those batches were."""
    real, hashes, seen = engine.fold, hash_strings(list(ids)).view(np.int64), list[int]()

    def fold(catalogue: Any, tables: Any, operations: Any, marks: Any = None) -> Any:
        folded = real(catalogue, tables, operations, marks)  # the state in memory is spoilt by now
        if (np.isin(operations.event_hash, hashes) & (operations.kind == kind)).any():
            seen.append(len(operations))
            raise ZeroDivisionError("a bug")
        return folded

    monkeypatch.setattr(engine, "fold", fold)
    return seen


def compared(world: World) -> dict[str, Any]:
    """Answers and state, without what a dead letter says of its reason."""
    found: dict[str, Any] = {topic: sorted(world.answers(topic), key=str)
                             for topic in ("decisions", "alerts", "recommendations")}  # fmt: skip
    letters = sorted(letter["dead_letter_id"] for letter in world.answers("dead-letters"))
    return found | world.state() | {"letters": letters}


async def ran(world: World, *, counts: int = 1_000_000, **how: Any) -> FakeWorker:
    worker = world.worker(**how)
    await worker.take_over()
    await worker.finish(counts)
    return worker


def internal(world: World) -> list[dict[str, Any]]:
    return [letter for letter in world.answers("dead-letters") if letter["reason"] == "internal"]


@pytest.mark.parametrize("counts", [1_000_000, 7])
@pytest.mark.parametrize("ids", [("e0",), ("e41",), ("e59",), ("e20", "e21", "e22", "e50")], ids=len)
def test_a_transaction_that_makes_the_kernel_raise_is_a_dead_letter_and_the_others_are_unharmed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ids: tuple[str, ...], counts: int
) -> None:
    async def run() -> tuple[World, World]:
        calm = without(filled(), *ids)
        await ran(calm)
        poison(monkeypatch, *ids)
        world = filled()
        with caplog.at_level(logging.ERROR, "headrace.worker"):
            await ran(world, counts=counts)
        return calm, world

    calm, world = asyncio.run(run())
    assert compared(world) == compared(calm)
    letters = internal(world)
    assert sorted(letter["offset"] for letter in letters) == [int(id_[1:]) for id_ in ids]
    assert all("ZeroDivisionError: a bug" in letter["sentence"] and letter["length"] > 0 for letter in letters)
    told = [r for r in caplog.records if "becomes a dead letter" in r.getMessage()]
    assert len(told) == len(ids)
    assert all(r.exc_info and r.exc_info[0] is ZeroDivisionError and r.exc_info[2] for r in told)


def test_a_label_that_waits_for_its_time_is_blamed_and_not_the_transaction_that_sets_it_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> tuple[World, World]:
        worlds = []
        for spoilt in (True, False):
            world = World()
            for i in range(12):
                world.log.pay(f"e{i}", i * 60_000)
            for i in (2, 4, 6):
                world.log.judge(f"e{i}", 390_000 + i * 30_000, True)
            if spoilt:
                without(world, "e4", topic="labels")
            else:
                poison(monkeypatch, "e4", kind=LABEL)
            worker = world.worker()
            await worker.take_over()
            await worker.fetch({"transactions": 2, "labels": 3})  # the labels wait
            await worker.finish(3)
            worlds.append(world)
        return worlds[0], worlds[1]

    calm, world = asyncio.run(run())
    assert [letter["dead_letter_id"] for letter in internal(world)] == ["labels:0:1"]
    assert world.state() == calm.state()
    assert len(world.answers("decisions")) == 12


def test_clicks_and_the_decoder_are_searched_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, real = int(item_number("item-poison")), FakeRecommender.recommend_many

    def recommend(self: FakeRecommender, hashes: Any, counts: Any, k: int, how: Any = None) -> Any:
        newest = [int(row[n - 1] % np.uint64(1 << 31)) for row, n in zip(hashes, counts, strict=True)]
        if bad in newest:
            raise ValueError("no such item")
        return real(self, hashes, counts, k, how)

    async def run() -> World:
        world = filled()
        world.log.click("k-bad", 0, "session-1", "item-poison")
        world.log.append("transactions", "card-1", b"{poison")
        worker = world.worker()
        lane: Any = worker.pipeline.stations[0].lane
        decode = lane._intake._decode_transactions

        def raising(values: Any, timestamps: Any) -> Any:
            if b"{poison" in values:
                raise IndexError("out of bounds")
            return decode(values, timestamps)

        monkeypatch.setattr(lane._intake, "_decode_transactions", raising)
        monkeypatch.setattr(FakeRecommender, "recommend_many", recommend)
        await worker.take_over()
        await worker.finish()
        return world

    world = asyncio.run(run())
    assert sorted(letter["dead_letter_id"] for letter in internal(world)) == ["clicks:0:60", "transactions:0:60"]
    assert len(world.answers("decisions")) == 60 == len(world.answers("recommendations"))


@pytest.mark.parametrize("fault", ["down", "lost reply"])
def test_the_next_owner_does_not_try_again_what_its_tail_says_was_set_aside(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    async def run() -> tuple[World, World, list[int]]:
        calm = without(filled(), "e30")
        await ran(calm)
        seen = poison(monkeypatch, "e30")
        world = filled()
        first = world.worker()
        await first.take_over()
        while not internal(world):  # the dead letter is written, and never applied
            first.stores["fraud"].fault = fault if first.pipeline._quarantine.blamed else ""
            try:
                await first.settle(1_000_000)
            except ComputeFailed:
                await first.take_over()
            except ServiceUnavailable:
                break
        assert internal(world)
        await first.pipeline.abandon()
        tried = len(seen)
        await ran(world)
        return calm, world, seen[tried:]

    calm, world, tried = asyncio.run(run())
    assert tried == []
    assert len(internal(world)) == 1
    assert compared(world) == compared(calm)


def test_state_that_cannot_be_encoded_is_searched_for_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large cycle it is encoded while the answers are on their way already."""
    real = EntityCache.encode

    def encode(self: EntityCache, slots: Any) -> Any:
        raws = self.rows.ints[slots]
        if self.layout.entity.name == "card" and (raws == poisoned).any():
            raise OverflowError("no such varint")
        return real(self, slots)

    poisoned = int(hash_strings(["e300"]).view(np.int64)[0])

    async def run() -> World:
        world = World()
        for i in range(600):
            world.log.pay(f"e{i}", i * 1000, f"card-{i}")
        monkeypatch.setattr(EntityCache, "encode", encode)
        await ran(world)
        return world

    world = asyncio.run(run())
    assert [letter["offset"] for letter in internal(world)] == [300]
    assert len(world.state()["fraud"][0]) == 599 + 1  # cards and their one merchant


def test_what_passes_in_smaller_cycles_is_blamed_on_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.fold

    def fold(catalogue: Any, tables: Any, operations: Any, marks: Any = None) -> Any:
        if len(operations) > 20:
            raise BufferError("too many at once")
        return real(catalogue, tables, operations, marks)

    async def run() -> tuple[World, World, FakeWorker]:
        calm, world = filled(), filled()
        await ran(calm)
        monkeypatch.setattr(engine, "fold", fold)
        return calm, world, await ran(world)

    calm, world, worker = asyncio.run(run())
    assert not internal(world)
    assert compared(world) == compared(calm)
    assert worker.pipeline._quarantine.limit == 0


def test_a_search_costs_a_takeover_for_each_halving_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[int]:
        world = World()
        for i in range(512):
            world.log.pay(f"e{i}", i * 1000)
        seen = poison(monkeypatch, "e300")
        await ran(world)
        assert len(world.answers("decisions")) == 511
        return seen

    assert asyncio.run(run()) == [512, 256, 128, 64, 32, 16, 8, 4, 2, 1]


@pytest.fixture
def broken_model(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.fold

    def fold(catalogue: Any, tables: Any, operations: Any, marks: Any = None) -> Any:
        if len(operations):
            raise RuntimeError("broken")
        return real(catalogue, tables, operations, marks)

    monkeypatch.setattr(engine, "fold", fold)


@pytest.mark.usefixtures("broken_model")
def test_where_every_record_raises_the_worker_stops_before_all_of_them_are_dead_letters() -> None:
    async def run() -> World:
        world = filled(100)
        with pytest.raises(HeadraceError, match="more than 20 records in a row raise.*RuntimeError.*Publish models"):
            await ran(world)
        return world

    world = asyncio.run(run())
    assert len(internal(world)) == 20
    assert not world.answers("decisions")


def test_what_raises_whatever_is_left_out_stops_the_worker() -> None:
    search = Quarantine(100, ["labels", "transactions"])
    assert isinstance(search.failed(ValueError("a"), [(T, 4)]), ComputeFailed)
    assert search.blamed == {T: {4: "a bug of Headrace, not of the record: computing it raised ValueError: a"}}
    with pytest.raises(HeadraceError, match="whatever records are left out"):
        raise search.failed(ValueError("a"), [])
    assert not search.blamed


def test_a_partition_that_is_lost_in_the_middle_of_a_search_ends_it() -> None:
    search = Quarantine(100, ["labels", "transactions"])
    search.failed(ValueError("a"), [(T, 4)])
    search.resume({("transactions", 1): 0})
    assert not search.blamed
    search.passed(5, {("transactions", 1): 5})
    assert search.limit == 0
