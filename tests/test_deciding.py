"""What a decision says about how it was made, and that a takeover lets it stand."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest

from features.errors import ServiceUnavailable
from features.messages import Decision
from features.scoring import Thresholds, by_thresholds
from stream.deciding import Decided, Policy
from stream.explaining import _trailing
from stream.settings import WorkerSettings
from tests.fakes import SCHEMA, FakeFraud, World
from tests.test_cycle import filled, uninterrupted
from trainer import acting


def test_every_decision_and_alert_says_which_review_threshold_was_in_force() -> None:
    world = asyncio.run(uninterrupted(filled(count=60)))
    for topic in ("decisions", "alerts"):
        answers = world.answers(topic)
        assert answers and {answer["review_score"] for answer in answers} == {0.5}
        assert all((answer["action"] != "allow") == (answer["score"] >= 0.5) for answer in answers)
        plain: dict[str, Any] = {"rules": [], "shadow_rules": [], "rules_version": None, "degraded": None,
                                 "reasons_partial": False}  # fmt: skip
        assert all({name: answer[name] for name in plain} == plain for answer in answers)


def test_what_was_decided_stands_after_a_takeover_by_a_worker_that_would_decide_otherwise() -> None:
    async def run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        world = World()
        for i in range(40):
            world.log.pay(f"e{i}", i * 1000, amount=float(i))
        first = world.worker()
        await first.take_over()
        first.publisher.fault = "half written"  # of decisions and alerts, one was sent and not the other
        with pytest.raises(ServiceUnavailable):
            await first.settle(1000)
        emitted = world.answers("alerts")
        assert emitted and not world.answers("decisions")
        second = world.worker(shift=0.3)
        object.__setattr__(second.settings.worker, "review_score", 0.01)
        await second.take_over()
        await second.finish()
        return emitted, world.answers("decisions")

    emitted, answers = asyncio.run(run())
    decisions = {decision["decision_id"]: decision for decision in answers}
    for alert in emitted:
        decision = decisions.pop(alert["decision_id"])
        same = alert.keys() & decision.keys() - {"reasons"}
        assert {name: alert[name] for name in same} == {name: decision[name] for name in same}
        assert decision["review_score"] == 0.5
    assert decisions and {decision["review_score"] for decision in decisions.values()} == {0.01}


def test_each_decision_has_the_names_of_its_own_rules() -> None:
    n, names = 6, ("far", "night", "test")
    hits = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]], np.bool_)
    decided = Decided(np.zeros(n), np.zeros(n), np.zeros(n, np.int8), np.zeros(n), np.zeros(n, np.int8), hits, names,
                      np.array([False, False, True]))  # fmt: skip
    tails, which = _trailing(decided, slice(1, 6))
    assert which is not None and len(tails) == 4
    start = (b'{"decision_id":"d","event_id":"e","key":"k","event_time":1,"score":0,"anomaly":0,"action":"allow",'
             b'"reasons":[],"model_version":"1","label_position":0,"duplicate":false,"review_score":null')  # fmt: skip
    told = [msgspec.json.decode(start + tails[w], type=Decision) for w in which]
    assert [decision.rules for decision in told] == [[], ["far"], [], ["far", "night"], []]
    assert [decision.shadow_rules for decision in told] == [[], ["test"], ["test"], ["test"], []]
    assert decided.names(4, watching=False) == ["far", "night"] and decided.names(1, watching=True) == []


def test_worker_and_backtest_compare_with_the_thresholds_that_they_publish() -> None:
    model = FakeFraud()
    model.thresholds = Thresholds(0.12345649, 0.98765449)
    published = (0.123456, 0.987654)
    assert Policy(WorkerSettings(), SCHEMA.transactions).thresholds(model) == published  # type: ignore[arg-type]
    score, none = np.array([0.123455, *published]), np.zeros(3, np.int64)
    facts = acting.Facts(none, none, np.zeros(3), np.zeros(3, np.int8))
    action, in_force = acting.Policy(acting.PolicySettings()).act(score, model.thresholds, "1", facts)
    assert action.tolist() == [0, 1, 2] and set(in_force.tolist()) == {published[0]}


def test_a_backtest_blocks_below_the_review_threshold_where_a_worker_does() -> None:
    score = np.array([0.1, 0.3, 0.6])
    settings = acting.PolicySettings(review_score=0.5, block_score=0.2)
    facts = acting.Facts(np.zeros(3, np.int64), np.arange(3), np.zeros(3), np.zeros(3, np.int8))
    action, _ = acting.Policy(settings).act(score, Thresholds(0.5, 0.8), "1", facts)
    worker = Policy(WorkerSettings(review_score=0.5, block_score=0.2), SCHEMA.transactions)
    review, block = worker.thresholds(FakeFraud())  # type: ignore[arg-type]
    assert action.tolist() == by_thresholds(score, review, block).tolist() == [0, 2, 2]
