"""Figures of a backtest on cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.metrics import (
    Scored,
    best_cards,
    calibration,
    card_precision,
    interval,
    money_caught,
    precision_recall,
    ranking,
    ranking_intervals,
)


def scored(*rows: tuple[float, int, int, int, float]) -> Scored:
    """(score, fraud, day, card, amount) of each transaction."""
    score, fraud, day, card, amount = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Scored(np.array(score, float), np.array(fraud, bool), np.array(day, np.int64), np.array(card, np.int64),
                  np.array(amount, float))  # fmt: skip


WEEK = scored(
    (0.9, 1, 0, 1, 100.0), (0.2, 1, 0, 1, 50.0), (0.8, 0, 0, 2, 10.0), (0.7, 1, 0, 3, 30.0), (0.1, 0, 0, 4, 5.0),
    (0.9, 1, 1, 1, 100.0), (0.6, 0, 1, 2, 10.0), (0.5, 1, 1, 4, 20.0),
)  # fmt: skip


def test_a_card_is_as_suspicious_as_its_worst_transaction_and_guilty_of_any() -> None:
    cards, fraud = best_cards(WEEK.take(WEEK.day == 0), 3)
    assert cards.tolist() == [1, 2, 3]
    assert fraud.tolist() == [True, False, True]


def test_of_equal_cards_the_lower_number_comes_first() -> None:
    cards, _ = best_cards(scored((0.5, 0, 0, 9, 1.0), (0.5, 0, 0, 3, 1.0), (0.5, 0, 0, 7, 1.0)), 2)
    assert cards.tolist() == [3, 7]


def test_a_card_that_was_found_leaves_the_following_days() -> None:
    # Day 0: cards 1 (fraud) and 2 are looked at. Day 1: card 1 is gone, so 2 and 4 (fraud).
    assert card_precision(WEEK, np.array([0, 1]), 2) == [0.5, 0.5]
    assert card_precision(WEEK, np.array([1]), 2) == [0.5]  # cards 1 and 2
    assert card_precision(WEEK, np.array([0, 1, 2]), 100) == [0.02, 0.01, 0.0]  # the share is of 100, and no day is NaN


def test_ranking_is_known_for_two_classes_and_told_to_be_unknown_for_one() -> None:
    auc, precision = ranking(scored((0.9, 1, 0, 1, 1.0), (0.8, 0, 0, 2, 1.0), (0.7, 1, 0, 3, 1.0), (0.1, 0, 0, 4, 1.0)))
    assert auc == 0.75
    assert precision == pytest.approx((1.0 + 2 / 3) / 2)
    assert ranking(scored((0.9, 0, 0, 1, 1.0))) == (None, None)
    assert ranking(scored((0.9, 1, 0, 1, 1.0))) == (None, None)
    assert ranking(scored()) == (None, None)


def test_money_counts_every_fraud_of_a_looked_at_card_of_that_day() -> None:
    total = 100.0 + 50.0 + 30.0 + 100.0 + 20.0
    found = {cases: (money, frauds) for cases, money, frauds in money_caught(WEEK, [1, 2, 3])}
    assert list(found[1]) == pytest.approx([250.0 / total, 3 / 5])
    assert found[2] == found[1]  # the second card of both days is good
    assert list(found[3]) == pytest.approx([1.0, 1.0])
    assert money_caught(scored((0.5, 0, 0, 1, 9.0)), [1]) == [(1, None, None)]


def test_a_right_probability_has_no_calibration_error_and_a_wrong_one_has_its_distance() -> None:
    right = scored(*((0.25, int(i % 4 == 0), 0, i, 1.0) for i in range(400)))
    wrong = Scored(np.full(400, 0.75), right.fraud, right.day, right.card, right.amount)
    assert calibration(wrong, bins=1)[1] == pytest.approx(0.5)
    curve, error = calibration(right, bins=1)
    assert sum(count for _, _, count in curve) == 400
    assert error == pytest.approx(0.0)
    assert calibration(scored()) == ([], None)


def test_intervals_hold_the_mean_and_are_unknown_for_a_single_day() -> None:
    low, high = interval([0.1, 0.2, 0.3, 0.4], seed=1) or (1.0, 0.0)
    assert 0.1 <= low < 0.25 < high <= 0.4
    assert interval([0.1, 0.2, 0.3, 0.4], seed=1) == (low, high)
    assert interval([0.3], seed=1) is None
    assert ranking_intervals(scored((0.9, 0, 0, 1, 1.0), (0.9, 0, 1, 1, 1.0)), 1)["auc"] is None


def test_the_precision_recall_curve_runs_from_everything_to_nothing_and_stays_short() -> None:
    rng = np.random.default_rng(1)
    many = Scored(rng.random(5000), rng.random(5000) < 0.1, np.zeros(5000, np.int64), np.arange(5000), np.ones(5000))
    curve = precision_recall(many)
    assert len(curve) <= 200
    assert curve[0][0] == 1.0 and curve[-1] == (0.0, 1.0)
    assert precision_recall(scored((0.9, 0, 0, 1, 1.0))) == []
