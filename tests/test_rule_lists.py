"""The lists that rules ask: changed by commands and by a topic, on every Redis, exactly once and by several workers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from features.catalogue import build_catalogue
from features.errors import BadEvent, SettingsError
from features.messages import ListChange
from features.rule_machine import NEVER, Columns
from features.rule_program import text_hash
from features.schema import load_schema
from stream import rule_lists
from stream.cli import app
from stream.connections import redis_client
from stream.embedded import RedisServer
from stream.list_keeper import ListKeeper
from stream.listing import _whole
from stream.metrics import Metrics
from stream.rule_lists import Change, Entries, RuleLists, change_of, check_room
from stream.rules import RulesHolder
from stream.settings import KafkaSettings, RedisSettings, Settings, WorkerSettings
from stream.topics import create_topics
from tests.servers import RunningBroker, fresh_name, produce
from tests.workers import Deployment, wait_until
from tests.world import World

_RULES = """
[lists]
stolen = "card"
trusted = "merchant"

[[rule]]
name = "stolen"
when = "card in stolen"
action = "block"
reason = "stolen"
"""


@pytest.fixture(params=["embedded_redis", "redis_server", "redis_cluster"])
def redis(request: pytest.FixtureRequest) -> RedisSettings:
    """Lists of its own on each kind of Redis."""
    server = request.getfixturevalue(request.param)
    return RedisSettings(url=server.url, namespace=fresh_name("lists"), cluster=request.param == "redis_cluster")


def _open(stack: AsyncExitStack, redis: RedisSettings, topic: str | None = None) -> RuleLists:
    client = redis_client(redis)
    stack.push_async_callback(client.aclose)
    return RuleLists(client, redis, "group", topic)


def _record(offset: int, **message: Any) -> Any:
    return SimpleNamespace(offset=offset, value=msgspec.json.encode(message))


def _keeper(lists: RuleLists, folder: Path) -> tuple[ListKeeper, RulesHolder, Metrics]:
    (folder / "rules.toml").write_text(_RULES)
    metrics = Metrics()
    holder = RulesHolder(folder / "rules.toml", build_catalogue(load_schema().transactions), metrics)
    return ListKeeper(lists, holder, KafkaSettings(), metrics), holder, metrics


def test_changes_are_read_back_and_the_last_one_counts(redis: RedisSettings) -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            one, other = _open(stack, redis), _open(stack, redis)
            assert await one.entries() == (b"", {})
            await one.change([Change("stolen", "a:b", NEVER), Change("stolen", "é", 5), Change("trusted", "m", NEVER)])
            head, entries = await other.entries()
            assert entries == {"stolen": {"a:b": NEVER, "é": 5}, "trusted": {"m": NEVER}}
            await other.change([Change("stolen", "a:b", None), Change("stolen", "c", 1), Change("stolen", "c", 2)])
            again, entries = await one.entries()
            assert entries == {"stolen": {"é": 5, "c": 2}, "trusted": {"m": NEVER}} and again != head

    asyncio.run(story())


def test_many_ids_at_once_are_all_there(redis: RedisSettings) -> None:
    async def story() -> Entries:
        async with AsyncExitStack() as stack:
            lists = _open(stack, redis)
            await lists.change([Change("stolen", f"c{i}", NEVER) for i in range(8000)])
            await lists.change([Change("stolen", f"c{i}", None) for i in range(0, 8000, 2)])
            return (await lists.entries())[1]

    assert set(asyncio.run(story())["stolen"]) == {f"c{i}" for i in range(1, 8000, 2)}


def test_workers_that_read_the_same_topic_apply_each_record_once(redis: RedisSettings, tmp_path: Path) -> None:
    """A record that another worker has applied is not applied again over a newer change by a command."""
    records = [
        _record(3, list="stolen", id="a"),
        _record(4, list="stolen", id=17, expires_at=1_600_000_000_000),
        _record(5, list="Unknown", id="a"),
        SimpleNamespace(offset=6, value=b"no json"),
        _record(7, list="stolen", id="gone"),
        _record(8, list="stolen", id="gone", action="remove"),
    ]

    async def story() -> tuple[Entries, list[bool], int, RulesHolder, Metrics]:
        async with AsyncExitStack() as stack:
            lists = [_open(stack, redis, "changes") for _ in range(2)]
            first, holder, metrics = _keeper(lists[0], tmp_path)
            second, _, _ = _keeper(lists[1], tmp_path)
            done = [await first.apply(records[:4])]
            await lists[0].change([Change("stolen", "a", None)])  # by a command
            done += [await second.apply(records), await second.apply(records[4:])]
            await first.refresh()
            return (await lists[0].entries())[1], done, await lists[0].next_offset(), holder, metrics

    entries, done, offset, holder, metrics = asyncio.run(story())
    assert entries == {"stolen": {"17": 1_600_000_000_000}}
    assert done == [True, False, True] and offset == 9
    assert holder._lists == {"stolen": {text_hash("17"): 1_600_000_000_000}}
    counted = [metrics.rule_list_changes.labels(outcome)._value.get() for outcome in ("applied", "refused")]
    assert counted == [2, 2]


def test_a_list_that_the_rules_come_to_name_later_has_the_members_that_the_topic_gave_it(
    embedded_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    redis = RedisSettings(url=embedded_redis.url, namespace=fresh_name("lists"))
    monkeypatch.setattr(rule_lists, "UNNAMED_MAX", 3)
    records = [_record(n, list="early", id=f"m{n}") for n in range(3)]
    records += [_record(3, list="early", id="m0", action="remove"), _record(4, list="early", id="one too many"),
                _record(5, list="stolen", id="c")]  # fmt: skip

    async def story() -> tuple[list[bool], dict[str, int], Entries]:
        async with AsyncExitStack() as stack:
            keeper, holder, metrics = _keeper(_open(stack, redis, "changes"), tmp_path)
            assert await keeper.apply(records)
            named = _RULES.replace('trusted = "merchant"', 'early = "merchant"')
            named = named.replace("card in stolen", "merchant in early")
            (tmp_path / "rules.toml").write_text(named)
            for _ in range(2):
                await holder.look()
            x = np.zeros((4, len(build_catalogue(load_schema().transactions).names)))
            texts = np.array([[0, text_hash(f"m{n}")] for n in range(4)], np.int64)
            columns = Columns(x, x[:, 0], x[:, 0], np.zeros(4, np.int64), texts)
            hits = holder.current.judge(columns).matrix[:, 0].tolist()
            counted = {o: int(metrics.rule_list_changes.labels(o)._value.get()) for o in ("applied", "refused")}
            return hits, counted, keeper._entries

    hits, counted, entries = asyncio.run(story())
    assert hits == [False, True, True, False] and entries["stolen"] == {"c": NEVER}
    assert counted == {"applied": 5, "refused": 1} and "such lists hold" in caplog.text


def test_racing_workers_lose_no_change(embedded_redis: RedisServer) -> None:
    redis = RedisSettings(url=embedded_redis.url, namespace=fresh_name("lists"))

    async def story() -> Entries:
        async with AsyncExitStack() as stack:
            lists = [_open(stack, redis) for _ in range(4)]
            await asyncio.gather(*(each.change([Change("stolen", f"{i}", NEVER)]) for i, each in enumerate(lists)))
            return (await lists[0].entries())[1]

    assert set(asyncio.run(story())["stolen"]) == {"0", "1", "2", "3"}


def test_a_record_is_checked() -> None:
    def change(**message: Any) -> Change:
        return change_of(msgspec.convert(message, ListChange))

    assert change(list="nets", id=[64500, "FR"]) == Change("nets", "64500\x1fFR", NEVER)
    assert change(list="a", id="b", expires_at="2026-03-01T12:00:00Z").until == 1_772_366_400_000
    assert change(list="a", id="b", action="remove", expires_at=5).until is None
    for wrong in ({"list": "A", "id": "b"}, {"list": "a", "id": ""}, {"list": "a", "id": "b", "expires_at": 7}):
        with pytest.raises(BadEvent):
            change(**wrong)


def test_there_is_room_for_a_hundred_thousand_ids() -> None:
    held: Entries = {"stolen": dict.fromkeys(map(str, range(99_999)), NEVER)}
    check_room(held, [Change("stolen", "5", NEVER), Change("stolen", "x", NEVER)])
    check_room(held, [Change("stolen", "y", None)] * 9)
    with pytest.raises(SettingsError, match=r"100,001 ids; at most 100,000.*--expired"):
        check_room(held, [Change("stolen", "x", NEVER), Change("trusted", "x", NEVER)])


def test_the_commands_change_and_show_lists(
    embedded_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules.toml").write_text(_RULES)
    (tmp_path / "ids").write_text("card-2\n\n card-3 \n")
    monkeypatch.setenv("HEADRACE_WORKER_RULES", str(tmp_path / "rules.toml"))
    monkeypatch.setenv("HEADRACE_REDIS_NAMESPACE", fresh_name("lists"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["list", *words, "--redis", embedded_redis.url])
        return done.exit_code, done.stdout, done.stderr

    assert run("add", "stolen", "card-1", "--file", "ids", "--until", "2020-01-01T00:00:00Z")[:2] == (
        0, "stolen: 3 ids put in\n",
    )  # fmt: skip
    assert run("add", "stolen", "card-3", "17", "--for", "30d")[0] == 0
    shown = run("show", "stolen")[1].splitlines()
    assert [line.split("\t")[0] for line in shown] == ["17", "card-1", "card-2", "card-3"]
    assert shown[1] == "card-1\tuntil 2020-01-01T00:00:00Z" and "until 20" in shown[0]
    assert run("remove", "stolen", "--expired")[1] == "stolen: 2 ids taken out\n"
    assert run("remove", "stolen", "17", "none")[1] == "stolen: 1 ids taken out\n"
    assert run("show")[1] == "stolen: 1 ids\ntrusted: 0 ids\n"
    for words, told in (
        (("add", "stole", "x"), "did you mean stolen?"),
        (("add", "stolen"), "no ids"),
        (("add", "stolen", "a\x1f"), "empty"),
        (("add", "stolen", "a\x1fb"), "has 2 parts: expected one value of card"),
        (("add", "stolen", "x", "--until", "soon"), "--until = 'soon'"),
        (("add", "stolen", "--file", "nowhere"), "nowhere: cannot be read"),
        (("show", "nothing"), "no list 'nothing'"),
    ):
        code, _, problem = run(*words)
        assert code == 2 and told in problem, words


def test_an_id_of_several_fields_has_a_value_of_each(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text("[lists]\nnets = 'network'\n")
    schema = Path(__file__).parents[1] / "examples" / "logins.toml"
    settings = Settings(schema=(schema,), worker=WorkerSettings(rules=tmp_path / "rules.toml"))
    assert _whole(settings, "nets", ["64500\x1fFR"]) == ["64500\x1fFR"]
    with pytest.raises(SettingsError, match="'64500' has 1 parts: expected a value of asn, country, joined by"):
        _ = _whole(settings, "nets", ["64500\x1fFR", "64500"])


def test_a_worker_blocks_by_a_list_that_a_topic_fills_and_takes_changed_rules(
    broker: RunningBroker, embedded_redis: RedisServer, world: World, tmp_path: Path
) -> None:
    rules, topic = tmp_path / "rules.toml", fresh_name("changes")
    rules.write_text(_RULES)
    more = {"WORKER_RULES": str(rules), "TOPICS_LISTS": topic, "WORKER_REVIEW_SCORE": "1", "WORKER_BLOCK_SCORE": "1"}
    deployment = Deployment(broker, embedded_redis.url, world.schema, world.artifacts, tmp_path, partitions=1,
                            extra=more)  # fmt: skip
    deployment.create()
    asyncio.run(create_topics(deployment.kafka, replace(deployment.topics, lists=topic)))
    changes = [{"list": "stolen", "id": "a"}, {"list": "stolen"}, {"list": "stolen", "id": "b"}]
    changes += [{"list": "stolen", "id": "b", "action": "remove"}]
    worker = deployment.started()
    try:
        told = [(None, msgspec.json.encode(change)) for change in changes]
        asyncio.run(produce(broker.bootstrap, topic, told, partition=0))
        wait_until(lambda: _lists_applied(deployment, topic) == 4, "the changes are applied")
        wait_until(lambda: any("record 1 of topic" in line for line in worker.log_tail(50)), "the wrong one is told")
        _pay(deployment, ("1", "a"), ("2", "b"))
        deployment.wait_for({deployment.topics.decisions: 2})
        rules.write_text(_RULES.replace('"block"', '"review"').replace('name = "stolen"', 'name = "look"'))
        wait_until(lambda: any(" is in use, after " in line for line in worker.log_tail(50)), "the rules are taken")
        _pay(deployment, ("3", "a"))
        deployment.wait_for({deployment.topics.decisions: 3})
        worker.stop()
    finally:
        worker.kill()
    decisions = {decision["event_id"]: decision for decision in deployment.decoded(deployment.topics.decisions)}
    assert [(decisions[id_]["action"], decisions[id_]["rules"]) for id_ in "123"] == [
        ("block", ["stolen"]), ("allow", []), ("review", ["look"]),
    ]  # fmt: skip
    assert [alert["event_id"] for alert in deployment.decoded(deployment.topics.alerts)] == ["1", "3"]


def _lists_applied(deployment: Deployment, topic: str) -> int:
    async def offset() -> int:
        async with AsyncExitStack() as stack:
            settings = RedisSettings(url=deployment.redis_url, namespace=deployment.name)
            client = redis_client(settings)
            stack.push_async_callback(client.aclose)
            return await RuleLists(client, settings, deployment.name, topic).next_offset()

    return asyncio.run(offset())


def _pay(deployment: Deployment, *ids: tuple[str, str]) -> None:
    start_ms = 1_600_000_000_000
    facts: dict[str, Any] = {"event_time": start_ms, "merchant_id": "m", "amount": 5}
    records = [(card.encode(), msgspec.json.encode(facts | {"event_id": id_, "card_id": card})) for id_, card in ids]
    asyncio.run(produce(deployment.broker.bootstrap, deployment.topics.transactions, records, partition=0,
                        timestamp_ms=start_ms))  # fmt: skip
