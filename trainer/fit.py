"""One refit, from history tables to a published version.

In: canonical transactions and clicks (either may be absent), the schema, a moment. Out: a new version in the artifact
directory. Nothing after ``as_of_ms`` is used, no label that was not in by then, and nothing is published unless every
part was fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from features.catalogue import build_catalogue
from features.errors import TrainingError
from features.forest import FlatForest
from features.schema import Schema, TransactionSchema
from features.scoring import FraudModel
from trainer.artifacts import Draft, publish
from trainer.fraud import FraudSettings, Judged, fit_fraud
from trainer.isolation import fit_isolation
from trainer.recommender import RecommenderSettings, fit_recommender, golden_sessions
from trainer.ties import tied_clicks
from trainer.vectors import Vectors, history_vectors
from trainer.verdicts import verdicts_of

DAY_MS = 86_400_000
STAGES = ("features", "fraud", "isolation", "recommender", "publish")
GOLDEN_ROWS = 32
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a refit goes. ``train_days`` bounds what is fitted on; features see the whole history all the same.

    ``blocked`` are ids of transactions that the worker blocked; they tie clicks as frauds do (:mod:`trainer.ties`).
    The newest ``keep`` versions stay, and those that are ``pinned``.
    """

    seed: int = 1
    threads: int = 2
    rows_max: int = 500_000
    train_days: float | None = None
    keep: int = 5
    pinned: Collection[str] = ()
    blocked: Collection[str] = ()
    fraud: FraudSettings = field(default_factory=FraudSettings)
    recommender: RecommenderSettings = field(default_factory=RecommenderSettings)


def fit(
    transactions: pa.Table | None,
    clicks: pa.Table | None,
    schema: Schema,
    root: Path,
    *,
    as_of_ms: int,
    created_ms: int,
    clicks_as_of_ms: int | None = None,
    settings: FitSettings | None = None,
    progress: Progress | None = None,
) -> str:
    """Fit all models on what was known at ``as_of_ms`` and publish them.

    Parameters
    ----------
    transactions, clicks : pa.Table, optional
        Canonical tables, sorted by time (:mod:`trainer.history`). One that is absent or empty leaves its models out.
    schema : Schema
    root : Path
        The artifact directory.
    as_of_ms : int
        Later events are left out; labels that came in later count as unknown.
    created_ms : int
        When the version was made, for its manifest.
    clicks_as_of_ms : int, optional
        The same moment on the clicks' clock, where their history is of another year; ``as_of_ms`` when None.
    settings : FitSettings, optional
    progress : callable, optional
        Called with one of :data:`STAGES`, steps done, and steps in all.

    Returns
    -------
    str
        The new version, which is then the current one.

    Raises
    ------
    TrainingError
        If there is nothing to fit on, or too little.
    ArtifactError
        If the version cannot be written.
    """
    settings = settings or FitSettings()
    report = progress or _silent
    transactions = _until(transactions, schema.transactions.time, as_of_ms)
    clicks = _until(clicks, "event_time", as_of_ms if clicks_as_of_ms is None else clicks_as_of_ms)
    if transactions is None and clicks is None:
        raise TrainingError("there is neither a transaction nor a click up to the moment of training")
    draft = Draft(schema.hash, training={"as_of_ms": as_of_ms})
    if transactions is not None:
        draft = _with_fraud(draft, transactions, schema.transactions, as_of_ms, settings, report)
    if clicks is not None and transactions is not None:
        clicks, draft = _without_tied(clicks, transactions, schema.transactions, draft, as_of_ms, settings.blocked)
    if clicks is not None:
        draft = _with_recommender(draft, clicks, settings, report)
    report("publish", 0, 1)
    version = publish(root, draft, created_ms=created_ms, keep=settings.keep, pinned=settings.pinned)
    report("publish", 1, 1)
    return version


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


def _until(table: pa.Table | None, time: str, as_of_ms: int) -> pa.Table | None:
    """The rows up to a moment; ``None`` if there is none."""
    if table is None:
        return None
    known = table.slice(0, int(np.searchsorted(table[time].to_numpy(), as_of_ms, side="right")))
    return known if known.num_rows else None


def _with_fraud(
    draft: Draft, table: pa.Table, schema: TransactionSchema, as_of_ms: int, settings: FitSettings, report: Progress
) -> Draft:
    vectors = history_vectors(table, schema, progress=partial(report, "features"))
    rows = _training_rows(table, schema, vectors, as_of_ms, settings)
    features = build_catalogue(schema).features
    judged = _judged(table, schema, vectors.x, rows, as_of_ms)
    fraud = replace(settings.fraud, seed=settings.seed, threads=settings.threads, rows_max=settings.rows_max)
    fitted = fit_fraud(judged, features, fraud, partial(report, "fraud"))
    report("isolation", 0, 1)
    forest = fit_isolation(
        _drawn(vectors.x, rows, settings.seed), seed=settings.seed, features=features, threads=settings.threads
    )
    report("isolation", 1, 1)
    times = table[schema.time].to_numpy()[rows]
    training: dict[str, int | None] = {
        "transactions_from_ms": int(times[0]),
        "transactions_to_ms": int(times[-1]),
        "rows": len(rows),
        "judged": len(judged.fraud),
        "frauds": int(judged.fraud.sum()),
    }
    golden = rows[np.unique(np.linspace(0, len(rows) - 1, GOLDEN_ROWS).astype(np.int64))]
    return replace(
        draft,
        fraud=FraudModel(fitted.text, forest, features, fitted.thresholds),
        training=draft.training | training,
        metrics=draft.metrics | {"fraud": fitted.metrics, "isolation": _isolation_figures(forest, judged)},
        vectors=vectors.x[golden],
    )


def _training_rows(
    table: pa.Table, schema: TransactionSchema, vectors: Vectors, as_of_ms: int, settings: FitSettings
) -> NDArray[np.int64]:
    """Rows to fit on: within the training window, and each event once."""
    wanted = vectors.repeat == 0
    if settings.train_days is not None:
        wanted &= table[schema.time].to_numpy() >= as_of_ms - settings.train_days * DAY_MS
    rows = np.flatnonzero(wanted)
    if len(rows) == 0:
        raise TrainingError(
            f"none of {table.num_rows:,} transactions lies within the {settings.train_days:g} days of training; "
            "set trainer.train_days higher"
        )
    return rows


def _judged(
    table: pa.Table, schema: TransactionSchema, x: NDArray[np.float64], rows: NDArray[np.int64], as_of_ms: int
) -> Judged:
    """Those of the rows whose label was in at the moment of training."""
    label, known_ms = verdicts_of(table, schema).as_of(as_of_ms + 1)
    rows = rows[label[rows] >= 0]
    return Judged(x, label[rows] == 1, table[schema.time].to_numpy()[rows], known_ms[rows], rows)


def _drawn(x: NDArray[np.float64], rows: NDArray[np.int64], seed: int, rows_max: int = 100_000) -> NDArray[np.float64]:
    """Vectors for the isolation forest, judged or not: drawn before they are copied, for the sake of memory."""
    if len(rows) > rows_max:
        rows = np.sort(np.random.default_rng(seed).choice(rows, rows_max, replace=False))
    return x[rows]


def _isolation_figures(forest: FlatForest, judged: Judged, rows_max: int = 50_000) -> dict[str, float | None]:
    """How well the anomaly alone, which saw no label, ranks the newest judged transactions."""
    fraud = judged.fraud[-rows_max:]
    if fraud.all() or not fraud.any():
        return {"auc": None}
    return {
        "auc": float(roc_auc_score(fraud, forest.anomaly(judged.vectors(np.arange(len(judged.fraud))[-rows_max:]))))
    }


def _without_tied(clicks: pa.Table, transactions: pa.Table, schema: TransactionSchema, draft: Draft, as_of_ms: int,
                  blocked: Collection[str]) -> tuple[pa.Table | None, Draft]:  # fmt: skip
    """The clicks that no fraud known by then is tied to; None if there is none."""
    late = pc.fill_null(pc.greater(transactions[schema.label_time], as_of_ms), True)
    known = pc.if_else(late, pa.scalar(None, pa.int8()), transactions[schema.label])
    judged = transactions.set_column(transactions.column_names.index(schema.label), schema.label, known)
    tied = tied_clicks(clicks, judged, schema, blocked)
    draft = replace(draft, training=draft.training | {"clicks_tied_to_fraud": int(tied.sum())})
    free = clicks.filter(pa.array(~tied)) if tied.any() else clicks
    return (free if free.num_rows else None), draft


def _with_recommender(draft: Draft, clicks: pa.Table, settings: FitSettings, report: Progress) -> Draft:
    ranker = replace(settings.recommender.ranker, seed=settings.seed, threads=settings.threads)
    fitted = fit_recommender(clicks, replace(settings.recommender, ranker=ranker), partial(report, "recommender"))
    return replace(
        draft,
        recommender=fitted.model,
        training=draft.training | fitted.training,
        metrics=draft.metrics | {"recommendations": fitted.metrics},
        sessions=golden_sessions(clicks, GOLDEN_ROWS),
    )
