"""What would have had to differ for another action: the nearest value of each feature alone that changes it.

In: a model's text and one vector. Out: :class:`Change`, the nearest first. Pure.

A forest of trees changes its score only where a value passes one of its splits, so the values tried are those just at
and just above each split of a feature: no other value gives another score. Categories are groups without an order and
are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.model_text import parse

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Change:
    """Column ``feature`` at ``value`` gives ``score``; so many ``splits`` lie between it and the value that was."""

    feature: int
    value: float
    score: float
    splits: int


def split_values(text: str) -> list[Floats]:
    """Of each column the different thresholds of its splits, ascending; none of a categorical one."""
    model = parse(text)
    found: list[set[float]] = [set() for _ in model.names]
    for tree in model.trees:
        numeric = tree.missing >= 0
        for feature, threshold in zip(tree.feature[numeric].tolist(), tree.threshold[numeric].tolist(), strict=True):
            found[feature].add(threshold)
    return [np.array(sorted(values)) for values in found]


def changes(splits: list[Floats], x: Floats, score: Callable[[Floats], Floats], threshold: float, *, below: bool
            ) -> list[Change]:  # fmt: skip
    """The nearest value of each feature alone with which the score lies on the other side of a threshold.

    Parameters
    ----------
    splits : list of float64[]
        See :func:`split_values`.
    x : float64[F]
        The vector as it was.
    score : callable
        Scores of vectors float64[n, F] as they are compared.
    threshold : float
        Of the action.
    below : bool
        Whether the score has to fall below it; else it has to reach it.

    Returns
    -------
    list of Change
        One for each feature that can do it, those first between whose value and the needed one the fewest splits lie.
    """
    found = []
    for feature, values in enumerate(splits):
        if not len(values):
            continue
        tried = np.unique(np.concatenate([values, np.nextafter(values, np.inf)]))  # left of a split, and right of it
        rows = np.repeat(x[None, :], len(tried), axis=0)
        rows[:, feature] = tried
        scores = score(rows)
        hits = np.flatnonzero(scores < threshold if below else scores >= threshold)
        if not len(hits):
            continue
        here = np.searchsorted(values, x[feature]) if not np.isnan(x[feature]) else 0
        between = np.abs(np.searchsorted(values, tried[hits]) - here)
        best = hits[np.lexsort((np.abs(tried[hits] - np.nan_to_num(x[feature])), between))[0]]
        found.append(Change(feature, float(tried[best]), float(scores[best]),
                            int(abs(np.searchsorted(values, tried[best]) - here))))  # fmt: skip
    return sorted(found, key=lambda change: (change.splits, change.feature))
