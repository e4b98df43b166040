"""The language of a rule's condition: text to a checked tree, with the place of every mistake.

In: a text and the :class:`Names` that it may use. Out: a tree of nodes that have types, or one :class:`Mistake`.
Pure. There is no way from a text to Python: :mod:`features.rule_machine` runs the trees. ``docs/rules.md`` has the
language in words.

Missing values: a comparison or a membership with one is false, ``!=`` and ``not in`` too; arithmetic with one, and a
division by zero, are missing; ``missing(x)`` asks.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn

LENGTH_MAX = 4000
DEPTH_MAX = 50  # of brackets and signs in one another
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
FUNCTIONS = {"missing": 1, "abs": 1, "min": 2, "max": 2}

_WORDS = {"and", "or", "not", "in", "true", "false"}
_TOKEN = re.compile(
    r"""(?P<number>(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<text>'[^'\n]*'|"[^"\n]*")
      | (?P<sign><=|>=|==|!=|[-<>+*/()\[\],])""",
    re.VERBOSE | re.ASCII,
)
_INSTEAD = {"=": "'=='", "&": "'and'", "|": "'or'", "!": "'not' or '!='", "%": "no remainder: there is none",
            "^": "'*' again and again"}  # fmt: skip
_BINDING = {"or": 1, "and": 2, **dict.fromkeys((*COMPARISONS, "in", "not"), 4), "+": 5, "-": 5, "*": 6, "/": 6}
_NOT_BINDS, _MINUS_BINDS = 3, 7

Kind = Literal["number", "text", "truth"]
_KINDS = {"number": "a number", "text": "a text", "truth": "true or false"}


class Mistake(Exception):
    """What is wrong with an expression, and at which of its characters."""

    def __init__(self, at: int, sentence: str) -> None:
        super().__init__(sentence)
        self.at = at


@dataclass(frozen=True, slots=True)
class Node:
    """A part of an expression.

    ``op`` is a comparison, an operator, a function, or one of ``constant`` (``value``), ``column`` (``value`` is its
    number), ``in`` and ``not in`` (``value`` is a tuple of constants, or the name of a list).
    """

    op: str
    kind: Kind
    at: int
    parts: tuple[Node, ...] = ()
    value: float | str | int | tuple[float | str, ...] = 0


@dataclass(frozen=True, slots=True)
class Names:
    """What an expression may name.

    ``numbers`` and ``texts`` are the columns of each kind by name. ``lists`` are the columns of texts whose values a
    list may hold, by the list's name.
    """

    numbers: Mapping[str, int]
    texts: Mapping[str, int]
    lists: Mapping[str, int] = field(default_factory=dict)

    def all(self) -> list[str]:
        """Every name."""
        return [*self.numbers, *self.texts]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the names that are most alike, or nothing.

    >>> nearest("card_cuont_1h", ["card_count_1h", "event_hour"])
    '; did you mean card_count_1h?'
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def parse(text: str, names: Names) -> Node:
    """The tree of a condition.

    Raises
    ------
    Mistake
        If it is none: the first that is wrong.
    """
    if len(text) > LENGTH_MAX:
        raise Mistake(LENGTH_MAX, f"{len(text)} characters; at most {LENGTH_MAX}")
    parser = _Parser(_tokens(text), names)
    node = parser.expression(0)
    if parser.token[0] != "end":
        raise Mistake(parser.token[2], f"expected 'and', 'or' or the end, not {_shown(parser.token)}")
    if node.kind != "truth":
        raise Mistake(node.at, f"a condition is true or false, and this is {_KINDS[node.kind]}")
    return node


def walk(node: Node) -> Iterator[Node]:
    """All nodes of a tree, each before its parts. A long sum is a deep tree, so there is no call for each level."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.parts))


def used(node: Node) -> list[Node]:
    """The columns that a tree reads, in order of appearance."""
    return [part for part in walk(node) if part.op == "column"]


_Token = tuple[str, str, int]


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            if text[at] in "'\"":
                raise Mistake(at, "a text that does not end in its line")
            instead = _INSTEAD.get(text[at])
            raise Mistake(at, f"{text[at]!r} means nothing here" + (f"; write {instead}" if instead else ""))
        kind = str(match.lastgroup)
        if kind == "number" and re.match(r"\w", text[match.end() :], re.ASCII):
            raise Mistake(at, f"{text[at : match.end() + 1]!r} is neither a number nor a name")
        found.append(("word" if match[0] in _WORDS else kind, match[0], at))
        at = match.end()
    return [*found, ("end", "the end", at)]


class _Parser:
    """Pratt's: an operator takes what binds closer than itself."""

    def __init__(self, tokens: list[_Token], names: Names) -> None:
        self._tokens = tokens
        self._names = names
        self._next = 0
        self._depth = 0

    @property
    def token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self.token
        self._next += token[0] != "end"
        return token

    def _expect(self, sign: str, instead_of: str) -> None:
        token = self._take()
        if token[0] == "text" or token[1] != sign:
            raise Mistake(token[2], f"expected {sign!r} {instead_of}, not {_shown(token)}")

    def expression(self, binding: int) -> Node:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise Mistake(self.token[2], f"more than {DEPTH_MAX} brackets and signs in one another")
        left = self._operand()
        while True:
            kind, word, at = self.token
            if kind not in ("word", "sign") or _BINDING.get(word, 0) <= binding:
                break
            self._take()
            left = self._joined(left, word, at)
        self._depth -= 1
        return left

    def _joined(self, left: Node, word: str, at: int) -> Node:
        if word == "not":
            self._expect("in", "after 'not'")
            return self._membership("not in", left, at)
        if word == "in":
            return self._membership("in", left, at)
        right = self.expression(_BINDING[word])
        if word in ("and", "or"):
            return Node(word, "truth", at, (_of("truth", left, word), _of("truth", right, word)))
        if word not in COMPARISONS:
            return Node(word, "number", at, (_of("number", left, word), _of("number", right, word)))
        if self.token[1] in (*COMPARISONS, "in"):
            raise Mistake(self.token[2], "comparisons in a row; write a < b and b < c")
        if left.kind != right.kind:
            raise Mistake(at, f"{_KINDS[left.kind]} is never compared with {_KINDS[right.kind]}{_quoted(left, right)}")
        if word not in ("==", "!=") and left.kind != "number":
            raise Mistake(at, f"{word!r} compares numbers, and this is {_KINDS[left.kind]}")
        if left.op == right.op == "constant":
            raise Mistake(at, "both sides are fixed, so this is always the same")
        return Node(word, "truth", at, (left, right))

    def _operand(self) -> Node:
        token = self._take()
        kind, word, at = token
        if kind == "number":
            number = float(word.replace("_", ""))
            if not math.isfinite(number):
                raise Mistake(at, f"{word} is too large; numbers end at 1.7e308")
            return Node("constant", "number", at, value=number)
        if kind == "text":
            return Node("constant", "text", at, value=word[1:-1])
        if kind == "name":
            return self._call(word, at) if self.token[1] == "(" else self._column(word, at)
        if word in ("true", "false"):
            return Node("constant", "truth", at, value=float(word == "true"))
        if word == "not":
            return Node("not", "truth", at, (_of("truth", self.expression(_NOT_BINDS), word),))
        if word == "-":
            operand = _of("number", self.expression(_MINUS_BINDS), word)
            if operand.op == "constant":
                return Node("constant", "number", at, value=-float(str(operand.value)))
            return Node("negative", "number", at, (operand,))
        if word == "(":
            inner = self.expression(0)
            self._expect(")", f"for the '(' at character {at + 1}")
            return inner
        if word == "[":
            raise Mistake(at, "a list stands behind 'in'")
        raise Mistake(at, f"expected a name, a number, a text or '(', not {_shown(token)}")

    def _column(self, name: str, at: int) -> Node:
        if name in self._names.numbers:
            return Node("column", "number", at, value=self._names.numbers[name])
        if name in self._names.texts:
            return Node("column", "text", at, value=self._names.texts[name])
        if name in self._names.lists:
            raise Mistake(at, f"{name} is a list and stands behind 'in'")
        raise Mistake(at, f"no feature or field {name!r}{nearest(name, self._names.all())}")

    def _call(self, name: str, at: int) -> Node:
        if name not in FUNCTIONS:
            raise Mistake(at, f"no function {name!r}; there are {', '.join(FUNCTIONS)}")
        self._take()
        given = [self.expression(0)]
        while self.token[1] == ",":
            self._take()
            given.append(self.expression(0))
        self._expect(")", f"for the '(' of {name}")
        if len(given) != FUNCTIONS[name]:
            raise Mistake(at, f"{name} takes {FUNCTIONS[name]}, not {len(given)}")
        if name != "missing":
            return Node(name, "number", at, tuple(_of("number", part, name) for part in given))
        if given[0].kind == "truth" or not used(given[0]):
            raise Mistake(given[0].at, "this is never missing")
        return Node("missing", "truth", at, tuple(given))

    def _membership(self, op: str, left: Node, at: int) -> Node:
        token = self._take()
        kind, word, start = token
        if left.op == "constant" or left.kind == "truth":
            raise Mistake(left.at, "what is looked for in a list is a feature or a field")
        if kind == "name":
            return Node(op, "truth", at, (left,), self._list(left, word, start))
        if word != "[":
            raise Mistake(start, f"expected a list behind 'in', such as ['a', 'b'] or a name, not {_shown(token)}")
        items: list[float | str] = []
        while self.token[1] != "]" or self.token[0] == "text":
            item = self.expression(0)
            if item.op != "constant":
                raise Mistake(item.at, "a list holds numbers or texts")
            if item.kind != left.kind:
                raise Mistake(item.at, f"{_KINDS[item.kind]} in a list where {_KINDS[left.kind]} is looked for"
                                       f"{_quoted(left, item)}")  # fmt: skip
            items.append(item.value)  # type: ignore[arg-type]
            if self.token[1] != ",":
                break
            self._take()
        self._expect("]", f"for the '[' at character {start + 1}")
        if not items:
            raise Mistake(start, "an empty list holds nothing")
        return Node(op, "truth", at, (left,), tuple(items))

    def _list(self, left: Node, name: str, at: int) -> str:
        if name not in self._names.lists:
            known = nearest(name, self._names.lists)
            raise Mistake(at, f"no list {name!r} under [lists]{known}")
        if left.op != "column" or left.kind != "text" or left.value != self._names.lists[name]:
            of = next(text for text, column in self._names.texts.items() if column == self._names.lists[name])
            raise Mistake(left.at, f"the list {name} holds ids of {of}, and this is something else")
        return name


def _shown(token: _Token) -> str:
    return token[1] if token[0] == "end" else repr(token[1])


def _of(kind: Kind, node: Node, operator: str) -> Node:
    if node.kind != kind:
        _refuse(kind, node, operator)
    return node


def _refuse(kind: Kind, node: Node, operator: str) -> NoReturn:
    raise Mistake(node.at, f"{operator!r} takes {_KINDS[kind]}, and this is {_KINDS[node.kind]}")


def _quoted(left: Node, right: Node) -> str:
    """A hint where an id was written as a number."""
    for one, other in ((left, right), (right, left)):
        if one.kind == "text" and other.op == "constant" and other.kind == "number":
            return f"; write '{other.value:.15g}' in quotes"
    return ""
