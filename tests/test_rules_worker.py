"""Rules in a worker: what they make of decisions, what a takeover keeps, hot reload, and what is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from features.catalogue import build_catalogue
from features.errors import ServiceUnavailable, SettingsError
from features.rule_program import text_hash
from stream.metrics import Metrics
from stream.rules import RulesHolder
from tests.fakes import SCHEMA, START_MS, World

_CATALOGUE = build_catalogue(SCHEMA.transactions)
_LISTS = "[lists]\nstolen = 'card'\n"


def _rule(name: str, when: str, action: str = "block", more: str = "") -> str:
    return f"[[rule]]\nname = '{name}'\nwhen = \"{when}\"\naction = '{action}'\nreason = 'because of {name}'\n{more}\n"


def _holder(folder: Path, text: str, metrics: Metrics | None = None) -> RulesHolder:
    file = folder / "rules.toml"
    file.write_text(text)
    return RulesHolder(file, _CATALOGUE, metrics or Metrics())


def _served(metrics: Metrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("headrace_rule"))
    return {name: float(value) for name, value in pairs if "_created" not in name}


async def _decided(world: World, holder: RulesHolder, **options: Any) -> dict[str, float]:
    worker = world.worker(rules=holder, **options)
    await worker.take_over()
    await worker.finish()
    return _served(worker.metrics)


def _pay(world: World, count: int = 30) -> None:
    for i in range(count):
        world.log.pay(f"e{i}", i * 1000, card=f"c{i % 3}", amount=float(i))


def test_rules_change_actions_and_every_hit_is_in_the_decision(tmp_path: Path) -> None:
    rules = (
        _rule("high", "amount >= 20")
        + _rule("third", "card == 'c2' and amount < 20", "allow")
        + _rule("trial", "amount < 5 and merchant == 'm'", "block", "shadow = true")
    )
    plain, ruled = World(), World()
    for world in (plain, ruled):
        _pay(world)

    async def run() -> None:
        worker = plain.worker()
        await worker.take_over()
        await worker.finish()
        _ = await _decided(ruled, _holder(tmp_path, rules))

    asyncio.run(run())
    before = {decision["event_id"]: decision for decision in plain.answers("decisions")}
    for decision in ruled.answers("decisions"):
        number, was = int(decision["event_id"][1:]), before[decision["event_id"]]
        high, third = number >= 20, number % 3 == 2 and number < 20
        assert decision["rules"] == ["high"] * high + ["third"] * third
        assert decision["shadow_rules"] == ["trial"] * (number < 5)
        assert decision["score"] == was["score"]
        assert decision["action"] == ("block" if high else "allow" if third else was["action"])
    alerts = {alert["event_id"]: alert for alert in ruled.answers("alerts")}
    assert set(alerts) == {d["event_id"] for d in ruled.answers("decisions") if d["action"] != "allow"}
    reason = alerts["e25"]["reasons"][0]
    assert (reason["code"], reason["text"], reason["contribution"]) == ("rule:high", "because of high", None)
    (decision,) = [d for d in ruled.answers("decisions") if d["event_id"] == "e25"]
    assert decision["reasons"][0] == "because of high" and len(decision["reasons"]) > 1


def test_the_same_rules_hit_the_same_however_a_stream_is_cut_into_cycles(tmp_path: Path) -> None:
    rules = _rule("burst", "card_count_1h >= 2 and amount > 3") + _rule(
        "trial", "score < anomaly", more="shadow = true"
    )
    told = []
    for counts in (1_000_000, 1):
        world = World()
        _pay(world)

        async def run(world: World = world, counts: int = counts) -> None:
            worker = world.worker(rules=_holder(tmp_path, rules))
            await worker.take_over()
            await worker.finish(counts)

        asyncio.run(run())
        told.append(world.answers("decisions"))
    assert told[0] == told[1] and any(decision["rules"] for decision in told[0])


def test_a_repeat_keeps_the_action_of_the_first_and_counts_for_no_rule(tmp_path: Path) -> None:
    async def run() -> tuple[list[dict[str, Any]], dict[str, float]]:
        world = World()
        world.log.pay("a", 0)
        world.log.pay("a", 0)
        served = await _decided(world, _holder(tmp_path, _rule("all", "true or amount > 0")))
        return world.answers("decisions"), served

    (first, second), served = asyncio.run(run())
    assert first["action"] == second["action"] == "block" and second["duplicate"]
    assert first["rules"] == second["rules"] == ["all"]
    assert served['headrace_rule_hits_total{partition="0",rule="all",shadow="no"}'] == 1


def test_what_was_said_before_a_crash_stands_with_its_rules(tmp_path: Path) -> None:
    async def run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        world = World()
        _pay(world)
        first = world.worker(rules=_holder(tmp_path, _rule("old", "amount >= 10")))
        await first.take_over()
        first.publisher.fault = "half written"  # of decisions and alerts, one was sent and not the other
        with pytest.raises(ServiceUnavailable):
            await first.settle(1000)
        emitted = world.answers("alerts")
        assert emitted and not world.answers("decisions")
        _ = await _decided(world, _holder(tmp_path, _rule("new", "amount >= 0", "allow")))
        return emitted, world.answers("decisions")

    emitted, answers = asyncio.run(run())
    decisions = {decision["decision_id"]: decision for decision in answers}
    assert any(alert["rules"] for alert in emitted)
    for alert in emitted:
        decision = decisions.pop(alert["decision_id"])
        assert (decision["action"], decision["rules"]) == (alert["action"], alert["rules"])
    assert {(d["action"], *d["rules"]) for d in decisions.values()} == {("allow", "new")}


def test_labels_say_how_precise_each_rule_is(tmp_path: Path) -> None:
    async def run() -> dict[str, float]:
        world = World()
        _pay(world)
        for i in range(30):
            world.log.judge(f"e{i}", 60_000 + i, fraud=i >= 25, card=f"c{i % 3}")
        world.log.judge("e29", 70_000, fraud=False, card="c2")  # a correction: the first verdict is counted
        world.log.judge("unknown", 70_001, fraud=True, card="c2")
        rules = _rule("high", "amount >= 20") + _rule("trial", "amount >= 25", "allow", "shadow = true")
        worker = world.worker(rules=_holder(tmp_path, rules))
        await worker.take_over()
        while await worker.fetch({"transactions": 10}):
            await worker.settle()
            if worker.positions["transactions", 0] == 30:
                break
        await worker.finish()
        return _served(worker.metrics)

    served = asyncio.run(run())
    assert served == {
        'headrace_rule_hits_total{partition="0",rule="high",shadow="no"}': 10.0,
        'headrace_rule_hits_total{partition="0",rule="trial",shadow="yes"}': 5.0,
        'headrace_rule_labels_total{fraud="no",partition="0",rule="high",shadow="no"}': 5.0,
        'headrace_rule_labels_total{fraud="yes",partition="0",rule="high",shadow="no"}': 5.0,
        'headrace_rule_labels_total{fraud="no",partition="0",rule="trial",shadow="yes"}': 0.0,
        'headrace_rule_labels_total{fraud="yes",partition="0",rule="trial",shadow="yes"}': 5.0,
        "headrace_rules_refusals_total": 0.0,
    }


def test_a_changed_file_is_used_and_a_broken_one_is_told_once_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    holder = _holder(tmp_path, _rule("one", "amount > 1"), metrics)
    file, first = tmp_path / "rules.toml", holder.current.rules.version

    def look() -> None:
        for _ in range(3):
            asyncio.run(holder.look())

    def replace(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        _ = fresh.replace(file)
        look()

    replace(_rule("one", "amuont > 1"))
    assert holder.current.rules.version == first
    assert caplog.text.count("did you mean amount") == 1 and f"version {first} stays in use" in caplog.text
    file.unlink()
    look()
    assert holder.current.rules.version == first
    replace(_rule("two", "amount > 1"))
    assert holder.current.rules.names == ["two"]
    served = _served(metrics)
    assert served[f'headrace_rules_info{{version="{holder.current.rules.version}"}}'] == 1
    assert served["headrace_rules_refusals_total"] == 2
    assert sum(name.startswith("headrace_rules_info") for name in served) == 1


def test_a_worker_does_not_start_with_rules_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="line|1:1|expected"):
        _holder(tmp_path, "[[rule]]\n")
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        RulesHolder(tmp_path / "none.toml", _CATALOGUE, Metrics())


def test_lists_hold_until_their_end_in_event_time_and_stay_over_a_change_of_the_rules(tmp_path: Path) -> None:
    async def run() -> list[dict[str, Any]]:
        world = World()
        _pay(world)
        metrics = Metrics()
        holder = _holder(tmp_path, _LISTS + _rule("stolen", "card in stolen"), metrics)
        await holder.use_lists({"stolen": {text_hash("c1"): START_MS + 10_000}})
        (tmp_path / "rules.toml").write_text(_LISTS + 'trusted = "card"\n' + _rule("is-stolen", "card_id in stolen"))
        for _ in range(2):
            await holder.look()
        ids = {name.split('"')[1]: count for name, count in _served(metrics).items() if "list" in name and '"' in name}
        assert (ids["stolen"], ids["trusted"]) == (1.0, 0.0), "a new file's lists are counted at once"
        _ = await _decided(world, holder)
        return world.answers("decisions")

    hit = {decision["event_id"] for decision in asyncio.run(run()) if decision["rules"] == ["is-stolen"]}
    assert hit == {"e1", "e4", "e7"}
