"""What a backtest does about its scores: the policy of the settings, as a worker with one partition has it, and days.

In: scores of test transactions in the order of time. Out: actions and thresholds in force; what was alerted on each day
beside the best that could have been. Pure. The alert budget begins with nothing at the first test day; its watermark
counts the test transactions alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import costs
from features.budget import Budget, model_tag
from features.budget_kernel import OPEN, SKIP
from features.costs import Costs
from features.scoring import Thresholds, by_thresholds
from features.watermark import UNMARKED, advance

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
Actions = NDArray[np.int8]
_DECIMALS = 6  # of thresholds, as a worker compares and publishes them


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """As in the settings of a worker: scores that win over the model's, or a budget, or costs."""

    review_score: float | None = None
    block_score: float | None = None
    cases_per_day: int | None = None
    costs: Costs | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Of n transactions: ``time`` (epoch ms) and hash of the ``card`` int64[n], ``amount`` float64[n], and ``repeat``
    int8[n], 1 for what was decided before."""

    time: Longs
    card: Longs
    amount: Floats
    repeat: Actions

    def take(self, rows: Longs) -> Facts:
        """Some of them."""
        return Facts(self.time[rows], self.card[rows], self.amount[rows], self.repeat[rows])


class Policy:
    """Decides fold by fold; what the alert budget has learnt goes on from one to the next."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._budget = None if settings.cases_per_day is None else Budget(settings.cases_per_day)
        self._watermark = UNMARKED

    def act(self, score: Floats, thresholds: Thresholds, version: str, facts: Facts) -> tuple[Actions, Floats]:
        """Places in :data:`features.messages.ACTIONS`, int8[n], and the thresholds in force, float64[n]."""
        s = self._settings
        if s.costs is not None:
            return costs.decide(s.costs, score, facts.amount)
        review = round(thresholds.review if s.review_score is None else s.review_score, _DECIMALS)
        block = round(thresholds.block if s.block_score is None else s.block_score, _DECIMALS)
        in_force = np.full(len(score), review)
        if self._budget is not None:
            action = np.where(facts.repeat > 0, SKIP, OPEN).astype(np.int8)
            marks, self._watermark = advance(self._watermark, facts.time)
            model = np.full(len(score), model_tag(version))
            in_force = self._budget.decide(facts.time, marks, facts.card, score, model, action, review, block)
            if (action >= 0).all():
                return action, in_force
            return np.where(score < in_force, 0, np.where(score >= block, 2, 1)).astype(np.int8), in_force
        return by_thresholds(score, review, block), in_force


def daily(day: Longs, card: Longs, score: Floats, fraud: NDArray[np.int8], action: Actions, in_force: Floats,
          cases_per_day: int | None) -> list[dict[str, Any]]:  # fmt: skip
    """What was alerted on each day.

    Parameters
    ----------
    day, card, score, fraud, action, in_force : arrays[n]
        Of the test transactions; ``fraud`` 1 where they are.
    cases_per_day : int or None
        How many of the day's cards with the highest scores to compare with; None for as many as were alerted.

    Returns
    -------
    list of dict
        ``day``, ``cases`` (cards alerted), ``precision`` (share of them with a fraud on that day, None without any),
        ``best_precision`` (of the best cards in hindsight), ``review_score`` (median of the threshold in force).
    """
    found = []
    for d in np.unique(day).tolist():
        rows = np.flatnonzero(day == d)
        _, place = np.unique(card[rows], return_inverse=True)
        count = int(place.max()) + 1
        best, judged, alerted = np.zeros(count), np.zeros(count), np.zeros(count, np.bool_)
        np.maximum.at(best, place, score[rows])
        np.maximum.at(judged, place, (fraud[rows] == 1).astype(np.float64))
        np.logical_or.at(alerted, place, action[rows] > 0)
        cases = int(alerted.sum())
        top = np.argsort(-best, kind="stable")[: cases if cases_per_day is None else cases_per_day]
        found.append({
            "day": d, "cases": cases, "precision": float(judged[alerted].mean()) if cases else None,
            "best_precision": float(judged[top].mean()) if len(top) else None,
            "review_score": float(np.median(in_force[rows])),
        })  # fmt: skip
    return found


def summary(days: list[dict[str, Any]], cases_per_day: int | None) -> dict[str, Any]:
    """Mean, least and most cases a day, and precision against the best cards; the first day is the warm-up."""
    after = days[1:] if len(days) > 1 else days
    cases = [day["cases"] for day in after]
    shares = [day["precision"] / day["best_precision"] for day in after
              if day["precision"] is not None and day["best_precision"]]  # fmt: skip
    return {
        "cases_per_day": cases_per_day,
        "mean": sum(cases) / len(cases),
        "least": min(cases),
        "most": max(cases),
        "precision_to_best": sum(shares) / len(shares) if shares else None,
        "precision_to_best_least": min(shares, default=None),
        "days": days,
    }
