"""Cheaper answers above capacity: when they are chosen, what they hold, and that they say so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from features.recommender import Recommender
from features.rungs import Asking, Rung
from stream.ladder import Ladder
from stream.lane import Tally
from stream.metrics import Metrics
from stream.recommend import RecommendLane
from stream.settings import Settings, WorkerSettings
from tests.sessions import checkerboard, fitted
from tests.test_lane import NOW_MS, Sent
from trainer.clicks import grouped, queries

COSTS_S = {Rung.FULL: 400e-6, Rung.FEWER: 150e-6, Rung.NEIGHBOURS: 40e-6, Rung.POPULAR: 20e-6}


@pytest.fixture(scope="module")
def model() -> Recommender:
    return fitted(checkerboard(sessions=300))


def ladder(**settings: Any) -> Ladder:
    return Ladder(WorkerSettings(**settings), lambda: NOW_MS / 1000)


def play(rate: float, seconds: float = 20.0) -> tuple[float, float]:
    """The longest wait of a click in s, and the share answered in full, where cycles take what came meanwhile."""
    clock = [0.0]
    rungs = Ladder(WorkerSettings(), lambda: clock[0])
    done, longest, full = 0, 0.0, 0
    while clock[0] < seconds:
        came = min(int(clock[0] * rate) - done, 4096)
        if came < 1:
            clock[0] += 1 / rate
            continue
        first_s = done / rate
        rung = rungs.choose([int(first_s * 1000)] * came)
        took = came * COSTS_S[rung] + 0.0005
        clock[0] += took
        rungs.learn(rung, came, took)
        longest, done = max(longest, clock[0] - first_s), done + came
        full += came if rung is Rung.FULL else 0
    return longest, full / done


def test_below_capacity_every_answer_is_full_and_above_it_waiting_stays_bounded() -> None:
    capacity = 1 / COSTS_S[Rung.FULL]
    longest, full = play(0.6 * capacity)
    assert full == 1.0 and longest < 0.02
    longest, full = play(3.0 * capacity)
    assert longest < 0.25 and 0.0 <= full < 0.9
    longest, full = play(15.0 * capacity)  # a fifth below what the cheapest answers can keep up with
    assert longest < 0.4


def test_few_clicks_are_answered_in_full_however_old_they_are() -> None:
    assert ladder().choose([NOW_MS - 86_400_000] * 20) is Rung.FULL
    assert ladder().choose([NOW_MS - 86_400_000] * 4000) is Rung.POPULAR
    assert ladder().choose([]) is Rung.FULL


def test_what_is_turned_off_never_degrades() -> None:
    rungs = ladder(degrade=False)
    rungs.learn(Rung.FULL, 10, 100.0)
    assert rungs.choose([0] * 100_000) is Rung.FULL


def test_one_slow_cycle_is_soon_forgotten() -> None:
    rungs = ladder(answer_deadline_ms=50)
    for _ in range(12):
        rungs.learn(Rung.FULL, 100, 10.0)
    chosen = []
    for _ in range(600):
        rung = rungs.choose([NOW_MS] * 20)
        rungs.learn(rung, 20, 20 * COSTS_S[rung])
        chosen.append(rung)
    assert chosen[0] is not Rung.FULL and chosen[-1] is Rung.FULL


@pytest.mark.parametrize("rung", Rung)
def test_every_rung_gives_whole_lists_of_different_items_without_the_one_now_viewed(
    model: Recommender, rung: Rung
) -> None:
    q = queries(grouped(checkerboard(sessions=40, seed=5)), 4)
    items, scores = model.recommend_many(q.hashes, q.counts, model.items - 1, Asking(rung))
    seen = model.numbers(q.ids)[[q.ids.index(id_) for id_ in q.ids]]
    assert len(seen) and all(len(set(row)) == model.items - 1 for row in items.tolist()) and items.min() >= 0
    assert (np.diff(scores, axis=1) <= 0).all() and np.isfinite(scores).all()
    last = model.recommend_many(q.hashes, q.counts, model.items, Asking(rung))[0]
    assert (last[:, -1] == -1).all()  # all but the item now viewed
    if rung is not Rung.POPULAR:
        best = [model.item_id(number)[:2] for number in items[:, 0].tolist()]
        right = [q.ids[number][:2] for number in q.target.tolist()]
        assert np.mean([a == b for a, b in zip(best, right, strict=True)]) > 0.9


@pytest.mark.parametrize("rung", Rung)
def test_two_threads_make_the_lists_of_one(model: Recommender, rung: Rung) -> None:
    q = queries(grouped(checkerboard(sessions=60, seed=6)), 4)
    alone = model.recommend_many(q.hashes, q.counts, 7, Asking(rung))
    with ThreadPoolExecutor(1) as beside:
        shared = model.recommend_many(q.hashes, q.counts, 7, Asking(rung, beside))
    assert all(np.array_equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_a_degraded_answer_says_so_and_is_counted(model: Recommender) -> None:
    settings = Settings()
    settings = replace(
        settings,
        topics=replace(settings.topics, click_partitions=1),
        worker=replace(settings.worker, answer_deadline_ms=1, ahead_max_s=1e9),
    )
    lane = RecommendLane(settings)
    lane.resume(0, {})
    rows = checkerboard(sessions=200, seed=8).to_pylist()
    records = [
        Sent("clicks", 0, i, row["session_id"].encode(), msgspec.json.encode(
            {name: row[name] for name in ("event_id", "event_time", "session_id", "item_id")}))
        for i, row in enumerate(rows)
    ]  # fmt: skip
    tally = Tally()
    work = lane.begin({0: {"clicks": records}}, {0: False}, tally)
    lane.fill(work, {p: dict.fromkeys(names) for p, names in lane.wanted(work, 1, 0.0).items()}, 0.0)
    served = SimpleNamespace(version="000001", recommender=model)
    (produced,) = lane.compute(work, served, 1, tally)
    given = [msgspec.json.decode(value) for _, value in produced.messages["recommendations"]]
    assert {answer["degraded"] for answer in given} == {"popular"} and all(answer["items"] for answer in given)
    assert tally.degraded == {"popular": len(rows)}
    metrics = Metrics()
    metrics.settled(tally, NOW_MS)
    name = "headrace_degraded_recommendations_total"
    assert metrics.registry.get_sample_value(name, {"rung": "popular"}) == len(rows)
