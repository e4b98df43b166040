"""Fraud models: what they learn, where their thresholds lie, what they answer and why."""

from __future__ import annotations

import math

import numpy as np
import pytest

from features.catalogue import Feature, build_catalogue
from features.errors import TrainingError
from features.reasons import sentence
from features.schema import load_schema
from features.scoring import FraudModel, Thresholds
from trainer.fraud import FraudSettings, Judged, choose_thresholds, fit_fraud, sample, split
from trainer.isolation import fit_isolation

DAY_MS = 86_400_000
SMALL = FraudSettings(trees=40, learning_rate=0.2, threads=1)
FEATURES = (
    Feature("card_amount_ratio_30d", "card", "amount", "ratio", 30 * DAY_MS, "amount over the card's mean of 30d"),
    Feature("card_count_10m", "card", "", "count", 600_000, "number of the card's transactions in 10m"),
    Feature("event_hour", "event", "event_time", "hour", 0, "hour of the day"),
    Feature("event_country", "event", "country", "category", 0, "country of this transaction"),
)


def history(rows: int = 6000, seed: int = 1, delay_ms: int = 0) -> Judged:
    """Fraud is likely where the ratio is high, or where many transactions came within 10 minutes."""
    rng = np.random.default_rng(seed)
    x = np.stack(
        [rng.lognormal(size=rows), rng.poisson(1.0, rows), rng.uniform(0, 24, rows), rng.integers(0, 9, rows)], axis=1
    ).astype(np.float64)
    chance = np.where(x[:, 0] > 5, 0.9, np.where(x[:, 1] > 3, 0.95, 0.004))
    x[rng.random(rows) < 0.05, 0] = np.nan
    time_ms = np.arange(rows) * 60_000
    return Judged(x, rng.random(rows) < chance, time_ms, time_ms + delay_ms)


@pytest.fixture(scope="module")
def model() -> FraudModel:
    judged = history()
    fitted = fit_fraud(judged, FEATURES, SMALL)
    return FraudModel(fitted.text, fit_isolation(judged.x, seed=1), FEATURES, fitted.thresholds, "000001")


def test_frauds_score_high_and_good_transactions_low(model: FraudModel) -> None:
    score, anomaly = model.score_many(np.array([[9.0, 0, 12, 3], [1.0, 5, 12, 3], [1.0, 0, 12, 3]]))
    assert (score[:2] > 0.5).all() and score[2] < 0.05
    assert (anomaly[:2] > anomaly[2]).all()


def test_scores_are_probabilities(model: FraudModel) -> None:
    unseen = history(seed=2)
    score, anomaly = model.score_many(unseen.x)
    assert ((score >= 0) & (score <= 1) & (anomaly >= 0) & (anomaly <= 1)).all()
    assert abs(score.mean() - unseen.fraud.mean()) < 0.01


def test_a_row_alone_scores_as_it_does_among_many(model: FraudModel) -> None:
    x = history(200, seed=3).x
    many = model.score_many(x)
    for i in range(len(x)):
        assert [float(part[0]) for part in model.score_many(x[i : i + 1])] == [float(part[i]) for part in many]


def test_no_rows_give_no_scores(model: FraudModel) -> None:
    score, anomaly = model.score_many(np.empty((0, 4)))
    assert score.shape == anomaly.shape == (0,)


def test_reasons_name_what_raised_the_score_first_and_in_words(model: FraudModel) -> None:
    reasons = model.reasons(np.array([9.0, 0.0, 12.0, 3.0]))
    assert reasons[0].feature == "card_amount_ratio_30d"
    assert reasons[0].text == "amount is 9.0 times this card's 30-day mean"
    shares = [reason.contribution or 0.0 for reason in reasons]
    assert shares == sorted(shares, reverse=True) and min(shares) > 0 and len(reasons) <= 3
    assert (
        model.reasons(np.array([1.0, 5.0, 12.0, 3.0]))[0].text
        == "5 earlier transactions of this card within 10 minutes"
    )


def test_a_missing_value_is_no_number_in_a_reason(model: FraudModel) -> None:
    for reason in model.reasons(np.array([math.nan, 6.0, math.nan, math.nan])):
        assert reason.value is None or math.isfinite(reason.value)


def test_the_same_seed_gives_the_same_text() -> None:
    judged = history(3000)
    assert fit_fraud(judged, FEATURES, SMALL).text == fit_fraud(judged, FEATURES, SMALL).text


def test_the_hold_out_is_newer_than_what_is_fitted_on_and_labels_that_were_not_in_are_left_out() -> None:
    judged = history(delay_ms=1000 * 60_000)
    older, newer = split(judged, 0.2)
    assert judged.time_ms[older].max() < judged.time_ms[newer].min()
    assert judged.known_ms[older].max() <= judged.time_ms[newer].min()
    assert len(newer) == 1200 and newer[-1] == 5999


def test_a_hold_out_without_frauds_reaches_further_back() -> None:
    judged = history()
    fraud = judged.fraud.copy()
    fraud[3000:] = False
    older, newer = split(Judged(judged.x, fraud, judged.time_ms, judged.known_ms), 0.2)
    assert fraud[newer].sum() >= 10 and fraud[older].sum() >= 10


def test_too_few_frauds_are_refused_with_the_counts() -> None:
    judged = history(500)
    with pytest.raises(TrainingError, match=r"0 frauds and 500 good transactions.*at least 20 frauds"):
        fit_fraud(Judged(judged.x, np.zeros(500, bool), judged.time_ms, judged.known_ms), FEATURES, SMALL)


def test_a_bounded_fit_keeps_every_fraud_and_weighs_goods_as_many_as_they_stand_for() -> None:
    fraud = history(20_000).fraud
    rows, weights = sample(fraud, 8000, seed=1)
    assert len(rows) == 8000 and (np.diff(rows) > 0).all()
    assert fraud[rows].sum() == fraud.sum() and (weights[fraud[rows]] == 1).all()
    assert weights.sum() == pytest.approx(20_000)
    newest = np.flatnonzero(~fraud)[-1000:]
    assert np.isin(newest, rows).all() and (weights[np.isin(rows, newest)] == 1).all()


def test_a_bounded_fit_still_gives_probabilities() -> None:
    judged = history(20_000)
    settings = FraudSettings(trees=40, learning_rate=0.2, threads=1, rows_max=6000)
    fitted = fit_fraud(judged, FEATURES, settings)
    model = FraudModel(fitted.text, fit_isolation(judged.x, seed=1), FEATURES, fitted.thresholds)
    unseen = history(20_000, seed=5)
    assert abs(model.score_many(unseen.x)[0].mean() - unseen.fraud.mean()) < 0.012


def test_review_holds_to_its_share_and_block_to_its_precision() -> None:
    rng = np.random.default_rng(1)
    score = rng.random(10_000) ** 3
    fraud = rng.random(10_000) < score**6
    chosen = choose_thresholds(score, fraud)
    assert (score >= chosen.review).mean() <= max(0.005, 2 * fraud.mean())
    blocked = score >= chosen.block
    assert blocked.sum() >= 20 and fraud[blocked].mean() >= 0.8 and chosen.block >= chosen.review


def test_equal_scores_are_alerted_together_or_not_at_all() -> None:
    score = np.where(np.arange(1000) < 100, 0.5, 0.1)
    chosen = choose_thresholds(score, np.arange(1000) % 97 == 0)
    assert chosen.review == 0.5


def test_what_is_more_likely_good_than_not_is_never_blocked() -> None:
    fraud = np.arange(1000) < 100
    assert choose_thresholds(np.where(fraud, 0.4, 0.01), fraud).block == 0.5


def test_without_a_precise_score_only_what_is_above_every_good_one_is_blocked() -> None:
    score = np.linspace(0, 0.6, 1000)
    chosen = choose_thresholds(score, np.arange(1000) % 50 == 0)
    assert chosen.block == pytest.approx(0.8)


def test_parts_of_different_models_are_refused(model: FraudModel) -> None:
    with pytest.raises(ValueError, match="same 3 features"):
        FraudModel(model.text, model.forest, FEATURES[:3], model.thresholds)
    with pytest.raises(ValueError, match="same 4 features"):
        FraudModel(model.text, model.forest, FEATURES[::-1], model.thresholds)
    with pytest.raises(ValueError, match="review"):
        FraudModel(model.text, model.forest, FEATURES, Thresholds(0.9, 0.1))


def test_every_feature_of_the_shipped_catalogue_has_a_sentence() -> None:
    for feature in build_catalogue(load_schema().transactions).features:
        for value in (0.0, 1.0, 3.25, -2.0, 1e9, math.nan):
            text = sentence(feature, value)
            assert text and "nan" not in text and "{" not in text and text != feature.name


@pytest.mark.parametrize(
    ("feature", "value", "expected"),
    [
        (Feature("", "merchant", "", "fraud_count", 7 * DAY_MS, ""), 3,
         "3 of this merchant's transactions were reported as fraud in the last 7 days"),
        (Feature("", "merchant", "", "fraud_rate", 30 * DAY_MS, ""), 0.25,
         "25% of this merchant's judged transactions of the last 30 days were fraud"),
        (Feature("", "card", "", "since_last", 0, ""), 42, "42 seconds since this card's last transaction"),
        (Feature("", "card", "", "since_last", 0, ""), math.nan, "first transaction of this card"),
        (Feature("", "card", "merchant", "seen", 0, ""), 0,
         "first remembered transaction of this card with this merchant"),
        (Feature("", "card", "", "count", 3_600_000, ""), 1, "1 earlier transaction of this card within 1 hour"),
        (Feature("", "card", "amount", "zscore", DAY_MS, ""), 4.2,
         "amount is 4.2 standard deviations above this card's 1-day mean"),
        (Feature("", "device_network", "bytes_sent", "max", DAY_MS, ""), 1234.5,
         "the device network's largest bytes sent over 1 day is 1,234.50"),
    ],
)  # fmt: skip
def test_sentences_read_as_an_analyst_would_say_them(feature: Feature, value: float, expected: str) -> None:
    assert sentence(feature, value) == expected
