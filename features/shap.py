"""How much each feature moved a score: TreeSHAP over flat trees, compiled, equal to LightGBM's ``pred_contrib``.

In: a parsed model, feature vectors. Out: one contribution for each feature, in log-odds over the sigmoid's slope. Pure.

Lundberg et al., From local explanations to global understanding with explainable AI for trees (2020). A leaf with value
v lies behind m different features. Feature j is *met* when the row passes every split on it, and its ``share`` z is the
part of the training rows that pass them. With the met ones as P(t) = prod(t + z), a met feature's Shapley weight is the
sum over s of the coefficient of t**s in P / (t + z_j), times s!(m - s - 1)!/m!, times the shares of those not met. What
is known before the row is (the splits on each feature folded into one interval, the shares) is laid out by leaf once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from features.trees import Flags, Floats, Ints, Longs, Model, Sets, Tree, missing_kinds, prepare

_SMALL = 1e-300  # a share of 0 would make the division below meaningless; LightGBM's leaves are never empty


@njit(cache=True, nogil=True)
def _contributions(x: Floats, starts: Longs, column: Ints, feature: Ints, low: Floats, high: Floats, missing_met: Flags,
                   share: Floats, value: Floats, weights: Floats, out: Floats) -> None:  # fmt: skip
    longest = weights.shape[0]
    poly, rest = np.empty(longest + 1), np.empty(longest + 1)
    met = np.empty(longest, np.bool_)
    for i in range(len(x)):
        for leaf in range(len(value)):
            first, m = starts[leaf], starts[leaf + 1] - starts[leaf]
            degree, unmet = 0, 1.0
            poly[0] = 1.0
            for k in range(m):
                v = x[i, column[first + k]]
                met[k] = missing_met[first + k] if v != v else (low[first + k] < v) & (v <= high[first + k])
                z = share[first + k]
                if met[k]:
                    poly[degree + 1] = poly[degree]
                    for s in range(degree, 0, -1):
                        poly[s] = poly[s - 1] + z * poly[s]
                    poly[0] *= z
                    degree += 1
                else:
                    unmet *= z
            scale = unmet * value[leaf]
            if degree < m:
                total = 0.0
                for s in range(degree + 1):
                    total += poly[s] * weights[m - 1, s]
                for k in range(m):
                    if not met[k]:
                        out[i, feature[first + k]] -= total * scale
            for k in range(m):
                if met[k]:
                    z = share[first + k]
                    rest[degree - 1] = poly[degree]
                    for s in range(degree - 1, 0, -1):
                        rest[s - 1] = poly[s] - z * rest[s]
                    total = 0.0
                    for s in range(degree):
                        total += rest[s] * weights[m - 1, s]
                    out[i, feature[first + k]] += total * scale * (1.0 - z)


@dataclass(slots=True)
class _Condition:
    """All splits on one feature on the way to a leaf: an interval or a set of categories, and who passes them."""

    low: float = -math.inf
    high: float = math.inf
    missing: bool = True
    share: float = 1.0
    held: Flags | None = None
    others: bool = True

    def narrowed(self, tree: Tree, node: int, is_left: bool) -> _Condition:
        """With one more split, passed to one side."""
        child = int(tree.left[node] if is_left else tree.right[node])
        count = tree.count[child] if child >= 0 else tree.leaf_count[~child]
        share = self.share * count / max(tree.count[node], 1.0)
        goes_left = tree.goes_left.get(node)
        if goes_left is not None:
            here = goes_left if is_left else ~goes_left
            size = max(len(here), 0 if self.held is None else len(self.held))
            mine = _padded(self.held, size, self.others) & _padded(here, size, not is_left)
            return replace(self, share=share, held=mine, others=self.others and not is_left)
        threshold = float(tree.threshold[node])
        return replace(
            self, share=share, missing=self.missing and bool(tree.default_left[node]) == is_left,
            low=self.low if is_left else max(self.low, threshold),
            high=min(self.high, threshold) if is_left else self.high,
        )  # fmt: skip


def _padded(held: Flags | None, size: int, others: bool) -> Flags:
    found = np.full(size, others)
    if held is not None:
        found[: len(held)] = held
    return found


def _paths(tree: Tree) -> list[dict[int, _Condition]]:
    """Of each leaf, the conditions by feature."""
    leaves: list[dict[int, _Condition]] = [{} for _ in tree.value]
    stack: list[tuple[int, dict[int, _Condition]]] = [(0 if len(tree.feature) else ~0, {})]
    while stack:
        node, path = stack.pop()
        if node < 0:
            leaves[~node] = path
            continue
        column = int(tree.feature[node])
        for child, is_left in ((int(tree.left[node]), True), (int(tree.right[node]), False)):
            condition = path.get(column, _Condition()).narrowed(tree, node, is_left)
            stack.append((child, {**path, column: condition}))
    return leaves


class Explainer:
    """Contributions of a model's features to its scores."""

    def __init__(self, model: Model) -> None:
        self._columns = len(model.names)
        self._missing = missing_kinds(model)
        leaves = [path for tree in model.trees for path in _paths(tree)]
        found = [(feature, condition) for path in leaves for feature, condition in path.items()]
        sets = Sets()
        for _, condition in found:
            if condition.held is not None:
                condition.low = 0.5  # the set's column is 1 for what it holds
        self._column = np.array([feature if c.held is None else self._columns + sets.place(feature, c.held, c.others)
                                 for feature, c in found], np.int32)  # fmt: skip
        self._sets = sets.arrays()
        self._starts = np.concatenate([[0], np.cumsum([len(path) for path in leaves])]).astype(np.int64)
        self._feature = np.array([feature for feature, _ in found], np.int32)
        self._low, self._high = np.array([c.low for _, c in found]), np.array([c.high for _, c in found])
        self._missing_met = np.array([c.missing for _, c in found], np.bool_)
        self._share = np.maximum(np.array([c.share for _, c in found]), _SMALL)
        self._value = np.concatenate([tree.value for tree in model.trees])
        longest = max(max(map(len, leaves), default=0), 1)
        self._weights = np.zeros((longest, longest + 1))
        for m in range(1, longest + 1):
            for s in range(m):
                self._weights[m - 1, s] = math.factorial(s) * math.factorial(m - s - 1) / math.factorial(m)

    def contributions(self, x: Floats) -> Floats:
        """What each feature adds to the raw score of each row, against what is expected of a row; float64[n, F].

        Raises
        ------
        ValueError
            If ``x`` does not have F columns.
        """
        if x.ndim != 2 or x.shape[1] != self._columns:
            raise ValueError(f"vectors of shape {x.shape} for a model of {self._columns} columns")
        prepared = np.empty((len(x), self._columns + len(self._sets[0])))
        out = np.zeros((len(x), self._columns))
        prepare(np.ascontiguousarray(x, np.float64), self._missing, *self._sets, 0, len(x), prepared)
        _contributions(prepared, self._starts, self._column, self._feature, self._low, self._high, self._missing_met,
                       self._share, self._value, self._weights, out)  # fmt: skip
        return out
