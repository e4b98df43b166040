"""Odd clicks at a worker: bots, unknown items, disorder, repeats, other scripts, wrong clocks, a catalogue of one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from features.recommender import Recommender
from stream.sessions import decode_session, decode_user
from tests.fakes import START_MS, World
from tests.sessions import checkerboard, clicks, fitted

YEAR_MS = 365 * 86_400_000


@pytest.fixture(scope="module")
def model() -> Recommender:
    return fitted(checkerboard())


def answers(world: World, fetched: int = 1000) -> list[dict[str, Any]]:
    """What one worker answered, in the order of the clicks."""

    async def run() -> None:
        worker = world.worker()
        await worker.take_over()
        await worker.finish(fetched)

    asyncio.run(run())
    return world.answers("recommendations")


def shop(model: Recommender) -> World:
    world = World()
    world.recommender = model
    return world


def shown(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_a_bot_of_ten_thousand_clicks_is_marked_answered_and_kept_in_bounds_and_changes_nobody_elses_list(
    model: Recommender,
) -> None:
    world, quiet = shop(model), shop(model)
    for n in range(10_000):
        world.log.click(f"b{n}", n, "bot", f"g{n % 4}-{n % 5}", "robot", "buy" if n % 3 == 0 else "view")
    for place in (world, quiet):
        place.log.click("k", 10_000, "person", "g0-0")
    given, undisturbed = answers(world, 2000), answers(quiet)
    assert [answer["long_session"] for answer in given] == [False] * 500 + [True] * 9500 + [False]
    assert all(answer["items"] for answer in given)
    assert given[-1]["items"] == undisturbed[0]["items"]
    fields = world.hashes["recommend"][0]
    session, user = decode_session(fields[b"session:bot"]), decode_user(fields[b"user:robot"])
    assert (session.count, len(session.clicks), len(user.items), len(user.bought)) == (10_000, 20, 20, 20)
    assert sum(map(len, fields.values())) < 2000


def test_items_that_the_model_does_not_know_are_passed_over_and_alone_give_what_is_popular(model: Recommender) -> None:
    world = shop(model)
    world.log.click("k0", 0, "a", "new")
    world.log.click("k1", 1, "b", "g1-1")
    world.log.click("k2", 2, "a", "g1-1")
    world.log.click("k3", 3, "a", "newer")
    unknown, known, after_one, before_one = answers(world)
    assert shown(unknown) == [model.item_id(n) for n in range(model.items)]
    assert shown(known)[:4] == shown(after_one)[:4]
    assert "g1-1" not in shown(after_one)[:1] and shown(before_one)[0].startswith("g1")


def test_clicks_count_in_the_order_in_which_they_arrive_and_repeated_ones_once(model: Recommender) -> None:
    world, sorted_ = shop(model), shop(model)
    for id_, time, item in (("k2", 9, "g0-2"), ("k0", 0, "g0-0"), ("k0", 0, "g0-0"), ("k1", 5, "g0-1")):
        world.log.click(id_, time, "s", item)
    for id_, time, item in (("k2", 1, "g0-2"), ("k0", 2, "g0-0"), ("k1", 3, "g0-1")):
        sorted_.log.click(id_, time, "s", item)
    late, repeated, last = answers(world)[1:]
    assert shown(late) == shown(repeated) and decode_session(world.hashes["recommend"][0][b"session:s"]).count == 3
    assert shown(last) == shown(answers(sorted_)[-1])


@pytest.mark.parametrize("item", ["only", "other"])
def test_a_catalogue_of_one_item_is_recommended_whatever_was_clicked(item: str) -> None:
    world = shop(fitted(clicks([["only"]])))
    world.log.click("k0", 0, "s", item)
    world.log.click("k1", 1, "s", item)
    assert [shown(answer) for answer in answers(world)] == [["only"], ["only"]]


def test_ids_of_any_script_are_kept_apart_and_come_back_as_they_were() -> None:
    names = ["ключ", "鍵", "🗝️", "é", "e\u0301", "مفتاح", 'q"\\', "{a}", "x" * 256]
    walks = [[name, names[(i + 1) % len(names)]] for i, name in enumerate(names)] * 20
    world = shop(fitted(clicks(walks)))
    for i, name in enumerate(names):
        world.log.click(f"click-{name[:9]}", i, name, name, f"u{name}"[:256])
    given = answers(world)
    for i, (name, answer) in enumerate(zip(names, given, strict=True)):
        assert (answer["session_id"], answer["item_id"], answer["user_id"]) == (name, name, f"u{name}"[:256])
        assert shown(answer)[0] == names[(i + 1) % len(names)]
    fields = world.hashes["recommend"][0]
    assert len([name for name in fields if name.startswith(b"session:")]) == len(names)


def test_a_click_from_the_future_is_a_dead_letter_and_neither_ends_a_session_nor_moves_the_watermark(
    model: Recommender,
) -> None:
    world = shop(model)
    world.log.click("k0", 0, "s", "g0-0")
    world.log.click("k1", 3 * YEAR_MS, "s", "g1-0")
    world.log.click("k2", 1, "s", "g0-1")
    given = answers(world)
    assert [answer["event_id"] for answer in given] == ["k0", "k2"]
    assert [letter["reason"] for letter in world.answers("dead-letters")] == ["time_out_of_range"]
    session = decode_session(world.hashes["recommend"][0][b"session:s"])
    assert [time for _, _, time in session.clicks] == [START_MS, START_MS + 1]
    assert not any(item.startswith("g1") for item in shown(given[1])[:3])
