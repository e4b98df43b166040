"""What other settings would have done with transactions of the past: alerts, frauds caught, money, customers disturbed.

In: :class:`Cases`, what was decided and what became known. Out: :class:`Outcome`. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features import costs as expected
from features.budget import Budget
from features.budget_kernel import AT_LEAST, DAY_MS, OPEN
from features.costs import Costs
from features.rules import Hits
from features.scoring import by_thresholds
from features.watermark import UNMARKED, advance

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
Actions = NDArray[np.int8]
NEVER = 1.000001  # above every score


@dataclass(frozen=True, slots=True)
class Cases:
    """n transactions in the order in which they were decided.

    ``time`` int64[n] epoch ms, ``card`` int64[n], ``score`` and ``amount`` (NaN: not known) float64[n], ``action``
    int8[n] as decided, ``fraud`` int8[n] (-1: nobody judged it), ``counted`` bool[n]: within the days asked about;
    those before only show a budget how busy the days are. ``scored`` bool[n]: False where it was decided without a
    score. ``ruled`` bool[n]: a rule that counts had hit, so its action says nothing about thresholds.
    """

    time: Longs
    card: Longs
    score: Floats
    amount: Floats
    action: Actions
    fraud: NDArray[np.int8]
    counted: NDArray[np.bool_]
    scored: NDArray[np.bool_]
    ruled: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of one way to decide. ``cases`` are cards alerted on a day; money is in the unit of the amounts.

    ``good_disturbed`` counts cards alerted on a day on which all their judged transactions were good.
    """

    days: int
    alerts: int
    blocked: int
    cases: int
    cases_per_day: float
    cases_of_busiest_day: int
    frauds: int
    frauds_caught: int
    money_lost: float
    money_saved: float
    good_disturbed: int
    precision: float | None


def act(cases: Cases, *, cases_per_day: float | None = None, review: float | None = None, block: float | None = None,
        costs: Costs | None = None, hits: Hits | None = None) -> Actions:  # fmt: skip
    """The actions of other settings; what is None stays as it was decided, and so does what had no score.

    Thresholds that are not given are the lowest score that was reviewed, and blocked, where no rule had hit. With
    ``cases_per_day`` the alert budget of a worker with one partition sets the threshold; with ``costs`` what acting
    costs decides.
    """
    told = cases.scored & ~cases.ruled
    blocked, alerted = cases.score[told & (cases.action == 2)], cases.score[told & (cases.action > 0)]
    lowest_block = float(blocked.min(initial=NEVER)) if block is None else block
    lowest_review = min(float(alerted.min(initial=NEVER)), lowest_block) if review is None else review
    if cases_per_day is not None:
        return _within(cases_per_day, cases, lowest_review, lowest_block, hits)
    action = cases.action
    if costs is not None:
        action = np.where(cases.scored, expected.decide(costs, cases.score, cases.amount)[0], action)
    elif review is not None or block is not None:
        action = np.where(cases.scored, by_thresholds(cases.score, lowest_review, lowest_block), action)
    action = action.astype(np.int8)
    return action if hits is None else hits.applied(action)


def _within(cases_per_day: float, cases: Cases, review: float, block: float, hits: Hits | None) -> Actions:
    """The actions of an alert budget."""
    given = np.where(cases.scored, OPEN, cases.action).astype(np.int8)
    if hits is not None:
        raised = np.where(hits.decided > 0, AT_LEAST + hits.decided, hits.decided)
        given = np.where(cases.scored & (hits.decided >= 0), raised, given).astype(np.int8)
        given = np.where(cases.scored, given, hits.applied(given)).astype(np.int8)
    score = np.where(cases.scored, cases.score, np.nan)
    marks, _ = advance(UNMARKED, cases.time)
    Budget(cases_per_day).decide(cases.time, marks, cases.card, score, np.ones(len(score), np.int64), given, review,
                                 block)  # fmt: skip
    return given


def outcome(cases: Cases, action: Actions) -> Outcome:
    """The figures of some actions, on the days that count."""
    at = np.flatnonzero(cases.counted)
    card, fraud, amount, action = cases.card[at], cases.fraud[at], cases.amount[at], action[at]
    day = cases.time[at] // DAY_MS
    days = int(day.max() - day.min()) + 1 if len(day) else 0
    alerted, bad = action > 0, fraud == 1
    pairs, of = np.unique(np.stack([day, card], axis=1), axis=0, return_inverse=True)
    of = of.reshape(-1)
    case, with_fraud, judged = (np.zeros(len(pairs), np.bool_) for _ in range(3))
    case[of[alerted]] = True
    with_fraud[of[bad]] = True
    judged[of[fraud >= 0]] = True
    per_day = np.unique(pairs[case, 0], return_counts=True)[1]
    money = np.nan_to_num(np.maximum(amount, 0.0), nan=0.0)
    known = case & judged
    return Outcome(
        days=days,
        alerts=int(alerted.sum()),
        blocked=int((action == 2).sum()),
        cases=int(case.sum()),
        cases_per_day=float(case.sum()) / days if days else 0.0,
        cases_of_busiest_day=int(per_day.max(initial=0)),
        frauds=int(bad.sum()),
        frauds_caught=int((bad & alerted).sum()),
        money_lost=float(money[bad & ~alerted].sum()),
        money_saved=float(money[bad & alerted].sum()),
        good_disturbed=int((known & ~with_fraud).sum()),
        precision=float((known & with_fraud).sum() / known.sum()) if known.any() else None,
    )
