"""Lists for pulling: the newest of a session and user lies under its key, and no older one takes its place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from features.messages import Recommendation, RecommendedItem
from stream.connections import redis_client
from stream.embedded import RedisServer
from stream.lists import ListWriter, list_key, pulled
from stream.metrics import Metrics
from stream.settings import RedisSettings
from tests.clusters import RedisClusterServers
from tests.fakes import World
from tests.servers import fresh_name

IDS = ("s-1", "ключ", "鍵{", "{a}b", "{}", "🗝️", "a b:c", "x" * 256)


def message(source: str, session: str = "s-1", item: str = "apple") -> bytes:
    """A recommendation as it is published."""
    return msgspec.json.encode(Recommendation(
        recommendation_id=source, event_id="e", session_id=session, user_id=None, item_id=item, event_time=1,
        items=[RecommendedItem(item_id=item, score=1.0)], model_version="000001",
    ))  # fmt: skip


@pytest.fixture(params=["redis_server", "embedded_redis", "redis_cluster"])
def settings(request: pytest.FixtureRequest) -> RedisSettings:
    server: Any = request.getfixturevalue(request.param)
    return RedisSettings(url=server.url, namespace=fresh_name("lists"), cluster=isinstance(server, RedisClusterServers))


def tell(settings: RedisSettings, story: Callable[[Any, ListWriter], Awaitable[None]], metrics: Metrics | None = None
         ) -> None:  # fmt: skip
    """Run a story with a client and a writer."""

    async def run() -> None:
        client = redis_client(settings)
        writer = ListWriter(client, settings, 60, metrics or Metrics())
        try:
            await story(client, writer)
        finally:
            await writer.close()
            await client.aclose()

    asyncio.run(run())


def test_one_get_of_the_documented_key_reads_the_message_until_its_time_to_live_is_over(
    settings: RedisSettings,
) -> None:
    async def story(client: Any, writer: ListWriter) -> None:
        for number, id_ in enumerate(IDS):
            writer.put(
                {f"session:{id_}": message(f"clicks:0:{number}", id_), f"user:{id_}": message("clicks:0:1", id_)}
            )
        await writer.close()
        for number, id_ in enumerate(IDS):
            key = f"{settings.namespace}:list:session:{id_}"
            assert key == list_key(settings, "session", id_)
            assert await client.get(key) == message(f"clicks:0:{number}", id_)
            assert 0 < await client.ttl(key) <= 60
            assert await pulled(client, settings, "user", id_) == message("clicks:0:1", id_)
        assert await pulled(client, settings, "session", "unknown") is None

    tell(settings, story)


def test_lists_are_written_soon_without_anybody_waiting_for_them(settings: RedisSettings) -> None:
    async def story(client: Any, writer: ListWriter) -> None:
        for number in range(5):
            writer.put({"session:s-1": message(f"clicks:0:{number}")})
            async with asyncio.timeout(10):
                while await pulled(client, settings, "session", "s-1") != message(f"clicks:0:{number}"):
                    await asyncio.sleep(0.01)

    tell(settings, story)


@pytest.mark.parametrize(("held", "late", "wins"), [
    ("clicks:0:100", "clicks:0:99", False), ("clicks:0:99", "clicks:0:100", True), ("clicks:0:7", "clicks:0:7", True),
    ("clicks:0:9", "clicks:0:10", True), ("clicks:1:100", "clicks:0:9", True), ("other:0:100", "clicks:0:9", True),
])  # fmt: skip
def test_a_worker_that_slept_replaces_no_list_of_a_later_click(
    settings: RedisSettings, held: str, late: str, wins: bool
) -> None:
    async def story(client: Any, writer: ListWriter) -> None:
        writer.put({"session:s-1": message(held, item="held")})
        await writer.flush()
        writer.put({"session:s-1": message(late, item="late")})
        await writer.flush()
        expected = message(late, item="late") if wins else message(held, item="held")
        assert await pulled(client, settings, "session", "s-1") == expected

    tell(settings, story)


def test_a_redis_that_refuses_lists_is_told_once_and_counted_and_the_next_list_comes_through(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings, metrics = RedisSettings(url=redis_server.url, namespace=fresh_name("lists")), Metrics()

    def lost() -> float:
        return metrics.registry.get_sample_value("headrace_lists_lost_total") or 0.0

    async def story(client: Any, writer: ListWriter) -> None:
        await client.execute_command("ACL", "SETUSER", "poor", "on", ">word", "~*", "+@all", "-set")
        poor = redis_client(RedisSettings(url=redis_server.url, username="poor", password="word"))
        refused = ListWriter(poor, settings, 60, metrics)
        try:
            for number in range(3):
                refused.put({"session:s-1": message(f"clicks:0:{number}"), "user:u": message(f"clicks:0:{number}")})
                await refused.flush()
            assert lost() == 6
            await client.execute_command("ACL", "SETUSER", "poor", "+set")
            refused.put({"session:s-1": message("clicks:0:4")})
            await refused.close()
            assert lost() == 6 and await pulled(client, settings, "session", "s-1") == message("clicks:0:4")
        finally:
            await poor.aclose()
            await client.execute_command("ACL", "DELUSER", "poor")

    with caplog.at_level(logging.WARNING, "headrace.worker"):
        tell(settings, story, metrics)
    assert [record.message for record in caplog.records if "for pulling" in record.message][1:] == []


def test_after_each_applied_cycle_the_list_of_a_session_and_user_is_the_newest_message_of_the_topic(
    redis_server: RedisServer,
) -> None:
    settings, world = RedisSettings(url=redis_server.url, namespace=fresh_name("lists")), World()
    for n in range(40):
        world.log.click(f"k{n}", n, f"s{n % 5}", f"item-{n}", f"u{n % 5 // 2}" if n % 5 else None)

    async def story(client: Any, writer: ListWriter) -> None:
        worker = world.worker()
        await worker.take_over()
        worker.pipeline.stations[1].lists = writer
        await worker.finish(3)
        await writer.close()
        newest: dict[tuple[str, str], bytes] = {}
        for _, value in world.outputs["recommendations", 0]:
            given = msgspec.json.decode(value, type=Recommendation)
            newest["session", given.session_id] = value
            if given.user_id:
                newest["user", given.user_id] = value
        assert len(newest) == 8
        assert {name: await pulled(client, settings, *name) for name in newest} == newest

    tell(settings, story)


def test_what_an_earlier_owner_answered_and_did_not_apply_is_pulled_as_it_was_answered(
    redis_server: RedisServer,
) -> None:
    settings, world = RedisSettings(url=redis_server.url, namespace=fresh_name("lists")), World()
    world.log.click("k0", 0, "s", "apple")

    async def story(client: Any, writer: ListWriter) -> None:
        first = world.worker()
        await first.take_over()
        first.stores["recommend"].pause = 1_000_000
        _ = await first.fetch()
        await first.pipeline.abandon()
        ((_, answered),) = world.outputs["recommendations", 0]
        heir = world.worker()
        heir.pipeline.models.current.version = "000002"
        await heir.take_over()
        heir.pipeline.stations[1].lists = writer
        await heir.finish()
        await writer.close()
        assert world.outputs["recommendations", 0] == [(b"s", answered)]
        assert await pulled(client, settings, "session", "s") == answered

    tell(settings, story)
