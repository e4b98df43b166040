"""``headrace backtest fraud``: history walked forward through the code that serves, with a report.

In: a history file, the settings. Out: a Parquet file with one row for each test transaction, a report, and, if asked
for, the vectors. Reads files only; needs neither Kafka nor Redis.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.catalogue import build_catalogue
from features.errors import SettingsError, TrainingError
from features.messages import ACTIONS
from features.schema import TransactionSchema
from stream.progress import stage_bars
from stream.settings import Settings
from trainer import backtest, report
from trainer.backtest import DAY_MS, Protocol
from trainer.fraud import FraudSettings
from trainer.history import read_transactions
from trainer.vectors import Vectors


@dataclass(frozen=True, slots=True)
class Options:
    """``transactions`` is the history file; the rest as on the command line."""

    transactions: Path
    protocol: Protocol
    out: Path
    report: Path | None = None
    features: Path | None = None
    cards_a_day: int = 100
    seeds: int = 1
    threads: int = 2


def day_ms(text: str) -> int:
    """Epoch ms of a day in UTC.

    Raises
    ------
    SettingsError
        If it is no date.

    >>> day_ms("2018-08-08")
    1533686400000
    """
    try:
        return int(np.datetime64(text, "D").astype("datetime64[ms]").astype(np.int64))
    except ValueError:
        raise SettingsError([f"--test-start = {text!r}: expected a date such as 2018-08-08"]) from None


def train_days(text: str) -> int | None:
    """Days of ``--train-days``; None for all.

    Raises
    ------
    SettingsError
        If it is neither.
    """
    if text == "all":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 36_500:
        raise SettingsError([f"--train-days = {text!r}: expected a number of days from 1 to 36500, or all"])
    return int(text)


def run(settings: Settings, schema: TransactionSchema, options: Options) -> dict[str, Any]:
    """Read, walk, write; the figures.

    Raises
    ------
    HistoryError, TrainingError
        If the file or the windows cannot be used.
    """
    protocol = replace(options.protocol, review_score=settings.worker.review_score,
                       block_score=settings.worker.block_score)  # fmt: skip
    table = read_transactions(options.transactions, schema, protocol.delay_days * DAY_MS)
    backtest.check(table, schema, protocol)
    found = []
    with stage_bars() as progress:
        vectors = backtest.replayed(table, schema, progress)
        for seed in range(settings.trainer.seed, settings.trainer.seed + options.seeds):
            fit = FraudSettings(seed=seed, threads=options.threads, rows_max=settings.trainer.rows_max)
            found.append((seed, backtest.run(table, schema, vectors, protocol, fit, progress)))
    first = found[0][1]
    _parent(options.out)
    pq.write_table(_columns(table, schema, first), options.out)
    if options.features is not None:
        _parent(options.features)
        pq.write_table(_features(table, schema, vectors), options.features)
    amount = table[schema.numeric[0].name].to_numpy()[first.scores.at] if schema.numeric else None
    features = build_catalogue(schema).features
    facts = report.figures(found, protocol, np.full(len(first.scores.at), np.nan) if amount is None else amount,
                           options.cards_a_day, features)  # fmt: skip
    if options.report is not None:
        report.write(options.report, facts)
    _say(facts, options, len(first.scores.at))
    return facts


def _parent(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{file}: cannot be written: {error}") from None


def _columns(table: pa.Table, schema: TransactionSchema, walked: backtest.Backtest) -> pa.Table:
    s = walked.scores
    rows = table.take(pa.array(s.at))
    key = {name: rows[name] for name in schema.key.fields}
    return pa.table({
        "event_id": rows[schema.id],
        "event_time": rows[schema.time],
        **key,
        "fold": pa.array(s.fold + 1, pa.int32()),
        "score": s.score,
        "anomaly": s.anomaly,
        "action": pa.array(ACTIONS).take(pa.array(s.action)),
        "reasons": pa.array(s.reasons, pa.list_(pa.string())),
    })  # fmt: skip


def _features(table: pa.Table, schema: TransactionSchema, vectors: Vectors) -> pa.Table:
    facts = {"event_id": table[schema.id], "event_time": table[schema.time]}
    return pa.table(facts | {name: vectors.x[:, i] for i, name in enumerate(vectors.names)})


def _say(facts: dict[str, Any], options: Options, tested: int) -> None:
    for name, figures in (("model", facts["mean"]), ("anomaly", facts["anomaly"])):
        told = [report.told(figures[part]) for part in ("auc", "average_precision", "card_precision")]
        print(f"{name}: AUC {told[0]}, average precision {told[1]}, card precision@{options.cards_a_day} {told[2]}")
    error = facts["calibration_error"]
    print(f"calibration error {'cannot be told' if error is None else f'{error:.5f}'}")
    where = f"; report in {options.report}" if options.report else ""
    print(f"{tested:,} test transactions in {options.out}{where}", file=sys.stderr)
