"""With several partitions and workers, a merchant's figures are exact but for what other workers have not applied yet.

Time goes in slices: every worker decides its own part of a slice before any part of it is applied to Redis by another.
So a worker knows all earlier slices, and its own part of the present one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from features.catalogue import build_catalogue
from features.hashing import partitions_of
from tests.fakes import SCHEMA, FakeWorker, World

PARTITIONS, EVENTS, SLICE_MS = 4, 600, 60_000
ADDED_UP = ("sum", "mean", "std", "ratio", "zscore")  # in another order, so the last bits may differ


class _Recorder:
    """A vector log in memory: vectors by event id."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.vectors: dict[str, NDArray[np.float64]] = {}

    def append(self, sources: Sequence[str], positions: NDArray[np.int64], x: NDArray[np.float64]) -> None:
        for source, vector in zip(sources, x, strict=True):
            topic, partition, offset = source.rsplit(":", 2)
            record = self._world.log.records[topic, int(partition)][int(offset)]
            self.vectors[msgspec.json.decode(record.value or b"")["event_id"]] = vector


def _payments() -> list[dict[str, Any]]:
    """Four transactions a minute and merchant, so that views hold events of every partition in every slice."""
    rng = np.random.default_rng(5)
    times = np.sort(rng.integers(0, EVENTS * 5_000, EVENTS))
    return [
        {"id_": f"e{i}", "after_ms": int(time), "card": f"card-{rng.integers(40)}", "merchant": f"m-{rng.integers(3)}",
         "amount": float(rng.integers(1, 10_000)) / 100}
        for i, time in enumerate(times)
    ]  # fmt: skip


def _slices(payments: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for begin in range(0, payments[-1]["after_ms"] + 1, SLICE_MS):
        yield [p for p in payments if begin <= p["after_ms"] < begin + SLICE_MS]


def _watched(world: World, worker: FakeWorker) -> _Recorder:
    recorder = _Recorder(world)
    worker.pipeline.stations[0].lane._log = recorder  # type: ignore[attr-defined]
    return recorder


async def _live(owners: Sequence[Sequence[int]]) -> dict[str, NDArray[np.float64]]:
    """Vectors of workers that own these partitions and decide slice after slice, one worker after the other."""
    world = World(PARTITIONS)
    workers = [world.worker(cache=10_000) for _ in owners]
    recorders = [_watched(world, worker) for worker in workers]
    for worker, mine in zip(workers, owners, strict=True):
        await worker.take_over(list(mine))
    for part in _slices(_payments()):
        for payment in part:
            world.log.pay(**payment)
        for worker in workers:
            _ = await worker.fetch()
        for worker in workers:
            await worker.settle()
    return {id_: vector for recorder in recorders for id_, vector in recorder.vectors.items()}


async def _exact(payments: list[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Vectors where one partition holds these transactions, in this order."""
    world = World(1)
    worker = world.worker(cache=10_000)
    recorder = _watched(world, worker)
    await worker.take_over()
    for payment in payments:
        world.log.pay(**payment)
    await worker.finish()
    return recorder.vectors


def _unequal(live: NDArray[np.float64], exact: NDArray[np.float64]) -> list[str]:
    return [
        feature.name
        for feature, a, b in zip(build_catalogue(SCHEMA.transactions).features, live, exact, strict=True)
        if not (a == b or (np.isnan(a) and np.isnan(b)))
        and not (feature.aggregate in ADDED_UP and a == pytest.approx(b, rel=1e-9, abs=1e-6))
    ]


def test_a_worker_that_owns_every_partition_knows_every_merchant_exactly() -> None:
    live, exact = asyncio.run(_live([range(PARTITIONS)])), asyncio.run(_exact(_payments()))
    assert live.keys() == exact.keys() and len(live) == EVENTS
    assert not {id_: names for id_ in live if (names := _unequal(live[id_], exact[id_]))}


def test_with_two_workers_a_figure_lacks_just_what_the_other_has_not_applied() -> None:
    owners = [(0, 1), (2, 3)]
    payments = _payments()
    live = asyncio.run(_live(owners))
    partition = {p["id_"]: int(partitions_of([p["card"].encode()], PARTITIONS)[0]) for p in payments}
    deviating, applied = 0, list[dict[str, Any]]()
    whole = asyncio.run(_exact(payments))
    for part in _slices(payments):
        for mine in owners:
            own = [p for p in part if partition[p["id_"]] in mine]
            known = asyncio.run(_exact([*applied, *own]))
            for payment in own:
                id_ = payment["id_"]
                assert not _unequal(live[id_], known[id_]), id_
                names = _unequal(live[id_], whole[id_])
                assert all(name.startswith("merchant_") for name in names), names
                deviating += bool(names)
        applied += part
    assert 0 < deviating < len(live)
