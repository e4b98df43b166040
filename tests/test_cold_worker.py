"""Clicks are answered from the first one on: before there is any model, and where the models recommend nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from features.catalogue import build_catalogue
from features.hashing import hash_strings
from features.item_records import Faulty, Gone, ItemFacts
from features.recommender import Recommender
from stream.ab_settings import AbSettings
from stream.embedded import RedisServer
from stream.recommend import RecommendLane
from stream.settings import Settings
from tests.fakes import FakeWorker, World
from tests.servers import RunningBroker, produce
from tests.sessions import checkerboard, fitted
from tests.test_items import send_items
from tests.workers import Deployment, wait_until
from tests.world import World as Simulated
from trainer.artifacts import Draft, current_version, load, publish

START_MS = 1_600_000_000_000
TOYS = [ItemFacts(f"toy-{n}", category="toys", title=f"Toy {n}", from_ms=n) for n in range(6)]
Record = ItemFacts | Gone | Faulty


def cold(world: World, records: list[Record], ab: AbSettings | None = None, **worker: Any) -> FakeWorker:
    """A worker without a recommender, on a shelf with these records."""
    world.recommender = None
    made = world.worker(**{"online_learning": True, "recommendations_k": 5} | worker)
    made.settings = replace(made.settings, ab=ab or AbSettings())
    lane = made.pipeline.stations[1].lane = RecommendLane(made.settings)
    with lane.lister.shelf.lock:
        lane.lister.shelf.apply(records)
    lane.lister.shelf.refresh()
    return made


def answered(world: World, worker: FakeWorker, fetched: int = 1) -> list[dict[str, Any]]:
    """What the worker answers to all clicks, so many at a time."""

    async def run() -> None:
        await worker.take_over()
        await worker.finish(fetched)

    asyncio.run(run())
    return world.answers("recommendations")


def ids(answer: Mapping[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_the_first_click_of_all_is_answered_from_the_items_topic_and_later_ones_from_what_is_clicked() -> None:
    world = World()
    for n in range(12):
        world.log.click(f"k{n}", n * 1000, f"s{n}", f"toy-{n % 2}")
    first, *_, last = answered(world, cold(world, [*TOYS]))
    assert {answer["model_version"] for answer in (first, last)} == {"none"}
    best = first["items"][0]
    assert (len(first["items"]), best["text"], best["title"]) == (5, "in the catalogue", "Toy 5")
    assert ids(last) == ["toy-0", "toy-5", "toy-4", "toy-3", "toy-2"]  # after toy-1
    assert last["items"][0]["text"] == "popular now"


def test_without_an_items_topic_lists_hold_what_was_clicked() -> None:
    world = World()
    for n in range(60):
        world.log.click(f"k{n}", n * 1000, f"s{n}", ["a", "b", "a", "c"][n % 4])
    first, second, *_, last = answered(world, cold(world, []))
    assert (ids(first), ids(second)) == (["a"], ["a"])  # the only item is rather repeated than nothing said
    assert ids(last) == ["a", "b"]  # after c
    assert {item["text"] for answer in (second, last) for item in answer["items"]} == {"popular now"}


def test_nothing_that_must_not_be_shown_is_shown_without_a_model() -> None:
    world = World()
    for n in range(40):
        world.log.click(f"k{n}", n * 1000, f"s{n}", f"toy-{n % 6}", "u" if n % 6 == 5 else None,
                        "buy" if n % 6 == 5 else "view")  # fmt: skip
    records: list[Record] = [
        *TOYS, replace(TOYS[0], hidden=True), replace(TOYS[1], sold_out=True), replace(TOYS[2], until_ms=START_MS),
        Gone("toy-3"),
    ]  # fmt: skip
    given = answered(world, cold(world, records, repeat_buying=False), 7)
    for answer in given:
        wanted = {"toy-4"} if answer["user_id"] == "u" else {"toy-4", "toy-5"} - {answer["item_id"]}
        assert set(ids(answer)) == wanted


def test_where_learning_is_off_the_items_topic_alone_answers() -> None:
    world = World()
    for n in range(9):
        world.log.click(f"k{n}", n * 1000, "s", "unheard")
    given = answered(world, cold(world, [*TOYS], online_learning=False), 9)
    assert [ids(answer) for answer in given] == [["toy-5", "toy-4", "toy-3", "toy-2", "toy-1"]] * 9


def test_state_is_the_same_without_a_model_and_the_first_one_is_used_at_once() -> None:
    model = fitted(checkerboard())
    worlds = World(), World()
    for world in worlds:
        for n in range(10):
            world.log.click(f"k{n}", n * 1000, f"s{n % 3}", f"g0-{n % 5}", f"u{n % 3}")
    worker = cold(worlds[0], [])

    async def run() -> None:
        await worker.take_over()
        await worker.settle(5)
        worker.pipeline.models.current = SimpleNamespace(version="000001", recommender=model)
        await worker.finish()

    asyncio.run(run())
    versions = [answer["model_version"] for answer in worlds[0].answers("recommendations")]
    assert versions == ["none"] * 5 + ["000001"] * 5
    worlds[1].recommender = model
    answered(worlds[1], worlds[1].worker())
    assert worlds[0].state()["recommend"] == worlds[1].state()["recommend"]


def test_an_experiment_answers_both_variants_without_a_model() -> None:
    world = World()
    for n in range(40):
        world.log.click(f"k{n}", n * 1000, f"s{n}", f"toy-{n % 6}")
    worker = cold(world, [*TOYS], AbSettings(share=0.5))
    worker.models.b = SimpleNamespace(version="000001", recommender=None, b=None)
    given = answered(world, worker, 8)
    assert {answer["variant"] for answer in given} == {"A", "B"}
    assert all(len(answer["items"]) == 5 and answer["model_version"] == "none" for answer in given)


def test_a_recommender_that_knows_no_item_survives_its_file(tmp_path: Path) -> None:
    empty = Recommender.empty()
    again = Recommender.from_arrays(empty.to_arrays())
    assert again.items == empty.items == 0
    assert all((a == b).all() for a, b in zip(empty.to_arrays().values(), again.to_arrays().values(), strict=True))


async def _click(deployment: Deployment, name: str, item: str) -> None:
    click = {"event_id": name, "event_time": START_MS, "session_id": name, "item_id": item}
    await produce(deployment.broker.bootstrap, deployment.topics.clicks, [(name.encode(), json.dumps(click).encode())],
                  timestamp_ms=START_MS + 10**9)  # fmt: skip


@pytest.mark.parametrize("begins_with", ["nothing", "fraud"])
def test_a_real_worker_answers_clicks_before_there_is_a_recommender_and_takes_up_the_first(
    broker: RunningBroker, redis_server: RedisServer, world: Simulated, tmp_path: Path, begins_with: str
) -> None:
    version, schema, root = current_version(world.artifacts) or "", world.schema, tmp_path / "artifacts"
    whole = load(world.artifacts, version, schema.hash)
    asked = hash_strings(["a"]).reshape(1, 1), np.ones(1, np.int64)
    draft = Draft(schema.hash, whole.fraud, vectors=np.zeros((1, len(build_catalogue(schema.transactions).names))))
    if begins_with == "fraud":
        assert publish(root, draft, created_ms=1) == "000001"
    deployment = Deployment(broker, redis_server.url, schema, root, tmp_path, partitions=2,
                            extra={"WORKER_WITHOUT_MODEL": "rules"})  # fmt: skip
    deployment.create()
    settings = replace(Settings(), kafka=deployment.kafka, topics=deployment.topics)
    asyncio.run(send_items(settings, ("toy-1", {"category": "toys"}), ("toy-2", {"hidden": True})))
    worker, recommendations = deployment.started(), deployment.topics.recommendations
    try:
        asyncio.run(_click(deployment, "s1", "toy-1"))
        deployment.wait_for({recommendations: 1})
        newest = publish(root, replace(draft, recommender=whole.recommender, sessions=asked), created_ms=2)
        wait_until(lambda: any(f"version {newest} is in use" in line for line in worker.log_tail(50)), "a new version")
        asyncio.run(_click(deployment, "s2", "toy-1"))
        deployment.wait_for({recommendations: 2})
        worker.stop()
        assert worker.exit_code() == 0
    finally:
        worker.kill()
    given = {answer["session_id"]: answer for answer in deployment.decoded(recommendations)}
    assert {name: answer["model_version"] for name, answer in given.items()} == {"s1": "none", "s2": newest}
    assert ids(given["s1"]) == ids(given["s2"]) == ["toy-1"]
