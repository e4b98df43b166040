"""A worker with an experiment: each session or user keeps its variant, and the counts are those of ``headrace ab``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from features.errors import ArtifactError, SettingsError
from features.levers import Levers
from features.recommender import Recommender
from features.schema import load_schema
from stream.ab import Tallies
from stream.ab_settings import AbSettings
from stream.embedded import Broker, RedisServer
from stream.models import Served
from stream.recommend import RecommendLane
from stream.settings import Settings
from stream.variants import VariantModels, of_b
from tests.fakes import World
from tests.servers import RunningBroker, produce
from tests.sessions import checkerboard, clicks, fitted
from tests.workers import Deployment, wait_until
from tests.world import World as Simulated
from trainer.artifacts import Draft, publish

HALF = AbSettings(share=0.5)


@pytest.fixture(scope="module")
def model() -> Recommender:
    return fitted(checkerboard())


@pytest.fixture(scope="module")
def other() -> Recommender:
    """A model of half of the catalogue, in another order."""
    return fitted(clicks([["g1-0", "g0-0"], ["g1-1", "g0-1"], ["g1-2", "g0-2"]] * 20))


def ran(model: Any, other: Any, ab: AbSettings, fetched: int = 7, levers: Sequence[Levers] = (), **given: Any
        ) -> tuple[World, Any]:  # fmt: skip
    """A world with 40 sessions of 30 users, answered by one worker with this experiment, and the worker.

    ``levers`` are those of A and of B, the rest its settings.
    """
    world = World()
    world.recommender = model
    rng = np.random.default_rng(4)
    for n in range(300):
        session = int(rng.integers(40))
        user = f"u{session % 30}" if session % 2 else None
        world.log.click(f"k{n}", n * 1000, f"s{session}", f"g{session % 2}-{rng.integers(5)}", user)
    worker = world.worker()
    given = {"recommendations_k": 5} | given
    worker.settings = replace(worker.settings, ab=ab, worker=replace(worker.settings.worker, **given))
    lane = worker.pipeline.stations[1].lane = RecommendLane(worker.settings)
    for which, some in enumerate(levers):
        lane.lister.shelf.pull(some, which)
    worker.pipeline.models.current.b = SimpleNamespace(version="000002", recommender=other, b=None)

    async def run() -> None:
        await worker.take_over()
        await worker.finish(fetched)

    asyncio.run(run())
    return world, worker


@pytest.mark.parametrize("by", ["session", "user"])
def test_each_session_or_user_is_shown_one_variant_which_every_answer_names(
    model: Recommender, other: Recommender, by: Any
) -> None:
    ab = replace(HALF, by=by)
    given = ran(model, other, ab)[0].answers("recommendations")
    assert len(given) == 300
    for answer in given:
        unit = answer["session_id"] if by == "session" else answer["user_id"] or answer["session_id"]
        b = bool(of_b(ab, [unit])[0])
        assert (answer["experiment"], answer["variant"]) == ("ab", "B" if b else "A")
        assert answer["model_version"] == ("000002" if b else "000001")
        assert answer["items"]
    assert 80 < sum(answer["variant"] == "B" for answer in given) < 220


def test_a_list_is_that_of_its_variants_model_alone_whatever_else_is_in_the_cycle(
    model: Recommender, other: Recommender
) -> None:
    both = ran(model, other, HALF)[0].answers("recommendations")
    ones = ran(model, other, HALF, fetched=1)[0].answers("recommendations")
    assert both == ones
    alone = [ran(only, only, AbSettings())[0].answers("recommendations") for only in (model, other)]
    for answer, *own in zip(both, *alone, strict=True):
        assert answer["items"] == own[answer["variant"] == "B"]["items"]
    assert "variant" not in alone[0][0] and "experiment" not in alone[0][0]


def test_each_variant_has_its_own_levers_and_length(model: Recommender) -> None:
    without, few = Levers(items=frozenset({"g0-1"})), Levers(items=frozenset({"g1-1", "g0-2"}))
    own = replace(HALF, levers=Path("b.toml"), recommendations_k=3)
    both = ran(model, model, own, levers=[without, few])[0].answers("recommendations")
    alone = [ran(model, model, AbSettings(), levers=[some], recommendations_k=k)[0].answers("recommendations")
             for some, k in ((without, 5), (few, 3))]  # fmt: skip
    for answer, *expected in zip(both, *alone, strict=True):
        assert answer["items"] == expected[answer["variant"] == "B"]["items"]
    shown = {(answer["variant"], item["item_id"]) for answer in both for item in answer["items"]}
    assert ("B", "g0-1") in shown and ("A", "g1-1") in shown and ("A", "g0-1") not in shown
    assert {len(answer["items"]) for answer in both if answer["variant"] == "B"} == {3}


def test_without_levers_of_its_own_b_keeps_those_of_a(model: Recommender) -> None:
    none = Levers(items=frozenset({"g0-1"}))
    both = ran(model, model, HALF, levers=[none, Levers()])[0].answers("recommendations")
    assert {answer["variant"] for answer in both} == {"A", "B"}
    assert not any(item["item_id"] == "g0-1" for answer in both for item in answer["items"])


@pytest.mark.parametrize("learns", ["A", "B"])
def test_live_clicks_move_only_the_variant_that_learns(model: Recommender, learns: str) -> None:
    known = fitted(clicks([["g3-0", "g3-1"], ["g3-1", "g3-2"]] * 20))  # of nothing that is clicked here
    ab = replace(HALF, online_learning=learns == "B")
    given = ran(known, known, ab, online_learning=learns == "A")[0].answers("recommendations")[100:]
    moved = {answer["variant"] for answer in given for item in answer["items"] if not item["item_id"].startswith("g3")}
    assert moved == {learns} and {answer["variant"] for answer in given} == {"A", "B"}


def test_state_is_the_same_with_an_experiment_and_without(model: Recommender, other: Recommender) -> None:
    assert ran(model, other, HALF)[0].state() == ran(model, other, AbSettings())[0].state()


def test_the_workers_counts_are_those_of_the_topic(model: Recommender, other: Recommender) -> None:
    world, worker = ran(model, other, HALF)
    registry = worker.pipeline._metrics.registry
    tallies = Tallies(replace(HALF, window_s=10_000.0))
    tallies.add_all(value for _, value in world.outputs["recommendations", 0])
    tallies.newest_ms += 10**9
    for name, side in tallies.report()["variants"].items():
        counted = {
            what: registry.get_sample_value("headrace_ab_total", {"variant": name, "what": what})
            for what in ("sessions", "next clicks", "hits", "sessions with a hit")
        }
        assert counted == {"sessions": side["units"], "next clicks": side["next_clicks"], "hits": side["hits"],
                           "sessions with a hit": side["units_with_a_hit"]}  # fmt: skip
        assert side["hits"] > 0


def served(folder: Path, version: str, model: Recommender) -> Served:
    """A published recommender."""
    asked = np.zeros((1, 20), np.uint64), np.zeros(1, np.int64)
    assert publish(folder, Draft(load_schema().hash, recommender=model, sessions=asked), created_ms=1) == version
    return Served(version, None, model)


def test_b_is_a_named_version_another_directory_or_a_without_its_ranker(
    tmp_path: Path, model: Recommender, other: Recommender
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    _ = served(here, "000001", other)
    a: Any = SimpleNamespace(current=served(here, "000002", model))
    _ = served(there, "000001", other)
    settings = Settings(artifacts=here)

    def b_of(**ab: Any) -> tuple[str, int, str]:
        models = VariantModels(a, replace(settings, ab=replace(HALF, **ab)), load_schema().hash, ())
        assert models.current.version == "000002" and models.current.recommender is model
        assert models.current is models.current  # made once
        b = models.current.b
        assert b is not None and b.recommender is not None
        return b.version, b.recommender.items, b.recommender.ranker

    assert b_of(model="000001")[:2] == ("000001", other.items)
    assert b_of(model=str(there))[:2] == ("000001", other.items)
    assert b_of(ranker=False) == ("000002", model.items, "")
    for wrong in ("000009", str(tmp_path / "nowhere")):
        with pytest.raises((ArtifactError, SettingsError), match=Path(wrong).name):
            b_of(model=wrong)


def test_a_real_worker_reads_the_levers_of_b_and_follows_them(
    embedded_broker: Broker, redis_server: RedisServer, world: Simulated, tmp_path: Path
) -> None:
    file, broker = tmp_path / "b.toml", RunningBroker("embedded", embedded_broker.bootstrap, idempotence=False)
    file.write_text("[exclude]\nitems = ['item-00001']\n", encoding="utf-8")
    deployment = Deployment(broker, redis_server.url, world.schema, world.artifacts, tmp_path, partitions=1,
                            extra={"AB_SHARE": "1", "AB_LEVERS": str(file), "AB_RECOMMENDATIONS_K": "300",
                                   "WORKER_ONLINE_LEARNING": "false"})  # fmt: skip
    deployment.create()
    worker, topic = deployment.started(), deployment.topics.recommendations
    sent = 0

    def shown() -> set[str]:
        """What is in the list after one more click."""
        nonlocal sent
        sent += 1
        click = {"event_id": f"e{sent}", "event_time": 1_600_000_000_000, "session_id": "s", "item_id": "unheard"}
        asyncio.run(produce(broker.bootstrap, deployment.topics.clicks, [(b"s", json.dumps(click).encode())]))
        deployment.wait_for({topic: sent})
        (newest,) = deployment.decoded(topic)[sent - 1 :]
        assert newest["variant"] == "B"
        return {item["item_id"] for item in newest["items"]}

    try:
        first = shown()
        other = min(first)
        assert "item-00001" not in first and len(first) > 20
        file.write_text(f"[exclude]\nitems = ['{other}']\n", encoding="utf-8")
        wait_until(lambda: (found := shown()) != first and other not in found, "the levers of B have changed")
        assert len(shown() - first) == 1
    finally:
        worker.kill()
