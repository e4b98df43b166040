"""Conditions as one program of the stack machine in :mod:`features.rule_machine`.

In: trees of :mod:`features.expressions`. Out: :class:`Program`. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.expressions import COMPARISONS, Node
from features.hashing import hash_strings
from features.rule_machine import (
    ABSOLUTE,
    ADD,
    AMONG,
    BOTH,
    COLUMN,
    COMPARE,
    COMPARE_COLUMN,
    CONSTANT,
    DIVIDE,
    EITHER,
    MAXIMUM,
    MINIMUM,
    MISSING_NUMBER,
    MULTIPLY,
    NEGATE,
    NEVER,
    NOT,
    SKIP,
    SUBTRACT,
    TEXT_AMONG,
    TEXT_IS,
    TEXT_MISSING,
    TEXTS_EQUAL,
    Columns,
    Floats,
    Ints,
    Sets,
    run,
)

_CHAINED = {"+": ADD, "-": SUBTRACT, "*": MULTIPLY, "/": DIVIDE, "min": MINIMUM, "max": MAXIMUM, "and": BOTH,
            "or": EITHER}  # fmt: skip
_SINGLE = {"negative": NEGATE, "abs": ABSOLUTE, "not": NOT}


@dataclass(frozen=True, eq=False, slots=True)
class Program:
    """The conditions of R rules.

    ``code`` int32[k, 4]; rule r is ``code[starts[r]:starts[r + 1]]``. ``lists`` are the names of the sets that come
    after those written in the conditions, ``fixed``; ``depth`` is the deepest that the stack gets.
    """

    code: NDArray[np.int32]
    starts: Ints
    constants: Floats
    texts: Ints
    fixed: tuple[Mapping[int, int], ...]
    lists: tuple[str, ...]
    depth: int

    def sets(self, lists: Mapping[str, Mapping[int, int]]) -> Sets:
        """The tables of all sets; a list that is not among ``lists`` is empty."""
        return Sets.of([*self.fixed, *(lists.get(name, {}) for name in self.lists)])

    def run(self, columns: Columns, sets: Sets, weights: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Which rules hit, bool[n, R], and the largest of their ``weights`` (int64[R]), int64[n], 0 where none hit."""
        n = len(columns.score)
        hits, best = np.empty((n, len(weights)), np.bool_), np.zeros(n, np.int64)
        run(self.code, self.starts, self.constants, self.texts, weights, sets.bounds, sets.hashes, sets.until,
             self.depth, columns.x, columns.score, columns.anomaly, columns.time, columns.texts, hits,
             best)  # fmt: skip
        return hits, best


def compiled(conditions: Sequence[Node], lists: Sequence[str]) -> Program:
    """The program of some conditions; ``lists`` are the names of all lists."""
    writer = _Writer(tuple(lists))
    starts = [0]
    for condition in conditions:
        writer.write(condition)
        starts.append(len(writer.code))
    fixed = len(writer.sets)
    for operation in writer.code:
        if operation[0] == TEXT_AMONG and operation[2] < 0:
            operation[2] = fixed - operation[2] - 1
    return Program(
        np.array(writer.code, np.int32).reshape(-1, 4), np.array(starts, np.int64), np.array(writer.constants),
        np.array(writer.texts, np.int64), tuple(writer.sets), writer.lists, writer.deepest,
    )  # fmt: skip


def text_hash(text: str) -> int:
    """The hash by which a text is compared."""
    return int(hash_strings([text]).view(np.int64)[0])


class _Writer:
    def __init__(self, lists: tuple[str, ...]) -> None:
        self.code: list[list[int]] = []
        self.constants: list[float] = []
        self.texts: list[int] = []
        self.sets: list[Mapping[int, int]] = []
        self.lists = lists
        self.deepest = 1
        self._depth = 0

    def write(self, node: Node) -> None:
        """Append what leaves the value of ``node`` on the stack."""
        op, parts = node.op, node.parts
        if op == "constant":
            self._push(CONSTANT, self._constant(float(str(node.value))))
        elif op == "column":
            self._push(COLUMN, _number(node))
        elif op in _CHAINED:
            self._chain(node)
        elif op in COMPARISONS:
            self._comparison(op, *parts)
        elif op in ("in", "not in"):
            self._membership(node, parts[0])
        elif op == "missing" and parts[0].kind == "text":
            self._push(TEXT_MISSING, _number(parts[0]))
        else:
            self.write(parts[0])
            self.code.append([MISSING_NUMBER if op == "missing" else _SINGLE[op], 0, 0, 0])

    def _chain(self, node: Node) -> None:
        """``a + b + c`` is ``(a + b) + c``: what stands furthest left comes first, without a call for each level."""
        chain: list[Node] = []
        while node.op in _CHAINED:
            chain.append(node)
            node = node.parts[0]
        self.write(node)
        for joined in reversed(chain):
            skip = None
            if joined.kind == "truth":
                skip = [SKIP, 0, 0, int(joined.op == "or")]
                self.code.append(skip)
            self.write(joined.parts[1])
            self._pop_two(_CHAINED[joined.op])
            if skip is not None:
                skip[1] = len(self.code)

    def _comparison(self, op: str, left: Node, right: Node) -> None:
        if left.kind == "text":
            if left.op == "constant":
                left, right = right, left
            negated = int(op == "!=")
            if right.op == "constant":
                self.texts.append(text_hash(str(right.value)))
                self._push(TEXT_IS, _number(left), len(self.texts) - 1, negated)
            else:
                self._push(TEXTS_EQUAL, _number(left), _number(right), negated)
        elif left.op == "column" and right.op == "constant":
            constant = self._constant(float(str(right.value)))
            self._push(COMPARE_COLUMN, _number(left), constant, COMPARISONS.index(op))
        else:
            self.write(left)
            self.write(right)
            self._pop_two(COMPARE, COMPARISONS.index(op))

    def _membership(self, node: Node, left: Node) -> None:
        negated = int(node.op == "not in")
        if isinstance(node.value, str):  # a list: numbered from -1 down until it is known how many sets are written
            self._push(TEXT_AMONG, _number(left), -1 - self.lists.index(node.value), negated)
        elif left.kind == "text":
            assert isinstance(node.value, tuple)
            self.sets.append({text_hash(str(item)): NEVER for item in node.value})
            self._push(TEXT_AMONG, _number(left), len(self.sets) - 1, negated)
        else:
            assert isinstance(node.value, tuple)
            self.write(left)
            first = len(self.constants)
            self.constants += [float(item) for item in node.value]
            self.code.append([AMONG, first, len(self.constants), negated])

    def _constant(self, value: float) -> int:
        self.constants.append(value)
        return len(self.constants) - 1

    def _push(self, operation: int, a: int, b: int = 0, c: int = 0) -> None:
        self.code.append([operation, a, b, c])
        self._depth += 1
        self.deepest = max(self.deepest, self._depth)

    def _pop_two(self, operation: int, c: int = 0) -> None:
        self.code.append([operation, 0, 0, c])
        self._depth -= 1


def _number(column: Node) -> int:
    assert isinstance(column.value, int)
    return column.value
