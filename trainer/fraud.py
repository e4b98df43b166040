"""Fits LightGBM on judged transactions, measures it on the newest of them, and chooses the thresholds there.

In: vectors, labels and times. Out: :class:`FraudFit`. Pure, deterministic for a seed. Scores are probabilities: no
class weights, where good transactions are sub-sampled they weigh as many as they stand for, and what is left of over-
or under-confidence is corrected by predictions on blocks of time that were held out in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from features.catalogue import Feature
from features.errors import TrainingError
from features.scoring import Thresholds
from trainer.calibration import Calibration, calibrated, fit_calibration

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
Progress = Callable[[int, int], None]

FRAUDS_MIN = 20
GOODS_MIN = 100
HOLDOUT_FRAUDS_MIN = 10
REVIEW_SHARE_MIN = 0.005
BLOCK_PRECISION = 0.8
BLOCK_ALERTS_MIN = 20
BLOCK_SCORE_MIN = 0.5
CALIBRATION_BLOCKS = 3
CALIBRATION_ROWS_MAX = 200_000


@dataclass(frozen=True, slots=True)
class FraudSettings:
    """How the model is fitted. ``rows_max`` bounds the rows of one fit, ``holdout`` is the share set aside.

    Few leaves, because frauds are few; many bins, because they lie in the last percent of a ratio or an amount, of
    which 255 bins see two or three values. ``leaf_rows`` is the fewest rows of a leaf (None: by the number of rows, see
    :func:`leaf_rows`), ``l2`` the penalty of leaves, the shares are what each tree sees of features and rows.
    """

    trees: int = 100
    leaves: int = 8
    learning_rate: float = 0.05
    bins: int = 4095
    leaf_rows: int | None = None
    l2: float = 1.0
    feature_share: float = 0.5
    row_share: float = 0.7
    holdout: float = 0.2
    rows_max: int = 500_000
    threads: int = 2
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Judged:
    """Judged transactions in order of time.

    ``fraud`` bool[n], ``time_ms`` int64[n], ``known_ms`` int64[n] when each label came in. Their vectors are the rows
    ``at`` int64[n] of ``x`` float64[m, F], or all of it: a long history's vectors are not copied to leave a few out.
    """

    x: Floats
    fraud: NDArray[np.bool_]
    time_ms: Longs
    known_ms: Longs
    at: Longs | None = None

    def vectors(self, rows: Longs) -> Floats:
        """A copy of the vectors of these rows."""
        return self.x[rows if self.at is None else self.at[rows]]

    def rows(self, rows: Longs) -> Judged:
        """Only these rows."""
        at = rows if self.at is None else self.at[rows]
        return Judged(self.x, self.fraud[rows], self.time_ms[rows], self.known_ms[rows], at)


@dataclass(frozen=True, slots=True)
class FraudFit:
    """A model as text, its thresholds, and its figures on the hold-out (``None`` = cannot be told)."""

    text: str
    thresholds: Thresholds
    metrics: dict[str, float | None] = field(default_factory=dict)


def fit_fraud(
    judged: Judged, features: Sequence[Feature], settings: FraudSettings, progress: Progress | None = None
) -> FraudFit:
    """Fit on the older part to choose thresholds and measure on the newer, then fit on everything, and calibrate.

    Raises
    ------
    TrainingError
        If there are too few frauds or too few good transactions.
    """
    frauds = int(judged.fraud.sum())
    goods = len(judged.fraud) - frauds
    if frauds < FRAUDS_MIN or goods < GOODS_MIN:
        raise TrainingError(
            f"fraud model: {frauds:,} frauds and {goods:,} good transactions have a label; it needs at least "
            f"{FRAUDS_MIN} frauds and {GOODS_MIN} good ones. Give a longer history, or wait for labels."
        )
    older, newer = split(judged, settings.holdout)
    steps = (2 + CALIBRATION_BLOCKS) * settings.trees
    calibration = _calibration(judged, features, settings, _part(progress, 2 * settings.trees, steps))
    measured = fit_booster(judged.rows(older), features, settings, _part(progress, 0, steps))
    fraud = judged.fraud[newer]
    raw = np.asarray(measured.predict(judged.vectors(newer), num_threads=settings.threads, raw_score=True), np.float64)
    score = 1.0 / (1.0 + np.exp(-calibration.log_odds(raw)))
    thresholds = choose_thresholds(score, fraud)
    final = calibrated(fit_booster(judged, features, settings, _part(progress, settings.trees, steps)), calibration)
    figures = measure(score, fraud, thresholds)
    figures |= {"calibration_slope": calibration.slope, "calibration_intercept": calibration.intercept}
    return FraudFit(final.model_to_string(), thresholds, figures)


def gains(text: str, features: Sequence[Feature]) -> dict[str, float]:
    """Share of each feature in the gain of all splits, the largest first; features without a split are left out."""
    gain = np.asarray(lgb.Booster(model_str=text).feature_importance("gain"), np.float64)
    total = float(gain.sum()) or 1.0
    order = np.argsort(-gain, kind="stable").tolist()
    return {features[i].name: float(gain[i]) / total for i in order if gain[i] > 0.0}


def _calibration(judged: Judged, features: Sequence[Feature], settings: FraudSettings,
                 report: Callable[[lgb.callback.CallbackEnv], None]) -> Calibration:  # fmt: skip
    """Fitted on the newest judged transactions in blocks of time, each predicted by a model of the other blocks."""
    n = len(judged.fraud)
    blocks = np.array_split(np.arange(max(0, n - CALIBRATION_ROWS_MAX), n), CALIBRATION_BLOCKS)
    raw, seen = np.zeros(n), np.zeros(n, np.bool_)
    for number, block in enumerate(blocks):
        others = np.concatenate([other for i, other in enumerate(blocks) if i != number])
        frauds = int(judged.fraud[others].sum())
        if min(frauds, len(others) - frauds) < FRAUDS_MIN:
            continue
        booster = fit_booster(judged.rows(others), features, settings, report)
        raw[block] = booster.predict(judged.vectors(block), num_threads=settings.threads, raw_score=True)
        seen[block] = True
    return fit_calibration(raw[seen], judged.fraud[seen])


def split(judged: Judged, share: float) -> tuple[Longs, Longs]:
    """Rows to fit on and rows held out: the newest ``share``, or more where that holds too few frauds.

    Of the older rows only those count whose label was in when the hold-out began, as it will be live; where that
    leaves too few, all of them do.
    """
    n, frauds = len(judged.fraud), np.flatnonzero(judged.fraud)
    cut = n - max(1, int(n * share))
    if len(frauds) - np.searchsorted(frauds, cut) < HOLDOUT_FRAUDS_MIN:
        cut = int(frauds[-HOLDOUT_FRAUDS_MIN])
    if np.searchsorted(frauds, cut) < HOLDOUT_FRAUDS_MIN:
        cut = int(frauds[len(frauds) // 2])
    older = np.arange(cut)
    known = older[judged.known_ms[:cut] <= judged.time_ms[cut]]
    if judged.fraud[known].sum() >= FRAUDS_MIN and (~judged.fraud[known]).sum() >= GOODS_MIN:
        older = known
    return older, np.arange(cut, n)


def sample(fraud: NDArray[np.bool_], rows_max: int, seed: int) -> tuple[Longs, Floats]:
    """At most about ``rows_max`` rows and their weights, which sum to the number of all rows.

    All frauds stay (the newest of them, should they alone be too many). Half of the room left goes to the newest good
    rows as they are, half to good rows drawn from what is older, each of which stands for several.
    """
    weights = np.ones(len(fraud))
    if len(fraud) <= rows_max:
        return np.arange(len(fraud)), weights
    frauds, goods = np.flatnonzero(fraud), np.flatnonzero(~fraud)
    if len(frauds) > rows_max // 2:
        # Dropped at the same rate, so that scores stay probabilities.
        share = rows_max / len(fraud)
        return np.arange(len(fraud) - int(len(fraud) * share), len(fraud)), np.ones(int(len(fraud) * share))
    room = rows_max - len(frauds)
    newest, older = goods[-(room // 2) :], goods[: -(room // 2)]
    drawn = np.random.default_rng(seed).choice(older, min(room - room // 2, len(older)), replace=False)
    weights[drawn] = len(older) / len(drawn)
    rows = np.sort(np.concatenate([frauds, newest, drawn]))
    return rows, weights[rows]


def choose_thresholds(score: Floats, fraud: NDArray[np.bool_]) -> Thresholds:
    """Thresholds by what they would have meant on a hold-out.

    ``review`` is the lowest score that at most ``max(0.5 %, twice the share of frauds)`` of the transactions reach;
    ``block`` the lowest at which at least 80 % of 20 or more alerts were frauds. Where none is, block lies half-way
    between the highest score of a good transaction and 1. It is never below ``review`` nor below 0.5: precise as the
    alerts may be together, one that is more likely good than not should not be blocked.
    """
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], np.cumsum(fraud[order])
    alerts = np.arange(1, len(ranked) + 1)
    # Only at the last of equal scores does a threshold there catch exactly these alerts.
    last = np.append(ranked[1:] < ranked[:-1], True)
    share = min(0.5, max(REVIEW_SHARE_MIN, 2.0 * float(fraud.mean())))
    affordable = np.flatnonzero(last & (alerts <= share * len(ranked)))
    review = float(ranked[affordable[-1]]) if len(affordable) else float(ranked[0])
    precise = np.flatnonzero(last & (alerts >= BLOCK_ALERTS_MIN) & (hits >= BLOCK_PRECISION * alerts))
    fallback = (1.0 + float(score[~fraud].max(initial=0.0))) / 2.0
    block = float(ranked[precise[-1]]) if len(precise) else fallback
    return Thresholds(review, max(review, block, BLOCK_SCORE_MIN))


def measure(score: Floats, fraud: NDArray[np.bool_], thresholds: Thresholds) -> dict[str, float | None]:
    """Area under the ROC curve, average precision, and what each threshold finds, on a hold-out."""
    figures: dict[str, float | None] = {
        "rows": float(len(fraud)),
        "frauds": float(fraud.sum()),
        "auc": None,
        "average_precision": None,
    }
    if fraud.any() and not fraud.all():
        figures["auc"] = float(roc_auc_score(fraud, score))
        figures["average_precision"] = float(average_precision_score(fraud, score))
    for name, threshold in (("review", thresholds.review), ("block", thresholds.block)):
        alerts = score >= threshold
        figures[f"{name}_share"] = float(alerts.mean())
        figures[f"{name}_precision"] = float(fraud[alerts].mean()) if alerts.any() else None
        figures[f"{name}_recall"] = float(alerts[fraud].mean()) if fraud.any() else None
    return figures


def _part(progress: Progress | None, start: int, total: int) -> Callable[[lgb.callback.CallbackEnv], None]:
    def report(env: lgb.callback.CallbackEnv) -> None:
        if progress is not None:
            progress(start + env.iteration + 1, total)

    return report


def leaf_rows(settings: FraudSettings, rows: int) -> int:
    """The fewest rows of a leaf: as set, or a half percent of ``rows`` within 5..100."""
    return int(np.clip(rows // 200, 5, 100)) if settings.leaf_rows is None else settings.leaf_rows


def fit_booster(
    judged: Judged,
    features: Sequence[Feature],
    settings: FraudSettings,
    report: Callable[[lgb.callback.CallbackEnv], None],
) -> lgb.Booster:
    """One fit; ``report`` is called after each tree."""
    rows, weights = sample(judged.fraud, settings.rows_max, settings.seed)
    data = lgb.Dataset(
        judged.vectors(rows),
        judged.fraud[rows].astype(np.float32),
        weight=None if (weights == 1.0).all() else weights,
        feature_name=[feature.name for feature in features],
        categorical_feature=[i for i, feature in enumerate(features) if feature.aggregate == "category"],
        params={
            "max_bin": settings.bins,
            "min_data_in_bin": 1,
            "verbosity": -1,
            "num_threads": settings.threads,
            "data_random_seed": settings.seed,
        },
    )
    parameters = {
        "objective": "binary",
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "min_data_in_leaf": leaf_rows(settings, len(rows)),
        "lambda_l2": settings.l2,
        "feature_fraction": settings.feature_share,
        "bagging_fraction": settings.row_share,
        "bagging_freq": 1,
        "seed": settings.seed,
        "deterministic": True,
        "force_col_wise": True,  # the choice by timing that LightGBM makes otherwise would not repeat
        "num_threads": settings.threads,
        "verbosity": -1,
    }
    return lgb.train(parameters, data, num_boost_round=settings.trees, callbacks=[report])
