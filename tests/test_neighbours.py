"""The session recommender: knowable answers on small catalogues, published figures on real clicks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from features.errors import TrainingError
from features.hashing import hash_strings
from features.neighbours import Neighbours
from features.schema import load_schema
from trainer.history import read_clicks
from trainer.neighbours import NeighbourSettings, evaluate, fit_neighbours, queries

ROOT = Path(__file__).parents[1]
SERENADE = Path(__file__).parents[2] / "shared" / "data" / "serenade"
MINUTE_MS = 60_000


def clicks(sessions: Sequence[Sequence[str]]) -> pa.Table:
    """Sessions one after the other, a click a minute."""
    rows = [(f"s{number:05d}", item) for number, session in enumerate(sessions) for item in session]
    times = [1_600_000_000_000 + MINUTE_MS * place for place in range(len(rows))]
    return pa.table(
        {
            "session_id": [session for session, _ in rows],
            "item_id": [item for _, item in rows],
            "event_time": pa.array(times, pa.int64()),
        }
    )


def checkerboard(groups: int = 4, size: int = 5, sessions: int = 40) -> pa.Table:
    """Sessions walk within one group of items: what comes next is always of the same group."""
    rng = np.random.default_rng(1)
    walks = []
    for number in range(sessions * groups):
        group = number % groups
        walks.append([f"g{group}-{item}" for item in rng.permutation(size)[: rng.integers(2, size + 1)]])
    return clicks(walks)


def answers(model: Neighbours, sessions: Sequence[Sequence[str]], k: int) -> list[list[str]]:
    length = max(1, *map(len, sessions))
    hashes = np.zeros((len(sessions), length), np.uint64)
    for row, session in enumerate(sessions):
        hashes[row, : len(session)] = hash_strings(session)
    items, scores = model.recommend_many(hashes, np.array([len(session) for session in sessions], np.int64), k)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len({i for i in row if i >= 0}) == (row >= 0).sum() for row in items)
    return [[model.item_id(i) for i in row if i >= 0] for row in items]


def test_items_of_the_same_group_come_first() -> None:
    model = fit_neighbours(checkerboard())
    for group in range(4):
        (best,) = answers(model, [[f"g{group}-0"]], 4)
        assert sorted(best) == [f"g{group}-{item}" for item in range(1, 5)]


def test_what_followed_counts_more_than_what_came_before() -> None:
    model = fit_neighbours(clicks([["a", "b", "c"]] * 20))
    assert answers(model, [["b"]], 2) == [["c", "a"]]


def test_the_last_click_decides_the_very_next_answer() -> None:
    model = fit_neighbours(checkerboard())
    before, after = answers(model, [["g0-0", "g0-1"], ["g0-0", "g0-1", "g1-0"]], 1)
    assert before[0].startswith("g0") and after[0].startswith("g1")


def test_a_cold_session_gets_the_most_popular_items_of_late() -> None:
    old = [["old", "other"]] * 50
    new = [["new", "other"], ["new", "other"], ["new", "third"]] * 10
    table = clicks(old + new)
    late = pa.array(
        [t + (40 * 86_400_000 if row >= 100 else 0) for row, t in enumerate(table["event_time"].to_pylist())]
    )
    model = fit_neighbours(table.set_column(2, "event_time", late))
    assert answers(model, [[], ["never seen"]], 3) == [["new", "other", "third"]] * 2


def test_short_answers_are_filled_and_never_empty_while_the_catalogue_has_an_item() -> None:
    model = fit_neighbours(checkerboard())
    (filled,) = answers(model, [["g0-0"]], 15)
    assert len(filled) == 15 and all(item.startswith("g0") for item in filled[:4])
    assert answers(fit_neighbours(clicks([["only"]])), [["only"], []], 5) == [["only"], ["only"]]
    assert answers(fit_neighbours(clicks([["a"], ["a"], ["b"]])), [["a"]], 5) == [["b"]]


def test_the_item_now_viewed_is_recommended_only_where_repeats_are_common() -> None:
    rare = fit_neighbours(clicks([["a", "b", "c"]] * 20))
    common = fit_neighbours(clicks([["a", "a", "b"], ["b", "b", "c"]] * 20))
    assert "b" not in answers(rare, [["a", "b"]], 10)[0]
    assert "a" in answers(common, [["a"]], 10)[0]


def test_one_query_at_a_time_gives_what_many_at_once_give() -> None:
    table = checkerboard(sessions=100)
    model = fit_neighbours(table)
    hashes, counts, _ = queries(table, 4)
    many = model.recommend_many(hashes, counts, 10)
    for i in range(0, len(hashes), 17):
        one = model.recommend_many(hashes[i : i + 1], counts[i : i + 1], 10)
        assert np.array_equal(one[0][0], many[0][i]) and np.array_equal(one[1][0], many[1][i])


def test_the_same_clicks_give_the_same_model_and_the_same_answers() -> None:
    table = checkerboard()
    first, second = fit_neighbours(table), fit_neighbours(table)
    assert all(np.array_equal(a, second.to_arrays()[name]) for name, a in first.to_arrays().items())
    restored = Neighbours.from_arrays(first.to_arrays())
    hashes, counts, _ = queries(table, 4)
    expected = first.recommend_many(hashes, counts, 5)
    for model in (second, restored, first):
        for a, b in zip(expected, model.recommend_many(hashes, counts, 5), strict=True):
            assert np.array_equal(a, b)


def test_old_and_long_queries_neither_crash_nor_forget_the_last_click() -> None:
    model = fit_neighbours(checkerboard())
    session = [f"g{i % 4}-{i % 5}" for i in range(900)] + ["nothing known"] * 300 + ["g2-1"]
    assert answers(model, [session], 3)[0][0].startswith("g2")


def test_queries_are_every_click_but_a_sessions_last() -> None:
    hashes, counts, targets = queries(clicks([["a", "b", "c"], ["d"], ["e", "f"]]), 2)
    asked = {target: list(hashes[i, : counts[i]]) for i, target in enumerate(targets)}
    assert asked == {
        "b": list(hash_strings(["a"])),
        "c": list(hash_strings(["a", "b"])),
        "f": list(hash_strings(["e"])),
    }


def test_an_item_that_the_model_does_not_know_is_a_miss() -> None:
    model = fit_neighbours(clicks([["a", "b"]] * 10))
    figures = evaluate(model, clicks([["a", "b"], ["a", "new"]]))
    assert figures == {"hr": 0.5, "mrr": 0.5, "queries": 2.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("posting_sessions", np.array([9999], np.int32)),
        ("session_items", np.array([-1], np.int32)),
        ("item_weights", np.array([np.nan], np.float32)),
        ("session_weights", np.array([0.0], np.float32)),
    ],
)
def test_arrays_that_would_lead_outside_are_refused(name: str, value: NDArray[Any]) -> None:
    arrays = fit_neighbours(checkerboard()).to_arrays()
    damaged = arrays[name].copy()
    damaged[:1] = value
    for array in (damaged, damaged[:-1], damaged.astype(np.float16)):
        with pytest.raises(ValueError, match="neighbours"):
            Neighbours.from_arrays(arrays | {name: array})


def test_shapes_that_do_not_fit_are_refused() -> None:
    model = fit_neighbours(checkerboard())
    with pytest.raises(ValueError, match="reach from"):
        model.recommend_many(np.zeros((1, 2), np.uint64), np.array([3], np.int64), 5)
    with pytest.raises(ValueError, match="k = 0"):
        model.recommend_many(np.zeros((1, 2), np.uint64), np.array([1], np.int64), 0)


def test_a_history_without_clicks_is_refused_with_what_is_needed() -> None:
    with pytest.raises(TrainingError, match="at least one"):
        fit_neighbours(clicks([]))


def test_only_the_newest_sessions_of_an_item_are_kept() -> None:
    model = fit_neighbours(clicks([["a", "b"]] * 30), NeighbourSettings(postings_max=7))
    assert list(model.posting_sessions) == [*range(7), *range(7)]


def test_figures_on_serenades_clicks_are_those_of_the_published_method() -> None:
    if not SERENADE.exists():
        pytest.skip(f"{SERENADE} is absent")
    schema = load_schema([ROOT / "examples" / "serenade.toml"]).clicks
    model = fit_neighbours(read_clicks(SERENADE / "train.txt", schema))
    figures = evaluate(model, read_clicks(SERENADE / "test.txt", schema), 20)
    assert figures["queries"] == 931
    assert figures["hr"] > 0.657 and figures["mrr"] > 0.306
