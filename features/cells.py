"""What the splits of LightGBM's trees compare: each column as a split wants to see it.

In: a parsed model, feature vectors. Out: cells, float64[c, lanes], of which a split goes left where ``cell <=
threshold``. Pure.

Splits differ in what is missing and in where it goes. Each way of a column becomes a cell of its own: a missing value
that goes left is -inf there, one that goes right NaN, for which no comparison holds. A categorical split becomes a cell
of 0 (left) and 1 (right). What is left to the splits has no branches and runs over many rows at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.model_text import AS_MISSING, AS_ZERO, Flags, Floats, Model, Tree

Longs = NDArray[np.int64]

# LightGBM takes what is no further from 0 than this float32 for 0, before any split sees it.
_ZERO = float(np.float32(1e-35))
_Want = tuple[int, bool, bool, bytes]  # column, missing goes left, zero is missing, categories that go left


class Rules(NamedTuple):
    """Of each cell: its column, what stands for a missing value, and for zero.

    A categorical cell has ``held[first:end]``, by category whether it goes left; all others go right.
    """

    column: Longs
    missing: Floats
    zero: Floats
    first: Longs
    end: Longs
    held: Flags


@njit(cache=True, nogil=True)
def fill(x: Floats, start: int, count: int, rules: Rules, cells: Floats) -> None:
    """Write the cells of ``count`` rows from ``start`` on into the first lanes of ``cells``."""
    for c in range(len(rules.column)):
        column, missing, zero = rules.column[c], rules.missing[c], rules.zero[c]
        first, categories = rules.first[c], rules.end[c] - rules.first[c]
        if categories > 0:
            for i in range(count):
                value = x[start + i, column]
                # LightGBM cuts to a whole number: -0.5 is category 0. NaN is none.
                left = -1.0 < value < categories and rules.held[first + np.int64(value)]
                cells[c, i] = 0.0 if left else 1.0
        else:
            for i in range(count):
                value = x[start + i, column]
                value = zero if abs(value) <= _ZERO else value
                cells[c, i] = missing if value != value else value


class Cells:
    """The cells of a model.

    Attributes
    ----------
    columns : int
        How many columns F a vector has.
    rules : Rules
        How they are filled.
    of_split, threshold : list of int64[n], list of float64[n]
        By tree and split its cell, and what is compared with it.
    """

    def __init__(self, model: Model) -> None:
        numbers: dict[_Want, int] = {}
        self.columns = len(model.names)
        self.of_split: list[Longs] = []
        self.threshold: list[Floats] = []
        for tree in model.trees:
            wants = [_want(tree, split) for split in range(len(tree.feature))]
            self.of_split.append(np.array([numbers.setdefault(want, len(numbers)) for want in wants], np.int64))
            self.threshold.append(np.where([bool(want[3]) for want in wants], 0.5, tree.threshold))
        held = [np.frombuffer(want[3], np.bool_) for want in numbers]
        sizes = np.array([len(part) for part in held], np.int64)
        missing = np.array([-np.inf if left else np.nan for _, left, _, _ in numbers])
        self.rules = Rules(
            column=np.array([column for column, _, _, _ in numbers], np.int64),
            missing=missing,
            zero=np.where([is_missing for _, _, is_missing, _ in numbers], missing, 0.0),
            first=np.cumsum(sizes) - sizes,
            end=np.cumsum(sizes),
            held=np.concatenate([*held, np.zeros(1, np.bool_)]),
        )

    def __len__(self) -> int:
        return len(self.rules.column)

    def vectors(self, x: Floats) -> Floats:
        """``x`` as compiled code takes it.

        Raises
        ------
        ValueError
            If ``x`` does not have F columns.
        """
        if x.ndim != 2 or x.shape[1] != self.columns:
            raise ValueError(f"vectors of shape {x.shape} for a model of {self.columns} columns")
        return one_layout(x)


def one_layout(x: NDArray[np.float64]) -> Floats:
    """``x`` in the one layout that :mod:`features.warm` compiles for; a copy where it has another or is read-only.

    To numba each layout is a type of its own, and the first vectors of another type would wait for the compiler.
    """
    x = np.ascontiguousarray(x, np.float64)
    return x if x.flags.writeable else x.copy()


def _want(tree: Tree, split: int) -> _Want:
    column = int(tree.feature[split])
    if split in tree.goes_left:
        return column, False, False, tree.goes_left[split].tobytes()
    missing = tree.missing[split]
    # Where nothing is missing, NaN is zero and goes where zero goes.
    left = tree.threshold[split] >= 0.0 if missing == AS_ZERO else tree.default_left[split]
    return column, bool(left), bool(missing == AS_MISSING), b""
