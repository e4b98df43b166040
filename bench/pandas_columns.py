"""The whole catalogue in pandas: the contender of :mod:`bench.replay`.

In: transactions and labels as two frames, sorted by time. Out: each column of the catalogue by name, float64 in the
order of the transactions. No IO.

Windows are ``groupby().rolling("7D")`` as pandas' documentation teaches. Labels have times of their own, so they are
rows between the transactions for windows, and joined by ``merge_asof`` where the newest counts. What remains is written
in whole columns too (shifts, cumulative counts, ``ffill``). One thing has no such form: a mean whose outliers are
clipped by that same mean goes row by row, in a plain Python function over the amounts of each card.

pandas is spared repeated transactions, missing values and late events, which the Handbook has none of.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.catalogue import LABELS_KEPT, LEVEL_MAX, LEVEL_STEPS, TILES
from features.schema import Entity, TransactionSchema, format_duration

Column = NDArray[np.float64]
Columns = dict[str, Column]


def frames(table: pa.Table, schema: TransactionSchema) -> tuple[Any, Any]:
    """Transactions and labels as pandas holds them, ids as numbers. Not part of what is measured."""
    fields = [entity.fields[0] for entity in schema.entities]
    frame = table.select([*fields, schema.numeric[0].name]).to_pandas()
    for field in fields:
        frame[field] = pd.factorize(frame[field])[0]
    frame["time"] = table[schema.time].to_numpy().astype("datetime64[ms]")
    frame["row"] = np.arange(len(frame))
    judged = pc.is_valid(table[schema.label]).to_numpy()
    labels = frame.loc[judged, [*fields, "row"]].rename(columns={"row": "of"})
    labels["time"] = table[schema.label_time].to_numpy()[judged].astype("datetime64[ms]")
    labels["fraud"] = table[schema.label].to_numpy()[judged].astype(np.float64)
    labels["judged"] = 1.0
    return frame, labels.sort_values("time", kind="stable")


def starts_anew_ms(entity: Entity) -> int:
    """After what pause an entity starts anew."""
    return 2 * max(*entity.windows_ms, *entity.label_windows_ms)


def _seconds(span: Any) -> Any:
    return span.dt.total_seconds()


def _divided(a: Column, b: Column) -> Column:
    found: Column = np.divide(a, b, out=np.full(len(a), np.nan), where=b != 0.0)
    return found


def _window(ms: int, *, hop_more: bool) -> Any:
    return pd.Timedelta(ms + (-(-ms // TILES) if hop_more else 0), "ms")


def _amounts(frame: Any, entity: Entity, field: str, amount: str, columns: Columns, *, hop_more: bool) -> None:
    """Columns of the windows and times of one entity."""
    ordered = frame.sort_values([field, "time"], kind="stable")
    back = np.empty(len(frame), np.int64)
    back[ordered["row"].to_numpy()] = np.arange(len(frame))
    groups = ordered.set_index("time").groupby(field)[amount]
    values = frame[amount].to_numpy()

    def put(name: str, found: Any) -> Column:
        column: Column = found.to_numpy()[back]
        columns[f"{entity.name}_{name}"] = column
        return column

    for window_ms in entity.windows_ms:
        name, wanted = format_duration(window_ms), set(entity.aggregates)
        rolling = groups.rolling(_window(window_ms, hop_more=hop_more), closed="left")
        count = put(f"count_{name}", rolling.count().fillna(0.0))
        if wanted & {"sum", "mean", "ratio"}:
            total = put(f"{amount}_sum_{name}", rolling.sum().fillna(0.0))
            mean = columns[f"{entity.name}_{amount}_mean_{name}"] = _divided(total, count)
            columns[f"{entity.name}_{amount}_ratio_{name}"] = _divided(values, mean)
        if "max" in wanted:
            put(f"{amount}_max_{name}", rolling.max())
        if "std" in wanted:
            put(f"{amount}_std_{name}", rolling.std(ddof=0))
    times = ordered.groupby(field)["time"]
    put("seconds_since_last", _seconds(times.diff()))
    put("seconds_since_first", _seconds(ordered["time"] - times.transform("first")).where(times.cumcount() > 0))


def _frauds(frame: Any, labels: Any, entity: Entity, field: str, columns: Columns, *, hop_more: bool) -> None:
    """Columns of the label windows of one entity: labels are rows of their own, at the time they arrive."""
    rows = pd.concat([frame[["time", "row", field]], labels[["time", "fraud", "judged", field]]])
    rows = rows.sort_values([field, "time"], kind="stable")
    row = rows["row"].to_numpy()
    wanted = ~np.isnan(row)
    places = row[wanted].astype(np.int64)
    groups = rows.set_index("time").groupby(field)
    for window_ms in entity.label_windows_ms:
        window = _window(window_ms, hop_more=hop_more)
        sums = []
        for name in ("fraud", "judged"):
            column = np.empty(len(frame))
            column[places] = groups[name].rolling(window, closed="left").sum().fillna(0.0).to_numpy()[wanted]
            sums.append(column)
        frauds, judged = sums
        suffix = format_duration(window_ms)
        columns[f"{entity.name}_fraud_count_{suffix}"] = frauds
        columns[f"{entity.name}_fraud_rate_{suffix}"] = _divided(frauds, judged)
        columns[f"{entity.name}_judged_{suffix}"] = judged


def windowed_columns(frame: Any, labels: Any, schema: TransactionSchema, *, hop_more: bool = False) -> Columns:
    """Columns of windows and of last and first times, and those needed to compare them.

    With ``hop_more`` of windows one hop longer.
    """
    columns: Columns = {}
    for entity in schema.entities:
        (field,) = entity.fields
        _amounts(frame, entity, field, schema.numeric[0].name, columns, hop_more=hop_more)
        _frauds(frame, labels, entity, field, columns, hop_more=hop_more)
    return columns


def _event(frame: Any, amount: str, columns: Columns) -> None:
    time = frame["time"].dt
    columns[f"event_{amount}"] = frame[amount].to_numpy()
    columns["event_hour"] = (_seconds(frame["time"] - time.normalize()) / 3600.0).to_numpy()
    columns["event_weekday"] = time.day_of_week.to_numpy().astype(np.float64)


def _lives(ordered: Any, field: str, expiry_ms: int) -> Any:
    """A number for the transactions of a key between two pauses that are so long that its memory empties."""
    paused = ordered["time"].diff() > pd.Timedelta(expiry_ms, "ms")
    return (paused | (ordered[field] != ordered[field].shift())).cumsum()


def _usual_of_card(amounts: list[float], times_ms: list[int]) -> list[tuple[float, float, float, int]]:
    """Ratio, zscore, seconds since the last unusual amount and level of each, as :mod:`features.usual` defines them.

    >>> _usual_of_card([2.0, 3.0], [1, 60_001])[1]
    (1.5, 5.0, nan, 49)
    """
    found, nan, steps, most = [], float("nan"), LEVEL_STEPS, LEVEL_MAX - 1.0
    weight = mean = variance = 0.0
    last = 0
    for value, time in zip(amounts, times_ms, strict=True):
        size, deviation = abs(mean), sqrt(variance)
        ratio, zscore, level = nan, nan, 0
        if weight:
            spread = deviation + 0.1 * size
            if mean:
                ratio = value / mean
                level = 1 + int(min(ratio * steps, most)) if ratio > 0.0 else 1
            if spread:
                zscore = (value - mean) / spread
        found.append((ratio, zscore, (time - last) / 1000.0 if last else nan, level))
        if weight >= 3.0:
            room = 1.75 * size if size >= deviation else 3.0 * deviation
            if room:
                if value > mean + room:
                    value, last = mean + room, time
                elif value < mean - room:
                    value, last = mean - room, time
        weight = weight + 1.0 if weight < 100.0 else 100.0
        off = value - mean
        mean += off / weight
        variance = (1.0 - 1.0 / weight) * (variance + off * off / weight)
    return found


def _usual(ordered: Any, key: str, amount: str, columns: Columns) -> Column:
    """Columns of what is usual for the key; returns the level of each transaction. ``ordered`` is by key and time."""
    by_card = ordered.assign(ms=ordered["time"].astype("int64")).groupby("life")
    parts = [_usual_of_card(card[amount].tolist(), card["ms"].tolist()) for _, card in by_card]
    found = np.empty((len(ordered), 4))
    found[ordered["row"].to_numpy()] = [row for part in parts for row in part]
    names = (f"{key}_{amount}_usual_ratio", f"{key}_{amount}_usual_zscore", f"{key}_seconds_since_unusual_{amount}")
    columns.update(zip(names, found.T, strict=False))
    return found[:, 3]


def _memory(ordered: Any, key: str, other: Entity, memory: int, columns: Columns) -> None:
    """Of the last ``memory`` transactions of the key: those with this other entity, and how many different there are.

    One that lies s back is the only one of its other entity in the memory, or the newest of them would count twice,
    unless the one before it with the same lies there too.
    """
    (other_field,) = other.fields
    number = ordered.groupby("life").cumcount()
    before = number.groupby([ordered["life"], ordered[other_field]]).diff().fillna(memory)
    seen, distinct = np.zeros(len(ordered)), np.zeros(len(ordered))
    for back in range(1, memory + 1):
        there = number >= back
        seen += there & (ordered[other_field].shift(back) == ordered[other_field])
        distinct += there & (before.shift(back) > memory - back)
    for name, column in (("seen", seen), ("distinct", distinct)):
        placed = columns[f"{key}_{other.name}_{name}"] = np.empty(len(ordered))
        placed[ordered["row"].to_numpy()] = column


def _remembered_level(ordered: Any, labels: Any, field: str, level: Column, memory: int) -> Any:
    """The level of each label's transaction; infinite where it had none, or was forgotten before the label came."""
    newest = (
        ordered[["time", field, "row", "life"]].assign(number=ordered.groupby("life").cumcount()).sort_values("row")
    )
    of = newest.iloc[labels["of"].to_numpy()]
    newest = pd.merge_asof(labels[["time", field]], newest, on="time", by=field)
    age = newest["number"].to_numpy() - of["number"].to_numpy()
    kept = (age < memory) & (newest["life"].to_numpy() == of["life"].to_numpy())
    found = level[of["row"].to_numpy()]
    return np.where(kept & (found > 0), found, np.inf)


def _runs(frame: Any, labels: Any, entity: Entity, expiry_ms: int, columns: Columns) -> None:
    """Columns of the newest labels of one entity; ``labels`` has the level of each."""
    (field,), name = entity.fields, entity.name
    known = labels[["time", field, "fraud", "level"]].sort_values(["time", "fraud", "level"], kind="stable")
    known["goods"] = (1.0 - known["fraud"]).groupby(known[field]).cumsum()
    known["good"] = known["time"].where(known["fraud"] == 0.0)
    known["good"] = known.groupby(field)["good"].ffill()
    frauds = known[known["fraud"] == 1.0].copy()
    runs = frauds.groupby([field, "goods"])
    # Of a longer run its first and its newest labels are kept, beside the good one before it.
    kept = np.where(frauds["goods"] > 0, LABELS_KEPT - 1, LABELS_KEPT)
    frauds["run"] = np.minimum(runs.cumcount() + 1, kept)
    frauds["begun"] = runs["time"].transform("first")
    lowest = runs["level"].transform("first").to_numpy()
    for back in range(LABELS_KEPT - 1):
        earlier = runs["level"].shift(back).fillna(np.inf).to_numpy()
        lowest = np.where(back < kept - 1, np.minimum(lowest, earlier), lowest)
    frauds["ratio"] = (pd.Series(lowest, frauds.index).replace(np.inf, np.nan) - 1.0) / LEVEL_STEPS
    known = known[["time", field, "good"]].join(frauds[["run", "begun", "ratio"]])
    found = pd.merge_asof(frame[["time", field]], known, on="time", by=field, allow_exact_matches=False)
    columns[f"{name}_fraud_run"] = found["run"].fillna(0.0).to_numpy()
    columns[f"{name}_seconds_since_fraud_run"] = _seconds(found["time"] - found["begun"]).to_numpy()
    since = _seconds(found["time"] - found["good"])
    columns[f"{name}_seconds_since_good_label"] = since.where(since <= expiry_ms / 1000.0).to_numpy()
    columns[f"{name}_fraud_run_ratio"] = found["ratio"].to_numpy()


def other_columns(frame: Any, labels: Any, schema: TransactionSchema) -> Columns:
    """The rest of the catalogue: of the event, of the key's memory, of what is usual, of the newest labels."""
    columns: Columns = {}
    amount, key = schema.numeric[0].name, schema.key
    (field,) = key.fields
    _event(frame, amount, columns)
    ordered = frame.sort_values([field, "time"], kind="stable")
    ordered["life"] = _lives(ordered, field, starts_anew_ms(key))
    level = _usual(ordered, key.name, amount, columns)
    for other in schema.entities[1:]:
        _memory(ordered, key.name, other, schema.memory, columns)
    labels = labels.assign(level=_remembered_level(ordered, labels, field, level, schema.memory))
    for entity in schema.entities:
        _runs(frame, labels, entity, starts_anew_ms(entity), columns)
    return columns
