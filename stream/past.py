"""History for a demonstration: what trains, and what is replayed as if it happened now.

In: history files, or none, and then a simulated world. Out: :class:`Past`: tables up to a moment, and the timeline
after it. State owned: ``history/`` in the state directory: the simulated files, and the part that trains as files of
its own, which the periodic trainer reads, so that it knows nothing of what is still to be replayed.

A label due after the moment is unknown to the training and is replayed when it falls due. Clicks and transactions that
lie in different years keep their times; each is split on its own clock and both are replayed side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import HistoryError
from features.schema import CLICK_FIELDS, ClickSchema, Schema, TransactionSchema
from stream.settings import Settings, TopicSettings, TrainerSettings
from stream.timeline import Timeline, build_timeline
from trainer.growing import GrowingHistory, transaction_columns
from trainer.history import read_clicks, read_transactions, reading, split_by_time
from trainer.simulator import END_MS, simulate

TRAIN_SHARE = 0.8
_COMMON_CLOCK = (0.5, 0.95)  # share of the clicks before the transactions' split that still counts as one clock
_DAY_MS = 86_400_000
_TIMES = pa.timestamp("ms", "UTC")


@dataclass(frozen=True, slots=True)
class Past:
    """``history`` trains, ``live`` is replayed after it. ``items`` names titles. ``told`` says what was found."""

    history: GrowingHistory
    live: Timeline
    items: Path | None
    told: tuple[str, ...]


def make_past(settings: Settings, schema: Schema, directory: Path, *, rows_max: int, now_ms: int) -> Past:
    """Simulate or read history, and split it.

    Parameters
    ----------
    directory
        Where simulated files go.
    rows_max
        Transactions and clicks to train on: the newest before the split.
    now_ms
        A simulated world ends no later than this.

    Raises
    ------
    HistoryError
        If a file cannot be used, or has too little to be split.
    """
    trainer, items, told = settings.trainer, None, []
    if trainer.transactions is None and trainer.clicks is None:
        end_ms = min(END_MS, now_ms // _DAY_MS * _DAY_MS)  # a machine whose clock is behind would find it in the future
        files = simulate(directory / f"simulated-{trainer.seed}", seed=trainer.seed, end_ms=end_ms)
        trainer, items = replace(trainer, transactions=files.transactions, clicks=files.clicks), files.items
        told.append(f"no history is given, so a world is simulated (seed {trainer.seed})")
    transactions = _read(trainer, "transactions", lambda path: read_transactions(
        path, schema.transactions, int(trainer.label_delay_days * _DAY_MS)), items, told)  # fmt: skip
    clicks = _read(trainer, "clicks", lambda path: read_clicks(path, schema.clicks), items, told)
    past, live, starts = _split(schema.transactions, settings.topics, transactions, clicks)
    for name, table in past.items():
        told.append(f"{name}: {min(table.num_rows, rows_max):,} of {table.num_rows:,} before the split train")
    timeline = build_timeline(
        schema, settings.topics, transactions=live.get("transactions"), labels=transactions, clicks=live.get("clicks"),
        labels_from_ms=starts.get(settings.topics.labels),
    )  # fmt: skip
    history = GrowingHistory(schema.transactions, rows_max, past.get("transactions"), past.get("clicks"))
    return Past(history, _side_by_side(timeline, starts), items, tuple(told))


def _read(
    trainer: TrainerSettings, name: str, read: Callable[[Path], pa.Table], items: Path | None, told: list[str]
) -> pa.Table | None:
    path = getattr(trainer, name)
    if path is None:
        return None
    try:
        table = read(path)
    except HistoryError as error:
        if items is None:
            raise
        raise HistoryError(f"the simulated world does not fit this schema; give --{name} FILE ({error})") from None
    told.append(f"{name}: {reading(table)}")
    return table


def _split(
    schema: TransactionSchema, topics: TopicSettings, transactions: pa.Table | None, clicks: pa.Table | None
) -> tuple[dict[str, pa.Table], dict[str, pa.Table], dict[str, int]]:
    """Tables before and after the split, and the moment of the split by topic."""
    past, live, starts = {}, {}, {}
    if transactions is not None:
        older, newer = split_by_time(transactions, schema.time, fraction=TRAIN_SHARE)
        start = _start("transactions", older, newer, schema.time)
        past["transactions"], live["transactions"] = _known(older, schema, start), newer
        starts[topics.transactions] = starts[topics.labels] = start
    if clicks is not None:
        older, newer = split_by_time(clicks, "event_time", fraction=TRAIN_SHARE)
        if transactions is not None:
            common = split_by_time(clicks, "event_time", at_ms=starts[topics.transactions])
            if _COMMON_CLOCK[0] <= common[0].num_rows / clicks.num_rows <= _COMMON_CLOCK[1]:
                older, newer = common
        past["clicks"], live["clicks"] = older, newer
        starts[topics.clicks] = _start("clicks", older, newer, "event_time")
    return past, live, starts


def _start(name: str, older: pa.Table, newer: pa.Table, time: str) -> int:
    if not older.num_rows or not newer.num_rows:
        raise HistoryError(
            f"{name}: {older.num_rows + newer.num_rows:,} rows cannot be split by time into a part that trains and a "
            "part to replay; give a history whose rows have different times"
        )
    return int(newer[time][0].as_py())


def _known(table: pa.Table, schema: TransactionSchema, start_ms: int) -> pa.Table:
    """The table without labels that were not in before ``start_ms``."""
    known = pc.less(table[schema.label_time], start_ms)
    for name in (schema.label, schema.label_time):
        table = table.set_column(table.column_names.index(name), name, pc.if_else(known, table[name], None))
    return table


def _side_by_side(timeline: Timeline, starts: Mapping[str, int]) -> Timeline:
    """The same messages in the order of the time since each one's split."""
    since = [feed.times - starts[feed.topic] for feed in timeline.feeds]
    source = np.repeat(np.arange(len(since), dtype=np.int8), [len(times) for times in since])
    return Timeline(timeline.feeds, source[np.argsort(np.concatenate(since), kind="stable")])


def write_history(history: GrowingHistory, schema: Schema, directory: Path) -> tuple[Path | None, Path | None]:
    """Write what trains as Parquet files that the same schema reads; returns those of transactions and clicks."""
    directory.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    for name, table in (
        ("transactions", _as_file(history.transactions, schema.transactions)),
        ("clicks", _as_file(history.clicks, schema.clicks)),
    ):
        path = directory / f"{name}.parquet"
        path.unlink(missing_ok=True)
        if table.num_rows:
            pq.write_table(table, path, compression="zstd")
            written[name] = path
    return written.get("transactions"), written.get("clicks")


def _as_file(table: pa.Table, schema: TransactionSchema | ClickSchema) -> pa.Table:
    """Columns under the names that the schema expects in files, times as timestamps, whose unit no schema changes."""
    if isinstance(schema, TransactionSchema):
        names, times = transaction_columns(schema).names, {schema.time, schema.label_time}
    else:
        names, times = list(CLICK_FIELDS), {"event_time"}
    names = [name for name in names if name in table.column_names]
    columns = {schema.column(n): table[n].cast(_TIMES) if n in times else table[n] for n in names}
    return pa.table(columns)
