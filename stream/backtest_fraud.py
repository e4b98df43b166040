"""``headrace backtest fraud``: history walked forward through the code that serves, with a report.

In: a history file, the settings. Out: a Parquet file with one row for each test transaction, a report, and, if asked
for, the vectors. Reads files only; needs neither Kafka nor Redis.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.catalogue import build_catalogue
from features.costs import Costs
from features.errors import SettingsError, TrainingError
from features.messages import ACTIONS
from features.schema import TransactionSchema
from stream.deciding import amount_column
from stream.progress import stage_bars
from stream.settings import Settings
from stream.tuning import fraud_settings
from trainer import acting, backtest, report
from trainer.acting import PolicySettings
from trainer.backtest import DAY_MS, Protocol
from trainer.history import read_labels, read_transactions, reading
from trainer.vectors import Vectors
from trainer.verdicts import Verdicts, verdicts_of

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


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
    labels: Path | None = None


def day_ms(text: str, flag: str = "--test-start") -> int:
    """Epoch ms of a day in UTC.

    Raises
    ------
    SettingsError
        If it is no date as ISO 8601 writes it with hyphens.

    >>> day_ms("2018-08-08")
    1533686400000
    """
    try:
        if not _DATE.fullmatch(text):  # numpy also takes "", "2018" and "now" for one
            raise ValueError
        return int(np.datetime64(text, "D").astype("datetime64[ms]").astype(np.int64))
    except ValueError:
        raise SettingsError([f"{flag} = {text!r}: expected a date such as 2018-08-08"]) from None


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
        If a file or the windows cannot be used, or what is asked for cannot be written.
    """
    began_s = time.perf_counter()
    for file in (options.out, options.features):
        _writable(file)
    _writable(options.report / "report.json" if options.report else None)
    protocol = replace(options.protocol, amount=settings.worker.cost_amount, policy=_policy(settings, schema))
    table = read_transactions(options.transactions, schema, protocol.delay_days * DAY_MS)
    labels = None if options.labels is None else read_labels(options.labels, schema)
    verdicts = verdicts_of(table, schema, labels)
    backtest.check(table, schema, protocol, verdicts)
    backtest.replayed(table.slice(0, 1), schema, lambda *_: None)  # compiled code is made here, and not while it counts
    found = []
    with stage_bars() as progress:
        replay_s = time.perf_counter()
        vectors = backtest.replayed(table, schema, progress, verdicts)
        replay_s = time.perf_counter() - replay_s
        for seed in range(settings.trainer.seed, settings.trainer.seed + options.seeds):
            fit = fraud_settings(settings, threads=options.threads, seed=seed)
            found.append((seed, backtest.run(table, schema, vectors, protocol, fit, progress, verdicts)))
    first = found[0][1]
    by_policy = protocol.policy.cases_per_day is not None or protocol.policy.costs is not None
    pq.write_table(_columns(table, schema, first, by_policy=by_policy), options.out)
    if options.features is not None:
        pq.write_table(_features(table, schema, vectors), options.features)
    amount = table[schema.numeric[0].name].to_numpy()[first.scores.at] if schema.numeric else None
    features = build_catalogue(schema).features
    facts = report.figures(found, protocol, np.full(len(first.scores.at), np.nan) if amount is None else amount,
                           options.cards_a_day, features)  # fmt: skip
    if by_policy:
        facts["alerts"] = _alerts(first, protocol)
    facts["input"] = _input(table, labels, verdicts)
    facts["resources"] = _resources(table.num_rows, len(verdicts.row), replay_s, began_s)
    if options.report is not None:
        report.write(options.report, facts)
    _say(facts, options, len(first.scores.at))
    return facts


def _policy(settings: Settings, schema: TransactionSchema) -> PolicySettings:
    worker, costs = settings.worker, None
    if worker.cost_review is not None or worker.cost_block is not None:
        amount_column(worker, schema)
        costs = Costs(worker.cost_review, worker.cost_block, worker.cost_recovered)
    return PolicySettings(worker.review_score, worker.block_score, worker.cases_per_day, costs)


def _alerts(walked: backtest.Backtest, protocol: Protocol) -> dict[str, Any]:
    """What a budget or costs alerted on each day, of the first seed."""
    cases_per_day, s = protocol.policy.cases_per_day, walked.scores
    days = acting.daily(s.day, s.card, s.score, s.fraud, s.action, s.review_score, cases_per_day)
    for day in days:
        day["date"] = backtest.date_of(protocol.start_ms + day.pop("day") * DAY_MS)
    return acting.summary(days, cases_per_day)


def _writable(file: Path | None) -> None:
    """Find out before minutes of work whether a file can be written; what it holds stays as it is until then."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        there = file.exists()
        with file.open("ab"):
            pass
        if not there:
            file.unlink()
    except OSError as error:
        raise TrainingError(f"{file}: cannot be written: {error.strerror or error}") from None


def _input(table: pa.Table, labels: pa.Table | None, verdicts: Verdicts) -> dict[str, Any]:
    """What was read, and which labels say nothing or contradict each other."""
    return {
        "transactions": table.num_rows,
        "dropped": reading(table).dropped,
        "labels": len(verdicts.row) + verdicts.unknown,
        "labels_dropped": {} if labels is None else reading(labels).dropped,
        "labels_of_unknown_transactions": verdicts.unknown,
        "contradicted_transactions": verdicts.contradicted,
    }


def _resources(transactions: int, labels: int, replay_s: float, began_s: float) -> dict[str, Any]:
    """How long it took and how much memory the process had at its peak, in MB of 1,000,000 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "replayed_transactions": transactions,
        "replayed_labels": labels,
        "replay_seconds": round(replay_s, 3),
        "replay_transactions_per_second": round(transactions / replay_s),
        "replay_events_per_second": round((transactions + labels) / replay_s),
        "total_seconds": round(time.perf_counter() - began_s, 1),
        "peak_memory_mb": round(peak / 1e6),
        "cores": os.cpu_count() or 1,
    }


def _columns(table: pa.Table, schema: TransactionSchema, walked: backtest.Backtest, *, by_policy: bool) -> pa.Table:
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
        **({"review_score": s.review_score} if by_policy else {}),
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
    if "alerts" in facts:
        print(report.alerts_told(facts["alerts"]))
    print(report.input_told(facts["input"]))
    print(report.resources_told(facts["resources"]))
    where = f"; report in {options.report}" if options.report else ""
    print(f"{tested:,} test transactions in {options.out}{where}", file=sys.stderr)
