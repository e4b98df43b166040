"""How good hyper-parameters of the fraud model are on days they did not see, and a search among them.

In: a history's vectors and verdicts. Out: :class:`Found`. Pure but for the clock that the caller passes.

Time is split as in a backtest: each fold trains on what was known at its start and is judged by the average precision
on its days, of the ranking alone: calibration does not change it. The newest days have no part in the search. What the
search prefers and what is in force are compared on them at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow as pa
from sklearn.metrics import average_precision_score

from features.catalogue import Feature
from features.errors import TrainingError
from features.schema import TransactionSchema
from trainer.backtest import DAY_MS, Protocol, date_of, known_at
from trainer.fraud import FRAUDS_MIN, FraudSettings, Judged, fit_booster, leaf_rows
from trainer.vectors import Vectors
from trainer.verdicts import Verdicts

TUNED = ("trees", "leaves", "learning_rate", "leaf_rows", "l2", "feature_share", "row_share")
_WHOLE = {"trees": (25, 400), "leaves": (2, 64), "leaf_rows": (5, 500)}
_REAL = {"learning_rate": (0.01, 0.3), "l2": (0.01, 50.0)}
_SHARE = {"feature_share": (0.2, 1.0), "row_share": (0.3, 1.0)}
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Split:
    """One fold: what is fitted on, and the judged transactions of the days that follow."""

    train: Judged
    test: Judged


@dataclass(frozen=True, slots=True)
class Found:
    """The better settings (those in force, where nothing was), figures on the newest days, and trials.

    ``before`` and ``after`` are average precisions of the settings in force and of the search's best.
    """

    settings: FraudSettings
    before: float
    after: float
    searched: float
    trials: int


def splits(table: pa.Table, schema: TransactionSchema, vectors: Vectors, verdicts: Verdicts, protocol: Protocol
           ) -> list[Split]:  # fmt: skip
    """The folds of a protocol whose ``start_ms`` is ignored: they end with the last judged transaction.

    Raises
    ------
    TrainingError
        If the history is too short, or one of the folds has too few frauds.
    """
    times, (label, known_ms) = table[schema.time].to_numpy(), verdicts.as_of()
    judged = np.flatnonzero((label >= 0) & (vectors.repeat == 0))
    if not len(judged):
        raise TrainingError(f"none of the {table.num_rows:,} transactions has a label; tuning needs verdicts")
    end = (int(times[judged[-1]]) // DAY_MS + 1) * DAY_MS
    found = []
    for number in range(protocol.folds):
        start = end - (protocol.folds - number) * protocol.test_days * DAY_MS
        if start - (protocol.delay_days + (protocol.train_days or 1)) * DAY_MS < int(times[0]) // DAY_MS * DAY_MS:
            raise TrainingError(
                f"{protocol.folds} x {protocol.test_days} test days before {date_of(end)}, labels {protocol.delay_days}"
                f" days late and {protocol.train_days or 1} days to train on need an earlier begin than that of the "
                f"history, {date_of(int(times[0]))}: give fewer --folds, --test-days or --train-days"
            )
        _, train = known_at(table, schema, vectors, protocol, start, verdicts)
        rows = judged[slice(*np.searchsorted(times[judged], [start, start + protocol.test_days * DAY_MS]))]
        test = Judged(vectors.x, label[rows] == 1, times[rows], known_ms[rows], rows)
        for what, part in (("trains on", train), ("is judged by", test)):
            frauds = int(part.fraud.sum())
            if frauds < FRAUDS_MIN or frauds == len(part.fraud):
                raise TrainingError(
                    f"the fold from {date_of(start)} {what} {frauds:,} frauds and {len(part.fraud) - frauds:,} good "
                    f"transactions; at least {FRAUDS_MIN} frauds are needed: give more --test-days or --train-days"
                )
        found.append(Split(train, test))
    return found


class _OutOfTime(Exception):
    """The budget ended within a fit."""


def quality(split: Split, features: Sequence[Feature], settings: FraudSettings, expired: Callable[[], bool]) -> float:
    """Average precision of a fit on the days after it."""

    def watch(_: lgb.callback.CallbackEnv) -> None:
        if expired():
            raise _OutOfTime

    booster = fit_booster(split.train, features, settings, watch)
    rows = np.arange(len(split.test.fraud))
    raw = booster.predict(split.test.vectors(rows), num_threads=settings.threads, raw_score=True)
    return float(average_precision_score(split.test.fraud, np.asarray(raw)))


def search(folds: Sequence[Split], features: Sequence[Feature], settings: FraudSettings, *, seconds: float,
           trials_max: int | None, clock: Clock, progress: Callable[[float, float], None]) -> Found:  # fmt: skip
    """Look for better settings than those given for so many seconds, or so many trials.

    The last fold is kept for the comparison. The trial that runs when the time is over is given up. The same seed and
    the same number of trials give the same settings; how many fit into a time depends on the machine.

    Raises
    ------
    ImportError
        If Optuna is not installed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began = clock()

    def expired() -> bool:
        progress(min(clock() - began, seconds), seconds)
        return clock() - began > seconds

    def objective(trial: optuna.Trial) -> float:
        tried = replace(settings, **_suggested(trial))
        try:
            return sum(quality(split, features, tried, expired) for split in folds[:-1]) / (len(folds) - 1)
        except _OutOfTime:
            study.stop()
            raise optuna.TrialPruned from None

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=settings.seed))
    study.enqueue_trial(_in_force(settings, folds))
    study.optimize(objective, n_trials=trials_max)
    done = [trial for trial in study.trials if trial.value is not None]
    if not done:
        raise TrainingError(
            f"the budget of {seconds:.0f} s ended within the first trial; give more --minutes, fewer --folds or fewer "
            "--train-days"
        )
    first = study.best_trial.number == 0  # the settings in force, where need be within the bounds of the search
    best = settings if first else replace(settings, **study.best_params)
    before, after = (quality(folds[-1], features, some, lambda: False) for some in (settings, best))
    return Found(best if after > before else settings, before, after, float(study.best_value), len(done))


def _in_force(settings: FraudSettings, folds: Sequence[Split]) -> dict[str, Any]:
    """The settings in force as a first trial, so that the search never knows worse ones only."""
    count = min(len(folds[0].train.fraud), settings.rows_max)
    found = {name: getattr(settings, name) for name in TUNED} | {"leaf_rows": leaf_rows(settings, count)}
    bounds: dict[str, tuple[float, float]] = {**_WHOLE, **_REAL, **_SHARE}
    return {name: type(value)(np.clip(value, *bounds[name])) for name, value in found.items()}


def _suggested(trial: Any) -> dict[str, Any]:
    found: dict[str, Any] = {name: trial.suggest_int(name, *limits, log=True) for name, limits in _WHOLE.items()}
    found |= {name: trial.suggest_float(name, *limits, log=True) for name, limits in _REAL.items()}
    return found | {name: trial.suggest_float(name, *limits) for name, limits in _SHARE.items()}
