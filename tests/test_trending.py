"""Online learning: what is wanted now is recommended minutes later, fades, and is not for one visitor to decide."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from features.hashing import hash_strings
from features.recommender import Recommender
from features.trends import ITEMS, WAYS
from stream.lane import Tally
from stream.recommend import RecommendLane
from stream.settings import Settings
from stream.suspects import Suspects, visitor
from stream.trending import Trends
from tests.fakes import World
from tests.sessions import checkerboard, fitted
from tests.test_lane import Sent

NOON_MS = 1_700_000_400_000
MINUTE_MS, HOUR_MS, HALF_LIFE_S = 60_000, 3_600_000, 1800.0
Click = tuple[str, str, int]  # session, item, time


@pytest.fixture(scope="module")
def model() -> Recommender:
    return fitted(checkerboard(sessions=300))


class Played:
    """A worker's lane of one partition, to which clicks are sent."""

    def __init__(self, model: Recommender, **worker: Any) -> None:
        settings = Settings()
        given = {"ahead_max_s": 1e9, "degrade": False, "recommendations_k": 8} | worker
        settings = replace(
            settings,
            topics=replace(settings.topics, click_partitions=1),
            worker=replace(settings.worker, **given),
        )
        self.lane = RecommendLane(settings)
        self.lane.resume(0, {})
        self._served = SimpleNamespace(version="000001", recommender=model)
        self._offset = 0
        self.answers: list[dict[str, Any]] = []  # to the clicks that were sent last

    def send(self, clicks: list[Click], card: str | None = None) -> list[list[str]]:
        """The lists after clicks, all of one card."""
        lane, first = self.lane, self._offset
        records = [
            Sent("clicks", 0, first + i, session.encode(), msgspec.json.encode(
                {"event_id": f"e{first + i}", "event_time": time, "session_id": session, "item_id": item,
                 "card_id": card}))
            for i, (session, item, time) in enumerate(clicks)
        ]  # fmt: skip
        self._offset = first + len(clicks)
        work = lane.begin({0: {"clicks": records}}, {0: False}, Tally())
        lane.fill(work, {p: dict.fromkeys(names) for p, names in lane.wanted(work, 1, 0.0).items()}, 0.0)
        (produced,) = lane.compute(work, self._served, 1, Tally())
        self.answers = [msgspec.json.decode(value) for _, value in produced.messages["recommendations"]]
        return [[item["item_id"] for item in answer["items"]] for answer in self.answers]


def quiet(start_ms: int, minutes: int, name: str = "quiet") -> list[Click]:
    """The usual traffic: two sessions a minute that walk in the groups that the model knows."""
    return [
        (f"{name}-{minute}-{n}", f"g{(minute + n) % 4}-{place}", start_ms + minute * MINUTE_MS + place)
        for minute in range(minutes) for n in range(2) for place in range(3)
    ]  # fmt: skip


def rush(item: str, start_ms: int, visitors: int = 60, after: str = "g0-0") -> list[Click]:
    """So many visitors within five minutes come to an item after another."""
    step = 5 * MINUTE_MS // visitors
    return [click for n in range(visitors) for click in (
        (f"r-{item}-{n}", after, start_ms + n * step), (f"r-{item}-{n}", item, start_ms + n * step + 1))]  # fmt: skip


@pytest.mark.parametrize("item", ["g3-4", "new here"])
def test_an_item_that_trends_at_noon_is_recommended_at_five_past(model: Recommender, item: str) -> None:
    played = Played(model)
    played.send(quiet(NOON_MS - 60 * MINUTE_MS, 60))
    (before,), (cold,) = played.send([("a", "g0-0", NOON_MS)]), played.send([("b", "never seen", NOON_MS)])
    assert item not in before[:3] and item not in cold[:3]
    played.send(rush(item, NOON_MS))
    five_past = NOON_MS + 5 * MINUTE_MS
    lists = played.send([(name, clicked, five_past) for name, clicked in
                         (("c", "g0-0"), ("d", "never seen"), ("e", "g1-2"))])  # fmt: skip
    assert item in lists[0][:3], "to those who view what it is viewed after"
    assert item in lists[1][:3], "to those of whom nothing is known"
    assert item in lists[2], "and to everybody"
    assert all(len(set(found)) == len(found) == 8 for found in lists)


@pytest.mark.parametrize("item", ["new here", "g3-4"])  # unknown to the model, and known to it
def test_each_item_says_truthfully_how_live_clicks_brought_it_here(model: Recommender, item: str) -> None:
    played = Played(model)
    played.send(quiet(NOON_MS - HOUR_MS, 20))
    played.send(rush(item, NOON_MS))
    later = NOON_MS + 6 * MINUTE_MS
    played.send([("a", "g0-0", later), ("b", "g1-1", later), ("c", "unheard", later)])
    after, elsewhere, cold = ({shown["item_id"]: shown for shown in answer["items"]} for answer in played.answers)
    assert (after[item]["reason"], after[item]["because"]) == ("viewed_after", "g0-0")
    assert after[item]["text"] == "often viewed after g0-0"
    assert (elsewhere[item]["reason"], elsewhere[item]["because"]) == ("trending", None)
    assert elsewhere[item]["text"] == "trending now"
    assert cold[item]["reason"] == "trending"
    others = [shown for id_, shown in elsewhere.items() if id_.startswith("g1")]
    assert others and all(shown["reason"] == "viewed_after" for shown in others)


def test_after_an_item_that_no_model_knows_live_clicks_say_what_was_viewed(model: Recommender) -> None:
    played = Played(model)
    played.send(rush("next", NOON_MS, after="unheard"))
    played.send([("a", "unheard", NOON_MS + 6 * MINUTE_MS)])
    (first, *_) = played.answers[0]["items"]
    assert (first["item_id"], first["reason"], first["because"]) == ("next", "viewed_after", None)
    assert first["text"] == "often viewed after it"


def test_what_trended_fades(model: Recommender) -> None:
    played = Played(model)
    played.send(rush("new here", NOON_MS))
    played.send(quiet(NOON_MS, 12 * 60))
    lists = played.send([("a", "g0-0", NOON_MS + 12 * 60 * MINUTE_MS), ("b", "never", NOON_MS + 12 * 60 * MINUTE_MS)])
    assert all("new here" not in found for found in lists)


def test_turned_off_lists_are_those_of_the_model(model: Recommender) -> None:
    played, clicks = Played(model, online_learning=False), rush("new here", NOON_MS)
    before = played.send([("a", "g0-0", NOON_MS)])
    played.send(clicks)
    assert played.send([("b", "g0-0", NOON_MS + 5 * MINUTE_MS)]) == before
    assert "new here" not in before[0]


def test_one_visitor_or_a_long_session_moves_nothing(model: Recommender) -> None:
    played = Played(model)
    (before,) = played.send([("a", "g0-0", NOON_MS)])
    played.send([("farm", item, NOON_MS + n) for n in range(600) for item in ("g0-0", "pushed")])
    (after,) = played.send([("b", "g0-0", NOON_MS + 1000)])
    assert "pushed" not in after and [item[:2] for item in after[:4]] == [item[:2] for item in before[:4]]
    trends = played.lane._way.trends
    assert trends is not None and trends._counts.total[0] < 6  # a, b, and the first of the farm


@pytest.mark.parametrize("confirmed", [True, False])
def test_clicks_of_a_card_that_was_blocked_or_confirmed_move_nothing(model: Recommender, confirmed: bool) -> None:
    world, scores = World(), (1.0, 1.0) if confirmed else (0.0, 0.0)
    world.log.pay("t1", 0, card="stolen")
    if confirmed:
        world.log.judge("t1", 10, fraud=True, card="stolen")
        world.log.pay("t2", 20, card="stolen")

    async def run() -> Suspects:
        worker = world.worker(review_score=scores[0], block_score=scores[1])
        await worker.take_over()
        await worker.finish()
        lane = worker.pipeline.stations[1].lane
        assert isinstance(lane, RecommendLane)
        return lane.suspects

    suspects, played = asyncio.run(run()), Played(model)
    cards = [("stolen", None, None), ("honest", None, None), (None, None, None)]
    assert suspects.among(cards, [0, 0, 0]) == [True, False, False]
    suspects.add(cards[:1], [NOON_MS])
    played.lane.suspects = suspects
    played.send(rush("new here", NOON_MS), card="stolen")
    lists = played.send([("a", "g0-0", NOON_MS + 1000), ("b", "never seen", NOON_MS + 1000)])
    assert all("new here" not in found for found in lists)
    played.send(rush("new here", NOON_MS), card="honest")  # in the same sessions, which are tied now
    assert "new here" not in played.send([("c", "g0-0", NOON_MS + 1000)])[0]
    others = [(f"other {session}", item, time) for session, item, time in rush("new here", NOON_MS)]
    played.send(others, card="honest")
    assert all("new here" in found for found in played.send([("c", "g0-0", NOON_MS + 1000)]))


def test_a_session_that_goes_on_in_another_worker_after_an_item_that_this_one_never_saw_is_answered() -> None:
    """The state brings the item as a hash; its id is known to nobody here, so it is in no list."""
    model = fitted(checkerboard(groups=2, size=2, sessions=20))
    first, second = Played(model), Played(model)
    first.send([("s", "unheard", NOON_MS)])
    second.lane._partitions, second._offset = first.lane._partitions, first._offset
    for _ in range(40):  # beyond the clicks after which the lists of what is wanted are made anew
        (found,) = second.send([("s", "g0-0", NOON_MS + 1)])
        assert set(found) <= {model.item_id(number) for number in range(model.items)} and found


def test_a_filter_judges_the_item_that_is_named_also_where_its_place_in_the_table_went_to_another() -> None:
    trends, n = Trends(HALF_LIFE_S), 3 * ITEMS
    ids = [f"i{number}" for number in range(n)]
    learned(trends, [(f"s{number}", item, NOON_MS) for number, item in enumerate(ids)])
    before, later = hash_strings([f"only a hash {number}" for number in range(n)]), np.full(n, NOON_MS + 60 * MINUTE_MS)
    last = ["last"] * n
    trends.learn([clicked(range(n, 2 * n), last, ids, later, later)], before, Suspects())
    model = fitted(checkerboard(groups=2, size=2, sessions=20))
    places = trends.popular(model)[0]
    slots = places[places >= model.items].astype(np.int64) - model.items
    named = [trends.item_id(model, int(slot) + model.items) for slot in slots]
    assert len(slots) and np.array_equal(trends.hashes_of(slots), hash_strings(named))


def test_an_item_that_loses_its_place_within_a_cycle_to_one_without_an_id_is_shown_no_more() -> None:
    ids = [f"i{number}" for number in range(60_000)]
    places = hash_strings(ids) % np.uint64(ITEMS // WAYS)
    *first, shown, unnamed = [ids[number] for number in np.flatnonzero(places == places[0])[: WAYS + 1]]
    elsewhere = ids[int(np.flatnonzero(places != places[0])[0])]
    trends = learned(Trends(HALF_LIFE_S), [(f"s{item}{n}", item, NOON_MS) for item in first for n in range(3)])
    now = np.full(1, NOON_MS)
    cycle = [clicked([100], [shown], ["a"], now, now), clicked([0], [elsewhere], ["b"], now, now, partition=1)]
    trends.learn(cycle, np.array([0, *hash_strings([unnamed])], np.uint64), Suspects())
    model = fitted(checkerboard(groups=2, size=2, sessions=20))
    wanted = trends.popular(model)[0]
    named = [trends.item_id(model, int(place)) for place in wanted[wanted >= model.items]]
    assert elsewhere in named and shown not in named
    assert np.array_equal(trends.hashes_of(wanted[wanted >= model.items].astype(np.int64) - model.items),
                          hash_strings(named))  # fmt: skip


def test_a_card_is_suspect_for_as_long_as_it_ties_clicks_in_training() -> None:
    suspects, day_ms = Suspects(), 86_400_000
    stolen = ("stolen", None, None)
    suspects.add([stolen, stolen], [NOON_MS, NOON_MS - day_ms])
    times = [NOON_MS, NOON_MS + 30 * day_ms, NOON_MS + 30 * day_ms + 1]
    assert suspects.among([stolen] * 3, times) == [True, True, False]


def test_a_tied_click_ties_its_session_and_user_for_no_longer_than_the_fraud_does() -> None:
    suspects, day_ms = Suspects(), 86_400_000
    suspects.add([visitor("stolen", b'{"session_id":"s-1","user_id":7,"amount":3}')], [NOON_MS])
    assert suspects.among([(None, "s-1", None), (None, "s-2", None), (None, None, "7")], [NOON_MS] * 3) == [
        True, False, True,
    ]  # fmt: skip
    assert suspects.among([("stolen", "s-3", "u-3")], [NOON_MS + 29 * day_ms]) == [True]
    later = [NOON_MS + 30 * day_ms, NOON_MS + 30 * day_ms + 1]
    assert suspects.among([("other", "s-3", None)] * 2, later) == [True, False]
    assert suspects.among([(None, "s-4", "u-3")] * 2, later) == [True, False]


@pytest.mark.parametrize("value", [b'{"session_id":[1]}', b'{"session_id":1.5}', b"{}"])
def test_a_session_that_is_no_id_ties_nothing(value: bytes) -> None:
    assert visitor("c", value) == ("c", None, None)


def clicked(offsets: Sequence[int], items: list[str], sessions: list[str], times: Any, marks: Any, partition: int = 0
            ) -> Any:  # fmt: skip
    """A partition's share of a cycle, as far as it counts for what is wanted now."""
    none: list[None] = [None] * len(items)
    batch = SimpleNamespace(item_id=items, session_id=sessions, user_id=none, card_id=none, time=times)
    records = [SimpleNamespace(offset=offset) for offset in offsets]
    return SimpleNamespace(partition=partition, records=records, batch=batch, marks=marks,
                           items=hash_strings(items), visitors=hash_strings(sessions),
                           long_session=[False] * len(items))  # fmt: skip


def learned(trends: Trends, clicks: list[Click], first: int = 0, mark_ms: int = NOON_MS) -> Trends:
    n, items = len(clicks), [item for _, item, _ in clicks]
    part = clicked(range(first, first + n), items, [session for session, _, _ in clicks],
                   np.array([time for _, _, time in clicks]), np.full(n, mark_ms))  # fmt: skip
    trends.learn([part], np.zeros(n, np.uint64), Suspects())
    return trends


def test_clicks_that_are_read_again_after_a_failure_count_once() -> None:
    once, twice = Trends(HALF_LIFE_S), Trends(HALF_LIFE_S)
    clicks = [(f"s{n}", f"i{n % 7}", NOON_MS + n) for n in range(100)]
    learned(once, clicks)
    learned(learned(twice, clicks[:70]), clicks[40:], 40)
    assert all(np.array_equal(a, b) for a, b in zip(once._counts, twice._counts, strict=True))


def test_a_click_from_the_future_weighs_as_much_as_any_other() -> None:
    trends = learned(Trends(60.0), [("a", "now", NOON_MS), ("b", "later", NOON_MS + 3_600_000)])
    weights = dict(zip(trends._counts.items.tolist(), trends._counts.weight.tolist(), strict=True))
    now, later = (weights[int(value)] for value in hash_strings(["now", "later"]))
    assert now == later == 1.0


def test_years_of_clicks_on_ever_new_items_take_no_more_memory_and_no_weight_overflows(model: Recommender) -> None:
    trends, size = Trends(60.0), Trends(60.0).nbytes
    for day in range(200):
        time = NOON_MS + day * 86_400_000
        clicks = [(f"s{day}-{n}", f"i{day}-{n}", time) for n in range(500)]
        learned(trends, [*clicks, *((f"w{day}-{n}", "wanted", time) for n in range(50))], day * 550, time)
    assert trends.nbytes == size and np.isfinite(trends._counts.weight).all()
    assert len(trends._ids) <= len(trends._counts.items)
    assert trends.item_id(model, int(trends.popular(model)[0][0])) == "wanted"
