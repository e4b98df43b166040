"""The recommender: knowable answers on small catalogues, bounds on its work, and published figures on real clicks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from features.described import FEATURES
from features.errors import TrainingError
from features.recommender import Recommender
from features.schema import load_schema
from features.sources import CLICKS, SOURCES
from tests.sessions import QUICK, answers, checkerboard, clicks, fitted
from trainer.clicks import grouped, queries
from trainer.history import read_clicks
from trainer.ranker import RankerSettings, block, in_time, rows_of
from trainer.recommender import RecommenderSettings, evaluate, fit_recommender
from trainer.sources import SourceSettings, fit_sources

ROOT = Path(__file__).parents[1]
SERENADE = Path(__file__).parents[2] / "shared" / "data" / "serenade"
DAY_MS = 86_400_000
MANY = 400  # sessions by group of a checkerboard that is large enough for a ranker


@pytest.fixture(scope="module")
def ranked() -> Recommender:
    model = fitted(checkerboard(sessions=MANY))
    assert model.ranker
    return model


def test_items_of_the_same_group_come_first_with_a_ranker_and_without(ranked: Recommender) -> None:
    for model in (ranked, replace(ranked, ranker="")):
        for group in range(4):
            (best,) = answers(model, [[f"g{group}-0"]], 4)
            assert sorted(best) == [f"g{group}-{item}" for item in range(1, 5)]


def test_a_ranker_learns_what_no_single_source_says() -> None:
    """After "b" comes what came before "a": only the two last clicks together tell which of the many it is."""
    rng = np.random.default_rng(5)
    walks = [[f"x{i}", f"y{i}", "hub", f"x{i}"] for i in rng.integers(0, 30, 2000)]
    model = fitted(clicks(walks))
    assert model.ranker
    for i in range(30):
        assert answers(model, [[f"x{i}", f"y{i}", "hub"]], 1) == [[f"x{i}"]]


def test_what_followed_counts_more_than_what_came_before() -> None:
    assert answers(fitted(clicks([["a", "b", "c"]] * 20)), [["b"]], 2) == [["c", "a"]]


def test_the_last_click_decides_the_very_next_answer(ranked: Recommender) -> None:
    model = replace(ranked, ranker="")  # which met no session that changes its group
    before, after = answers(model, [["g0-0", "g0-1"], ["g0-0", "g0-1", "g1-0"]], 1)
    assert before[0].startswith("g0") and after[0].startswith("g1")


def test_a_cold_session_gets_the_most_popular_items_of_late() -> None:
    old = [["old", "other"]] * 50
    new = [["new", "other"], ["new", "other"], ["new", "third"]] * 10
    table = clicks(old + new)
    late = pa.array([t + (40 * DAY_MS if row >= 100 else 0) for row, t in enumerate(table["event_time"].to_pylist())])
    model = fitted(table.set_column(table.column_names.index("event_time"), "event_time", late))
    assert answers(model, [[], ["never seen"]], 3) == [["new", "other", "third"]] * 2


def test_short_answers_are_filled_and_never_empty_while_the_catalogue_has_an_item() -> None:
    model = fitted(checkerboard())
    (filled,) = answers(model, [["g0-0"]], 15)
    assert len(filled) == 15 and all(item.startswith("g0") for item in filled[:4])
    assert answers(fitted(clicks([["only"]])), [["only"], []], 5) == [["only"], ["only"]]
    assert answers(fitted(clicks([["a"], ["a"], ["b"]])), [["a"]], 5) == [["b"]]


def test_the_item_now_viewed_is_recommended_only_where_repeats_are_common() -> None:
    rare = fitted(clicks([["a", "b", "c"]] * 20))
    common = fitted(clicks([["a", "a", "b"], ["b", "b", "c"]] * 20))
    assert "b" not in answers(rare, [["a", "b"]], 10)[0]
    assert "a" in answers(common, [["a"]], 10)[0]


def test_ids_of_any_script_come_back_as_they_were() -> None:
    names = ["ключ", "鍵", "🗝️", "a" * 300, 'quote"\\', "é", "e\u0301", " "]
    model = fitted(clicks([[name, names[(i + 1) % len(names)]] for i, name in enumerate(names)] * 20))
    for i, name in enumerate(names):
        assert answers(model, [[name]], 1) == [[names[(i + 1) % len(names)]]]


def test_one_query_at_a_time_gives_what_many_at_once_give(ranked: Recommender) -> None:
    q = queries(grouped(checkerboard(sessions=100)), 4)
    many = ranked.recommend_many(q.hashes, q.counts, 10)
    for i in range(0, len(q.hashes), 17):
        one = ranked.recommend_many(q.hashes[i : i + 1], q.counts[i : i + 1], 10)
        assert np.array_equal(one[0][0], many[0][i]) and np.array_equal(one[1][0], many[1][i])


def test_the_same_clicks_and_seed_give_the_same_model_and_the_same_answers(ranked: Recommender) -> None:
    again = fitted(checkerboard(sessions=MANY))
    assert again.ranker == ranked.ranker
    assert all(np.array_equal(a, again.to_arrays()[name]) for name, a in ranked.to_arrays().items())
    restored = Recommender.from_arrays(ranked.to_arrays(), ranked.ranker)
    q = queries(grouped(checkerboard()), 4)
    expected = ranked.recommend_many(q.hashes, q.counts, 5)
    for model in (again, restored, ranked):
        for a, b in zip(expected, model.recommend_many(q.hashes, q.counts, 5), strict=True):
            assert np.array_equal(a, b)
    other = fitted(checkerboard(sessions=MANY), replace(QUICK, ranker=replace(QUICK.ranker, seed=2)))
    assert other.ranker != ranked.ranker


def test_the_ranker_is_trained_on_the_very_rows_that_serving_ranks() -> None:
    """Features of a training row equal those that the served function computes for the same clicks, to the bit."""
    timed, first = in_time(grouped(checkerboard(sessions=100)))
    earlier, asked = block(timed, first, 900, len(timed))
    model = Recommender.from_arrays(fit_sources(earlier, SourceSettings()))
    rows = rows_of(model, asked, 10_000, 1)
    q = queries(asked, CLICKS)
    target = model.numbers(q.ids)[q.target]
    start = 0
    for i in range(len(target)):
        found = model.candidates_many(q.hashes[i : i + 1], q.counts[i : i + 1])
        hit = found.items == target[i]
        if hit.any():
            end = start + len(hit)
            assert np.array_equal(rows.label[start:end], hit)
            assert np.array_equal(rows.x[start:end].astype(np.float64), found.x, equal_nan=True)
            start = end
    assert start == len(rows.label) > 500 and rows.sizes.sum() == start


def test_sources_of_a_training_block_have_seen_nothing_of_it() -> None:
    table = clicks([["a", "b"]] * 90 + [["new", "newer"]] * 10)
    timed, first = in_time(grouped(table))
    earlier, asked = block(timed, first, 180, 200)
    assert set(earlier.ids) == {"a", "b"} and set(asked.ids) == {"new", "newer"} and len(asked) == 20


def test_a_session_that_straddles_a_block_is_no_query_of_it() -> None:
    timed, first = in_time(grouped(clicks([["a", "b", "c", "d"], ["e", "f"]])))
    earlier, asked = block(timed, first, 2, 6)
    assert len(earlier) == 2 and sorted(asked.ids) == ["e", "f"]


def test_work_for_a_query_is_bounded_whatever_the_session_and_the_history() -> None:
    """A popular item is in every session; the lists that a query walks do not grow with the history."""
    settings = SourceSettings(postings_max=50, transitions_max=10)
    walks = [["hub", f"i{i % 200}", "hub", f"i{i % 7}"] for i in range(2000)]
    model = Recommender.from_arrays(fit_sources(grouped(clicks(walks)), settings))
    for name, limit in (("posting", 50), ("next", 50), ("transition", 10), ("linear", 100)):
        assert np.diff(getattr(model, f"{name}_offsets")).max() <= limit, name
    hashes = np.tile(queries(grouped(clicks(walks[:1])), 4).hashes[-1:], (1, 2500))
    found = model.candidates_many(hashes, np.array([hashes.shape[1]]))
    assert len(found.items) <= settings.cut
    assert found.x[:, FEATURES.index("session_length")].max() == CLICKS


def test_a_session_of_ten_thousand_clicks_is_left_out_of_training_and_said_so() -> None:
    people = [["a", "b"]] * 40
    bot = [f"i{n % 300}" for n in range(10_000)]
    plain, beside = fit_recommender(clicks(people), QUICK), fit_recommender(clicks([*people, bot]), QUICK)
    assert (plain.training["sessions_left_out"], beside.training["sessions_left_out"]) == (0, 1)
    assert beside.training["clicks"] == 80
    assert answers(beside.model, [["a"], bot], 1) == [["b"], ["b"]]


def test_a_history_of_nothing_but_a_bot_still_serves() -> None:
    model = fitted(clicks([[f"i{n % 30}" for n in range(3000)]]))
    assert len(answers(model, [["i3"]], 20)[0]) == 20


def test_old_and_long_queries_neither_crash_nor_forget_the_last_click(ranked: Recommender) -> None:
    session = [f"g{i % 4}-{i % 5}" for i in range(900)] + ["nothing known"] * 10 + ["g2-1"]
    assert answers(replace(ranked, ranker=""), [session], 3)[0][0].startswith("g2")
    assert len(answers(ranked, [session], 3)[0]) == 3
    assert len(answers(ranked, [session + ["nothing known"] * 300], 3)[0]) == 3


def test_queries_are_every_click_but_a_sessions_last() -> None:
    from features.hashing import hash_strings

    q = queries(grouped(clicks([["a", "b", "c"], ["d"], ["e", "f"]])), 2)
    asked = {q.ids[target]: list(q.hashes[i, : q.counts[i]]) for i, target in enumerate(q.target)}
    assert asked == {
        "b": list(hash_strings(["a"])),
        "c": list(hash_strings(["a", "b"])),
        "f": list(hash_strings(["e"])),
    }


def test_an_item_that_the_model_does_not_know_is_a_miss() -> None:
    model = fitted(clicks([["a", "b"]] * 10))
    figures = evaluate(model, grouped(clicks([["a", "b"], ["a", "new"]])))
    assert figures == {"hr": 0.5, "mrr": 0.5, "queries": 2.0}


def test_published_figures_come_from_sessions_that_neither_sources_nor_ranker_saw() -> None:
    """Sessions of one group until the newest tenth, which walks among items of which nothing is known."""
    known = checkerboard(sessions=MANY)
    later = int(known["event_time"][-1].as_py()) + 1
    strange = clicks([[f"n{i % 3}", f"n{(i + 1) % 3}"] for i in range(200)], later)
    strange = strange.set_column(2, "session_id", pa.array([f"t{s}" for s in strange["session_id"].to_pylist()]))
    figures = fit_recommender(pa.concat_tables([known, strange]), QUICK).metrics
    assert figures["queries"] and figures["hr"] == 0.0
    assert (fit_recommender(known, QUICK).metrics["hr"] or 0.0) > 0.9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("posting_sessions", np.array([9999], np.int32)),
        ("sequence", np.array([0], np.int32)),
        ("next_places", np.array([99_999], np.int32)),
        ("linear_items", np.array([-1], np.int32)),
        ("transition_items", np.array([9999], np.int32)),
        ("rarity", np.array([np.nan], np.float32)),
        ("recency", np.array([[0.0, 0.0, 0.0]], np.float32)),
        ("settings", np.array([np.inf])),
    ],
)
def test_arrays_that_would_lead_outside_are_refused(name: str, value: NDArray[Any]) -> None:
    arrays = fitted(checkerboard()).to_arrays()
    damaged = arrays[name].copy()
    damaged[:1] = value
    for array in (damaged, damaged[:-1], damaged.astype(np.complex64)):
        with pytest.raises(ValueError, match="recommender"):
            Recommender.from_arrays(arrays | {name: array})


def test_a_ranker_of_other_features_is_refused(ranked: Recommender) -> None:
    with pytest.raises(ValueError, match="other features"):
        replace(ranked, ranker=ranked.ranker.replace(f"rank_{SOURCES[0]}", "rank_of_something", 1))


def test_shapes_that_do_not_fit_are_refused(ranked: Recommender) -> None:
    with pytest.raises(ValueError, match="reach from"):
        ranked.recommend_many(np.zeros((1, 2), np.uint64), np.array([3], np.int64), 5)
    with pytest.raises(ValueError, match="k = 0"):
        ranked.recommend_many(np.zeros((1, 2), np.uint64), np.array([1], np.int64), 0)


def test_a_history_without_clicks_is_refused_with_what_is_needed() -> None:
    with pytest.raises(TrainingError, match="at least one"):
        fit_recommender(clicks([]))


def test_only_the_newest_sessions_of_an_item_are_kept() -> None:
    sources = fit_sources(grouped(clicks([["a", "b"]] * 30)), SourceSettings(postings_max=7))
    assert list(Recommender.from_arrays(sources).posting_sessions) == [*range(7), *range(7)]


def test_a_quarter_of_the_training_beats_the_published_figures_on_serenades_clicks() -> None:
    if not SERENADE.exists():
        pytest.skip(f"{SERENADE} is absent")
    schema = load_schema([ROOT / "examples" / "serenade.toml"]).clicks
    quick = RecommenderSettings(ranker=RankerSettings(blocks=2, trees=20, rate=0.15, queries_max=10_000, threads=1))
    model = fit_recommender(read_clicks(SERENADE / "train.txt", schema), quick).model
    figures = evaluate(model, grouped(read_clicks(SERENADE / "test.txt", schema)))
    assert figures["queries"] == 931
    assert figures["hr"] > 0.6402 and figures["mrr"] > 0.3401  # the best published at hand
