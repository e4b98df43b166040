"""Replay on one core against pandas: ``python -m bench.replay [FILE] [--quick]``.

Both make the windowed columns of every transaction, labels folded when they arrive: count, sum, mean, max, std and
ratio as the schema names them, fraud count and rate, seconds since the entity's last and first. pandas does it by
``groupby().rolling("7D")`` as its documentation teaches; labels, which have times of their own, are rows between the
transactions. The kernel makes the columns of the event and of the card's memory besides, which pandas is spared. The
two take turns, and before anything counts the columns of both are compared: pandas' exact window and the window one hop
longer enclose the kernel's, and where those two hold the same records all three are equal. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bench.history import HANDBOOK, read_history
from features.catalogue import TILES
from features.schema import Entity, TransactionSchema, format_duration
from features.warm import warm
from trainer.vectors import Vectors, history_vectors

QUICK_ROWS = 100_000
ROUNDS = 3
Column = NDArray[np.float64]
Columns = dict[str, Column]


def _window(ms: int, *, hop_more: bool) -> Any:
    import pandas as pd

    return pd.Timedelta(ms + (-(-ms // TILES) if hop_more else 0), "ms")


def _amounts(frame: Any, entity: Entity, field: str, amount: str, columns: Columns, *, hop_more: bool) -> None:
    """Columns of the windows and times of one entity, in the order of ``frame``."""
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
        put(f"count_{name}", rolling.count().fillna(0.0))
        if "sum" in wanted:
            put(f"{amount}_sum_{name}", rolling.sum().fillna(0.0))
        if wanted & {"mean", "ratio"}:
            mean = put(f"{amount}_mean_{name}", rolling.mean())
            columns[f"{entity.name}_{amount}_ratio_{name}"] = np.divide(
                values, mean, out=np.full(len(values), np.nan), where=mean != 0.0
            )
        if "max" in wanted:
            put(f"{amount}_max_{name}", rolling.max())
        if "std" in wanted:
            put(f"{amount}_std_{name}", rolling.std(ddof=0))
    times = ordered.groupby(field)["time"]
    put("seconds_since_last", times.diff().dt.total_seconds())
    since = (ordered["time"] - times.transform("first")).dt.total_seconds()
    put("seconds_since_first", since.where(times.cumcount() > 0))


def _frauds(frame: Any, labels: Any, entity: Entity, field: str, columns: Columns, *, hop_more: bool) -> None:
    """Columns of the labels of one entity: they are rows of their own, at the time they arrive."""
    import pandas as pd

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
        columns[f"{entity.name}_fraud_rate_{suffix}"] = np.divide(
            frauds, judged, out=np.full(len(frame), np.nan), where=judged > 0.0
        )
        columns[f"{entity.name}_judged_{suffix}"] = judged


def pandas_columns(frame: Any, labels: Any, schema: TransactionSchema, *, hop_more: bool = False) -> Columns:
    """The windowed columns by name, and those needed to compare them; with ``hop_more`` of windows one hop longer."""
    columns: Columns = {}
    for entity in schema.entities:
        (field,) = entity.fields
        _amounts(frame, entity, field, schema.numeric[0].name, columns, hop_more=hop_more)
        _frauds(frame, labels, entity, field, columns, hop_more=hop_more)
    return columns


def _frames(table: pa.Table, schema: TransactionSchema) -> tuple[Any, Any]:
    """The transactions and, as rows of their own, the labels, as pandas holds them. Not part of what is measured."""
    fields = [entity.fields[0] for entity in schema.entities]
    amount = schema.numeric[0].name
    frame = table.select([*fields, amount]).to_pandas()
    frame["time"] = table[schema.time].to_numpy().astype("datetime64[ms]")
    frame["row"] = np.arange(len(frame))
    judged = table.filter(pc.is_valid(table[schema.label]))
    labels = judged.select(fields).to_pandas()
    labels["time"] = judged[schema.label_time].to_numpy().astype("datetime64[ms]")
    labels["fraud"] = judged[schema.label].to_numpy().astype(np.float64)
    labels["judged"] = 1.0
    return frame, labels


@dataclass
class Agreement:
    """How many values were compared, how many of them differed, and in which columns."""

    compared: int = 0
    equal: int = 0
    outside: int = 0
    columns: int = 0

    def tell(self, name: str, wrong: NDArray[np.bool_], exact: int) -> None:
        """Count one column; ``exact`` of its values had to be equal."""
        self.columns += 1
        self.compared += len(wrong)
        self.equal += exact
        self.outside += int(wrong.sum())
        if wrong.any():
            raise AssertionError(f"{name}: {wrong.sum()} of {len(wrong)} values lie outside of the bound")


def compare(vectors: Vectors, frame: Any, narrow: Columns, wide: Columns, schema: TransactionSchema) -> Agreement:
    """Hold the kernel's columns against both of pandas' windows.

    Rows that share entity and second are left out: pandas' windows end before their second, the kernel's with the row.
    So are the times of entities that paused for so long that they start anew, which pandas knows nothing of.

    Raises
    ------
    AssertionError
        If a value lies outside of what the two windows allow.
    """
    agreement = Agreement()
    amount = schema.numeric[0].name
    scale = float(np.abs(frame[amount]).max())
    for entity in schema.entities:
        apart = ~frame.duplicated([entity.fields[0], "time"], keep=False).to_numpy()
        pauses = frame.assign(pause=narrow[f"{entity.name}_seconds_since_last"]).groupby(entity.fields[0])["pause"]
        starts_anew_s = 2 * max(*entity.windows_ms, *entity.label_windows_ms) / 1000
        known = ~(pauses.transform("max") > starts_anew_s).to_numpy()[apart]
        for name in (name for name in vectors.names if name.startswith(f"{entity.name}_") and name in narrow):
            found = vectors.x[apart, vectors.names.index(name)]
            low, high = narrow[name][apart], wide[name][apart]
            suffix = name.rpartition("_")[2]
            if "_seconds_" in name:
                same = known
            else:
                counted = f"{entity.name}_judged_{suffix}" if "_fraud_" in name else f"{entity.name}_count_{suffix}"
                same = narrow[counted][apart] == wide[counted][apart]
            slack = 1e-9 * scale + 1e-9 * np.nan_to_num(np.abs(high))
            if "_std_" in name:  # the root of what two ways of summing squares leave of them
                wrong = np.abs(found**2 - low**2) > 1e-9 * scale * scale
            else:
                wrong = ~(np.isnan(found) & np.isnan(low)) & ~(np.abs(found - low) <= slack)
            wrong &= same
            if any(f"_{kind}_" in name for kind in ("count", "sum", "max")):
                wrong |= (found < low - slack) | (found > high + slack)
            agreement.tell(name, wrong, int(same.sum()))
    return agreement


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(quick: bool, *, file: Path = HANDBOOK, rounds: int = ROUNDS) -> dict[str, Any]:
    """Transactions per second and core of both, and how they compare; ``quick`` takes the first of them only."""
    import pandas as pd

    pa.set_cpu_count(1)
    table, schema, source = read_history(file)
    if quick:
        table = table.slice(0, QUICK_ROWS)
    warm()
    frame, labels = _frames(table, schema)
    narrow = pandas_columns(frame, labels, schema)
    agreement = compare(history_vectors(table, schema), frame, narrow,
                        pandas_columns(frame, labels, schema, hop_more=True), schema)  # fmt: skip
    del narrow
    n, found = table.num_rows, []
    for _ in range(rounds):
        ours = _seconds(lambda: history_vectors(table, schema))
        theirs = _seconds(lambda: pandas_columns(frame, labels, schema))
        found.append({"s": round(ours, 3), "pandas_s": round(theirs, 3), "ratio": round(theirs / ours, 1)})
    ours = statistics.median(turn["s"] for turn in found)
    theirs = statistics.median(turn["pandas_s"] for turn in found)
    return {
        "events_per_s": round(n / ours),
        "pandas_events_per_s": round(n / theirs),
        "ratio": round(statistics.median(turn["ratio"] for turn in found), 1),
        "subset": f"{'the first' if quick else 'all'} {n:,} transactions with {len(labels):,} labels: {source}",
        "rounds": found,
        "compared": {"columns": agreement.columns, "values": agreement.compared, "equal": agreement.equal},
        "pandas": pd.__version__,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=HANDBOOK)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.quick, file=arguments.file, rounds=arguments.rounds)))


if __name__ == "__main__":
    main()
