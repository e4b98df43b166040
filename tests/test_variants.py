"""A worker with an experiment: each session or user keeps its variant, and the counts are those of ``headrace ab``."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from features.errors import ArtifactError, SettingsError
from features.recommender import Recommender
from features.schema import load_schema
from stream.ab import Tallies
from stream.ab_settings import AbSettings
from stream.models import Served
from stream.recommend import RecommendLane
from stream.settings import Settings
from stream.variants import VariantModels, of_b
from tests.fakes import World
from tests.sessions import checkerboard, clicks, fitted
from trainer.artifacts import Draft, publish

HALF = AbSettings(share=0.5)


@pytest.fixture(scope="module")
def model() -> Recommender:
    return fitted(checkerboard())


@pytest.fixture(scope="module")
def other() -> Recommender:
    """A model of half of the catalogue, in another order."""
    return fitted(clicks([["g1-0", "g0-0"], ["g1-1", "g0-1"], ["g1-2", "g0-2"]] * 20))


def ran(model: Any, other: Any, ab: AbSettings, fetched: int = 7) -> tuple[World, Any]:
    """A world with 40 sessions of 30 users, answered by one worker with this experiment, and the worker."""
    world = World()
    world.recommender = model
    rng = np.random.default_rng(4)
    for n in range(300):
        session = int(rng.integers(40))
        user = f"u{session % 30}" if session % 2 else None
        world.log.click(f"k{n}", n * 1000, f"s{session}", f"g{session % 2}-{rng.integers(5)}", user)
    worker = world.worker()
    worker.settings = replace(worker.settings, ab=ab, worker=replace(worker.settings.worker, recommendations_k=5))
    worker.pipeline.stations[1].lane = RecommendLane(worker.settings)
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
