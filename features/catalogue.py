"""Which features a schema yields, in which column, and what each one means.

In: a :class:`~features.schema.TransactionSchema`. Out: :class:`Catalogue`, the ordered features and, per entity, the
:class:`Layout` of its state row that the kernel works on. Pure.

Time is cut into tiles. A window ``w`` has ``TILES`` hops of ``ceil(w / TILES)``, and its value at time t covers the
whole tiles from the one that holds ``t - TILES * hop`` to the one that holds t: at least ``[t - w, t]``, and less than
13 hops before t, so at most a hop too much. A row keeps ``RING`` tiles up to the newest event of its entity. An event
that is late against that one may also see up to one hop ahead of its own time; up to ``RING - TILES - 1`` = 3 hops
late it sees its whole window, later than that only the part that is still kept. A late event counts in every window
of a later one that it lies in. An entity that had neither event nor label for twice its longest window starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.schema import Entity, TransactionSchema, format_duration

TILES = 12
RING = 16
NEVER = -(1 << 62)  # the time of an entity that has no event

ROW_INTS = 3  # newest event time, first event time, newest label time; then one map for each window
MEMORY_INTS = 6  # event hash, event time, label, label time, action, level; then one hash for each other entity
MEMORY_FLOATS = 2  # score, anomaly
USUAL_FLOATS = 4  # of each numeric field of the key: weight, mean, variance, time of the last unusual value
LABELS_KEPT = 8  # newest labels of an entity that are kept one by one, see features/labels.py
LEVEL_STEPS, LEVEL_MAX = 32, 255  # a level is 1 + the ratio to what is usual in 1/32, at most so much; 0 = unknown
STATISTICS = ("sum", "mean", "max", "std", "ratio", "zscore")  # order of the columns in Layout.field_columns

_PHRASES = {
    "count": "number of the {entity}'s transactions in {window}",
    "sum": "sum of {field} of the {entity} in {window}",
    "mean": "mean {field} of the {entity} in {window}",
    "max": "largest {field} of the {entity} in {window}",
    "std": "standard deviation of {field} of the {entity} in {window}",
    "ratio": "{field} of this transaction over the {entity}'s mean of {window}",
    "zscore": "{field} of this transaction in deviations from the {entity}'s mean of {window}",
    "fraud_count": "frauds among the {entity}'s labels that arrived in {window}",
    "fraud_rate": "share of frauds among the {entity}'s labels that arrived in {window}",
}


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the feature vector. ``entity`` is ``"event"`` for facts of the transaction itself."""

    name: str
    entity: str
    field: str
    aggregate: str
    window_ms: int
    definition: str


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """How one entity's state row is laid out, and which columns it fills; -1 where a column is not wanted.

    ``dims`` holds, in this order: windows, label windows, fields kept (all numeric ones or, without an aggregate of
    them, none), remembered events, other entities, the expiry in ms; cells of a field in a tile, which of them has the
    sum of squares and which the maximum (-1: not kept); where in the floats the label tiles begin; the width of a row
    in ints and in floats; numeric fields of the schema; labels kept one by one; fields whose usual value is kept; the
    first of the columns that it fills, and the one after the last.
    """

    entity: Entity
    dims: NDArray[np.int64]
    hops_ms: NDArray[np.int64]
    label_hops_ms: NDArray[np.int64]
    count_columns: NDArray[np.int64]
    field_columns: NDArray[np.int64]
    label_columns: NDArray[np.int64]
    time_columns: NDArray[np.int64]
    memory_columns: NDArray[np.int64]
    run_columns: NDArray[np.int64]
    usual_columns: NDArray[np.int64]

    @property
    def ints(self) -> int:
        """Width of the integer part of a row."""
        return int(self.dims[10])

    @property
    def floats(self) -> int:
        """Width of the float part of a row."""
        return int(self.dims[11])


@dataclass(frozen=True, eq=False, slots=True)
class Catalogue:
    """All features of a schema in column order, and the layout of each entity's state."""

    schema: TransactionSchema
    features: tuple[Feature, ...]
    layouts: tuple[Layout, ...]

    @property
    def names(self) -> list[str]:
        """Feature names in column order."""
        return [feature.name for feature in self.features]


class _Columns:
    def __init__(self) -> None:
        self.features: list[Feature] = []

    def add(self, name: str, entity: str, field: str, aggregate: str, window_ms: int, definition: str) -> int:
        self.features.append(Feature(name, entity, field, aggregate, window_ms, definition))
        return len(self.features) - 1

    def windowed(self, entity: str, field: str, aggregate: str, window_ms: int) -> int:
        window = format_duration(window_ms)
        name = "_".join(part for part in (entity, field, aggregate, window) if part)
        phrase = _PHRASES[aggregate].format(entity=entity, field=field, window=window)
        return self.add(name, entity, field, aggregate, window_ms, phrase)


def _event_columns(columns: _Columns, schema: TransactionSchema) -> None:
    for numeric in schema.numeric:
        columns.add(f"event_{numeric.name}", "event", numeric.name, "value", 0, f"{numeric.name} of this transaction")
    columns.add("event_hour", "event", schema.time, "hour", 0, "hour of the day in UTC, 0 to 24, with fraction")
    columns.add("event_weekday", "event", schema.time, "weekday", 0, "day of the week in UTC, 0 = Monday")
    for name in schema.categorical:
        columns.add(f"event_{name}", "event", name, "category", 0, f"{name} of this transaction, as a bucket of 0..255")


def _layout(columns: _Columns, schema: TransactionSchema, entity: Entity) -> Layout:
    name, key, first = entity.name, entity is schema.key, len(columns.features)
    fields = [numeric.name for numeric in schema.numeric]
    windows, label_windows = entity.windows_ms, entity.label_windows_ms
    others = [other.name for other in schema.entities[1:]] if key else []
    count_columns = np.full(len(windows), -1, np.int64)
    field_columns = np.full((len(windows), len(fields), len(STATISTICS)), -1, np.int64)
    for w, window_ms in enumerate(windows):
        if "count" in entity.aggregates:
            count_columns[w] = columns.windowed(name, "", "count", window_ms)
        for f, field in enumerate(fields):
            for s, statistic in enumerate(STATISTICS):
                if statistic in entity.aggregates:
                    field_columns[w, f, s] = columns.windowed(name, field, statistic, window_ms)
    label_columns = np.array(
        [[columns.windowed(name, "", a, w) for a in ("fraud_count", "fraud_rate")] for w in label_windows],
        np.int64,
    ).reshape(len(label_windows), 2)
    time_columns = np.array(
        [
            columns.add(f"{name}_seconds_since_last", name, "", "since_last", 0, f"seconds since the {name}'s newest"),
            columns.add(f"{name}_seconds_since_first", name, "", "since_first", 0, f"seconds since the {name}'s first"),
        ]
    )
    memory_columns = np.array(
        [
            [
                columns.add(f"{name}_{other}_seen", name, other, "seen", 0,
                            f"remembered transactions of this {name} with this {other}"),
                columns.add(f"{name}_{other}_distinct", name, other, "distinct", 0,
                            f"different {other}s among the remembered transactions of this {name}"),
            ]
            for other in others
        ],
        np.int64,
    ).reshape(len(others), 2)  # fmt: skip
    run_columns, usual_columns = _run_columns(columns, schema, entity), _usual_columns(columns, schema, entity)
    return Layout(
        entity=entity,
        dims=_dims(schema, entity, first, len(columns.features)),
        hops_ms=np.array([-(-w // TILES) for w in windows], np.int64),
        label_hops_ms=np.array([-(-w // TILES) for w in label_windows], np.int64),
        count_columns=count_columns,
        field_columns=field_columns,
        label_columns=label_columns,
        time_columns=time_columns,
        memory_columns=memory_columns,
        run_columns=run_columns,
        usual_columns=usual_columns,
    )


def _run_columns(columns: _Columns, schema: TransactionSchema, entity: Entity) -> NDArray[np.int64]:
    """Of the newest labels: frauds in a row, since when, since the last good one, the least unusual of the frauds."""
    found, name, key = np.full(4, -1, np.int64), entity.name, schema.key.name
    if entity.label_windows_ms:
        found[0] = columns.add(
            f"{name}_fraud_run",
            name,
            "",
            "fraud_run",
            0,
            f"how many of the {name}'s newest labels in a row are fraud, at most {LABELS_KEPT}",
        )
        found[1] = columns.add(
            f"{name}_seconds_since_fraud_run",
            name,
            "",
            "since_fraud_run",
            0,
            f"seconds since the first of the {name}'s newest labels in a row that are fraud",
        )
        found[2] = columns.add(
            f"{name}_seconds_since_good_label",
            name,
            "",
            "since_good_label",
            0,
            f"seconds since the newest good label among the {name}'s newest {LABELS_KEPT}",
        )
        if schema.numeric:
            found[3] = columns.add(
                f"{name}_fraud_run_ratio",
                name,
                key,
                "fraud_run_ratio",
                0,
                f"smallest ratio of such a fraud to what was usual for its {key}, at most "
                f"{(LEVEL_MAX - 1) / LEVEL_STEPS:.2f}",
            )
    return found  # fmt: skip


def _usual_columns(columns: _Columns, schema: TransactionSchema, entity: Entity) -> NDArray[np.int64]:
    """Of each numeric field of the key: ratio to what is usual, distance from it, time since an unusual one."""
    name, found = entity.name, []
    for field in [numeric.name for numeric in schema.numeric] if entity is schema.key else []:
        found += [
            columns.add(f"{name}_{field}_usual_ratio", name, field, "usual_ratio", 0,
                        f"{field} of this transaction over what is usual for the {name}"),
            columns.add(f"{name}_{field}_usual_zscore", name, field, "usual_zscore", 0,
                        f"{field} of this transaction in deviations from what is usual for the {name}"),
            columns.add(f"{name}_seconds_since_unusual_{field}", name, field, "since_unusual", 0,
                        f"seconds since the {name}'s last unusual {field}"),
        ]  # fmt: skip
    return np.array(found, np.int64).reshape(-1, 3)


def _dims(schema: TransactionSchema, entity: Entity, first: int, end: int) -> NDArray[np.int64]:
    windows, label_windows = len(entity.windows_ms), len(entity.label_windows_ms)
    squares, largest = {"std", "zscore"} & set(entity.aggregates), "max" in entity.aggregates
    kept = len(schema.numeric) if set(STATISTICS) & set(entity.aggregates) else 0
    cells = 2 + bool(squares) + largest
    memory, others = (schema.memory, len(schema.entities) - 1) if entity is schema.key else (0, 0)
    usual, labels_kept = len(schema.numeric) if memory else 0, LABELS_KEPT if label_windows else 0
    longest_ms = max((*entity.windows_ms, *entity.label_windows_ms), default=86_400_000)
    labels_at = RING * windows * (1 + kept * cells)
    ints = ROW_INTS + windows + label_windows + (2 + others + memory * (MEMORY_INTS + others) if memory else 0)
    ints += labels_kept
    floats = labels_at + RING * label_windows * 2 + usual * USUAL_FLOATS + memory * MEMORY_FLOATS
    return np.array([windows, label_windows, kept, memory, others, 2 * longest_ms, cells, 2 if squares else -1,
                     cells - 1 if largest else -1, labels_at, ints, floats, len(schema.numeric), labels_kept, usual,
                     first, end], np.int64)  # fmt: skip


def build_catalogue(schema: TransactionSchema) -> Catalogue:
    """The catalogue of a schema; the same schema always gives the same columns in the same order."""
    columns = _Columns()
    _event_columns(columns, schema)
    layouts = tuple(_layout(columns, schema, entity) for entity in schema.entities)
    return Catalogue(schema, tuple(columns.features), layouts)
