"""Probabilities that hold: a logistic correction of a model's log-odds, written into the leaves of its trees.

In: log-odds that a model gave to transactions it was not fitted on, and their verdicts. Out: slope and intercept; a
booster whose scores are corrected by them. Pure.

``log-odds' = slope * log-odds + intercept`` (Platt, 1999), fitted by maximum likelihood. It keeps the order of scores.
Put into the leaves it costs nothing to serve, and contributions (TreeSHAP) stay what adds up to the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
FRAUDS_MIN = 20
_PENALTY_NONE = 1e6  # inverse strength of scikit-learn's penalty: none to speak of


@dataclass(frozen=True, slots=True)
class Calibration:
    """``slope`` is above 0; (1, 0) changes nothing."""

    slope: float = 1.0
    intercept: float = 0.0

    def log_odds(self, raw: Floats) -> Floats:
        """Corrected log-odds."""
        return np.asarray(self.slope * raw + self.intercept)


def fit_calibration(raw: Floats, fraud: NDArray[np.bool_], weights: Floats | None = None) -> Calibration:
    """The correction that makes these verdicts likeliest.

    Parameters
    ----------
    raw : float64[n]
        Log-odds of transactions that the model was not fitted on.
    fraud : bool[n]
    weights : float64[n], optional

    Returns
    -------
    Calibration
        One that changes nothing where fewer than 20 frauds or good ones leave too little to fit on, or where the
        scores do not rise with fraud.
    """
    if min(fraud.sum(), (~fraud).sum()) < FRAUDS_MIN:
        return Calibration()
    model = LogisticRegression(C=_PENALTY_NONE, max_iter=1000).fit(raw.reshape(-1, 1), fraud, weights)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    return Calibration(slope, intercept) if slope > 0.0 else Calibration()


def calibrated(booster: lgb.Booster, calibration: Calibration) -> lgb.Booster:
    """The booster with the correction in its leaves; the given one is changed."""
    if calibration == Calibration():
        return booster
    for tree, told in enumerate(booster.dump_model()["tree_info"]):
        first = calibration.intercept if tree == 0 else 0.0
        for leaf in range(told["num_leaves"]):
            value = booster.get_leaf_output(tree, leaf)
            booster.set_leaf_output(tree, leaf, calibration.slope * value + first)
    return booster
