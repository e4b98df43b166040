"""LightGBM's model text, read without LightGBM and checked as it is read.

In: the text that ``Booster.model_to_string`` writes. Out: a :class:`Model`, or ``ValueError``. Pure.

LightGBM's own parser aborts the process on damaged text. Compiled code, which checks no index, may trust what was read
here. Only what our trainer writes is read: two classes, or a ranker.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Flags = NDArray[np.bool_]

AS_ZERO, AS_MISSING, AS_IT_IS = range(3)  # what LightGBM takes a NaN for: its missing types None, Zero and NaN
_WORDS_MAX = 1 << 20
_OBJECTIVES = ("binary", "lambdarank")
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
        if objective[0] not in _OBJECTIVES or header["num_class"] != "1" or header["num_tree_per_iteration"] != "1":
            raise ValueError("neither a model of two classes nor a ranker")
        if "average_output" in text.partition("\nTree=")[0] or "end of trees" not in text:
            raise ValueError("a random forest, or the end is missing")
        # A ranker's values have no meaning as probabilities; they are used raw.
        slope = float(objective[1].removeprefix("sigmoid:")) if objective[0] == "binary" else 1.0
        trees = tuple(_tree(fields, len(names)) for fields in rest)
    except (KeyError, IndexError, ValueError, OverflowError) as error:
        raise ValueError(f"the text of a LightGBM model cannot be read: {error}") from None
    if not (names and trees and math.isfinite(slope) and slope > 0.0):
        raise ValueError("the text of a LightGBM model cannot be read: no columns, no trees or no sigmoid")
    return Model(names, slope, trees)
