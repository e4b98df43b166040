"""What rules hit and how precise they are: the same after every crash, takeover and rebuilding, and bounded."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest
from typer.testing import CliRunner

from features.catalogue import build_catalogue
from features.errors import StateMismatch
from stream import rule_books
from stream.cli import app
from stream.connections import redis_client
from stream.embedded import RedisServer
from stream.metrics import Metrics
from stream.rule_books import FIELDS, RuleBook, RuleKey, Total, Totals, read_totals, summed
from stream.rules import RulesHolder
from stream.settings import RedisSettings
from stream.store import Head, StateStore, Write, encode_head
from tests.fakes import SCHEMA, FakeWorker, World
from tests.servers import fresh_name
from tests.test_cycle import filled
from tests.test_rebuilt_state import LANES, Servers, make_anew, snapshot
from tests.test_takeovers import stormy

_RULES = """
[[rule]]
name = "dear"
when = "amount > 50"
action = "review"
reason = "dear"

[[rule]]
name = "trial"
when = "card_count_1h >= 1"
action = "block"
reason = "trial"
shadow = true
"""
_A, _B = ("a", False), ("b", True)


class RuledWorld(World):
    """Its workers have rules."""

    holder: RulesHolder

    def worker(self, **how: Any) -> FakeWorker:
        """As of a world."""
        return super().worker(**{"rules": self.holder} | how)


def ruled(folder: Path, partitions: int = 1, seed: int = 1, count: int = 150) -> RuledWorld:
    """A filled world with rules."""
    world = RuledWorld(partitions)
    world.log = filled(partitions, count, seed).log
    (folder / "rules.toml").write_text(_RULES)
    world.holder = RulesHolder(folder / "rules.toml", build_catalogue(SCHEMA.transactions), Metrics())
    return world


def kept(world: World) -> dict[int, Totals]:
    """The totals in the state, by partition."""
    return {p: read_totals(held.get(FIELDS[0])) for p, held in world.hashes["fraud"].items()}


def recounted(world: World) -> dict[int, dict[RuleKey, Total]]:
    """The totals by partition as the decisions and the labels give them."""
    decisions = {d["decision_id"]: d for d in reversed(world.answers("decisions"))}
    found: dict[int, dict[RuleKey, Total]] = {}
    for partition in range(world.log.partitions):
        counts: dict[RuleKey, list[int]] = defaultdict(lambda: [0, 0, 0])
        waiting: dict[str, list[RuleKey]] = {}
        labels = [(r.offset, json.loads(r.value or b"")) for r in world.log.records["labels", partition] if _good(r)]
        for record in world.log.records["transactions", partition]:
            decision = decisions.get(f"transactions:{partition}:{record.offset}")
            if decision is None:
                continue  # a dead letter
            while labels and labels[0][0] < decision["label_position"]:
                _judge(labels.pop(0)[1], waiting, counts)
            keys = [(name, False) for name in decision["rules"]] + [(name, True) for name in decision["shadow_rules"]]
            if keys and not decision["duplicate"]:
                waiting[decision["event_id"]] = keys
                for key in keys:
                    counts[key][0] += 1
        for _, label in labels:
            _judge(label, waiting, counts)
        found[partition] = {key: Total(*count) for key, count in counts.items()}
    return found


def _good(record: Any) -> bool:
    try:
        return isinstance(json.loads(record.value or b"")["event_id"], str)
    except (ValueError, KeyError, TypeError):
        return False


def _judge(label: dict[str, Any], waiting: dict[str, list[RuleKey]], counts: dict[RuleKey, list[int]]) -> None:
    for key in waiting.pop(str(label["event_id"]), []):
        counts[key][1 if label["is_fraud"] else 2] += 1


@pytest.mark.parametrize("seed", range(6))
def test_after_any_history_of_faults_the_counts_are_those_of_the_decisions_and_a_rebuilding_comes_to_the_same(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng, world = random.Random(seed), ruled(tmp_path, 1 + seed % 3, seed)
    servers = Servers(world, monkeypatch)

    async def story() -> None:
        await stormy(world, rng)
        assert kept(world) == recounted(world)
        before, servers.committed = snapshot(world)
        for lane in LANES:
            world.hashes[lane].clear()
        settings = world.worker().settings
        worker = replace(settings.worker, rules=tmp_path / "rules.toml")
        await make_anew(world, SimpleNamespace(settings=replace(settings, worker=worker)))  # type: ignore[arg-type]
        assert snapshot(world) == (before, servers.committed)

    asyncio.run(story())
    total = summed(kept(world).values())
    assert total["dear", False].hits > 5 and total["dear", False].frauds + total["dear", False].good > 0


def test_labels_that_come_after_a_restart_say_how_precise_the_rules_were_before_it(tmp_path: Path) -> None:
    world = RuledWorld()
    world.holder = ruled(tmp_path).holder
    for i in range(40):
        world.log.pay(f"e{i}", i * 1000, card=f"c{i}", amount=2.0 * i)

    async def run() -> str:
        first = world.worker()
        await first.take_over()
        await first.finish()
        for i in range(40):
            world.log.judge(f"e{i}", 90_000_000 + i, fraud=i >= 35, card=f"c{i}")
        second = world.worker()  # nothing of the first is in memory
        await second.take_over()
        await second.finish()
        return generate_latest(second.metrics.registry).decode()

    said = asyncio.run(run())
    assert 'headrace_rule_hits_total{partition="0",rule="dear",shadow="no"} 14.0' in said
    assert 'headrace_rule_labels_total{fraud="yes",partition="0",rule="dear",shadow="no"} 5.0' in said
    assert 'headrace_rule_labels_total{fraud="no",partition="0",rule="dear",shadow="no"} 9.0' in said


def test_a_partition_that_moves_is_shown_by_its_new_owner_before_anything_new_comes(tmp_path: Path) -> None:
    world = ruled(tmp_path, partitions=2)

    async def run() -> Any:
        worker = world.worker()
        await worker.take_over()
        await worker.finish()
        world.log.pay("last", 10**8, card="c1", amount=1.0)  # in one of the two
        successor = world.worker()
        await successor.take_over()
        await successor.finish()
        return successor.metrics.rule_totals.partitions

    assert asyncio.run(run()) == kept(world)


def test_what_is_remembered_is_bounded_and_the_same_after_it_was_written_and_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rule_books, "CHUNK", 4)
    monkeypatch.setattr(rule_books, "REMEMBERED_MAX", 4 * rule_books.CHUNKS)
    size, fields, rng = 4 * rule_books.CHUNKS, dict[bytes, bytes](), random.Random(1)
    book, events = RuleBook(), list(range(-3, 3 * size))
    for event in events:
        book.hit(event, rng.choice([(_A,), (_B,), (_A, _B)]))
        if rng.random() < 0.3:
            assert book.judge(event - rng.randrange(3), fraud=True) in (True, False)
        if rng.random() < 0.1:
            fields |= book.fields()
            book = RuleBook([fields.get(name) for name in FIELDS])
    fields |= book.fields()
    assert book.fields() == {} and set(fields) <= set(FIELDS)
    again = RuleBook([fields.get(name) for name in FIELDS])
    assert again.totals == book.totals == read_totals(fields[FIELDS[0]])
    judged = [event for event in events if again.judge(event, fraud=False)]
    assert judged == [event for event in events if book.judge(event, fraud=False)]
    assert judged and set(judged) <= set(events[-size:]) and len(judged) > size // 2
    assert not again.judge(judged[0], fraud=False), "the first label counts"
    assert again.totals == book.totals


def test_totals_of_rules_that_hit_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_books, "RULES_MAX", 3)
    book = RuleBook()
    for n in range(5):
        book.hit(n, ((f"r{n}", False),))
    assert list(book.totals) == [("r2", False), ("r3", False), ("r4", False)]
    assert book.judge(0, fraud=True) and ("r0", False) not in book.totals


@pytest.mark.parametrize(("value", "why"), [(b"\xc1", "cannot be read"), (b"\x93\x02\x00\x90", "is of version 2")])
def test_counts_that_cannot_be_read_are_refused_with_the_way_out(value: bytes, why: str) -> None:
    with pytest.raises(StateMismatch, match=f"{why}.*headrace rebuild --replace"):
        _ = RuleBook([value])


def test_the_command_adds_the_partitions_up(embedded_redis: RedisServer) -> None:
    redis, books = RedisSettings(url=embedded_redis.url, namespace=fresh_name("counts")), [RuleBook(), RuleBook()]
    for event in range(6):
        books[event % 2].hit(event, (_A, _B) if event < 3 else (_A,))
    books[0].judge(0, fraud=True)
    books[1].judge(1, fraud=False)

    async def write() -> None:
        client = redis_client(redis)
        store, head = StateStore(client, redis, "g", "fraud"), encode_head(Head({}, {}, "", 2))
        await store.apply([Write(p, b"", head, book.fields()) for p, book in enumerate(books)])
        await client.aclose()

    def told() -> list[str]:
        environment = {"HEADRACE_REDIS_NAMESPACE": redis.namespace, "HEADRACE_WORKER_GROUP": "g",
                       "HEADRACE_REDIS_URL": redis.url, "HEADRACE_TOPICS_TRANSACTION_PARTITIONS": "2"}  # fmt: skip
        done = CliRunner().invoke(app, ["rules", "counts"], env=environment)
        assert done.exit_code == 0, done.output
        return [" ".join(line.split()) for line in done.output.splitlines()]

    assert told() == ["no rule has hit anything yet"]
    asyncio.run(write())
    assert told() == ["rule hits judged fraud precision", "a 6 2 1 0.500", "b (shadow) 3 2 1 0.500"]
