"""LightGBM's trees as flat arrays: probabilities of many rows from a compiled walk, bit for bit those of LightGBM.

In: a model's text, feature vectors. Out: raw scores and probabilities. Pure.

LightGBM's ``predict`` costs tens of microseconds a call and three to five a row; serving needs neither its library nor
its parser, which aborts the process on damaged text: :func:`parse` raises ``ValueError``. Only what our trainer writes
is read: binary classification by one value at a time. The walk goes tree by tree over blocks of rows, so that a tree
stays in the processor's cache, and takes every row the same number of steps (a leaf leads to itself).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
Ints = NDArray[np.int32]
Flags = NDArray[np.bool_]

U = np.uint32
BLOCK = 32  # rows of 63 numbers: 16 KB, half of a first-level cache
AS_ZERO, AS_MISSING, AS_IT_IS = range(3)  # what LightGBM takes a NaN for: its missing types None, Zero and NaN
_WORDS_MAX = 1 << 20
_ZERO = 1e-35  # what is no further from 0 is 0 to LightGBM
_CATEGORICAL, _DEFAULT_LEFT = 1, 2  # bits of decision_type; the missing type lies above them


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree as LightGBM writes it; a child below 0 is leaf ``~child``.

    Of n inner nodes: ``feature``, ``left``, ``right`` int32[n], ``threshold`` and ``count`` (training rows) float64[n],
    ``default_left`` bool[n], ``missing`` int8[n] (-1: categorical), and ``goes_left``, by categorical node, bool[c]:
    which categories go left; all others go right. Of leaves: ``value`` and ``leaf_count`` float64[n + 1].
    """

    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    default_left: Flags
    missing: NDArray[np.int8]
    count: Floats
    value: Floats
    leaf_count: Floats
    goes_left: Mapping[int, Flags]


@dataclass(frozen=True, slots=True)
class Model:
    """A parsed model: the names of its columns, the sigmoid's slope, and its trees."""

    names: tuple[str, ...]
    slope: float
    trees: tuple[Tree, ...]


def _sections(text: str) -> Iterator[dict[str, str]]:
    """The header and each tree as a mapping."""
    for part in text.partition("end of trees")[0].split("\n\n"):
        fields = dict(line.partition("=")[::2] for line in part.splitlines() if "=" in line)
        if fields:
            yield fields


def _numbers(fields: Mapping[str, str], name: str, count: int) -> Floats:
    found = np.array(fields[name].split(), np.float64)
    # A threshold may be infinite: it parts what is missing from the rest.
    if found.shape != (count,) or not (np.isfinite(found) | ((name == "threshold") & (found == np.inf))).all():
        raise ValueError(f"{name} does not hold {count} numbers")
    return found


def _tree(fields: Mapping[str, str], columns: int) -> Tree:
    leaves = int(fields["num_leaves"])
    inner = leaves - 1
    if leaves < 1 or int(fields.get("is_linear", "0")):
        raise ValueError("a tree has no leaf, or linear ones")
    nodes = {
        name: _numbers(fields, name, inner) if inner else np.zeros(0)
        for name in ("split_feature", "threshold", "decision_type", "left_child", "right_child", "internal_count")
    }
    kind, left, right = (nodes[name].astype(np.int32) for name in ("decision_type", "left_child", "right_child"))
    feature = nodes["split_feature"].astype(np.int32)
    if inner and (feature.min() < 0 or feature.max() >= columns or kind.max() > 11):
        raise ValueError("a tree splits on a column that does not exist, or in a way that is not known")
    children = np.concatenate([left, right])
    # Every node and leaf but the root is the child of one node before it: a tree, and nothing else.
    if sorted(children.tolist()) != [*range(-leaves, 0), *range(1, inner)] and inner:
        raise ValueError("a tree's nodes are not one tree")
    if inner and (np.where(children >= 0, children, inner) <= np.tile(np.arange(inner), 2)).any():
        raise ValueError("a node stands before its parent")
    categorical = (kind & _CATEGORICAL) > 0
    return Tree(
        feature, nodes["threshold"], left, right, (kind & _DEFAULT_LEFT) > 0,
        np.where(categorical, -1, kind >> 2).astype(np.int8), nodes["internal_count"],
        _numbers(fields, "leaf_value", leaves), _numbers(fields, "leaf_count", leaves) if inner else np.ones(1),
        _categories(fields, np.flatnonzero(categorical).tolist(), nodes["threshold"]),
    )  # fmt: skip


def _categories(fields: Mapping[str, str], nodes: list[int], threshold: Floats) -> dict[int, Flags]:
    """By categorical node, which categories go left: LightGBM keeps them as bits in words of 32."""
    if not nodes:
        return {}
    bounds = np.array(fields["cat_boundaries"].split(), np.int64)
    words = np.array(fields["cat_threshold"].split(), np.uint32)
    if (np.diff(bounds) <= 0).any() or bounds[0] != 0 or bounds[-1] != len(words) or len(words) > _WORDS_MAX:
        raise ValueError("the categories of a tree do not fit")
    found = {}
    for node in nodes:
        place = int(threshold[node])
        if not 0 <= place < len(bounds) - 1:
            raise ValueError("a node's categories do not exist")
        own = words[bounds[place] : bounds[place + 1]].astype("<u4")
        found[node] = np.unpackbits(own.view(np.uint8), bitorder="little").astype(np.bool_)
    return found


def parse(text: str) -> Model:
    """Read LightGBM's text.

    Raises
    ------
    ValueError
        If it is damaged, or of a kind that is not read here.
    """
    try:
        header, *rest = _sections(text)
        objective = header["objective"].split()
        names = tuple(header["feature_names"].split())
        if objective[0] != "binary" or header["num_class"] != "1" or header["num_tree_per_iteration"] != "1":
            raise ValueError("not a model of two classes")
        if "average_output" in text.partition("\nTree=")[0] or "end of trees" not in text:
            raise ValueError("a random forest, or the end is missing")
        slope = float(objective[1].removeprefix("sigmoid:"))
        trees = tuple(_tree(fields, len(names)) for fields in rest)
    except (KeyError, IndexError, ValueError, OverflowError) as error:
        raise ValueError(f"the text of a LightGBM model cannot be read: {error}") from None
    if not (names and trees and math.isfinite(slope) and slope > 0.0):
        raise ValueError("the text of a LightGBM model cannot be read: no columns, no trees or no sigmoid")
    return Model(names, slope, trees)


class Sets:
    """Sets of categories, each as a column of its own behind those of the vectors: 1 where the category is in it."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, bytes, bool], int] = {}
        self._sets: list[tuple[int, Flags, bool]] = []

    def place(self, column: int, held: Flags, others: bool) -> int:
        """The place of a set: categories ``held`` (bool[c]), and whether it holds all others and what is missing."""
        key = (column, held.tobytes(), others)
        if key not in self._places:
            self._places[key] = len(self._sets)
            self._sets.append((column, held, others))
        return self._places[key]

    def arrays(self) -> tuple[Ints, Flags]:
        """The column of each set, int32[q], and what it holds, bool[q, C + 1]: the last place is for all others."""
        width = max((len(held) for _, held, _ in self._sets), default=0) + 1
        table = np.zeros((len(self._sets), width), np.bool_)
        for row, (_, held, others) in zip(table, self._sets, strict=True):
            row[:] = others
            row[: len(held)] = held
        return np.array([column for column, _, _ in self._sets], np.int32), table


@njit(cache=True, nogil=True)
def prepare(x: Floats, missing: NDArray[np.int8], columns: Ints, held: Flags, first: int, count: int, out: Floats
            ) -> None:  # fmt: skip
    """Copy rows, with what LightGBM takes for missing as NaN and nothing else, and a column for each set behind them.

    ``missing`` int8[F] is AS_ZERO, AS_MISSING or AS_IT_IS for each column; ``columns`` and ``held``: :class:`Sets`.
    """
    others = held.shape[1] - 1
    for i in range(count):
        for q in range(len(columns)):
            value = x[first + i, columns[q]]
            inside = -1.0 < value < others  # LightGBM cuts to a whole number first
            out[i, x.shape[1] + q] = held[q, int(value) if inside else others]
        for c in range(x.shape[1]):
            value = x[first + i, c]
            if missing[c] == AS_ZERO and value != value:
                value = 0.0
            elif missing[c] == AS_MISSING and -_ZERO <= value <= _ZERO:
                value = np.nan
            out[i, c] = value


@njit(cache=True, nogil=True)
def _raw(x: Floats, missing: NDArray[np.int8], columns: Ints, held: Flags, roots: Ints, depths: Ints, feature: Ints,
         threshold: Floats, missing_right: Ints, children: Ints, value: Floats, out: Floats) -> None:  # fmt: skip
    """Add up the leaves of every row. Which child comes next is counted, not branched on: guesses would often be wrong.

    ``children`` int32[2n]: left and right child of each node. ``missing_right`` is 1 where a NaN goes right.
    """
    block = np.empty((BLOCK, x.shape[1] + len(columns)))
    node = np.empty(BLOCK, np.int32)
    for first in range(0, len(x), BLOCK):
        count = min(BLOCK, len(x) - first)
        prepare(x, missing, columns, held, first, count, block)
        for t in range(len(roots)):
            for i in range(count):
                node[i] = roots[t]
            for _ in range(depths[t]):
                for i in range(count):
                    n = U(node[i])  # without a sign there is no test whether it counts from the end
                    v = block[U(i), U(feature[n])]
                    right = U(v > threshold[n]) | (U(v != v) & U(missing_right[n]))
                    node[i] = children[U(2) * n + right]
            for i in range(count):
                out[first + i] += value[node[i]]


@njit(cache=True, nogil=True)
def _sigmoid(raw: Floats, slope: float) -> None:
    for i in range(len(raw)):
        raw[i] = 1.0 / (1.0 + math.exp(-slope * raw[i]))


def missing_kinds(model: Model) -> NDArray[np.int8]:
    """What a NaN is in each column; LightGBM decides that by column.

    Raises
    ------
    ValueError
        If the nodes of one column do not agree.
    """
    kinds = np.full(len(model.names), -1, np.int8)
    for tree in model.trees:
        for column, kind in zip(tree.feature.tolist(), tree.missing.tolist(), strict=True):
            if kind < 0:
                continue
            if kinds[column] not in (-1, kind):
                raise ValueError(f"column {model.names[column]} takes missing values in two ways")
            kinds[column] = kind
    return np.where(kinds < 0, AS_IT_IS, kinds).astype(np.int8)


class FlatTrees:
    """A model's trees end to end, ready to score."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.missing = missing_kinds(model)
        sets = Sets()
        sizes = [2 * len(tree.value) - 1 for tree in model.trees]
        roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
        total = sum(sizes)
        self._feature, self._missing_right = np.zeros(total, np.int32), np.zeros(total, np.int32)
        self._threshold, self._value = np.full(total, np.inf), np.zeros(total)
        children = np.repeat(np.arange(total, dtype=np.int32), 2).reshape(total, 2)  # a leaf leads to itself
        for root, tree in zip(roots.tolist(), model.trees, strict=True):
            inner = len(tree.feature)
            nodes, leaves = slice(root, root + inner), slice(root + inner, root + 2 * inner + 1)
            self._feature[nodes], self._missing_right[nodes] = tree.feature, ~tree.default_left
            self._threshold[nodes], self._value[leaves] = tree.threshold, tree.value
            for node, goes_left in tree.goes_left.items():  # to the right where the set of what goes right holds it
                place = sets.place(int(tree.feature[node]), ~goes_left, True)
                self._feature[root + node], self._threshold[root + node] = len(model.names) + place, 0.5
            for side, child in enumerate((tree.left, tree.right)):
                children[nodes, side] = root + np.where(child >= 0, child, inner + ~child)
        self._sets = sets.arrays()
        self._roots, self._children = roots, children.reshape(-1)
        self._depths = np.array([_depth(tree) for tree in model.trees], np.int32)

    def raw(self, x: Floats) -> Floats:
        """Sum of the trees' values for each row; float64[n], in log-odds over the sigmoid's slope.

        Raises
        ------
        ValueError
            If ``x`` does not have F columns.
        """
        if x.ndim != 2 or x.shape[1] != len(self.model.names):
            raise ValueError(f"vectors of shape {x.shape} for a model of {len(self.model.names)} columns")
        out = np.zeros(len(x))
        _raw(np.ascontiguousarray(x, np.float64), self.missing, *self._sets, self._roots, self._depths, self._feature,
             self._threshold, self._missing_right, self._children, self._value, out)  # fmt: skip
        return out

    def probability(self, x: Floats) -> Floats:
        """LightGBM's ``predict`` of each row; float64[n] in 0..1.

        Raises
        ------
        ValueError
            If ``x`` does not have F columns.
        """
        out = self.raw(x)
        _sigmoid(out, self.model.slope)
        return out


def _depth(tree: Tree) -> int:
    """Steps from the root to the deepest leaf."""
    depths = np.zeros(len(tree.feature) + 1, np.int64)
    deepest = 0
    for node in range(len(tree.feature)):
        deepest = max(deepest, int(depths[node]) + 1)
        for child in (int(tree.left[node]), int(tree.right[node])):
            if child >= 0:
                depths[child] = depths[node] + 1
    return deepest
