"""The checks of the chaos suite themselves: they agree with a worker that nothing happens to, and they can fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from chaos import mutations
from chaos.check import Allowed, Evidence, check
from chaos.fold import kinds_of
from chaos.naive_budget import FIELDS
from chaos.plain import read_plain
from chaos.registry import faults
from chaos.traffic import Source
from stream.settings import TopicSettings
from tests.fakes import SCHEMA, FakeRecord, World

TOPICS = TopicSettings(transaction_partitions=2, click_partitions=2)
OUTPUTS = {"decisions": "decisions", "alerts": "alerts", "recommendations": "recommendations",
           "dead_letters": "dead-letters"}  # fmt: skip


def evidence(cases_per_day: int = 0, transactions: int = 600) -> Evidence:
    """What a worker without servers leaves behind, fed with traffic of the suite."""
    world, source = World(partitions=2), Source(Random(3), cards=12, merchants=5, sessions=7)
    world.policy = {"cases_per_day": cases_per_day} if cases_per_day else {}
    for item in source.draw(transactions, 150):
        world.log.append(item.topic, item.key.decode(), item.value)
    for found in world.log.records.values():
        found[:] = [record._replace(timestamp=source.now_ms) for record in found]

    async def run() -> None:
        worker = world.worker()
        await worker.take_over()
        await worker.finish(50)

    asyncio.run(run())
    records: dict[str, list[Any]] = {
        role: [r for (topic, _), found in sorted(world.log.records.items()) if topic == role for r in found]
        for role in ("transactions", "labels", "clicks")
    }
    for role, name in OUTPUTS.items():
        records[role] = [FakeRecord(name, p, n, key, value, 0)
                         for (topic, p), found in sorted(world.outputs.items()) if topic == name
                         for n, (key, value) in enumerate(found)]  # fmt: skip
    ends = {target: len(found) for target, found in world.log.records.items()}
    heads = {(lane, p): json.loads(held[b"@"]) for lane, found in world.hashes.items() for p, held in found.items()}
    applied = {(t, p): offset for (_, p), head in heads.items() for t, offset in head["offsets"].items()}
    fields = {lane: {p: {name: value for name, value in held.items() if not name.startswith(b"@")}
                     for p, held in found.items()} for lane, found in world.state().items()}  # fmt: skip
    budgets = {p: [held.get(name) for name in FIELDS] for p, held in world.hashes["fraud"].items()}
    return Evidence(SCHEMA.transactions, TOPICS, records, ends, applied, fields, source.spent,
                    cases_per_day=cases_per_day / 2, budgets=budgets)  # fmt: skip


def test_a_worker_that_nothing_happens_to_passes_and_every_kind_of_answer_is_there() -> None:
    found = evidence()
    assert check(found, Allowed()).violations == []
    assert all(len(found.records[role]) > 3 for role in (*OUTPUTS, "labels"))
    assert any(json.loads(r.value)["action"] == "allow" for r in found.records["decisions"])


def test_the_alert_budget_is_the_same_to_the_bit_and_what_is_not_is_told() -> None:
    found = evidence(cases_per_day=8, transactions=3000)  # over two midnights
    assert check(found, Allowed()).violations == []
    assert len({json.loads(record.value)["review_score"] for record in found.records["decisions"]}) > 50
    first, hours, cards = found.budgets[1]
    assert first is not None
    found.budgets = {**found.budgets, 1: (first[:17] + bytes([first[17] ^ 1]) + first[18:], hours, cards)}
    for n, record in enumerate(found.records["decisions"]):
        message = json.loads(record.value)
        if message["decision_id"].startswith("transactions:0:") and message["action"] == "allow":
            value = json.dumps(message | {"review_score": 0.123456}).encode()
            found.records["decisions"][n] = record._replace(value=value)
    violations = check(found, Allowed()).violations
    assert any("partition 1: @budget: cases is" in text for text in violations), violations
    assert any("names the threshold 0.123456" in text for text in violations), violations


def test_the_plain_reader_finds_newest_labels_levels_and_what_is_usual() -> None:
    found = evidence()
    shapes = {kind.name: kind.shape for kind in kinds_of(SCHEMA.transactions)}
    rows = [read_plain(value, shapes[name.decode().split(":")[0]])
            for fields in found.fields["fraud"].values() for name, value in fields.items()]  # fmt: skip
    assert any(fraud and level for row in rows for _, fraud, level in row.latest)
    assert any(len(row.latest) > 2 for row in rows)
    assert any(unusual for row in rows for _, _, _, unusual in row.usual)


def _lose(role: str) -> Callable[[Evidence], None]:
    return lambda found: found.records[role].pop(2)


def _repeat(role: str) -> Callable[[Evidence], None]:
    return lambda found: found.records[role].append(found.records[role][1])


def _contradict(found: Evidence) -> None:
    record = found.records["decisions"][0]
    message = json.loads(record.value) | {"score": 0.123456}
    found.records["decisions"].append(record._replace(value=json.dumps(message).encode()))


def _lag(found: Evidence) -> None:
    found.applied["labels", 1] -= 1


def _swap_rows(found: Evidence) -> None:
    held = found.fields["fraud"][0]
    cards = [name for name in held if name.startswith(b"card:")]
    held[cards[0]], held[cards[1]] = held[cards[1]], held[cards[0]]


def _forget_a_row(found: Evidence) -> None:
    del found.fields["fraud"][1][next(name for name in found.fields["fraud"][1] if name.startswith(b"merchant:"))]


def _forget_a_session(found: Evidence) -> None:
    del found.fields["recommend"][1][next(iter(found.fields["recommend"][1]))]


def _see_out_of_order(found: Evidence) -> None:
    record = found.records["alerts"][-1]
    message = json.loads(record.value)
    message["values"]["card_count_30d"] += 1
    found.records["alerts"][-1] = record._replace(value=json.dumps(message).encode())


def _lose_an_input_that_was_sent(found: Evidence) -> None:
    found.spent = dict(found.spent) | {"card-0": (10**6, 1.0)}


@pytest.mark.parametrize(("rule", "spoil"), [
    ("I1", _lag), ("I1", _swap_rows), ("I1", _forget_a_row), ("I1", _forget_a_session),
    ("I1", _lose_an_input_that_was_sent), ("I2", _lose("decisions")), ("I2", _lose("alerts")),
    ("I2", _lose("recommendations")), ("I2", _lose("dead_letters")), ("I3", _contradict), ("I3", _repeat("decisions")),
    ("I3", _repeat("alerts")), ("I3", _repeat("recommendations")), ("I3", _repeat("dead_letters")),
    ("I4", _see_out_of_order), ("I5", _lose("transactions")), ("I5", _lose("clicks")),
])  # fmt: skip
def test_each_invariant_can_be_violated(rule: str, spoil: Callable[[Evidence], None]) -> None:
    found = evidence()
    spoil(found)
    violations = check(found, Allowed()).violations
    assert any(text.startswith(rule) for text in violations), violations


def test_only_a_zombie_may_contradict_and_with_one_partition_only_with_another_label_position() -> None:
    found = evidence()
    _contradict(found)
    assert check(found, Allowed(zombies=True, duplicates_max=1)).violations == []
    assert check(found, Allowed(zombies=True, duplicates_max=1, one_partition=True)).violations


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_still_applies_and_names_a_fault(mutation: mutations.Mutation) -> None:
    assert mutation.fault in faults()
    for file, old, _ in mutation.edits:
        assert (mutations.ROOT / file).read_text(encoding="utf-8").count(old) == 1, f"{file}: {old}"
