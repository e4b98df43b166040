"""The stack machine that runs the conditions of all rules over whole cycles, compiled.

In: a program (:mod:`features.rule_program`), columns. Out: which rules hit which transactions. Pure. One call evaluates
all rules on all transactions, 64 at a time; the other side of ``and`` and ``or`` is left out where it changes none of
them, so most rules cost an operation or two.

Texts (ids, categories) are their 64-bit hashes, and ``MISSING_TEXT`` where there is none; truth is 1.0 and 0.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.encoding import MISSING_TEXT as MISSING

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SCORE, ANOMALY = -1, -2  # columns that are no features
NEVER = (1 << 63) - 1  # until when an entry of a list holds that does not end

_BLOCK = 64  # transactions that an operation takes at once: their vectors stay in the fastest cache

# Operations: (number, a, b, c). The comments say what they do to the stack.
CONSTANT = 0  # push constants[a]
COLUMN = 1  # push column a
COMPARE_COLUMN = 2  # push column a (comparison c) constants[b]; the most frequent, hence of its own
COMPARE = 3  # pop two, push comparison c of them
ADD, SUBTRACT, MULTIPLY, DIVIDE, MINIMUM, MAXIMUM, BOTH, EITHER = 4, 5, 6, 7, 8, 9, 10, 11  # pop two, push one
NEGATE, ABSOLUTE, NOT, MISSING_NUMBER = 12, 13, 14, 15  # change the top
SKIP = 16  # go on at a if the top is c for all: the other side of `and` or `or` cannot change it
AMONG = 17  # pop a number, push whether it is in constants[a:b]; c: whether it is not
TEXT_IS = 18  # push whether text a is texts[b]; c: whether it is not
TEXTS_EQUAL = 19  # push whether texts a and b are equal; c: not
TEXT_AMONG = 20  # push whether text a is in set b; c: not
TEXT_MISSING = 21  # push whether text a is missing


@dataclass(frozen=True, eq=False, slots=True)
class Columns:
    """What conditions are asked about, n transactions.

    ``x`` float64[n, features], NaN = missing; ``score`` and ``anomaly`` float64[n]; ``time`` int64[n] epoch ms;
    ``texts`` int64[n, texts], hashes of the ids of each entity and then of each categorical field.
    """

    x: Floats
    score: Floats
    anomaly: Floats
    time: Ints
    texts: Ints


@dataclass(frozen=True, eq=False, slots=True)
class Sets:
    """Sets of texts as open-addressed tables end to end: the hash in each place and until when it holds, in epoch ms.

    Set i has places ``bounds[i, 0]`` on, a power of 2 of them, ``bounds[i, 1]`` less one.
    """

    bounds: Ints
    hashes: Ints
    until: Ints

    @classmethod
    def of(cls, sets: Sequence[Mapping[int, int]]) -> Sets:
        """Tables of hashes and the end of each."""
        bounds, hashes, until, start = [], [], [], 0
        for entries in sets:
            size = 1 << (2 * len(entries) + 1).bit_length()
            keys, ends = np.full(size, MISSING), np.zeros(size, np.int64)
            _fill(np.fromiter(entries.keys(), np.int64, len(entries)),
                  np.fromiter(entries.values(), np.int64, len(entries)), keys, ends)  # fmt: skip
            bounds.append((start, size - 1))
            hashes.append(keys)
            until.append(ends)
            start += size
        empty = [np.zeros(0, np.int64)]
        return cls(np.array(bounds, np.int64).reshape(-1, 2), np.concatenate(hashes or empty),
                   np.concatenate(until or empty))  # fmt: skip


@njit(cache=True, nogil=True)
def _fill(entries: Ints, ends: Ints, hashes: Ints, until: Ints) -> None:
    mask = len(hashes) - 1
    for i in range(len(entries)):
        at = (entries[i] ^ (entries[i] >> 29)) & mask
        while hashes[at] != MISSING and hashes[at] != entries[i]:
            at = (at + 1) & mask
        hashes[at], until[at] = entries[i], ends[i]


@njit(cache=True, nogil=True)
def _holds(wanted: int, time: int, start: int, mask: int, hashes: Ints, until: Ints) -> bool:
    at = (wanted ^ (wanted >> 29)) & mask
    while hashes[start + at] != MISSING:
        if hashes[start + at] == wanted:
            return bool(time < until[start + at])
        at = (at + 1) & mask
    return False


@njit(cache=True, nogil=True, inline="always")
def _compare(comparison: int, a: float, b: float) -> bool:
    """One of :data:`features.expressions.COMPARISONS`."""
    if comparison == 0:
        return a < b
    if comparison == 1:
        return a <= b
    if comparison == 2:
        return a > b
    if comparison == 3:
        return a >= b
    if comparison == 4:
        return a == b
    return a < b or a > b  # not !=, which holds for a missing value


@njit(cache=True, nogil=True, error_model="numpy")
def _compared(comparison: int, stack: Floats, top: int, n: int) -> None:
    for j in range(n):
        stack[top, j] = _compare(comparison, stack[top, j], stack[top + 1, j])


@njit(cache=True, nogil=True, error_model="numpy")
def _calculated(op: int, stack: Floats, top: int, n: int) -> None:
    for j in range(n):
        a, b = stack[top, j], stack[top + 1, j]
        if op == ADD:
            a += b
        elif op == SUBTRACT:
            a -= b
        elif op == MULTIPLY:
            a *= b
        elif op == DIVIDE:
            a = a / b if b != 0.0 else np.nan
        elif op == MINIMUM:
            a = np.minimum(a, b)  # missing if one of them is
        elif op == MAXIMUM:
            a = np.maximum(a, b)
        elif op == BOTH:
            a = 1.0 if a != 0.0 and b != 0.0 else 0.0
        else:
            a = 1.0 if a != 0.0 or b != 0.0 else 0.0
        stack[top, j] = a


@njit(cache=True, nogil=True)
def _changed(op: int, stack: Floats, top: int, n: int) -> None:
    for j in range(n):
        a = stack[top, j]
        if op == NEGATE:
            stack[top, j] = -a
        elif op == ABSOLUTE:
            stack[top, j] = abs(a)
        elif op == NOT:
            stack[top, j] = 1.0 - a
        else:
            stack[top, j] = a != a


@njit(cache=True, nogil=True)
def _among(stack: Floats, top: int, items: Floats, start: int, end: int, negated: int, n: int) -> None:
    for j in range(n):
        a, found = stack[top, j], False
        for k in range(start, end):
            found |= a == items[k]
        stack[top, j] = a == a and found != (negated != 0)


@njit(cache=True, nogil=True)
def _of_texts(op: int, stack: Floats, top: int, a: int, b: int, c: int, first: int, n: int, ids: Ints, texts: Ints,
              time: Ints, bounds: Ints, hashes: Ints, until: Ints) -> None:  # fmt: skip
    """A test of text column ``a`` of n transactions from ``first`` on; one of a missing text is false."""
    for j in range(n):
        text, found = ids[first + j, a], False
        if op == TEXT_MISSING:
            stack[top, j] = text == MISSING
            continue
        if op == TEXT_IS:
            found = text == texts[b]
        elif op == TEXTS_EQUAL:
            if ids[first + j, b] == MISSING:
                stack[top, j] = False
                continue
            found = text == ids[first + j, b]
        elif text != MISSING:
            found = _holds(text, time[first + j], bounds[b, 0], bounds[b, 1], hashes, until)
        stack[top, j] = text != MISSING and found != (c != 0)


@njit(cache=True, nogil=True)
def _load(column: int, stack: Floats, top: int, first: int, n: int, x: Floats, score: Floats, anomaly: Floats) -> None:
    for j in range(n):
        if column >= 0:
            stack[top, j] = x[first + j, column]
        else:
            stack[top, j] = score[first + j] if column == SCORE else anomaly[first + j]


@njit(cache=True, nogil=True)
def _decided_by(stack: Floats, top: int, n: int, truth: float) -> bool:
    """Whether all of them have this truth."""
    same = 0
    for j in range(n):
        same += stack[top, j] == truth
    return bool(same == n)


@njit(cache=True, nogil=True, error_model="numpy")
def run(code: NDArray[np.int32], starts: Ints, constants: Floats, texts: Ints, weights: Ints, bounds: Ints,
         hashes: Ints, until: Ints, depth: int, x: Floats, score: Floats, anomaly: Floats, time: Ints, ids: Ints,
         hits: NDArray[np.bool_], best: Ints) -> None:  # fmt: skip
    stack = np.empty((depth, _BLOCK))
    for first in range(0, len(score), _BLOCK):
        n = min(_BLOCK, len(score) - first)
        for r in range(len(starts) - 1):
            at, top = starts[r], -1
            while at < starts[r + 1]:
                op, a, b, c = code[at, 0], code[at, 1], code[at, 2], code[at, 3]
                at += 1
                if op == COMPARE_COLUMN:
                    top += 1
                    _load(a, stack, top, first, n, x, score, anomaly)
                    for j in range(n):
                        stack[top, j] = _compare(c, stack[top, j], constants[b])
                elif op == SKIP:
                    if _decided_by(stack, top, n, float(c)):
                        at = a
                elif op == COLUMN:
                    top += 1
                    _load(a, stack, top, first, n, x, score, anomaly)
                elif op == CONSTANT:
                    top += 1
                    for j in range(n):
                        stack[top, j] = constants[a]
                elif op == COMPARE:
                    top -= 1
                    _compared(c, stack, top, n)
                elif op <= EITHER:
                    top -= 1
                    _calculated(op, stack, top, n)
                elif op <= MISSING_NUMBER:
                    _changed(op, stack, top, n)
                elif op == AMONG:
                    _among(stack, top, constants, a, b, c, n)
                else:
                    top += 1
                    _of_texts(op, stack, top, a, b, c, first, n, ids, texts, time, bounds, hashes, until)
            for j in range(n):
                hit = stack[0, j] != 0.0
                hits[first + j, r] = hit
                if hit and weights[r] > best[first + j]:
                    best[first + j] = weights[r]
