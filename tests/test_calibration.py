"""A calibrated model says probabilities that come true, and ranks as before."""

from __future__ import annotations

import lightgbm as lgb
import numpy as np
import pytest

from features.model_text import parse
from features.trees import FlatTrees
from trainer.calibration import Calibration, calibrated, fit_calibration


def world(seed: int, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and verdicts that follow them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, rng.random(n) < 1.0 / (1.0 + np.exp(3.0 - 2.0 * x[:, 0]))


def test_what_is_too_sure_by_half_is_brought_back() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(-2.0, 1.5, 50_000)
    fraud = rng.random(50_000) < 1.0 / (1.0 + np.exp(-truth))
    found = fit_calibration(2.0 * truth + 1.0, fraud)
    assert found.slope == pytest.approx(0.5, abs=0.02)
    assert found.intercept == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize("frauds", [0, 19, 100])
def test_too_few_of_either_kind_or_scores_that_fall_with_fraud_change_nothing(frauds: int) -> None:
    fraud = np.arange(100) < frauds
    assert fit_calibration(np.linspace(0.0, 1.0, 100), fraud) == Calibration()
    assert fit_calibration(np.linspace(1.0, 0.0, 1000), np.arange(1000) > 900) == Calibration()


def test_leaves_carry_the_correction_bit_for_bit_into_the_served_model() -> None:
    x, fraud = world(1)
    booster = lgb.train(
        {"objective": "binary", "verbosity": -1, "num_threads": 1}, lgb.Dataset(x, fraud.astype(float)), 20
    )
    raw = np.asarray(booster.predict(x, raw_score=True, num_threads=1))
    wanted = 1.0 / (1.0 + np.exp(-(0.7 * raw - 0.3)))
    text = calibrated(booster, Calibration(0.7, -0.3)).model_to_string()
    served = FlatTrees(parse(text)).probability(x)
    assert served == pytest.approx(wanted, abs=1e-9)
    assert np.array_equal(np.argsort(served, kind="stable"), np.argsort(raw, kind="stable")) or (
        np.abs(np.diff(served[np.argsort(raw, kind="stable")])).min() < 1e-12
    )
