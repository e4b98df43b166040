"""History files as canonical tables: the one way by which events of the past enter training and replay.

In: Parquet (a file or a directory of files), CSV, TSV or other text with a header, gzipped or not, whose columns the
schema maps. Out: a ``pyarrow.Table`` sorted by time (stable) with the schema's field names and fixed types; what was
read and dropped travels in the table's metadata, see :func:`reading`. No state; files are only read.

Files are taken in batches, so that memory holds the columns that the schema names and little else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import HistoryError
from features.messages import CLICK_ACTIONS
from features.schema import ClickSchema, TransactionSchema
from trainer import columns
from trainer.columns import Mask, Parsed
from trainer.files import history_files, open_file, said

_METADATA_KEY = b"headrace.reading"


@dataclass(frozen=True, slots=True)
class Reading:
    """How the reading of a history went. ``dropped`` counts rows by reason, each row once."""

    rows_read: int
    dropped: dict[str, int]

    def __str__(self) -> str:
        text = f"{self.rows_read:,} rows read"
        if self.dropped:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.dropped.items()))
            text += f", {sum(self.dropped.values()):,} dropped ({reasons})"
        return text


def reading(table: pa.Table) -> Reading:
    """What :func:`read_transactions` or :func:`read_clicks` read and dropped on the way to ``table``."""
    metadata = table.schema.metadata or {}
    return Reading(**json.loads(metadata.get(_METADATA_KEY, b'{"rows_read": 0, "dropped": {}}')))


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a section of the schema expects of a file."""

    section: str
    schema: TransactionSchema | ClickSchema
    needed: tuple[str, ...]
    optional: tuple[str, ...]

    def match(self, path: Path, found: list[str]) -> dict[str, str]:
        """The column of each field that the file has.

        Raises
        ------
        HistoryError
            If a needed column is absent, or one that the schema maps by name.
        """
        absent = [
            f"{self.schema.column(name)!r} (for {name})"
            for name in (*self.needed, *self.optional)
            if self.schema.column(name) not in found and (name in self.needed or name in self.schema.columns)
        ]
        if absent:
            raise HistoryError(
                f"{path}: no column {', '.join(absent)}; found are {', '.join(map(repr, found)) or 'none'}. "
                f"Map the file's columns under [{self.section}.columns] of a schema file."
            )
        names = (*self.needed, *self.optional)
        return {name: self.schema.column(name) for name in names if self.schema.column(name) in found}


@dataclass(slots=True)
class _Batch:
    """One batch on its way to canonical columns. ``raw`` holds the file's columns under the schema's names."""

    path: Path
    raw: dict[str, pa.Array]
    typed: bool
    keep: Mask
    dropped: Counter[str] = field(default_factory=Counter)

    def parse(self, name: str, parser: Callable[[pa.Array], Parsed], *, optional: bool = False) -> pa.Array:
        """Values of one field; rows that it rules out are dropped. An ``optional`` field may be missing in a row."""
        try:
            parsed = parser(self.raw[name])
        except (ValueError, pa.ArrowException) as error:
            raise HistoryError(f"{self.path}: the column for {name} {said(error)}") from None
        for reason, mask in parsed.faults.items():
            if reason != "missing_field" or not optional:
                self.dropped[reason] += int(np.count_nonzero(mask & self.keep))
                self.keep &= ~mask
        return parsed.values

    def ids(self, name: str, *, optional: bool = False) -> pa.Array:
        return self.parse(name, lambda column: columns.ids(column, typed=self.typed), optional=optional)


def read_transactions(path: Path, schema: TransactionSchema, label_delay_ms: int) -> pa.Table:
    """Transactions of the past.

    Parameters
    ----------
    path
        Parquet file, directory of Parquet files, or text file (CSV, TSV, semicolons) with a header.
    schema
        Names the fields and, by ``schema.columns``, their columns.
    label_delay_ms
        When a label without a time of its own became known, counted from the event.

    Returns
    -------
    pyarrow.Table
        Sorted by time: id and entity fields (string), time (int64, ms), numeric (float64, null = missing),
        categorical (string, null = missing), label (int8, null = never judged), label time (int64, ms, null where the
        label is, never before the event), ``session_id`` and ``user_id`` (string, null) where the file has them.

    Raises
    ------
    HistoryError
        If the file is missing, empty, unreadable, lacks a column, or has no usable row.
    """
    required = (schema.id, schema.time, *schema.id_fields, *(n.name for n in schema.numeric), *schema.categorical)
    optional = tuple(
        name for name in (schema.label, schema.label_time, "session_id", "user_id") if name not in required
    )

    def canonical(batch: _Batch) -> pa.Table:
        return _transactions(batch, schema, label_delay_ms)

    return _read(path, _Layout("transactions", schema, required, optional), canonical, schema.time)


def read_labels(path: Path, schema: TransactionSchema) -> pa.Table:
    """Verdicts that lie in a file of their own: event id, label time and label of the schema, in order of time.

    Raises
    ------
    HistoryError
        As :func:`read_transactions`; also where a verdict has no time.
    """
    needed = (schema.id, schema.label_time, schema.label)

    def canonical(batch: _Batch) -> pa.Table:
        time = batch.parse(schema.label_time, lambda column: columns.times(column, schema.time_unit))
        label = batch.parse(schema.label, columns.labels)
        batch.dropped["no_verdict"] += int(np.count_nonzero(batch.keep & np.asarray(pc.is_null(label))))
        batch.keep &= ~np.asarray(pc.is_null(label))
        return pa.table({schema.id: batch.ids(schema.id), schema.label_time: time, schema.label: label})

    return _read(path, _Layout("transactions", schema, needed, ()), canonical, schema.label_time)


def _transactions(batch: _Batch, schema: TransactionSchema, label_delay_ms: int) -> pa.Table:
    result = {schema.id: batch.ids(schema.id)}
    result[schema.time] = batch.parse(schema.time, lambda column: columns.times(column, schema.time_unit))
    for name in schema.id_fields:
        result[name] = batch.ids(name)
    for numeric in schema.numeric:
        result[numeric.name] = batch.parse(numeric.name, partial(columns.numbers, numeric=numeric))
    for name in schema.categorical:
        result[name] = batch.parse(name, lambda column: Parsed(columns.texts(column), {}))
    label = pa.nulls(len(batch.keep), pa.int8())
    if schema.label in batch.raw:
        label = batch.parse(schema.label, columns.labels)
    label_time = pc.add(result[schema.time], label_delay_ms)
    if schema.label_time in batch.raw:
        # A time that cannot be read is taken as unknown: the row is still good, its label comes at the usual delay.
        told = columns.times(batch.raw[schema.label_time], schema.time_unit).values
        label_time = pc.max_element_wise(pc.coalesce(told, label_time), result[schema.time], skip_nulls=False)
    result[schema.label] = label
    result[schema.label_time] = pc.if_else(pc.is_valid(label), label_time, None)
    for name in ("session_id", "user_id"):
        if name in batch.raw and name not in result:
            result[name] = batch.ids(name, optional=True)
    return pa.table(result)


def read_clicks(path: Path, schema: ClickSchema) -> pa.Table:
    """Clicks of the past.

    Parameters
    ----------
    path
        Parquet file, directory of Parquet files, or text file (CSV, TSV, semicolons) with a header.
    schema
        Names the columns by ``schema.columns``.

    Returns
    -------
    pyarrow.Table
        Sorted by time: ``event_id`` (string; without such a column ``<session>:<place in the session, from 0>``),
        ``event_time`` (int64, ms), ``session_id``, ``user_id`` (null), ``card_id`` (null), ``item_id``, ``action``
        (view, cart or buy; without one: view).

    Raises
    ------
    HistoryError
        If the file is missing, empty, unreadable, lacks a column, or has no usable row.
    """
    layout = _Layout(
        "clicks", schema, ("session_id", "item_id", "event_time"), ("event_id", "user_id", "card_id", "action")
    )
    table = _read(path, layout, lambda batch: _clicks(batch, schema), "event_time")
    if table.column("event_id").null_count:
        numbered = pc.binary_join_element_wise(table.column("session_id"), _places(table).cast(pa.string()), ":")
        table = table.set_column(0, "event_id", pc.coalesce(table.column("event_id"), numbered))
    return table


def _clicks(batch: _Batch, schema: ClickSchema) -> pa.Table:
    nothing = pa.nulls(len(batch.keep), pa.string())
    result = {"event_id": batch.ids("event_id") if "event_id" in batch.raw else nothing}
    result["event_time"] = batch.parse("event_time", lambda column: columns.times(column, schema.time_unit))
    result["session_id"] = batch.ids("session_id")
    for name in ("user_id", "card_id"):
        result[name] = batch.ids(name, optional=True) if name in batch.raw else nothing
    result["item_id"] = batch.ids("item_id")
    result["action"] = batch.parse("action", _actions) if "action" in batch.raw else nothing
    result["action"] = pc.fill_null(result["action"], "view")
    return pa.table(result)


def _actions(column: pa.Array) -> Parsed:
    text = pc.utf8_lower(pc.utf8_trim_whitespace(columns.texts(column)))
    known = pc.is_in(text, pa.array(CLICK_ACTIONS))
    unknown = pc.and_(pc.is_valid(text), pc.invert(known))
    return Parsed(text, {"wrong_type": np.asarray(unknown.to_numpy(zero_copy_only=False), dtype=bool)})


def _places(table: pa.Table) -> pa.Array:
    """For each row how many earlier rows have its session."""
    sessions = table.column("session_id").combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(sessions, kind="stable")
    starts = np.flatnonzero(np.diff(sessions[order], prepend=-1))
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return pa.array(places)


def _read(path: Path, layout: _Layout, canonical: Callable[[_Batch], pa.Table], time: str) -> pa.Table:
    dropped: Counter[str] = Counter()
    rows_read = 0
    parts: list[pa.Table] = []
    for file in history_files(path):
        opened = open_file(file)
        found = layout.match(file, opened.names)
        for raw in opened.batches(list(dict.fromkeys(found.values()))):
            batch = _Batch(
                file,
                {name: raw.column(column) for name, column in found.items()},
                opened.typed,
                np.ones(raw.num_rows, dtype=bool),
            )
            part = canonical(batch)
            rows_read += raw.num_rows
            dropped += batch.dropped
            parts.append(part if batch.keep.all() else part.filter(pa.array(batch.keep)))
        rows_read += opened.malformed
        dropped += Counter(malformed_row=opened.malformed)
    outcome = Reading(rows_read, dict(dropped))
    if not any(part.num_rows for part in parts):
        what = "is empty: it has a header but no rows" if rows_read == 0 else f"has no usable row: {outcome}"
        raise HistoryError(f"{path}: {what}. Needed are {layout.section} with {', '.join(layout.needed)}.")
    table = _sorted(pa.concat_tables(parts, promote_options="default"), time)
    return table.replace_schema_metadata(
        {_METADATA_KEY: json.dumps({"rows_read": rows_read, "dropped": outcome.dropped})}
    )


def _sorted(table: pa.Table, time: str) -> pa.Table:
    times = table.column(time).to_numpy()
    if np.all(times[:-1] <= times[1:]):
        return table
    return table.take(pa.array(np.argsort(times, kind="stable")))


def split_by_time(
    table: pa.Table, time_column: str, *, fraction: float | None = None, at_ms: int | None = None
) -> tuple[pa.Table, pa.Table]:
    """Earlier and later part of a table sorted by time; rows of one millisecond stay together in the later part.

    Parameters
    ----------
    fraction
        Share of the rows, 0..1, that the earlier part has (fewer, where rows share the time of the cut).
    at_ms
        Or the first time of the later part, epoch ms.

    Raises
    ------
    ValueError
        Unless exactly one of the two is given and ``fraction`` is within 0..1.
    """
    times = table.column(time_column).to_numpy()
    if fraction is not None and at_ms is None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction {fraction} is not within 0..1")
        place = int(len(times) * fraction)
        cut = place if place == len(times) else int(np.searchsorted(times, times[place], side="left"))
    elif at_ms is not None and fraction is None:
        cut = int(np.searchsorted(times, at_ms, side="left"))
    else:
        raise ValueError("give either fraction or at_ms")
    return table.slice(0, cut), table.slice(cut)
