"""LightGBM's trees as flat arrays: probabilities of many rows, bit for bit those of LightGBM.

In: a parsed model, feature vectors. Out: raw scores and probabilities. Pure.

LightGBM's ``predict`` costs tens of microseconds a call and three to five a row, most of which is waiting: each node
says where the next one lies. Here no tree is walked. Leaves are numbered from left to right, each split knows which of
them it rules out when it sends a row right, and the first leaf that is left over is the answer (Lucchese et al.:
QuickScorer, SIGIR 2015). So splits are taken one after the other, each over many rows at once, which needs no branches
and fills the widest registers. Trees are added up in LightGBM's order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from features.cells import Cells, Longs, Rules, fill
from features.model_text import Flags, Floats, Model, Tree

Bits = NDArray[np.uint64]

_BLOCK = 256  # rows whose cells stay in the second-level cache
_LANES = 8  # numbers of 64 bits in the widest registers
_WORD = 64
_ALL = np.uint64(2**64 - 1)


class _Words(NamedTuple):
    """Up to 64 leaves each; a tree of more has several. Word w has splits ``bounds[w]:bounds[w + 1]``."""

    bounds: Longs
    leaf: Longs  # number of its first leaf
    opens: Flags  # it is the first of its tree
    closes: Flags  # and the last
    cell: Longs
    threshold: Floats
    kept: Bits  # the leaves that a split leaves over where it sends a row right
    value: Floats  # of each leaf


def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    """The number of the lowest bit that is set, as one instruction; undefined for 0."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), build


_lowest: Any = intrinsic(_trailing_zeros)


@njit(cache=True, nogil=True)
def _add_up(cells: Floats, lanes: int, words: _Words, out: Floats) -> None:
    """Write the sum of all trees for as many of the first lanes as ``out`` has room for.

    One function and local arrays: the compiler sees that none overlaps another, and counts no references per tree.
    """
    over, found, total = np.empty(lanes, np.uint64), np.zeros(lanes, np.bool_), np.zeros(lanes)
    for w in range(len(words.leaf)):
        leaf = words.leaf[w]
        over[:] = _ALL
        for k in range(words.bounds[w], words.bounds[w + 1]):
            cell, threshold, kept = words.cell[k], words.threshold[k], words.kept[k]
            for i in range(lanes):
                over[i] &= _ALL if cells[cell, i] <= threshold else kept
        if words.opens[w] and words.closes[w]:
            for i in range(lanes):
                total[i] += words.value[leaf + _lowest(over[i])]
        else:
            for i in range(lanes):
                found[i] = found[i] and not words.opens[w]
                if not found[i] and over[i] != 0:
                    found[i] = True
                    total[i] += words.value[leaf + _lowest(over[i])]
    out[:] = total[: len(out)]


@njit(cache=True, nogil=True)
def _raw(x: Floats, rules: Rules, words: _Words, out: Floats) -> None:
    # Whole registers: what lies in lanes behind the last row is added up and not looked at.
    cells = np.zeros((len(rules.column), min(_BLOCK, -(-len(x) // _LANES) * _LANES)))
    for start in range(0, len(x), _BLOCK):
        count = min(_BLOCK, len(x) - start)
        fill(x, start, count, rules, cells)
        _add_up(cells, -(-count // _LANES) * _LANES, words, out[start : start + count])


@njit(cache=True, nogil=True)
def _sigmoid(raw: Floats, slope: float) -> None:
    for i in range(len(raw)):
        raw[i] = 1.0 / (1.0 + math.exp(-slope * raw[i]))


class FlatTrees:
    """A model's trees end to end, ready to score."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._cells = Cells(model)
        bounds, leaf, opens, closes = [0], [], [], []
        picked, kept, value = [], [], []
        splits = leaves = 0
        for tree in model.trees:
            order, masks = _leaf_masks(tree)
            words = masks.shape[1]
            for w in range(words):
                # A split whose left leaves all lie in other words rules out nothing here.
                here = np.flatnonzero(masks[:, w] != _ALL)
                picked.append(splits + here)
                kept.append(masks[here, w])
                bounds.append(bounds[-1] + len(here))
                leaf.append(leaves + w * _WORD)
                opens.append(w == 0)
                closes.append(w == words - 1)
            value.append(tree.value[order])
            splits, leaves = splits + len(tree.feature), leaves + len(order)
        at = np.concatenate(picked)
        self._words = _Words(
            np.array(bounds), np.array(leaf), np.array(opens), np.array(closes),
            np.concatenate(self._cells.of_split)[at], np.concatenate(self._cells.threshold)[at],
            np.concatenate(kept), np.concatenate(value),
        )  # fmt: skip

    def raw(self, x: Floats) -> Floats:
        """Sum of the trees' values for each row; float64[n], in log-odds over the sigmoid's slope.

        Raises
        ------
        ValueError
            If ``x`` does not have F columns.
        """
        x = self._cells.vectors(x)
        out = np.empty(len(x))
        _raw(x, self._cells.rules, self._words, out)
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


def _leaf_masks(tree: Tree) -> tuple[Longs, Bits]:
    """The leaves from left to right, and by split and word of 64 leaves which of them are kept on the way right."""
    splits, leaves = len(tree.feature), len(tree.value)
    sizes = np.ones(splits + leaves, np.int64)  # leaves below a split; index -1 is leaf 0, -2 leaf 1, and so on
    for split in reversed(range(splits)):
        sizes[split] = sizes[tree.left[split]] + sizes[tree.right[split]]
    first = np.zeros(splits + leaves, np.int64)
    masks = np.full((splits, -(-leaves // _WORD)), _ALL)
    for split in range(splits):
        left, start = tree.left[split], int(first[split])
        middle = start + int(sizes[left])
        first[left], first[tree.right[split]] = start, middle
        for w in range(start // _WORD, (middle - 1) // _WORD + 1):
            low, high = max(start - w * _WORD, 0), min(middle - w * _WORD, _WORD)
            masks[split, w] = np.uint64(2**64 - 1 - (2**high - 2**low))
    return np.argsort(first[-1 : -leaves - 1 : -1]), masks
