"""What the events look like and which features are kept of them: a TOML file turned into frozen values.

In: TOML text. Out: :class:`Schema`. No state, no IO but reading the named files.

A schema names the fields of a transaction, the **entities** whose history matters (the first one is the
partition key), the **numeric** fields to aggregate, the **categorical** fields, and per entity the windows and
aggregates. Every feature of the catalogue follows from it by rule, see :mod:`features.catalogue`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from features.errors import SettingsError
from features.toml_text import read_toml

DURATION_MAX_MS = 3650 * 86_400_000
LIMIT_MAX = 1e100  # its square still leaves room for a sum
DURATION_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
AGGREGATES = ("count", "sum", "mean", "max", "std", "ratio", "zscore")
TIME_UNITS = ("auto", "s", "ms", "us", "ns")
CATALOGUE_VERSION = 2  # raised when a feature of the same name comes to mean something else
ID_SEPARATOR = "\x1f"  # joins the fields of a combined entity; control characters are refused inside ids
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_DURATION = re.compile(r"(\d+)([smhd])\Z")


def parse_duration_ms(text: str) -> int:
    """Milliseconds of a duration such as ``"10m"``, ``"6h"`` or ``"30d"``.

    >>> parse_duration_ms("10m")
    600000

    Raises
    ------
    ValueError
        If ``text`` is not a positive whole number followed by one of s, m, h, d, or is more than ten years.
    """
    match = _DURATION.match(text)
    if match is None or match[1].strip("0") == "":
        raise ValueError(f"{text!r} is not a duration; write a whole number and s, m, h or d, for example '10m'")
    if len(match[1]) > 12 or int(match[1]) * DURATION_MS[match[2]] > DURATION_MAX_MS:
        raise ValueError(f"{text[:20]!r} is too long; at most 3650d")
    return int(match[1]) * DURATION_MS[match[2]]


def format_duration(duration_ms: int) -> str:
    """The shortest exact text of a duration, the inverse of :func:`parse_duration_ms`.

    >>> format_duration(86_400_000)
    '1d'
    """
    for unit in "dhms":
        if duration_ms % DURATION_MS[unit] == 0:
            return f"{duration_ms // DURATION_MS[unit]}{unit}"
    raise ValueError(f"{duration_ms} ms is not a whole number of seconds")


@dataclass(frozen=True, slots=True)
class Numeric:
    """A number to aggregate. Values outside ``[minimum, maximum]`` make the event a dead letter.

    A missing value is missing (NaN in the vector), unless ``required``.
    """

    name: str
    minimum: float = 0.0
    maximum: float = 1e9
    required: bool = True


@dataclass(frozen=True, slots=True)
class Entity:
    """Something with a history: a card, a merchant, a device, a pair of fields.

    ``windows_ms`` and ``label_windows_ms`` are ascending. ``aggregates`` is a subset of :data:`AGGREGATES`.
    """

    name: str
    fields: tuple[str, ...]
    windows_ms: tuple[int, ...]
    aggregates: tuple[str, ...]
    label_windows_ms: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TransactionSchema:
    """The transactions of one deployment. ``columns`` maps field names to the columns of history files."""

    id: str
    time: str
    label: str
    label_time: str
    entities: tuple[Entity, ...]
    numeric: tuple[Numeric, ...]
    categorical: tuple[str, ...]
    memory: int = 32
    columns: Mapping[str, str] = field(default_factory=dict)
    time_unit: str = "auto"

    @property
    def key(self) -> Entity:
        """The entity that keys the topic; its state and its memory of recent events have one owner."""
        return self.entities[0]

    @property
    def id_fields(self) -> tuple[str, ...]:
        """The fields that make up the entities, each once, in order of first use."""
        return tuple(dict.fromkeys(name for entity in self.entities for name in entity.fields))

    def column(self, name: str) -> str:
        """The column of a history file that holds field ``name``."""
        return self.columns.get(name, name)


CLICK_FIELDS = ("event_id", "event_time", "session_id", "user_id", "card_id", "item_id", "action")


@dataclass(frozen=True, slots=True)
class ClickSchema:
    """Clicks have fixed fields (:data:`CLICK_FIELDS`); only their columns in history files vary."""

    columns: Mapping[str, str] = field(default_factory=dict)
    time_unit: str = "auto"

    def column(self, name: str) -> str:
        """The column of a history file that holds field ``name``."""
        return self.columns.get(name, name)


@dataclass(frozen=True, slots=True)
class Schema:
    """Transactions and clicks of one deployment."""

    transactions: TransactionSchema
    clicks: ClickSchema

    @property
    def hash(self) -> str:
        """SHA-256 (first 16 hex digits) of all that decides a feature vector; how id and times are called does not."""
        facts = asdict(self.transactions)
        for name in ("columns", "time_unit", "id", "time", "label", "label_time"):
            del facts[name]
        facts["catalogue"] = CATALOGUE_VERSION
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class _Reader:
    """Collects problems while reading tables, so that all are reported together."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[str] = []

    def problem(self, where: str, text: str) -> None:
        self.problems.append(f"{self.source}: {where}: {text}")

    def unknown(self, where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
        known = tuple(known)
        for key in table:
            if key not in known:
                self.problem(f"{where}.{key}", f"unknown setting; known are {', '.join(known)}")

    def name(self, where: str, value: Any, default: str = "") -> str:
        if value is None and default:
            return default
        if not isinstance(value, str) or not _NAME.match(value):
            self.problem(where, f"{value!r} is not a name (lower-case letters, digits and _, at most 63)")
            return default or "invalid"
        return value

    def names(self, where: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            self.problem(where, f"{value!r} is not a list of names")
            return ()
        names = tuple(self.name(where, item) for item in value)
        if len(set(names)) != len(names):
            self.problem(where, "a name stands twice")
        return names

    def durations_ms(self, where: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list):
            self.problem(where, f"{value!r} is not a list of durations such as ['1h', '7d']")
            return ()
        found = set()
        for item in value:
            try:
                found.add(parse_duration_ms(item) if isinstance(item, str) else parse_duration_ms(repr(item)))
            except ValueError as error:
                self.problem(where, str(error))
        if len(found) > 12:
            self.problem(where, f"{len(found)} windows; at most 12")
        return tuple(sorted(found))

    def columns(self, where: str, value: Any, known: Iterable[str]) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            self.problem(where, "is not a table of field = 'column of the file'")
            return {}
        self.unknown(where, value, known)
        return dict(value)

    def time_unit(self, where: str, value: Any) -> str:
        if value not in TIME_UNITS:
            self.problem(where, f"{value!r} is not one of {', '.join(TIME_UNITS)}")
            return "auto"
        return str(value)


def _entity(reader: _Reader, where: str, table: Any) -> Entity:
    if not isinstance(table, dict):
        reader.problem(where, "is not a table")
        table = {}
    reader.unknown(where, table, ("name", "fields", "windows", "aggregates", "label_windows"))
    fields = reader.names(f"{where}.fields", table.get("fields"))
    if not fields:
        reader.problem(f"{where}.fields", "names no field; an entity is a field or a combination of fields")
    aggregates = table.get("aggregates", ["count"])
    if not isinstance(aggregates, list) or any(item not in AGGREGATES for item in aggregates):
        reader.problem(f"{where}.aggregates", f"{aggregates!r} is not a list out of {', '.join(AGGREGATES)}")
        aggregates = ["count"]
    return Entity(
        name=reader.name(f"{where}.name", table.get("name")),
        fields=fields,
        windows_ms=reader.durations_ms(f"{where}.windows", table.get("windows", ["1h", "1d", "7d"])),
        aggregates=tuple(name for name in AGGREGATES if name in aggregates),
        label_windows_ms=reader.durations_ms(f"{where}.label_windows", table.get("label_windows", ["30d"])),
    )


def _number(reader: _Reader, where: str, value: Any, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LIMIT_MAX:
        reader.problem(where, f"{value!r} is not a number from {-LIMIT_MAX:g} to {LIMIT_MAX:g}")
        return default
    return float(value)


def _numeric(reader: _Reader, where: str, item: Any) -> Numeric:
    if isinstance(item, str):
        return Numeric(reader.name(where, item))
    if not isinstance(item, dict):
        reader.problem(where, f"{item!r} is not a name or a table such as {{name = 'amount', maximum = 1e6}}")
        return Numeric("invalid")
    reader.unknown(where, item, ("name", "minimum", "maximum", "required"))
    numeric = Numeric(
        name=reader.name(f"{where}.name", item.get("name")),
        minimum=_number(reader, f"{where}.minimum", item.get("minimum", 0.0), 0.0),
        maximum=_number(reader, f"{where}.maximum", item.get("maximum", 1e9), 1e9),
        required=item.get("required", True) is not False,
    )
    if numeric.minimum >= numeric.maximum:
        reader.problem(where, f"minimum {numeric.minimum} is not below maximum {numeric.maximum}")
    return numeric


_TRANSACTION_KEYS = (
    "id", "time", "label", "label_time", "numeric", "categorical", "entities", "memory", "columns", "time_unit",
)  # fmt: skip


def _transactions(reader: _Reader, table: Mapping[str, Any]) -> TransactionSchema:
    reader.unknown("transactions", table, _TRANSACTION_KEYS)
    entities = table.get("entities", [])
    if not isinstance(entities, list) or not entities:
        reader.problem("transactions.entities", "names no entity; the first [[transactions.entities]] is the key")
        entities = []
    numeric = table.get("numeric", [])
    if not isinstance(numeric, list):
        reader.problem("transactions.numeric", f"{numeric!r} is not a list")
        numeric = []
    memory = table.get("memory", 32)
    if isinstance(memory, bool) or not isinstance(memory, int) or not 1 <= memory <= 1024:
        reader.problem("transactions.memory", f"{memory!r} is not a whole number of events from 1 to 1024")
        memory = 32
    names = {key: reader.name(f"transactions.{key}", table.get(key), default)
             for key, default in (("id", "event_id"), ("time", "event_time"), ("label", "is_fraud"),
                                  ("label_time", "label_time"))}  # fmt: skip
    schema = TransactionSchema(
        id=names["id"],
        time=names["time"],
        label=names["label"],
        label_time=names["label_time"],
        entities=tuple(_entity(reader, f"transactions.entities[{i}]", e) for i, e in enumerate(entities)),
        numeric=tuple(_numeric(reader, f"transactions.numeric[{i}]", n) for i, n in enumerate(numeric)),
        categorical=reader.names("transactions.categorical", table.get("categorical", [])),
        memory=memory,
        time_unit=reader.time_unit("transactions.time_unit", table.get("time_unit", "auto")),
    )
    fields = [*names.values(), *schema.id_fields, *(n.name for n in schema.numeric), *schema.categorical]
    for name in sorted({name for name in fields if fields.count(name) > 1 and name != "invalid"}):
        reader.problem("transactions", f"field {name!r} has two roles; each field has one")
    if len(schema.entities) > 8:
        reader.problem("transactions.entities", f"{len(schema.entities)} entities; at most 8")
    _name_features(reader, schema)
    columns = reader.columns("transactions.columns", table.get("columns", {}), [*fields, "session_id", "user_id"])
    object.__setattr__(schema, "columns", columns)
    return schema


def _name_features(reader: _Reader, schema: TransactionSchema) -> None:
    """Features are named by rule; names that would give two features one name are refused."""
    for name in {*(n.name for n in schema.numeric), *schema.categorical} & {"hour", "weekday"}:
        reader.problem("transactions", f"field {name!r} would name a feature event_{name}, which is taken; rename it")
    names = [entity.name for entity in schema.entities if entity.name != "invalid"]
    if "event" in names:
        reader.problem("transactions.entities", "'event' names the features of the transaction itself; rename it")
    if len(set(names)) != len(names):
        reader.problem("transactions.entities", "two entities have the same name")
    taken: dict[str, tuple[str, str]] = {}
    for entity in dict.fromkeys(names):
        for numeric in schema.numeric:
            joined, pair = f"{entity}_{numeric.name}", (entity, numeric.name)
            if taken.setdefault(joined, pair) != pair:
                first = " and ".join(map(repr, taken[joined]))
                reader.problem("transactions", f"entity and field {first} name the same features ({joined}_...) as "
                                               f"{entity!r} and {numeric.name!r}; rename one")  # fmt: skip


def _clicks(reader: _Reader, table: Mapping[str, Any]) -> ClickSchema:
    reader.unknown("clicks", table, ("columns", "time_unit"))
    return ClickSchema(
        columns=reader.columns("clicks.columns", table.get("columns", {}), CLICK_FIELDS),
        time_unit=reader.time_unit("clicks.time_unit", table.get("time_unit", "auto")),
    )


def parse_schema(text: str, source: str = "schema") -> dict[str, TransactionSchema | ClickSchema]:
    """The sections (``transactions``, ``clicks``) that a TOML text declares.

    Raises
    ------
    SettingsError
        With every problem found, each with the source, the place and what was expected.
    """
    try:
        tables = read_toml(text)
    except ValueError as error:
        raise SettingsError([f"{source}: not valid TOML: {error}"]) from None
    reader = _Reader(source)
    reader.unknown("schema", tables, ("transactions", "clicks"))
    sections: dict[str, TransactionSchema | ClickSchema] = {}
    for name, parse in (("transactions", _transactions), ("clicks", _clicks)):
        table = tables.get(name)
        if isinstance(table, dict):
            sections[name] = parse(reader, table)
        elif table is not None:
            reader.problem(name, "is not a table")
    if not sections and not reader.problems:
        reader.problem("schema", "declares neither [transactions] nor [clicks]")
    if reader.problems:
        raise SettingsError(reader.problems)
    return sections


def load_schema(paths: Iterable[Path] = ()) -> Schema:
    """The default schema with the sections of the given TOML files laid over it; later files win.

    Raises
    ------
    SettingsError
        If a file cannot be read or declares something that cannot be used.
    """
    default = Path(__file__).with_name("default.toml")
    sections: dict[str, Any] = {}
    problems: list[str] = []
    for path in (default, *paths):
        try:
            sections |= parse_schema(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: cannot be read: {error}")
        except SettingsError as error:
            problems.extend(error.problems)
    if problems:
        raise SettingsError(problems)
    return Schema(**sections)
