"""The kernel against the naive oracle, on random streams: what a window holds, what it never holds, and batching."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import engine, event, kernel, labels, memory, usual
from features.catalogue import Feature, build_catalogue
from features.codec import encode_rows
from tests.oracle import exact, tiles
from tests.streams import CATALOGUE, SCHEMA, START_MS, Op, Run, expected, key_of, operations, small_schema, streams

COLUMNS = {feature.name: i for i, feature in enumerate(CATALOGUE.features)}
FOLDED = [(i, f) for i, f in enumerate(CATALOGUE.features) if f.entity != "event"]


def card(id_: str, after_ms: int, amount: float = 10.0, *, who: str = "a", merchant: str = "m") -> Op:
    """A transaction at that many milliseconds."""
    return Op(id_, START_MS + after_ms, (who, merchant, f"{merchant}\x1fx"), (amount, math.nan))


def verdict(id_: str, after_ms: int, fraud: int, *, who: str = "a", merchant: str = "m") -> Op:
    """A label that arrives at that many milliseconds."""
    return Op(id_, START_MS + after_ms, (who, merchant, f"{merchant}\x1fx"), fraud=fraud)


def last(ops: Sequence[Op]) -> dict[str, float]:
    """The features of the last transaction."""
    x, _, _ = Run().feed(ops)
    return dict(zip(CATALOGUE.names, x[-1].tolist(), strict=True))


def widest(time: int, window: int, newest: int) -> tuple[int, int]:
    """The most that a window may hold: the stated bound."""
    hop = -(-window // 12)
    return time - 13 * hop + 1, time + hop - 1


def state(run: Run) -> list[list[bytes]]:
    """All rows as bytes, which leave out what no event can read."""
    rows = np.arange(len(run.tables[0]), dtype=np.int64)
    return [encode_rows(table.layout, rows, table.ints, table.floats) for table in run.tables]


def close(found: float, wanted: float, feature: Feature, past: float) -> bool:
    """Equal to 1e-9; a deviation is the root of a difference of sums, so its square is."""
    if feature.aggregate == "usual_ratio":  # a mean that rounding left of zero is zero to the other
        found, wanted = (math.nan if abs(ratio) > 1e9 else ratio for ratio in (found, wanted))
    if math.isnan(found) or math.isnan(wanted):
        return math.isnan(found) and math.isnan(wanted)
    if feature.aggregate == "std":
        return abs(found**2 - wanted**2) <= 1e-9 * max(past**2, 1e-9)
    if feature.aggregate == "fraud_run_ratio":
        return abs(found - wanted) <= 1 / 32  # its step, which rounding may decide
    if feature.aggregate == "usual_zscore":
        return math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-6)
    return math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=200, deadline=None)
@given(streams())
def test_every_feature_equals_the_naive_one_over_whole_tiles(ops: list[Op]) -> None:
    x, _, _ = Run().feed(ops)
    largest = max((abs(v) for op in ops for v in op.values if not math.isnan(v)), default=0.0)
    for vector, wanted in zip(x, expected(SCHEMA, ops, tiles), strict=True):
        for i, feature in FOLDED:
            if feature.aggregate == "zscore":
                continue  # a quotient by the deviation: tested where the deviation is not almost nothing
            value = wanted.get(key_of(feature), math.nan)
            assert close(vector[i], value, feature, largest), (feature.name, vector[i], value)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from((1.0, 2.0, 5.0, 20.0)), min_size=1, max_size=20))
def test_a_zscore_counts_deviations_from_the_past_mean(amounts: list[float]) -> None:
    found = last([card(f"e{i}", i, amount) for i, amount in enumerate(amounts)])["card_amount_zscore_10m"]
    past = np.array(amounts[:-1])
    if len(set(amounts[:-1])) < 2:
        assert math.isnan(found)
    else:
        assert found == pytest.approx((amounts[-1] - past.mean()) / past.std(), rel=1e-9)


@pytest.mark.parametrize("amount", [0.1, 19.99, 33.33, 1e6 / 3])
def test_a_card_that_always_paid_the_same_has_no_deviation_and_no_zscore(amount: float) -> None:
    found = last([*(card(f"e{i}", i, amount) for i in range(30)), card("e", 40, 2 * amount)])
    assert found["card_amount_std_10m"] == 0.0
    assert math.isnan(found["card_amount_zscore_10m"])


def check_bound(ops: list[Op], spans: tuple[Any, Any], *, late_hops_max: int) -> None:
    x, _, _ = Run().feed(ops)
    least, most = (expected(SCHEMA, ops, span) for span in spans)
    newest: dict[Any, int] = {}
    fresh = iter(zip(x, least, most, strict=True))
    for op in ops:
        if op.fraud is not None:
            continue
        vector, low, high = next(fresh)
        for i, feature in FOLDED:
            if feature.aggregate not in ("count", "max") and (feature.aggregate, feature.field) != ("sum", "amount"):
                continue
            e = [entity.name for entity in SCHEMA.entities].index(feature.entity)
            hop = -(-feature.window_ms // 12)
            late = newest.get((e, op.ids[e]), op.time) // hop - op.time // hop
            slack = 1e-9 * abs(vector[i]) if not math.isnan(vector[i]) else 0.0
            key = key_of(feature)
            if late <= late_hops_max and key in low:
                assert vector[i] >= low[key] - slack, (feature.name, vector[i], low[key])
            assert math.isnan(vector[i]) or vector[i] <= high[key] + slack, (feature.name, vector[i], high.get(key))
        for e, id_ in enumerate(op.ids):
            newest[e, id_] = max(newest.get((e, id_), 0), op.time)


def up_to_now(time: int, window: int, newest: int) -> tuple[int, int]:
    """The bound of a stream in order."""
    return widest(time, window, newest)[0], time


@settings(max_examples=80, deadline=None)
@given(streams(late=False))
def test_in_order_a_window_holds_all_of_itself_and_at_most_one_hop_before(ops: list[Op]) -> None:
    check_bound(ops, (exact, up_to_now), late_hops_max=0)


@settings(max_examples=80, deadline=None)
@given(streams())
def test_an_event_up_to_three_hops_late_sees_its_whole_window_and_at_most_a_hop_more_on_each_side(
    ops: list[Op],
) -> None:
    check_bound(ops, (exact, widest), late_hops_max=3)


@settings(max_examples=80, deadline=None)
@given(streams(), st.data())
def test_a_later_event_never_changes_an_earlier_vector(ops: list[Op], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(ops)))
    whole, decided, _ = Run().feed(ops)
    part, decided_part, _ = Run().feed(ops[:cut])
    assert whole[: len(part)].tobytes() == part.tobytes()
    assert np.array_equal(decided[: len(part)], decided_part)


@pytest.mark.parametrize("memory", [1, 3, 64])
@settings(max_examples=80, deadline=None)
@given(ops=streams(), data=st.data())
def test_any_cut_into_batches_gives_the_same_bits_decisions_and_state(
    memory: int, ops: list[Op], data: st.DataObject
) -> None:
    catalogue = build_catalogue(small_schema(memory))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(ops)), max_size=6)))
    one, many = Run(catalogue), Run(catalogue)
    whole, decided, repeats = one.feed(ops)
    parts = [many.feed(ops[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ops)], strict=True)]
    assert whole.tobytes() == np.concatenate([x for x, _, _ in parts]).tobytes()
    assert np.array_equal(decided, np.concatenate([found for _, found, _ in parts]))
    assert repeats == [repeat for _, _, found in parts for repeat in found]
    assert state(one) == state(many)


def test_two_purchases_in_the_same_second_see_each_other_and_none_sees_itself() -> None:
    x, _, _ = Run().feed([card("e1", 0, 10.0), card("e2", 0, 30.0), card("e3", 0, 50.0)])
    assert x[:, COLUMNS["card_count_7s"]].tolist() == [0.0, 1.0, 2.0]
    assert x[:, COLUMNS["card_amount_sum_10m"]].tolist() == [0.0, 10.0, 40.0]
    assert x[:, COLUMNS["card_seconds_since_last"]].tolist()[1:] == [0.0, 0.0]


def test_an_event_sent_twice_is_decided_as_the_first_time_and_counted_once() -> None:
    run = Run()
    x, decided, repeats = run.feed([card("e1", 0), card("e2", 1, 99.0), card("e1", 2), card("e3", 3)])
    assert repeats == [0, 0, 1, 0]
    assert x[3, COLUMNS["card_count_10m"]] == 2.0
    assert decided[2].tolist() == decided[0].tolist() != decided[1].tolist()


def test_a_corrected_label_replaces_the_earlier_one_at_all_entities() -> None:
    story = [card("e1", 0), verdict("e1", 10, 1), card("e2", 20), verdict("e1", 30, 1), card("e3", 40),
             verdict("e1", 50, 0), card("e4", 60)]  # fmt: skip
    x, _, _ = Run().feed(story)
    for entity, window in (("card", "1h"), ("merchant", "1h"), ("place", "10m")):
        assert x[:, COLUMNS[f"{entity}_fraud_count_{window}"]].tolist() == [0.0, 1.0, 1.0, 0.0]
        assert x[1:, COLUMNS[f"{entity}_fraud_rate_{window}"]].tolist() == [1.0, 1.0, 0.0]


def test_labels_of_an_entity_that_was_long_unseen_do_not_bring_its_past_back() -> None:
    year = 365 * 86_400_000
    features = last([card("e1", 0), verdict("other", year, 1), card("e2", year + 1000)])
    assert math.isnan(features["card_seconds_since_last"])
    assert features["card_fraud_count_1h"] == 1.0


def test_a_label_of_a_forgotten_transaction_counts_once_and_says_so() -> None:
    run = Run()
    run.feed([card(f"e{i}", i) for i in range(4)])  # the memory holds three
    columns = operations([verdict("e0", 10, 1), verdict("e1", 10, 1)], run.rows)
    assert engine.fold(run.catalogue, run.tables, columns).missed.tolist() == [1, 0]
    x, _, _ = run.feed([card("e5", 20)])
    assert x[0, COLUMNS["card_fraud_count_1h"]] == 2.0


@pytest.mark.parametrize("module", [event, kernel, labels, memory, usual], ids=lambda module: module.__name__)
def test_no_compiled_function_of_an_operation_counts_references(module: Any) -> None:
    found = {name: value.targetoptions for name, value in vars(module).items() if hasattr(value, "targetoptions")}
    assert found
    assert [name for name, options in found.items() if options.get("_nrt") is not False] == []
