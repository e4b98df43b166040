"""Rules beside the model: a TOML file to conditions that run over whole cycles, and what they make of a decision.

In: TOML text, the catalogue; later columns. Out: :class:`Rules`; :class:`Hits` of each cycle. Pure but for
:meth:`Rules.load`. ``docs/rules.md`` explains the file.

What counts of the rules that hit a transaction: those of the highest priority, and of these the strongest action.
``allow`` takes the place of what the model decided; ``review`` and ``block`` only ever raise it. A rule in shadow hits,
is counted and decides nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.catalogue import Catalogue
from features.errors import SettingsError
from features.expressions import Mistake, Names, Node, nearest, parse, used, walk
from features.messages import ACTIONS, Action
from features.rule_machine import ANOMALY, SCORE, Columns, Sets
from features.rule_program import Program, compiled
from features.schema import TransactionSchema
from features.toml_places import Lines, Place, places
from features.toml_text import read_toml

RULES_MAX = 256
LISTS_MAX = 64
PRIORITY_MAX = 1000
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
LIST_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_KEYS = ("name", "when", "action", "reason", "priority", "shadow")
_REASON_MAX = 500
_AT = re.compile(r" \(at line (\d+), column (\d+)\)")
_UNDECIDED = -1
Lists = Mapping[str, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``reads`` are the names of the columns and lists that its condition looks at."""

    name: str
    when: str
    action: Action
    reason: str
    priority: int
    shadow: bool
    reads: tuple[str, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Hits:
    """Which of R rules hit n transactions, bool[n, R], and what those that are not in shadow decide, int8[n].

    ``decided`` are places in :data:`features.messages.ACTIONS`, -1 where no rule decides.
    """

    matrix: NDArray[np.bool_]
    decided: NDArray[np.int8]

    def applied(self, action: NDArray[np.int8]) -> NDArray[np.int8]:
        """The actions, int8[n], where the model's (or the budget's) are given."""
        return np.where(self.decided == 0, np.int8(0), np.maximum(action, self.decided))


class Rules:
    """Compiled rules, see the module's text.

    ``rules`` are in the order of the file, which decides nothing. ``lists`` is what each list holds ids of. ``version``
    is a short hash of the file's text.
    """

    def __init__(
        self, rules: Sequence[Rule], conditions: Sequence[Node], lists: Mapping[str, str], version: str
    ) -> None:
        self.rules = tuple(rules)
        self.lists = dict(lists)
        self.version = version
        self.names = [rule.name for rule in rules]
        self.program: Program = compiled(conditions, list(lists))
        self.shadow = np.array([rule.shadow for rule in rules], np.bool_)
        # The highest of these numbers among the hits decides: priority first, then the stronger action.
        self._weights = np.array([0 if rule.shadow else _weight(rule) for rule in rules], np.int64)

    def __len__(self) -> int:
        return len(self.rules)

    @classmethod
    def parse(cls, text: str, catalogue: Catalogue, source: str = "rules") -> Rules:
        """Rules from TOML text.

        Raises
        ------
        SettingsError
            With every problem found: source, line and column, the line with a caret, and what was expected.
        """
        reader = _Reader(text, source, catalogue)
        rules, conditions = reader.rules()
        if reader.problems:
            raise SettingsError(reader.problems)
        version = hashlib.sha256(text.encode()).hexdigest()[:8]
        return cls(rules, conditions, reader.lists, version)

    @classmethod
    def decode(cls, data: bytes, catalogue: Catalogue, source: str) -> Rules:
        """:meth:`parse` of a file's bytes; whatever is wrong with them is a :class:`SettingsError` too."""
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SettingsError([f"{source}: cannot be read: {error}"]) from None
        return cls.parse(text, catalogue, source)

    @classmethod
    def load(cls, path: Path, catalogue: Catalogue) -> Rules:
        """:meth:`decode` of a file.

        Raises
        ------
        SettingsError
            If it cannot be read or used.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from None
        return cls.decode(data, catalogue, str(path))

    def sets(self, lists: Lists | None = None) -> Sets:
        """The tables of the lists, to be made once for each change of them.

        ``lists`` are the hashes of the ids by list (:func:`features.rule_program.text_hash`), and until when each holds
        in epoch ms of event time.
        """
        return self.program.sets(lists or {})

    def evaluate(self, columns: Columns, sets: Sets) -> Hits:
        """Which rules hit each transaction, and what they decide."""
        matrix, best = self.program.run(columns, sets, self._weights)
        return Hits(matrix, ((best & 3) - 1).astype(np.int8))

    def named(self, hits: NDArray[np.bool_]) -> tuple[list[str], list[str]]:
        """The names of the rules that hit one transaction (bool[R]): those that count, and those in shadow."""
        found = np.flatnonzero(hits).tolist()
        return ([self.names[r] for r in found if not self.shadow[r]], [self.names[r] for r in found if self.shadow[r]])

    def reasons(self, hits: NDArray[np.bool_], action: int) -> list[Rule]:
        """The rules that hit one transaction (bool[R]) and asked for ``action``."""
        return [rule for rule, hit in zip(self.rules, hits.tolist(), strict=True)
                if hit and not rule.shadow and rule.action == ACTIONS[action]]  # fmt: skip


def _weight(rule: Rule) -> int:
    return (rule.priority + PRIORITY_MAX) * 4 + ACTIONS.index(rule.action) + 1


def text_columns(schema: TransactionSchema) -> dict[str, int]:
    """The columns of :attr:`Columns.texts` by the names that a condition may use.

    An entity's id goes by the entity's name, and by its field's if it has only one.
    """
    columns = {entity.fields[0]: e for e, entity in enumerate(schema.entities) if len(entity.fields) == 1}
    columns |= {name: len(schema.entities) + c for c, name in enumerate(schema.categorical)}
    return {entity.name: e for e, entity in enumerate(schema.entities)} | columns


def number_columns(catalogue: Catalogue) -> dict[str, int]:
    """The columns of numbers by name: features, numeric fields, and what the models said."""
    columns = {name: i for i, name in enumerate(catalogue.names)}
    fields = {numeric.name: columns[f"event_{numeric.name}"] for numeric in catalogue.schema.numeric}
    return fields | columns | {"score": SCORE, "anomaly": ANOMALY}


class _Reader:
    """Collects every problem on the way."""

    def __init__(self, text: str, source: str, catalogue: Catalogue) -> None:
        self.problems: list[str] = []
        self.lists: dict[str, str] = {}
        self._source = source
        self._lines = Lines(text)
        self._tables: dict[str, Any] = {}
        self._places: list[dict[str, Place]] = []
        try:
            self._tables = read_toml(text)
            self._places = places(text, "rule")
        except (ValueError, RecursionError) as error:  # places may go deeper than what was read
            at = _AT.search(str(error))
            where = f":{at[1]}:{at[2]}" if at else ""
            self.problems.append(f"{source}{where}: not valid TOML: {_AT.sub('', str(error))}")
        self._text = text
        self._numbers = number_columns(catalogue)
        self._texts = text_columns(catalogue.schema)
        # A combination's fields have no column of their own.
        self._parts = {name: entity.name for entity in catalogue.schema.entities for name in entity.fields
                       if len(entity.fields) > 1 and name not in self._texts}  # fmt: skip

    def rules(self) -> tuple[list[Rule], list[Node]]:
        """The rules and their conditions."""
        for key in self._tables.keys() - {"rule", "lists"}:
            self._tell(self._place(key), f"unknown key {key!r}; known are [[rule]] and [lists]")
        tables = self._tables.get("rule", [])
        if not isinstance(tables, list) or len(tables) != len(self._places):
            self._tell(self._place("rule"), "each rule is a table of its own that begins with [[rule]]")
            return [], []
        if len(tables) > RULES_MAX:
            self._tell(self._places[RULES_MAX][""], f"{len(tables)} rules; at most {RULES_MAX}")
        self._read_lists(self._tables.get("lists", {}))
        names = Names(self._numbers, self._texts, {name: self._texts[of] for name, of in self.lists.items()})
        rules: list[Rule] = []
        conditions: list[Node] = []
        taken: dict[str, int] = {}
        for table, where in zip(tables, self._places, strict=True):
            rule, condition = self._rule(table, where, names)
            first = taken.setdefault(rule.name, self._lines.place(where[""].offset)[0])
            if rule.name and first != self._lines.place(where[""].offset)[0]:
                self._tell(where["name"], f"rule {rule.name!r} is there already, in line {first}")
            if condition is not None:
                rules.append(rule)
                conditions.append(condition)
        return rules, conditions

    def _place(self, key: str) -> Place:
        """Where a key of the text itself has its value, or the table of that name begins."""
        root, tables = places(self._text, "")[0], places(self._text, key)
        return tables[0][""] if tables else root.get(key, root[""])

    def _read_lists(self, tables: Any) -> None:
        if not isinstance(tables, dict) or len(tables) > LISTS_MAX:
            said = f"lists: expected a table [lists] of at most {LISTS_MAX} lines such as stolen = 'card'"
            self._tell(self._place("lists"), said)
            return
        where = next(iter(places(self._text, "lists")), {}) if tables else {}
        for name, of in tables.items():
            place = where[name] if name in where else self._place("lists")
            if not LIST_NAME.match(name):
                said = f"lists.{name}: expected a name of at most 63 lower-case letters, digits and '_'"
                self._tell(place, said)
            elif not isinstance(of, str) or of not in self._texts:
                known = ", ".join(self._texts)
                self._tell(place, f"lists.{name} = {of!r}: expected whose ids or values it holds, out of {known}")
            else:
                self.lists[name] = of

    def _rule(self, table: Mapping[str, Any], where: Mapping[str, Place], names: Names) -> tuple[Rule, Node | None]:
        for key in table.keys() - set(_KEYS):
            known = nearest(key, _KEYS) or f"; known are {', '.join(_KEYS)}"
            self._tell(where.get(key, where[""]), f"unknown key {key!r}{known}")

        def take(key: str, valid: bool, expected: str, otherwise: Any) -> Any:
            if valid:
                return table.get(key, otherwise)
            given = f"{key} = {table[key]!r}" if key in table else f"no {key}"
            self._tell(where.get(key, where[""]), f"{given}: expected {expected}")
            return otherwise

        name, when, reason = (
            value if isinstance(value := table.get(key), str) else "" for key in ("name", "when", "reason")
        )
        priority, action = table.get("priority", 0), table.get("action")
        whole = isinstance(priority, int) and not isinstance(priority, bool) and abs(priority) <= PRIORITY_MAX
        name = take("name", bool(_NAME.match(name)), "at most 63 lower-case letters, digits, '_' and '-'", "")
        action = take("action", action in ACTIONS, f"one of {', '.join(ACTIONS)}", "review")
        reason = take("reason", 0 < len(reason) <= _REASON_MAX, f"a sentence of at most {_REASON_MAX} characters", "")
        priority = take("priority", whole, f"a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}", 0)
        shadow = take("shadow", isinstance(table.get("shadow", False), bool), "true or false", False)
        when = take("when", bool(when.strip()), "a condition such as 'amount > 1000'", "")
        condition = self._condition(name, when, where["when"], names) if when else None
        reads = () if condition is None else _reads(condition, names)
        return Rule(name, when, action, reason, priority, shadow, reads), condition

    def _condition(self, name: str, when: str, place: Place, names: Names) -> Node | None:
        try:
            return parse(when, names)
        except Mistake as mistake:
            hint = ""
            for part, entity in self._parts.items():
                if f"{part!r}" in str(mistake):
                    hint = f"; it is a part of {entity}, which can be asked for"
            self._tell(place, f"rule {name!r}: {mistake}{hint}", mistake.at)
            return None

    def _tell(self, place: Place, sentence: str, at: int = 0) -> None:
        offset = place.of(at)
        line, column = self._lines.place(offset)
        self.problems.append(f"{self._source}:{line}:{column}: {sentence}\n{self._lines.pointed(offset)}")


def _reads(condition: Node, names: Names) -> tuple[str, ...]:
    """The first name of each column that a condition reads, and its lists."""
    columns: dict[tuple[str, object], str] = {}
    for kind, known in (("number", names.numbers), ("text", names.texts)):
        for name, column in known.items():
            columns.setdefault((kind, column), name)
    found = [columns[node.kind, node.value] for node in used(condition)]
    lists = [node.value for node in walk(condition) if node.op in ("in", "not in") and isinstance(node.value, str)]
    return tuple(dict.fromkeys([*found, *lists]))
