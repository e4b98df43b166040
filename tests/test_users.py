"""What is kept of sessions and users: its bytes, what counts, where a new session starts, what is not shown again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import StateMismatch
from features.hashing import hash_strings
from features.shelf import Shelf
from stream.recommend import RecommendLane
from stream.sessions import (
    BOUGHT_MAX,
    SESSION_BOUGHT_MAX,
    SESSION_ITEMS,
    USER_ITEMS,
    Session,
    User,
    decode_session,
    decode_user,
    encode_session,
    encode_user,
    fold,
)
from stream.settings import Settings
from stream.store import FIELDS_MAX
from tests.fakes import START_MS, FakeLister, FakeRecommender, FakeWorker, World, item_number
from tests.sessions import checkerboard, fitted

DAY_MS = 86_400_000
HASHES = st.integers(0, 2**64 - 1)
TIMES = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(HASHES, HASHES, TIMES), max_size=SESSION_ITEMS), st.integers(0, 2**32 - 1),
       st.lists(HASHES, max_size=SESSION_BOUGHT_MAX))  # fmt: skip
def test_a_session_is_read_as_it_was_written(clicks: list[tuple[int, int, int]], count: int, bought: list[int]) -> None:
    session = Session(clicks, count, bought=bought)
    assert decode_session(encode_session(session)) == session


@given(st.lists(HASHES, max_size=USER_ITEMS), st.lists(HASHES, max_size=BOUGHT_MAX), TIMES)
def test_a_user_is_read_as_it_was_written(items: list[int], bought: list[int], time: int) -> None:
    assert decode_user(encode_user(User(items, bought, time))) == User(items, bought, time)


def test_a_sessions_state_of_the_versions_before_is_read() -> None:
    session = Session([(1, 2, START_MS), (3, 4, START_MS + 1)], 77)
    clicks = encode_session(session)[6:]
    assert decode_session(bytes([1]) + clicks) == Session(session.clicks, 2)
    assert decode_session(bytes([2, 77, 0, 0, 0]) + clicks) == session


@pytest.mark.parametrize("damaged", [b"", b"\x00", b"\x04" + bytes(20), b"\x03\x01", b"\x03\x01\0\0\0\x02" + bytes(8)])
def test_damaged_bytes_are_refused(damaged: bytes) -> None:
    with pytest.raises(StateMismatch, match=r"session's state.*versions 1 to 3"):
        decode_session(damaged)
    with pytest.raises(StateMismatch, match=r"user's state.*version 1"):
        decode_user(damaged)


def test_what_is_kept_of_a_user_is_bounded_whatever_a_bot_does() -> None:
    session, user = Session(), User()
    for n in range(10_000):
        fold(session, user, (n, n, START_MS), bought=True)
    assert user.items == [*range(10_000 - USER_ITEMS, 10_000)] and user.bought == [*range(10_000 - BOUGHT_MAX, 10_000)]
    assert len(encode_user(user)) == 11 + 8 * (USER_ITEMS + BOUGHT_MAX) and session.bought == []
    for n in range(10_000, 20_000):
        fold(session, None, (n, n, START_MS), bought=True)
    assert session.bought == [*range(20_000 - SESSION_BOUGHT_MAX, 20_000)]
    assert len(encode_session(session)) == 6 + 24 * SESSION_ITEMS + 8 * SESSION_BOUGHT_MAX


def test_a_click_that_its_session_knows_counts_for_the_user_once() -> None:
    session, user = Session(), User()
    for _ in range(3):
        fold(session, user, (1, 2, START_MS), bought=True)
    assert (user.items, user.bought, session.count) == ([2], [2], 1)


def answered(world: World, **settings: Any) -> list[list[str]]:
    """The items of the answers of one worker with these settings."""

    async def run() -> None:
        worker = world.worker()
        change(worker, **settings)
        await worker.take_over()
        await worker.finish(1)

    asyncio.run(run())
    return [[item["item_id"] for item in answer["items"]] for answer in world.answers("recommendations")]


def change(worker: FakeWorker, **settings: Any) -> None:
    """Give its lane of clicks other settings."""
    changed = replace(worker.settings, worker=replace(worker.settings.worker, **settings))
    station = worker.pipeline.stations[1]
    station.lane = RecommendLane(changed, FakeLister(Shelf()))


def visits(*items: str) -> list[list[str]]:
    """The names in the answers to a user's second visit, a day after the one to an apple and a pear."""
    return answered(visited(*items))[2:]


def visited(*items: str) -> World:
    world = World()
    world.log.click("k0", 0, "a", "apple", "u")
    world.log.click("k1", 1, "a", "pear", "u")
    for n, item in enumerate(items, 2):
        world.log.click(f"k{n}", DAY_MS, "b", item, "u")
    return world


def test_a_new_session_starts_from_the_users_last_items_until_the_model_knows_one_of_its_own() -> None:
    apple, pear, plum, kiwi, fig = map(item_number, ("apple", "pear", "plum", "kiwi", "fig"))
    known = FakeRecommender().numbers_of(hash_strings(["apple", "pear", "plum", "kiwi", "fig"])) >= 0
    assert known.tolist() == [True, True, False, False, True]
    found = visits("plum", "kiwi", "fig")
    assert found == [[plum, pear, apple], [kiwi, plum, pear, apple], [fig, kiwi, plum]]


def test_a_session_with_an_item_that_the_model_knows_is_answered_from_the_session_alone() -> None:
    assert visits("fig") == [[item_number("fig")]]


def test_nobody_else_is_answered_from_a_users_items() -> None:
    world = visited()
    world.log.click("k2", 2, "c", "plum", "v")
    world.log.click("k3", 3, "d", "plum")
    assert answered(world)[2:] == [[item_number("plum")]] * 2


def test_a_user_is_forgotten_after_user_days_of_event_time() -> None:
    assert answered(visited("plum"), user_days=0.5)[2] == [item_number("plum")]


def test_what_a_user_or_a_session_has_bought_is_not_shown_again_where_repeat_buying_is_off() -> None:
    model = fitted(checkerboard())

    def lists(**settings: Any) -> list[list[str]]:
        world = World()
        world.recommender = model
        world.log.click("k0", 0, "a", "g0-1", "u", "buy")
        world.log.click("k1", 1, "a", "g0-2", "u", "cart")
        world.log.click("k2", DAY_MS, "b", "g0-0", "u")
        world.log.click("k3", DAY_MS, "c", "g0-3", action="buy")
        world.log.click("k4", DAY_MS, "c", "g0-0")
        world.log.click("k5", DAY_MS, "d", "g0-0")
        return answered(world, recommendations_k=5, **settings)

    kept, free = lists(repeat_buying=False), lists()
    assert all(len(items) == 5 == len(set(items)) for items in kept + free)  # filled up from what is popular
    assert ["g0-1" in items for items in kept[2:]] == [False, True, True, True]
    assert ["g0-3" in items for items in kept[2:]] == [True, False, False, True]
    assert all({"g0-1", "g0-3"} <= set(items) for items in (free[2], free[4], free[5]))
    assert kept[5] == free[5]


def test_users_leave_redis_when_they_read_as_empty_and_sessions_before_them() -> None:
    lane = RecommendLane(Settings())
    session, user = Session([(1, 2, START_MS)], 1), User([2], [], START_MS)
    held = {b"session:s": encode_session(session), b"user:u": encode_user(user)}
    assert lane.past(held, START_MS + 30 * DAY_MS) == []
    assert lane.past(held, START_MS + 31 * DAY_MS) == [b"session:s"]
    assert lane.past(held, START_MS + 366 * DAY_MS) == [b"session:s", b"user:u"]


def test_the_cache_holds_sessions_and_users_to_its_capacity_the_least_recently_used_go_first() -> None:
    world = World()
    for n in range(30):
        world.log.click(f"k{n}", n, f"s{n}", "apple", f"u{n % 3}")
    worker = world.worker(cache=10)

    async def run() -> None:
        await worker.take_over()
        await worker.finish(1)
        worker.pipeline.stations[1].lane.evict(10**6)
        await worker.settle()

    asyncio.run(run())
    held = worker.pipeline.stations[1].lane.held()["session"]
    assert held.entries == 10
    assert (
        held.hits + held.misses >= 30
        and int(hash_strings(["apple"])[0]) in decode_user(world.hashes["recommend"][0][b"user:u0"]).items
    )


def test_a_burst_of_clicks_each_of_its_own_session_and_user_is_written_in_portions_that_redis_can_take() -> None:
    world = World()
    for n in range(FIELDS_MAX + 10):
        world.log.click(f"k{n}", n, f"s{n}", "i", f"u{n}")

    async def run() -> None:
        worker = world.worker(cache=20_000)
        await worker.take_over()
        async with asyncio.timeout(120):  # more would be refused, and tried again for ever
            await worker.finish()

    asyncio.run(run())
    assert len(world.answers("recommendations")) == FIELDS_MAX + 10
    assert len(world.state()["recommend"][0]) == 2 * (FIELDS_MAX + 10)
