"""Fits scikit-learn's isolation forest on unlabelled vectors and flattens it for serving.

It looks at the few columns that say on their own that something is unusual, see :data:`AGGREGATES`: in a forest over
all columns every harmless rarity (an hour, a new card) counts as much. What lies below the usual counts as usual.

In: feature vectors, NaN = missing. Out: :class:`features.forest.FlatForest`. Pure, deterministic for a seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from features.catalogue import Feature
from features.errors import TrainingError
from features.forest import FlatForest

_EULER = 0.5772156649015329
_FLOAT32_MAX = float(np.finfo(np.float32).max)
QUANTILES = 1001
ROWS_MIN = 2
# Amounts, by themselves and against what is usual, and runs of frauds. Low values of them are no anomaly.
AGGREGATES = ("value", "usual_ratio", "usual_zscore", "fraud_run")
_USUAL = {"usual_ratio": 1.0, "usual_zscore": 0.0}


def mean_path_length(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean path length of an unsuccessful search in a binary tree of so many rows (Liu et al., equation 1)."""
    n = np.maximum(rows, 3).astype(np.float64)
    length = 2.0 * (np.log(n - 1.0) + _EULER) - 2.0 * (n - 1.0) / n
    return np.where(rows <= 1, 0.0, np.where(rows == 2, 1.0, length))


def columns_of(features: Sequence[Feature], columns: int) -> NDArray[np.int64]:
    """Those of so many ``columns`` that the forest is fitted on; all of them where nothing is known of what is usual.

    The run of the key itself is left out: a card with frauds is blocked, and what comes after it is rarely one more.
    """
    keys = {feature.entity for feature in features if feature.aggregate in _USUAL}
    chosen = [
        i for i, feature in enumerate(features)
        if feature.aggregate in AGGREGATES and not (feature.aggregate == "fraud_run" and feature.entity in keys)
    ]  # fmt: skip
    return np.array(chosen if keys else range(columns), np.int64)


def one_sided(x: NDArray[np.float64], features: Sequence[Feature]) -> NDArray[np.float64]:
    """``x`` with what lies below the usual put there.

    The forest is fitted on this and served on ``x``: no threshold lies below the usual, so both take the same way.
    """
    if not features:
        return x
    floors = np.array([_USUAL.get(feature.aggregate, -np.inf) for feature in features])
    return np.fmax(x, np.where(np.isnan(x), np.nan, floors))


def column_medians(x: NDArray[np.float64]) -> NDArray[np.float32]:
    """Median of what is present in each column, 0 where nothing is; float32[F]."""
    medians = np.zeros(x.shape[1], np.float32)
    for j in range(x.shape[1]):
        present = x[:, j][~np.isnan(x[:, j])]
        if len(present):
            medians[j] = np.clip(np.median(present), -_FLOAT32_MAX, _FLOAT32_MAX)
    return medians


def filled(x: NDArray[np.float64], medians: NDArray[np.float32]) -> NDArray[np.float32]:
    """``x`` as the forest sees it: missing values replaced, cast to float32; float32[n, F]."""
    return np.where(np.isnan(x), medians, np.clip(x, -_FLOAT32_MAX, _FLOAT32_MAX)).astype(np.float32)


def flatten(model: IsolationForest, medians: NDArray[np.float32], quantiles: NDArray[np.float64],
            chosen: NDArray[np.int64] | None = None) -> FlatForest:  # fmt: skip
    """The arrays of a fitted ``model``; ``medians`` and ``quantiles`` as :class:`FlatForest` describes them.

    ``chosen`` are the columns that the model was fitted on; all of them when absent.
    """
    chosen = np.arange(len(medians)) if chosen is None else chosen
    parts: dict[str, list[NDArray[np.generic]]] = {"feature": [], "threshold": [], "left": [], "right": [], "depth": []}
    roots = [0]
    for estimator, columns in zip(model.estimators_, model.estimators_features_, strict=True):
        tree = estimator.tree_
        leaf = tree.children_left < 0
        depth = tree.compute_node_depths() - 1 + mean_path_length(tree.n_node_samples)
        parts["feature"].append(np.where(leaf, -1, chosen[columns[np.where(leaf, 0, tree.feature)]]).astype(np.int32))
        parts["threshold"].append(np.where(leaf, 0.0, tree.threshold))
        parts["left"].append(np.where(leaf, 0, tree.children_left + roots[-1]).astype(np.int32))
        parts["right"].append(np.where(leaf, 0, tree.children_right + roots[-1]).astype(np.int32))
        parts["depth"].append(np.where(leaf, depth, 0.0))
        roots.append(roots[-1] + tree.node_count)
    arrays: dict[str, NDArray[np.generic]] = {name: np.concatenate(part) for name, part in parts.items()}
    arrays["roots"] = np.array(roots, np.int32)
    arrays["normal"] = mean_path_length(np.array([model.max_samples_]))
    arrays["medians"] = medians
    arrays["quantiles"] = quantiles
    return FlatForest.from_arrays(arrays)


def fit_isolation(
    x: NDArray[np.float64],
    *,
    seed: int,
    features: Sequence[Feature] = (),
    trees: int = 100,
    samples: int = 8192,
    rows_max: int = 100_000,
    threads: int = 1,
) -> FlatForest:
    """Fit a forest on unlabelled vectors.

    Parameters
    ----------
    x : float64[n, F]
        Training vectors. Of more than ``rows_max``, that many are drawn without replacement.
    seed : int
        The same rows and seed give the same forest.
    features : sequence of Feature
        What the F columns mean; without them all columns are fitted on as they are.
    trees, samples : int
        Size of the forest, and rows that each tree is fitted on: frauds are too rare to be met in the usual 256.
    threads : int
        Threads that fit trees.

    Raises
    ------
    TrainingError
        If there are fewer than two rows, or no columns.
    """
    if x.ndim != 2 or len(x) < ROWS_MIN or x.shape[1] == 0:
        raise TrainingError(f"isolation forest: vectors of shape {x.shape}; it needs at least {ROWS_MIN} transactions")
    if len(x) > rows_max:
        x = x[np.sort(np.random.default_rng(seed).choice(len(x), rows_max, replace=False))]
    medians, columns = column_medians(x), columns_of(features, x.shape[1])
    seen = filled(one_sided(x, features), medians)[:, columns]
    model = IsolationForest(n_estimators=trees, max_samples=min(samples, len(x)), random_state=seed, n_jobs=threads)
    model.fit(seen)
    forest = flatten(model, medians, np.zeros(QUANTILES), columns)
    unusual = np.quantile(-forest.score_samples(x), np.linspace(0.0, 1.0, QUANTILES))
    return FlatForest.from_arrays(forest.to_arrays() | {"quantiles": unusual})
