"""A sample of the decisions carries the feature values behind them, always the same ones, and changes nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.fakes import World
from tests.test_cycle import facts, filled, uninterrupted


def decided(sample: float) -> tuple[World, dict[str, dict[str, Any]], dict[str, Any]]:
    """The world after all its input, its decisions without their values by id, and the values by id."""
    world = asyncio.run(uninterrupted(filled(3), sample=sample))
    decisions = {decision["decision_id"]: decision for decision in world.answers("decisions")}
    values = {id_: decision.pop("values") for id_, decision in decisions.items() if "values" in decision}
    return world, decisions, values


def test_about_the_share_of_event_ids_carries_its_vector_and_nothing_else_changes() -> None:
    plain, decisions, none = decided(0.0)
    world, sampled, values = decided(0.4)
    _, _, everything = decided(1.0)
    assert sampled == decisions and none == {} and everything.keys() == decisions.keys()
    assert facts(world, "alerts", "dead-letters") == facts(plain, "alerts", "dead-letters")
    assert 0.25 * len(decisions) < len(values) < 0.55 * len(decisions)
    assert values == {id_: everything[id_] for id_ in values}
    carrying = {decisions[id_]["event_id"] for id_ in values}
    assert carrying.isdisjoint(decision["event_id"] for id_, decision in decisions.items() if id_ not in values)
    alerts = {alert["decision_id"]: alert["values"] for alert in world.answers("alerts")}
    assert alerts.keys() & values.keys()
    assert all(alerts[id_] == values[id_] for id_ in alerts.keys() & values.keys())
