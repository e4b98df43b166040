"""The newest labels one by one and what is usual, in stories whose answers a reader can see."""

from __future__ import annotations

import math

import pytest

from tests.streams import Op, Run
from tests.test_kernel import COLUMNS, card, verdict


def values(ops: list[Op], name: str) -> list[float]:
    x, _, _ = Run().feed(ops)
    return list(x[:, COLUMNS[name]].tolist())


def test_a_run_grows_with_each_fraud_and_ends_with_a_good_label() -> None:
    story: list[Op] = []
    for i, fraud in enumerate((0, 1, 1, 0)):
        story += [card(f"e{i}", 10_000 * i, who=f"w{i}"), verdict(f"e{i}", 10_000 * i + 5_000, fraud, who=f"w{i}")]
    story.append(card("last", 40_000, who="z"))
    assert values(story, "merchant_fraud_run") == [0.0, 0.0, 1.0, 2.0, 0.0]
    begun, good = values(story, "merchant_seconds_since_fraud_run"), values(story, "merchant_seconds_since_good_label")
    assert begun[2:4] == [5.0, 15.0] and math.isnan(begun[1]) and math.isnan(begun[4])
    assert good[1:] == [5.0, 15.0, 25.0, 5.0] and math.isnan(good[0])


def test_a_long_run_counts_to_seven_and_is_as_old_as_it_is() -> None:
    story = [card("good", 0, who="g"), verdict("good", 1, 0, who="g")]
    for i in range(10):
        story += [card(f"e{i}", 10 + i, who=f"w{i}"), verdict(f"e{i}", 1000 * (i + 1), 1, who=f"w{i}")]
    story.append(card("last", 20_000, who="z"))
    assert values(story, "merchant_fraud_run")[-1] == 7.0  # the good label before it takes the eighth place
    assert values(story, "merchant_seconds_since_fraud_run")[-1] == 19.0
    assert values(story, "merchant_seconds_since_good_label")[-1] == 19.999


def test_labels_count_by_their_times_however_they_come() -> None:
    late = [card("a", 0, who="a"), card("b", 1, who="b"), verdict("b", 20_000, 1, who="b"),
            verdict("a", 10_000, 0, who="a"), card("c", 30_000, who="c")]  # fmt: skip
    assert values(late, "merchant_fraud_run")[-1] == 1.0
    assert values(late, "merchant_seconds_since_good_label")[-1] == 20.0


def test_a_corrected_label_gives_the_run_before_it_back() -> None:
    story = [card("a", 0, who="a"), verdict("a", 1_000, 1, who="a"), card("b", 2_000, who="b"),
             verdict("b", 3_000, 0, who="b"), card("c", 4_000, who="c"), verdict("b", 5_000, 1, who="b"),
             card("d", 6_000, who="d")]  # fmt: skip
    assert values(story, "merchant_fraud_run") == [0.0, 1.0, 0.0, 2.0]


def test_a_fraud_is_known_by_how_unusual_it_was_for_its_card() -> None:
    story = [card(f"u{i}", i, 10.0) for i in range(4)]
    story += [card("big", 10, 95.0), verdict("big", 20, 1), card("next", 30, who="z")]
    assert values(story, "merchant_fraud_run_ratio")[-1] == pytest.approx(254 / 32)  # at most that
    story = [card(f"u{i}", i, 10.0) for i in range(4)]
    story += [card("same", 10, 10.0), verdict("same", 20, 1), card("next", 30, who="z")]
    assert values(story, "merchant_fraud_run_ratio")[-1] == 1.0


def test_a_label_whose_transaction_is_forgotten_counts_without_a_ratio() -> None:
    story = [verdict("unknown", 10, 1), card("next", 30, who="z")]
    assert values(story, "merchant_fraud_run") == [1.0]
    assert math.isnan(values(story, "merchant_fraud_run_ratio")[0])


def test_one_outlier_hardly_moves_what_is_usual_and_is_remembered_by_its_time() -> None:
    story = [card(f"u{i}", 1000 * i, 10.0) for i in range(10)]
    story += [card("big", 20_000, 900.0), card("after", 50_000, 10.0)]
    ratio, since = values(story, "card_amount_usual_ratio"), values(story, "card_seconds_since_unusual_amount")
    assert math.isnan(ratio[0]) and ratio[1:10] == [1.0] * 9
    assert ratio[10] == 90.0
    assert 10.0 / ratio[11] == pytest.approx(10.0 + 17.5 / 11)
    assert math.isnan(since[10]) and since[11] == 30.0


def test_a_repeat_counts_once_in_what_is_usual() -> None:
    story = [card("a", 0, 10.0), card("a", 1, 10.0), card("a", 2, 10.0), card("b", 3, 20.0), card("c", 4, 30.0)]
    assert values(story, "card_amount_usual_ratio")[-1] == 2.0


def test_what_is_usual_is_forgotten_with_the_memory() -> None:
    year = 365 * 86_400_000
    story = [card("a", 0, 10.0), card("b", year, 20.0)]
    assert math.isnan(values(story, "card_amount_usual_ratio")[-1])
