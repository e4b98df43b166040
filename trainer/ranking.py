"""How good ranked lists are: figures over queries whose next click is known.

In: lists of item numbers, targets, counts of clicks. Out: figures by name. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
LENGTHS = (1, 2, 3, 4, 6, 11, 21)  # first session length, in clicks so far, of each group


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries and their answers.

    ``items`` int64[n, k] item numbers, best first, -1 where there is none; ``target`` int64[n] the item clicked next,
    -1 where the catalogue does not hold it; ``position`` int64[n] the query's click in its session, from 1; ``cold``
    bool[n] where the catalogue held no item of the session so far.
    """

    items: Ints
    target: Ints
    position: Ints
    cold: NDArray[np.bool_]

    def where(self, rows: NDArray[np.bool_]) -> Asked:
        """Some of the queries."""
        return Asked(self.items[rows], self.target[rows], self.position[rows], self.cold[rows])


def accuracy(asked: Asked) -> dict[str, float | None]:
    """Hit rate, mean reciprocal rank and normalized discounted cumulative gain; None without queries.

    One item is relevant to a query, so the ideal gain is 1 and an item at rank r (from 1) gains 1 / log2(r + 1).
    """
    if not len(asked.target):
        return {"hr": None, "mrr": None, "ndcg": None, "queries": 0.0}
    hits = (asked.items == asked.target[:, None]) & (asked.target >= 0)[:, None]
    found, rank = hits.any(1), hits.argmax(1) + 1.0
    return {
        "hr": float(found.mean()),
        "mrr": float((found / rank).mean()),
        "ndcg": float((found / np.log2(rank + 1)).mean()),
        "queries": float(len(found)),
    }


def breadth(asked: Asked, clicks: NDArray[np.float64]) -> dict[str, float | None]:
    """What lists draw on, given the training clicks of each item (float64[n]).

    ``coverage`` is the share of the catalogue that any list holds. ``popularity`` is the mean over recommended items
    of their clicks over those of the most clicked item, and ``popularity_of_targets`` the same of what was clicked:
    above it, lists favour what is popular. ``cold`` is the share of queries without a known item.
    """
    shown = asked.items[asked.items >= 0]
    known = asked.target[asked.target >= 0]
    share = clicks / max(float(clicks.max(initial=0.0)), 1.0)
    return {
        "coverage": len(np.unique(shown)) / len(clicks) if len(clicks) else None,
        "popularity": float(share[shown].mean()) if len(shown) else None,
        "popularity_of_targets": float(share[known].mean()) if len(known) else None,
        "cold": float(asked.cold.mean()) if len(asked.cold) else None,
        "unknown_targets": float((asked.target < 0).mean()) if len(asked.target) else None,
    }


def by_length(asked: Asked) -> dict[str, dict[str, float | None]]:
    """Accuracy by how many clicks the session had so far."""
    groups = {}
    for low, high in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        rows = (asked.position >= low) & (asked.position < (high or np.iinfo(np.int64).max))
        name = f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}-{high - 1}"
        groups[name] = accuracy(asked.where(rows))
    return groups
