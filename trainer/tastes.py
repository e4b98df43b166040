"""Fits where items lie: items that the same items are viewed with lie near each other, viewed together or not.

In: clicks as numbers. Out: a vector per item. Pure and deterministic.

The sources count what was seen; of an item with few clicks that is little. Here the matrix of what is viewed near what
is cut to its largest eigenvectors, found by subspace iteration (Halko, Martinsson, Tropp, SIAM Review 2011), which
reads the matrix a few times. The product of two vectors says how alike the company is that two items keep.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, diags

from features.sources import TASTE
from trainer.clicks import Clicks

Doubles = NDArray[np.float64]

_REACH = 5  # clicks between two items that are viewed together
_PRIOR = 5.0  # views together that every item is taken to have had, so that few of them make no strong likeness
_SPARE, _ROUNDS = 8, 6  # further columns of the subspace, which settle last; times that the matrix is read


def _together(clicks: Clicks, items: int) -> Any:
    """How much two different items are viewed together, for what each is viewed with others; symmetric."""
    total = coo_matrix((items, items), dtype=np.float64).tocsr()
    for gap in range(1, _REACH + 1):
        near = (clicks.session[gap:] == clicks.session[:-gap]) & (clicks.item[gap:] != clicks.item[:-gap])
        pair = clicks.item[:-gap][near], clicks.item[gap:][near]
        total = total + coo_matrix((np.full(len(pair[0]), 1.0 / gap), pair), (items, items)).tocsr()
    total = total + total.T
    scale = diags((np.asarray(total.sum(axis=1)).ravel() + _PRIOR) ** -0.5)
    return (scale @ total @ scale).tocsr()


def fit_tastes(clicks: Clicks, items: int) -> dict[str, NDArray[np.generic]]:
    """``tastes`` float32[items, TASTE], each of length 1; 0 for an item that was viewed with no other."""
    matrix = _together(clicks, items)
    width = min(TASTE + _SPARE, items)
    basis: Doubles = np.random.default_rng(1).standard_normal((items, width))
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(matrix @ basis)[0]
    small = basis.T @ (matrix @ basis)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    largest = np.argsort(-np.abs(values), kind="stable")[:TASTE]
    found = (basis @ vectors[:, largest]) * values[largest]
    found = found / (np.linalg.norm(found, axis=1, keepdims=True) + 1e-6)
    tastes = np.zeros((items, TASTE), np.float32)
    tastes[:, : found.shape[1]] = found
    return {"tastes": tastes}
