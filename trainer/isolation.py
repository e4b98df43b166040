"""Fits scikit-learn's isolation forest on unlabelled vectors and flattens it for serving.

In: feature vectors, NaN = missing. Out: :class:`features.forest.FlatForest`. Pure, deterministic for a seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from features.errors import TrainingError
from features.forest import FlatForest

_EULER = 0.5772156649015329
_FLOAT32_MAX = float(np.finfo(np.float32).max)
QUANTILES = 1001
ROWS_MIN = 2


def mean_path_length(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean path length of an unsuccessful search in a binary tree of so many rows (Liu et al., equation 1)."""
    n = np.maximum(rows, 3).astype(np.float64)
    length = 2.0 * (np.log(n - 1.0) + _EULER) - 2.0 * (n - 1.0) / n
    return np.where(rows <= 1, 0.0, np.where(rows == 2, 1.0, length))


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


def flatten(model: IsolationForest, medians: NDArray[np.float32], quantiles: NDArray[np.float64]) -> FlatForest:
    """The arrays of a fitted ``model``; ``medians`` and ``quantiles`` as :class:`FlatForest` describes them."""
    parts: dict[str, list[NDArray[np.generic]]] = {"feature": [], "threshold": [], "left": [], "right": [], "depth": []}
    roots = [0]
    for estimator, columns in zip(model.estimators_, model.estimators_features_, strict=True):
        tree = estimator.tree_
        leaf = tree.children_left < 0
        depth = tree.compute_node_depths() - 1 + mean_path_length(tree.n_node_samples)
        parts["feature"].append(np.where(leaf, -1, columns[np.where(leaf, 0, tree.feature)]).astype(np.int32))
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
    trees: int = 100,
    samples: int = 4096,
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
    trees, samples : int
        Size of the forest, and rows that each tree is fitted on: on card payments 4096 rank frauds clearly better
        than the usual 256 (average precision .145 against .097) and cost a third more per score.
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
    medians = column_medians(x)
    model = IsolationForest(n_estimators=trees, max_samples=min(samples, len(x)), random_state=seed, n_jobs=threads)
    model.fit(filled(x, medians))
    forest = flatten(model, medians, np.zeros(QUANTILES))
    unusual = np.quantile(-forest.score_samples(x), np.linspace(0.0, 1.0, QUANTILES))
    return FlatForest.from_arrays(forest.to_arrays() | {"quantiles": unusual})
