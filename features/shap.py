"""How much each feature moved a score: TreeSHAP over flat trees, compiled, equal to LightGBM's ``pred_contrib``.

In: a parsed model, feature vectors. Out: one contribution for each feature, in log-odds over the sigmoid's slope. Pure.

Lundberg et al., From local explanations to global understanding with explainable AI for trees (2020), path-dependent.
Of a feature that is known, a row goes one way at a split (o = 1 there, 0 on the other side); of one that is unknown it
goes both, by the share z of the training rows that did. A Shapley value is the mean effect over all orders in which
features become known. Let each become known at a time drawn from 0..1: at time t a leaf weighs the product of ``o t + z
(1 - t)`` over the features on its way, and feature j's value is the integral over t of that product without j, times
``o_j - z_j`` and the leaf's value. It is a polynomial of a lower degree than there are features on the way, so
Gauss-Legendre quadrature at half as many points is exact, and stable: nothing is ever unwound. At each point a tree is
passed through twice: down for the products, up for the sums over the leaves below each edge.

What an edge multiplies with and what its feature gets depend on the row in three ways only, and are laid out before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.cells import Cells, Longs, Rules, fill
from features.model_text import Flags, Floats, Model, Tree

_POINTS = 4  # of a pass: known to the compiler, they fill a register of 256 bits
_SMALLEST = 1e-300  # in the place of a factor of 0, where no training row went
# Whether an edge is followed, where the edge above it by the same column is; and the third: where that one is not.
_FOLLOWED, _LEFT_HERE, _LEFT_BEFORE = range(3)


class _Edges(NamedTuple):
    """By pass the nodes of a tree, each with the edge that leads there: splits, the root first of them, then leaves."""

    bounds: Longs  # pass t has nodes bounds[t]:bounds[t + 1]
    weights: Floats  # [pass, point] of the quadrature
    parent: Longs
    previous: Longs  # the nearest node above whose edge asks for the same column; 0 if there is none
    column: Longs
    cell: Longs
    threshold: Floats
    goes_left: Flags
    product: Floats  # [node, state, point] what the edge multiplies its leaves' weight with; at a leaf times its value
    effect: Floats  # [node, state, point] what its column gets of that


@njit(cache=True, nogil=True)
def _contribute(cells: Floats, edges: _Edges, nodes_max: int, shares: Floats) -> None:
    """Add up in ``shares`` float64[F, point] what each feature of one row contributes at each point.

    One long function, because a call for each tree counts the references of all arrays up and down.
    """
    products, totals = np.empty((nodes_max, _POINTS)), np.empty((nodes_max, _POINTS))
    state = np.zeros(nodes_max, np.int64)
    for t in range(len(edges.bounds) - 1):
        start, end = edges.bounds[t], edges.bounds[t + 1]
        splits = (end - start) // 2
        for e in range(start + 1, end):  # without a branch: where a row goes cannot be guessed
            strays = (cells[edges.cell[e], 0] <= edges.threshold[e]) != edges.goes_left[e]
            before = state[edges.previous[e]] != _FOLLOWED
            state[e - start] = max(_LEFT_HERE * strays, _LEFT_BEFORE * before)
        products[0], totals[:splits] = edges.weights[t], 0.0
        for n in range(1, splits):
            parent, now = edges.parent[start + n], state[n]
            for q in range(_POINTS):
                products[n, q] = products[parent, q] * edges.product[start + n, now, q]
        for e in range(start + max(splits, 1), end):
            parent, column, now = edges.parent[e], edges.column[e], state[e - start]
            for q in range(_POINTS):
                weight = products[parent, q] * edges.product[e, now, q]
                shares[column, q] += weight * edges.effect[e, now, q]
                totals[parent, q] += weight
        for n in range(splits - 1, 0, -1):
            parent, column, now = edges.parent[start + n], edges.column[start + n], state[n]
            for q in range(_POINTS):
                shares[column, q] += totals[n, q] * edges.effect[start + n, now, q]
                totals[parent, q] += totals[n, q]


@njit(cache=True, nogil=True)
def _contributions(x: Floats, rules: Rules, edges: _Edges, nodes_max: int, out: Floats) -> None:
    cells, shares = np.empty((len(rules.column), 1)), np.empty((out.shape[1], _POINTS))
    for i in range(len(out)):
        fill(x, i, 1, rules, cells)
        shares[:] = 0.0
        _contribute(cells, edges, nodes_max, shares)
        for j in range(out.shape[1]):
            out[i, j] = shares[j].sum()


class Explainer:
    """Contributions of a model's features to its scores."""

    def __init__(self, model: Model) -> None:
        self._cells = Cells(model)
        parts, weights = [], []
        for tree, cell, threshold in zip(model.trees, self._cells.of_split, self._cells.threshold, strict=True):
            ways = _ways(tree)
            passes = max(1, -(-int(ways.known.max()) // (2 * _POINTS)))
            places, of_places = np.polynomial.legendre.leggauss(passes * _POINTS)
            times = np.split((places + 1.0) / 2.0, passes)
            parts += [_tree_edges(tree, ways, cell, threshold, of_pass) for of_pass in times]
            weights += np.split(of_places / 2.0, passes)
        sizes = [len(part[0]) for part in parts]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        self._edges = _Edges(bounds, np.array(weights), *map(np.concatenate, zip(*parts, strict=True)))
        self._nodes_max = max(sizes)

    def contributions(self, x: Floats) -> Floats:
        """What each feature adds to the raw score of each row, against what is expected of a row; float64[n, F].

        Raises
        ------
        ValueError
            If ``x`` does not have F columns.
        """
        x = self._cells.vectors(x)
        out = np.empty(x.shape)
        _contributions(x, self._cells.rules, self._edges, self._nodes_max, out)
        return out


class _Ways(NamedTuple):
    """By node of a tree the way there. Node n is split n, then come the leaves; ``share`` is z of the last column."""

    parent: Longs
    previous: Longs
    share: Floats
    known: Longs  # how many columns the way asks for
    goes_left: Flags


def _ways(tree: Tree) -> _Ways:
    splits, leaves = len(tree.feature), len(tree.value)
    count = np.concatenate([tree.count, tree.leaf_count])
    parent, previous, known = np.zeros((3, splits + leaves), np.int64)
    share, goes_left = np.ones(splits + leaves), np.zeros(splits + leaves, np.bool_)
    lowest: list[dict[int, int]] = [{} for _ in count]  # by node the lowest edge of each column on the way
    for split in range(splits):
        column = int(tree.feature[split])
        above = lowest[split].get(column, 0)
        for side in (tree.left, tree.right):
            child = int(side[split])
            node = child if child >= 0 else splits + ~child
            parent[node], previous[node], goes_left[node] = split, above, side is tree.left
            share[node] = share[above] * (count[node] / count[split] if count[split] else 0.0)
            lowest[node] = lowest[split] | {column: node}
            known[node] = len(lowest[node])
    return _Ways(parent, previous, share, known, goes_left)


def _tree_edges(tree: Tree, ways: _Ways, cell: Longs, threshold: Floats, times: Floats) -> tuple[NDArray[Any], ...]:
    """The fields of :class:`_Edges` behind ``bounds`` for one tree."""
    splits, nodes = len(tree.feature), len(ways.parent)
    value = np.concatenate([np.ones(splits), tree.value])
    factors, effects = np.empty((2, nodes, len(times))), np.empty((2, nodes, len(times)))
    share = ways.share[:, None]
    for followed in (0, 1):
        factors[followed] = np.maximum(followed * times + share * (1.0 - times), _SMALLEST)
        effects[followed] = (followed - share) / factors[followed]
    # Of several edges by one column only the lowest counts: each takes back what the one above it did.
    states = ((1, 1), (0, 1), (0, 0))
    product = np.stack([factors[now] / factors[before][ways.previous] for now, before in states], axis=1)
    effect = np.stack([effects[now] - effects[before][ways.previous] for now, before in states], axis=1)
    # The root has no edge; what stands there is never read.
    asked = [
        values[ways.parent] if splits else np.zeros(1, values.dtype)
        for values in (tree.feature.astype(np.int64), cell, threshold)
    ]
    return ways.parent, ways.previous, *asked, ways.goes_left, product * value[:, None, None], effect
