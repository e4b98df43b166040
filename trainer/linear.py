"""Fits a linear model of items on items: SLIST (Choi et al., WWW 2021), solved locally.

In: clicks as numbers. Out: per item what it speaks for, and how strongly. Pure and deterministic.

SLIST predicts what comes later in a session from what came before with one matrix, by ridge regression. Its exact
solution inverts a matrix of all items; here each column is solved for the items that co-occur most with its own, which
costs a thousandth and loses nothing that could be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import coo_matrix

from trainer.clicks import Clicks, offsets, places, starts

Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]
Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class LinearSettings:
    """How the linear model is fitted.

    Pairs of clicks within ``reach`` of each other count; ``source_decay`` and ``target_decay`` are per click of
    distance from the moment between what came before and what comes later, and ``backward`` is the weight of a pair in
    the other order. Each column is solved over ``around``
    items with ``ridge`` as penalty, and each item keeps its ``weights_max`` largest weights.
    """

    reach: int = 5
    source_decay: float = 1.0
    target_decay: float = 0.5
    backward: float = 0.5
    query_decay: float = 1.0
    ridge: float = 20.0
    around: int = 100
    weights_max: int = 100


@njit(cache=True, nogil=True)
def _solve(a: Doubles, b: Doubles, n: int) -> None:
    """Solve a x = b for a symmetric positive definite ``a[:n, :n]``, in place, by Cholesky's factors."""
    for j in range(n):
        for k in range(j):
            f = a[j, k]
            for i in range(j, n):
                a[i, j] -= f * a[i, k]
        d = np.sqrt(a[j, j])
        for i in range(j, n):
            a[i, j] /= d
    for i in range(n):
        for k in range(i):
            b[i] -= a[i, k] * b[k]
        b[i] /= a[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            b[i] -= a[k, i] * b[k]
        b[i] /= a[i, i]


@njit(cache=True, nogil=True)
def _columns(around_offsets: Longs, around: Ints, pulls: Floats, gram_offsets: Longs, gram_items: Ints, gram: Floats,
             ridge: float, size: int, out: Floats) -> None:  # fmt: skip
    """Solve every column over its own items; writes the weight of each entry of ``around``."""
    place = np.full(len(around_offsets) - 1, -1, np.int32)
    a, b = np.zeros((size, size)), np.zeros(size)
    for column in range(len(around_offsets) - 1):
        start, n = around_offsets[column], around_offsets[column + 1] - around_offsets[column]
        for i in range(n):
            place[around[start + i]] = i
            b[i] = pulls[start + i]
        a[:n, :n] = 0.0
        for i in range(n):
            item = around[start + i]
            for p in range(gram_offsets[item], gram_offsets[item + 1]):
                j = place[gram_items[p]]
                if j >= 0:
                    a[i, j] = gram[p]
            a[i, i] += ridge
        _solve(a, b, n)
        for i in range(n):
            place[around[start + i]] = -1
            out[start + i] = b[i]


def _gram(clicks: Clicks, items: int, settings: LinearSettings) -> Any:
    """How often, decayed, two items lie before the same moment at which something follows; symmetric."""
    begins = starts(clicks.session)
    left = np.repeat(begins[1:], np.diff(begins)) - 1 - np.arange(len(clicks))  # clicks that follow in the session
    ratio = np.exp(-2.0 * settings.source_decay)
    moments = (1.0 - ratio ** np.minimum(left, settings.reach)) / (1.0 - ratio)
    diagonal = coo_matrix((moments, (clicks.item, clicks.item)), (items, items)).tocsr()
    total = diagonal
    for gap in range(1, settings.reach + 1):
        same = clicks.session[gap:] == clicks.session[:-gap]
        weight = np.exp(-settings.source_decay * gap) * moments[gap:][same]
        one, other = clicks.item[:-gap][same], clicks.item[gap:][same]
        half = coo_matrix((weight, (one, other)), (items, items)).tocsr()
        total = total + half + half.T
    return total.tocsr()


def _pulls(clicks: Clicks, items: int, settings: LinearSettings) -> Any:
    """How often, decayed, one item lies before a moment and another after it; row: after, column: before."""
    total = coo_matrix((items, items), dtype=np.float64).tocsr()
    for gap in range(1, settings.reach + 1):
        same = clicks.session[gap:] == clicks.session[:-gap]
        ages = np.arange(gap)
        weight = float(np.sum(np.exp(-settings.source_decay * ages - settings.target_decay * (gap - 1 - ages))))
        before, after = clicks.item[:-gap][same], clicks.item[gap:][same]
        total = total + coo_matrix((np.full(len(before), weight), (after, before)), (items, items)).tocsr()
    return (total + settings.backward * total.T).tocsr()


def fit_linear(clicks: Clicks, items: int, settings: LinearSettings) -> Arrays:
    """The linear model's lists: per item, the items that it speaks for with their weights, largest first."""
    gram, pulls = _gram(clicks, items, settings), _pulls(clicks, items, settings)
    rows = np.repeat(np.arange(items), np.diff(pulls.indptr))
    order = np.lexsort((pulls.indices, -pulls.data, rows))
    order = order[places(rows[order]) < settings.around]
    target, source = rows[order], pulls.indices[order]
    weights = np.zeros(len(order), np.float32)
    _columns(
        offsets(target, items), source.astype(np.int32), pulls.data[order].astype(np.float32),
        gram.indptr.astype(np.int64), gram.indices.astype(np.int32), gram.data.astype(np.float32),
        settings.ridge, settings.around, weights,
    )  # fmt: skip
    keep = weights > 0
    target, source, weights = target[keep], source[keep].astype(np.int64), weights[keep]
    order = np.lexsort((target, -weights, source))
    order = order[places(source[order]) < settings.weights_max]
    return {
        "linear_offsets": offsets(source[order], items),
        "linear_items": target[order].astype(np.int32),
        "linear_weights": weights[order],
    }
