"""The alert budget in a worker: decisions, state and takeovers, without servers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from redis import Redis

from features.budget import FIELDS, Budget
from features.catalogue import build_catalogue
from features.errors import SettingsError
from stream.deciding import amount_column
from stream.embedded import Broker, RedisServer
from stream.metrics import Metrics
from stream.rules import RulesHolder
from stream.settings import WorkerSettings, load_settings
from stream.store import HEAD
from tests.fakes import SCHEMA, START_MS, FakeFraud, World
from tests.servers import RunningBroker, produce
from tests.test_cycle import facts, filled, uninterrupted
from tests.test_rebuilt_state import LANES, Servers, make_anew, snapshot
from tests.test_takeovers import stormy
from tests.workers import Deployment, wait_until
from tests.world import World as TrainedWorld

DAY_MS = 86_400_000


def budgeted(partitions: int = 1, n: int = 6, count: int = 200, seed: int = 1) -> World:
    """A world of some hours whose workers alert ``n`` cards a day."""
    world = filled(partitions, count, seed)
    world.policy = {"cases_per_day": n}
    return world


def days(cards: int, a_day: int, count: int, partitions: int) -> World:
    """A world of some days, whose amounts are the scores."""
    world, rng = World(partitions), random.Random(1)
    for i in range(a_day * count):
        world.log.pay(f"e{i}", i * DAY_MS // a_day, f"card-{rng.randrange(cards)}", "m", rng.random() ** 3)
    return world


class Amounts(FakeFraud):
    """The amount is the score, or a third of its odds."""

    def __init__(self, names: Sequence[str], odds: float = 1.0) -> None:
        super().__init__()
        self.column, self.odds = names.index("event_amount"), odds

    def score_many(self, x: Any, beside: object = None) -> tuple[Any, Any]:
        """As FraudModel."""
        p = x[:, self.column]
        return p * self.odds / (1.0 - p + p * self.odds), np.zeros(len(x))


@pytest.mark.parametrize("counts", [1, 13])
def test_fetches_of_any_size_give_the_same_decisions_and_thresholds(counts: int) -> None:
    async def run() -> None:
        whole = await uninterrupted(budgeted())
        world = budgeted()
        worker = world.worker(in_flight=3)
        worker.stores["fraud"].pause = 3
        await worker.take_over()
        await worker.finish(counts)
        assert facts(world) == facts(whole) and world.state() == whole.state()
        assert len({decision["review_score"] for decision in world.answers("decisions")}) > 10
        assert set(FIELDS) <= world.hashes["fraud"][0].keys()

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(6))
def test_after_any_history_of_faults_and_models_a_rebuilding_comes_to_the_same_budget(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, world = random.Random(seed), budgeted(1 + seed % 3, 8, seed=seed)
    servers = Servers(world, monkeypatch)

    async def story() -> None:
        await stormy(world, rng)
        before, servers.committed = snapshot(world)
        for lane in LANES:
            world.hashes[lane].clear()
        await make_anew(world, world.worker())
        assert snapshot(world) == (before, servers.committed)

    asyncio.run(story())
    assert any(FIELDS[0] in held for held in world.hashes["fraud"].values())


def _alerted(world: World) -> list[int]:
    found: dict[int, set[str]] = {}
    midnight = START_MS // DAY_MS * DAY_MS
    for decision in world.answers("decisions"):
        if decision["action"] != "allow":
            found.setdefault((decision["event_time"] - midnight) // DAY_MS, set()).add(decision["key"])
    return [len(found.get(day, ())) for day in range(max(found) + 1)]


def test_partitions_share_it_a_restart_and_new_models_leave_it_and_the_worker_says_where_it_stands() -> None:
    world = days(400, 1200, 6, partitions=2)
    world.policy = {"cases_per_day": 40}

    async def run() -> Any:
        worker = world.worker()
        for version, odds in ((1, 1.0), (2, 1 / 3), (3, 1 / 3)):
            if version == 3:  # as after a crash: nothing is in memory
                worker = world.worker()
            fraud = Amounts(worker.pipeline.stations[0].lane.catalogue.names, odds)  # type: ignore[attr-defined]
            worker.pipeline.models = SimpleNamespace(
                current=SimpleNamespace(version=f"{version:06d}", fraud=fraud, recommender=world.recommender)
            )
            if version != 2:
                await worker.take_over()
            for _ in range(40):
                await worker.settle(30)
        await worker.finish()
        return worker.pipeline._metrics.registry

    registry = asyncio.run(run())
    cases = _alerted(world)
    assert all(cards <= 60 for cards in cases[1:]) and 36 <= np.mean(cases[1:6]) <= 44, cases
    for partition in range(2):
        budget = Budget(20, [world.hashes["fraud"][partition].get(name) for name in FIELDS])
        labels = {"partition": str(partition)}
        assert registry.get_sample_value("headrace_cases_today", labels) == budget.cases
        assert registry.get_sample_value("headrace_review_threshold", labels) == budget.threshold


def test_without_the_setting_nothing_is_kept_and_the_models_thresholds_hold() -> None:
    world = asyncio.run(uninterrupted(filled()))
    assert not set(FIELDS) & world.hashes["fraud"][0].keys()
    assert {decision["review_score"] for decision in world.answers("decisions")} == {0.5}


def test_a_repeat_and_the_alerts_of_a_card_that_is_a_case_cost_nothing() -> None:
    world = World()
    world.policy = {"cases_per_day": 2}
    for i in range(300):
        world.log.pay(f"e{i % 250}", i * 60_000, "the card", "m", 0.9)

    async def run() -> None:
        worker = world.worker()
        fraud = Amounts(worker.pipeline.stations[0].lane.catalogue.names)  # type: ignore[attr-defined]
        worker.pipeline.models.current.fraud = fraud
        await worker.take_over()
        await worker.finish()

    asyncio.run(run())
    assert Budget(2, [world.hashes["fraud"][0].get(name) for name in FIELDS]).cases == 1
    assert all(decision["action"] == "block" for decision in world.answers("decisions"))


def test_with_costs_the_amount_decides_what_a_score_is_worth() -> None:
    world = filled()
    world.policy = {"cost_review": 5.0, "cost_block": 200.0}
    asyncio.run(uninterrupted(world))
    found = world.answers("decisions")
    assert {decision["action"] for decision in found} == {"allow", "review", "block"}
    for decision in world.answers("alerts"):
        if decision["duplicate"]:
            continue
        p, amount = decision["score"], decision["values"]["event_amount"]
        assert min(5.0, (1.0 - p) * 200.0) <= p * amount + 1e-6
        assert decision["review_score"] == pytest.approx(min(5.0 / amount, 200.0 / (amount + 200.0)), abs=1e-6)


@pytest.mark.parametrize(("given", "told"), [
    ({"cases_per_day": 9, "cost_block": 2.0}, "worker.cases_per_day = 9 and worker.cost_block = 2.0: expected one of"),
    ({"cases_per_day": 9, "review_score": 0.3}, "worker.review_score = 0.3: expected none with worker.cases_per_day"),
    ({"cost_review": 9.0, "block_score": 0.3}, "worker.block_score = 0.3: expected none with worker.cost_review"),
    ({"cost_amount": "amount"}, "worker.cost_amount = 'amount': expected worker.cost_review or worker.cost_block too"),
])  # fmt: skip
def test_two_policies_at_once_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        _ = load_settings(None, {}, {f"worker.{name}": value for name, value in given.items()})
    assert any(problem.startswith(told) for problem in refused.value.problems)


def test_the_amount_is_a_numeric_field_of_the_schema() -> None:
    assert amount_column(WorkerSettings(cost_block=1.0), SCHEMA.transactions) == 0
    with pytest.raises(SettingsError, match="worker.cost_amount = 'sum': expected a numeric field of the schema: amou"):
        _ = amount_column(WorkerSettings(cost_block=1.0, cost_amount="sum"), SCHEMA.transactions)


def test_rules_beside_a_budget_decide_first_and_what_they_alert_is_a_case(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(
        '[[rule]]\nname = "dear"\nwhen = "amount > 0.98"\naction = "review"\nreason = "dear"\n\n'
        '[[rule]]\nname = "night"\nwhen = "event_hour < 2"\naction = "allow"\npriority = 9\nreason = "night"\n'
    )
    world = days(200, 600, 4, partitions=1)
    world.policy = {"cases_per_day": 20}

    async def run() -> None:
        worker = world.worker(rules=RulesHolder(file, build_catalogue(SCHEMA.transactions), Metrics()))
        worker.pipeline.models.current.fraud = Amounts(build_catalogue(SCHEMA.transactions).names)
        await worker.take_over()
        await worker.finish(50)

    asyncio.run(run())
    found = world.answers("decisions")
    dear = [decision for decision in found if decision["rules"] == ["dear"]]
    assert dear and all(decision["action"] != "allow" for decision in dear)
    block = FakeFraud.thresholds.block
    for d in dear:  # by the threshold in force, not by the model's own for a review
        assert d["action"] == ("block" if d["score"] >= max(d["review_score"], block) else "review")
    night = [decision for decision in found if "night" in decision["rules"]]
    assert night and all(decision["action"] == "allow" for decision in night)
    cases = _alerted(world)
    assert 18 <= np.mean(cases[1:4]) <= 22, cases


def test_a_real_worker_goes_on_with_its_budget_after_it_was_killed(
    embedded_broker: Broker, redis_server: RedisServer, world: TrainedWorld, tmp_path: Path
) -> None:
    broker = RunningBroker("embedded", embedded_broker.bootstrap, idempotence=False)
    deployment = Deployment(broker, redis_server.url, world.schema, world.artifacts, tmp_path, partitions=1,
                            extra={"WORKER_CASES_PER_DAY": "5"})  # fmt: skip
    deployment.create()
    rng, held = random.Random(1), list[dict[bytes, bytes]]()
    for part in range(2):
        messages = [
            {"event_id": f"e{part}-{i}", "event_time": START_MS + (part * 200 + i) * 60_000, "merchant_id": "shop",
             "card_id": f"card-{rng.randrange(60)}", "amount": rng.randrange(1, 999)}
            for i in range(200)
        ]  # fmt: skip
        records = [(str(m["card_id"]).encode(), msgspec.json.encode(m)) for m in messages]
        asyncio.run(produce(broker.bootstrap, deployment.topics.transactions, records, timestamp_ms=START_MS + 10**9))
        worker = deployment.started(part + 1)
        deployment.wait_for({deployment.topics.decisions: 200 * (part + 1)})
        with Redis.from_url(redis_server.url) as redis:
            key = f"{deployment.name}:{{{deployment.name}:fraud:0}}"
            applied = b'"%s":%d' % (deployment.topics.transactions.encode(), 200 * (part + 1))
            wait_until(lambda: applied in (redis.hget(key, HEAD) or b""), "what was decided is applied")  # noqa: B023
            _ = worker.kill()
            held.append(redis.hgetall(key))
    decisions = deployment.decoded(deployment.topics.decisions)
    assert {FIELDS[0], FIELDS[1]} <= held[1].keys() and held[0][FIELDS[0]] != held[1][FIELDS[0]]
    assert len({decision["review_score"] for decision in decisions}) > 1
    alerted = {decision["key"] for decision in decisions if decision["action"] != "allow"}
    after = Budget(5, [held[1].get(field) for field in FIELDS])
    assert after.cases == len(alerted) <= 7  # all of it is one day: the second worker knows what the first has spent
