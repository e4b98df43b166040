"""Figures of a fraud model on a stretch of days: ranking, card precision, money, calibration, and how sure they are.

In: scores, verdicts, days, cards and amounts of transactions. Out: plain figures, ``None`` where one cannot be told.
Pure. Definitions are those of the Fraud Detection Handbook (Le Borgne et al., chapters 4 and 5), where it has one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
Mask = NDArray[np.bool_]
CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True)
class Scored:
    """Judged transactions of some days: ``score`` float64[n], ``fraud`` bool[n], ``day`` and ``card`` int64[n].

    ``amount`` float64[n] is the money at stake, NaN where there is none to tell.
    """

    score: Floats
    fraud: Mask
    day: Longs
    card: Longs
    amount: Floats

    def take(self, rows: Longs | Mask) -> Scored:
        """Only these rows."""
        return Scored(self.score[rows], self.fraud[rows], self.day[rows], self.card[rows], self.amount[rows])


def ranking(scored: Scored) -> tuple[float | None, float | None]:
    """Area under the ROC curve and average precision; None where there is only one class."""
    if not scored.fraud.any() or scored.fraud.all():
        return None, None
    return float(roc_auc_score(scored.fraud, scored.score)), float(average_precision_score(scored.fraud, scored.score))


def best_cards(scored: Scored, k: int, found: set[int] | None = None) -> tuple[Longs, Mask]:
    """The ``k`` cards with the highest score among these transactions, and which of them have a fraud.

    A card's score is its highest; of equal ones the lower number comes first. Cards in ``found`` are left out.
    """
    cards, place = np.unique(scored.card, return_inverse=True)
    best = np.full(len(cards), -np.inf)
    np.maximum.at(best, place, scored.score)
    fraud = np.zeros(len(cards), np.bool_)
    np.logical_or.at(fraud, place, scored.fraud)
    wanted = ~np.isin(cards, list(found)) if found else np.ones(len(cards), np.bool_)
    order = np.flatnonzero(wanted)
    order = order[np.argsort(-best[order], kind="stable")][:k]
    return cards[order], fraud[order]


def card_precision(scored: Scored, days: Longs, k: int) -> list[float]:
    """Of each of ``days`` (ascending) the share of its ``k`` best cards that have a fraud on it.

    A card that is found leaves the following days. The share is of ``k``, also where fewer cards have a transaction.
    """
    found: set[int] = set()
    shares = []
    for day in days.tolist():
        cards, fraud = best_cards(scored.take(scored.day == day), k, found)
        found |= set(cards[fraud].tolist())
        shares.append(float(fraud.sum()) / k)
    return shares


def interval(values: list[float], seed: int, draws: int = 2000, share: float = 0.95) -> tuple[float, float] | None:
    """Bootstrap interval of the mean of values that are drawn as wholes (days, weeks); None for fewer than two."""
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).choice(np.array(values), (draws, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def ranking_intervals(scored: Scored, seed: int, draws: int = 200) -> dict[str, tuple[float, float] | None]:
    """95 % bootstrap intervals of AUC and average precision, days drawn as wholes; None where they cannot be told."""
    days = np.unique(scored.day)
    by_day = [np.flatnonzero(scored.day == day) for day in days]
    random, found = np.random.default_rng(seed), []
    for _ in range(draws if len(days) > 1 else 0):
        drawn = scored.take(np.concatenate([by_day[i] for i in random.integers(0, len(days), len(days))]))
        auc, precision = ranking(drawn)
        if auc is not None and precision is not None:
            found.append((auc, precision))
    if len(found) < 2:
        return {"auc": None, "average_precision": None}
    low, high = np.quantile(np.array(found), [0.025, 0.975], axis=0)
    return {"auc": (float(low[0]), float(high[0])), "average_precision": (float(low[1]), float(high[1]))}


def precision_recall(scored: Scored, points: int = 200) -> list[tuple[float, float]]:
    """(recall, precision) along the curve, at most about ``points`` of them; empty without a fraud."""
    if not scored.fraud.any():
        return []
    precision, recall, _ = precision_recall_curve(scored.fraud, scored.score)
    at = np.arange(len(recall))
    if len(at) > points:  # even steps of recall, since nearly all thresholds lie where nobody looks
        at = np.unique(np.searchsorted(-recall, -np.linspace(1.0, 0.0, points)))
        at = at[at < len(recall)]
    return [(float(recall[i]), float(precision[i])) for i in at]


def calibration(scored: Scored, bins: int = CALIBRATION_BINS) -> tuple[list[tuple[float, float, int]], float | None]:
    """Predicted and true share of frauds in equally large bins of score, and the expected calibration error.

    Returns
    -------
    curve : list of (mean score, share of frauds, transactions)
        From the lowest scores to the highest. The last tenth is cut again, and its last tenth again: scores that
        matter are rare.
    error : float or None
        Mean over the bins of the distance of the two, weighted by their transactions (Naeini et al., 2015).
    """
    n = len(scored.score)
    if n == 0:
        return [], None
    edges = {round(n * i / bins) for i in range(bins)} | {n}
    for tail in (0.1, 0.01):
        edges |= {round(n * (1 - tail * (1 - i / bins))) for i in range(bins)}
    order, curve = np.argsort(scored.score, kind="stable"), []
    bounds = sorted(edges)
    for a, b in itertools.pairwise(bounds):
        rows = order[a:b]
        curve.append((float(scored.score[rows].mean()), float(scored.fraud[rows].mean()), b - a))
    return curve, sum(abs(p - q) * count for p, q, count in curve) / n


def money_caught(scored: Scored, cases: list[int]) -> list[tuple[int, float | None, float | None]]:
    """For so many cards a day: share of the money in frauds, and of the frauds, on the cards looked at that day.

    All frauds of a looked-at card on that day count as caught. None without a fraud.
    """
    money, frauds = float(np.nansum(scored.amount[scored.fraud])), int(scored.fraud.sum())
    parts = [scored.take(scored.day == day) for day in np.unique(scored.day)]
    ranked = [best_cards(part, max(cases, default=0))[0] for part in parts]
    found = []
    for k in cases:
        caught_money, caught = 0.0, 0
        for part, cards in zip(parts, ranked, strict=True):
            hit = part.fraud & np.isin(part.card, cards[:k])
            caught_money += float(np.nansum(part.amount[hit]))
            caught += int(hit.sum())
        found.append((k, caught_money / money if money > 0 else None, caught / frauds if frauds else None))
    return found
