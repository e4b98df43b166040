"""What is decided when models, time or reasons are missing, rung by rung: each says so and is counted."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from features.scoring import Thresholds
from stream.deciding import Decided
from stream.fallback import DEGRADED, Fallback, Scored
from stream.settings import WorkerSettings
from tests.fakes import FakeFraud, FakeWorker, World

Floats = NDArray[np.float64]


class Raising(FakeFraud):
    """A supervised model that raises at every batch with an amount of 13; the other model is well."""

    def score_many(self, x: Floats, beside: object = None) -> tuple[Floats, Floats]:
        """As FraudModel."""
        return self.probability_many(x), self.anomaly_many(x)

    def probability_many(self, x: Floats) -> Floats:
        """As FraudModel."""
        if (x[:, 0] == 13.0).any():
            raise FloatingPointError("a damaged tree")
        return np.full(len(x), 0.1)

    def anomaly_many(self, x: Floats) -> Floats:
        """As FraudModel: unusual is an amount from 90 on."""
        return np.where(x[:, 0] >= 90.0, 0.999, 0.2)


class Silly(Raising):
    """Its score of an amount of 13 is not a number."""

    def probability_many(self, x: Floats) -> Floats:
        """As FraudModel."""
        return np.where(x[:, 0] == 13.0, np.nan, 0.1)


class Broken(Raising):
    """Neither model works."""

    def probability_many(self, x: Floats) -> Floats:
        """As FraudModel."""
        raise FloatingPointError("damaged")

    def anomaly_many(self, x: Floats) -> Floats:
        """As FraudModel."""
        raise FloatingPointError("damaged as well")


class Unexplained(FakeFraud):
    """Scores, and raises when it is asked why."""

    def reasons_many(self, rows: Floats) -> Any:
        """As FraudModel."""
        raise FloatingPointError("damaged")


class Hanging(Raising):
    """Its trees wait for ``go``; what each call saw is in ``asked``."""

    thresholds = Thresholds(0.0, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.asked = 0

    def probability_many(self, x: Floats) -> Floats:
        """As FraudModel."""
        self.asked += 1
        self.go.wait(60)
        return np.full(len(x), 0.3)


def decided(model: Any, amounts: list[float], **settings: Any) -> tuple[World, FakeWorker]:
    """A world with a payment of each amount, decided by this model."""

    async def run() -> tuple[World, FakeWorker]:
        world = World()
        for i, amount in enumerate(amounts):
            world.log.pay(f"e{i}", i * 1000, amount=amount)
        worker = world.worker(**settings)
        worker.models.fraud = model
        await worker.take_over()
        await worker.finish()
        return world, worker

    return asyncio.run(run())


def counted(worker: FakeWorker) -> dict[str, float]:
    (family,) = worker.pipeline._metrics.fallbacks.collect()
    return {f"{s.labels['rung']}:{s.labels['why']}": s.value for s in family.samples if s.name.endswith("_total")}


def told(world: World, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(decision[name] for name in names) for decision in world.answers("decisions")]


def test_without_models_the_default_action_is_taken_and_every_decision_says_so() -> None:
    world, worker = decided(None, [5.0, 13.0, 95.0], without_model="rules", default_action="review")
    fields = ("action", "degraded", "score", "anomaly", "review_score", "reasons_partial")
    assert told(world, *fields) == [("review", "default_action:missing", 0.0, 0.0, None, True)] * 3
    assert counted(worker) == {"default_action:missing": 3}
    assert all(len(alert["reasons"]) >= 1 for alert in world.answers("alerts")) and len(world.answers("alerts")) == 3


def test_a_model_that_raises_costs_only_its_own_rows_their_scores() -> None:
    world, worker = decided(Raising(), [5.0, 13.0, 95.0], without_model="rules")
    assert told(world, "action", "degraded", "score", "anomaly") == [
        ("allow", None, 0.1, 0.2), ("allow", "without_model:failed", 0.0, 0.2), ("allow", None, 0.1, 0.999),
    ]  # fmt: skip
    assert counted(worker) == {"without_model:failed": 1}
    assert not world.answers("dead-letters")


def test_a_score_that_is_no_number_is_none() -> None:
    world, worker = decided(Silly(), [5.0, 13.0], without_model="rules")
    assert told(world, "degraded", "score", "review_score") == [(None, 0.1, 0.5), ("without_model:failed", 0.0, None)]
    assert counted(worker) == {"without_model:failed": 1}


@pytest.mark.parametrize("model", [Raising, Silly])
def test_unless_told_otherwise_a_record_that_breaks_the_model_is_set_aside(model: type[FakeFraud]) -> None:
    world, worker = decided(model(), [5.0, 13.0, 95.0])
    assert told(world, "event_id", "degraded") == [("e0", None), ("e2", None)]
    assert [letter["reason"] for letter in world.answers("dead-letters")] == ["internal"]
    assert counted(worker) == {}


def test_what_is_unusual_is_reviewed_when_there_is_no_score() -> None:
    class OnlyAnomaly(Raising):
        def probability_many(self, x: Floats) -> Floats:
            raise FloatingPointError("damaged")

    world, worker = decided(OnlyAnomaly(), [5.0, 95.0], without_model="rules", default_action="block")
    assert told(world, "action", "degraded") == [
        ("allow", "without_model:failed"), ("review", "without_model:failed"),
    ]  # fmt: skip
    (alert,) = world.answers("alerts")
    assert alert["reasons_partial"] and alert["reasons"] and alert["degraded"] == "without_model:failed"
    assert counted(worker) == {"without_model:failed": 2}


def test_when_neither_model_works_it_is_the_default_action() -> None:
    world, worker = decided(Broken(), [5.0, 95.0], without_model="rules", default_action="block")
    assert told(world, "action", "degraded") == [("block", "default_action:failed")] * 2
    assert counted(worker) == {"default_action:failed": 2}


def test_a_rule_that_counts_takes_the_place_of_the_default() -> None:
    fallback = Fallback(WorkerSettings(without_model="rules"))
    scored = fallback.score(np.zeros((3, 2)), None, None, 0.0)
    action = np.zeros(3, np.int8)
    fallback.act(scored, action)
    hits = np.array([[True, False], [False, True], [False, False]])
    found = Decided(scored.score, scored.anomaly, action, np.zeros(3), scored.degraded, hits, ("counts", "watches"),
                    np.array([False, True]))  # fmt: skip
    fallback.settle(scored, found.ruled)
    assert [DEGRADED[code] for code in found.degraded] == [
        "without_model:missing", "default_action:missing", "default_action:missing",
    ]  # fmt: skip
    assert not np.isnan(scored.score).any() and not np.isnan(scored.anomaly).any()


def test_scoring_that_takes_too_long_is_left_alone_and_used_again_when_it_has_come_back() -> None:
    async def run() -> None:
        world, model = World(), Hanging()
        worker = world.worker(score_deadline_ms=60_000.0)
        worker.models.fraud = model
        fallback = worker.pipeline.stations[0].lane._policy.fallback  # type: ignore[attr-defined]
        await worker.take_over()

        async def next_one() -> tuple[Any, ...]:
            n = len(world.answers("decisions"))
            world.log.pay(f"e{n}", n * 1000, amount=95.0)
            await worker.finish()
            return told(world, "action", "degraded", "score")[-1]

        fallback._deadline_s = 0.001
        assert await next_one() == ("review", "without_model:deadline", 0.0)
        assert await next_one() == ("review", "without_model:deadline", 0.0)
        assert model.asked <= 1  # no second call while the first one hangs
        model.go.set()
        late = fallback._late
        if late is not None:
            late.result(60)
        fallback._deadline_s = 60.0
        assert await next_one() == ("review", None, 0.3)
        assert counted(worker) == {"without_model:deadline": 2}

    asyncio.run(run())


def test_after_the_deadline_scores_are_used_and_reasons_left_out() -> None:
    class Scores(FakeFraud):
        thresholds = Thresholds(0.0, 0.9)

        def probability_many(self, x: Floats) -> Floats:
            return np.full(len(x), 0.5)

    class Late(Fallback):
        """The scores come back in time, and then the deadline passes at once."""

        def score(self, *args: Any) -> Scored:
            scored = super().score(*args)
            self._deadline_s = 0.0
            return scored

    async def run() -> tuple[World, FakeWorker]:
        world = World()
        world.log.pay("e0", 0, amount=5.0)
        worker = world.worker(score_deadline_ms=60_000.0)
        worker.models.fraud = Scores()
        worker.pipeline.stations[0].lane._policy.fallback.__class__ = Late  # type: ignore[attr-defined]
        await worker.take_over()
        await worker.finish()
        return world, worker

    world, worker = asyncio.run(run())
    (decision,), (alert,) = world.answers("decisions"), world.answers("alerts")
    assert (decision["degraded"], decision["score"], decision["action"]) == ("without_reasons:deadline", 0.5, "review")
    assert decision["reasons"] == alert["reasons"] == []
    assert decision["reasons_partial"] and decision["review_score"] == 0.0
    assert counted(worker) == {"without_reasons:deadline": 1}


def test_reasons_that_cannot_be_made_hold_nothing_up() -> None:
    world, worker = decided(Unexplained(), [float(a) for a in range(20)], without_model="rules")
    alerts = world.answers("alerts")
    assert alerts and all((a["degraded"], a["reasons"]) == ("without_reasons:failed", []) for a in alerts)
    by_action = Counter(decision["action"] == "allow" for decision in world.answers("decisions"))
    assert by_action[True] and by_action[False] == len(alerts)
    assert {d["degraded"] for d in world.answers("decisions") if d["action"] == "allow"} == {None}
    assert counted(worker) == {"without_reasons:failed": len(alerts)}


def test_no_rows_need_no_model() -> None:
    found = Fallback(WorkerSettings()).score(np.zeros((0, 4)), None, None, 0.0)
    assert len(found.score) == len(found.degraded) == 0
