"""``headrace whatif``: what another alert budget, thresholds, costs or rules would have done, beside what was done.

In: decisions of the past: those of the archive with its labels, or the scores of a backtest with their history file.
Out: a table side by side. Only reads. The money is the schema's first numeric field, or ``worker.cost_amount``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from features.catalogue import build_catalogue
from features.costs import Costs
from features.errors import HistoryError, SettingsError
from features.messages import ACTIONS
from features.rules import Rules
from features.schema import TransactionSchema
from features.whatif import Cases, Outcome, act, outcome
from stream.archive import archive_store
from stream.archived import Archive
from stream.deciding import amount_column
from stream.progress import stage_bars
from stream.rule_report import held
from stream.settings import Settings
from trainer.backtest import DAY_MS, date_of
from trainer.history import read_transactions
from trainer.rule_columns import rule_columns
from trainer.vectors import entity_ids, history_vectors, string_hashes
from trainer.verdicts import verdicts_of

_WARM_DAYS = 14  # days before that show an alert budget how busy the hours are
_COST_MAX = 1e12  # as in the settings
_SCORED = ("event_id", "score", "anomaly", "action")
_ROWS = {
    "alerts": "alerts", "blocked": "of them blocked", "cases": "cases (cards a day)", "cases_per_day": "cases a day",
    "cases_of_busiest_day": "cases of the busiest day", "frauds": "known frauds", "frauds_caught": "of them alerted",
    "money_saved": "money of alerted frauds", "money_lost": "money of missed frauds",
    "good_disturbed": "good customers disturbed", "precision": "share of judged cases with fraud",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """As on the command line: ``first`` and ``last`` day as epoch ms; ``transactions`` and ``scores`` for a file;
    ``lists``: what lists of the rules hold, as ``NAME=FILE``."""

    first_ms: int
    last_ms: int
    cases_per_day: float | None = None
    review: float | None = None
    block: float | None = None
    rules: Path | None = None
    transactions: Path | None = None
    scores: Path | None = None
    cost_review: float | None = None
    cost_block: float | None = None
    lists: Sequence[str] = ()

    @property
    def by_costs(self) -> bool:
        """Whether costs decide."""
        return self.cost_review is not None or self.cost_block is not None


def _check(options: Options) -> None:
    """Refuse what does not go together, as a worker does."""
    policies = {
        "--cases-per-day": options.cases_per_day is not None,
        "--cost-review": options.cost_review is not None,
        "--cost-block": options.cost_block is not None and options.cost_review is None,
        "--review-score": options.review is not None,
    }
    given = [name for name, there in policies.items() if there]
    if options.by_costs and options.block is not None:
        given.append("--block-score")
    if len(given) > 1:
        raise SettingsError([f"{' and '.join(given)}: expected one of them; each decides alone what is reviewed"])
    if not given and options.block is None and options.rules is None:
        flags = "--cases-per-day, --rules, --review-score, --block-score, --cost-review or --cost-block"
        raise SettingsError([f"nothing would differ: give {flags}"])
    for name, cost in (("--cost-review", options.cost_review), ("--cost-block", options.cost_block)):
        if cost is not None and not 0.0 < cost <= _COST_MAX:
            raise SettingsError([f"{name} = {cost:g}: expected more than 0 and at most {_COST_MAX:g}"])
    if options.lists and options.rules is None:
        raise SettingsError([f"--list = {options.lists[0]!r}: expected --rules FILE too; lists are asked by rules"])
    if options.last_ms < options.first_ms:
        raise SettingsError([f"--to {date_of(options.last_ms)} lies before --from {date_of(options.first_ms)}"])
    if (options.transactions is None) != (options.scores is None):
        raise SettingsError(["a file needs both: --transactions FILE with the labels, and --scores of its backtest"])


def run(settings: Settings, schema: TransactionSchema, options: Options, *, as_json: bool) -> tuple[Outcome, Outcome]:
    """Both outcomes, printed.

    Raises
    ------
    HeadraceError
        If the rules or a file cannot be used, or no decision lies in the days.
    """
    catalogue = build_catalogue(schema)
    _check(options)
    rules = None if options.rules is None else Rules.load(options.rules, catalogue)
    lists = {} if rules is None else held(rules, options.lists)
    notes: list[str] = []
    with stage_bars() as progress:
        if options.transactions is not None and options.scores is not None:
            table = _of_file(settings, schema, options)
        else:
            table = _of_archive(settings, schema, options)
        cases = _cases(settings, schema, table, options)
        hits = None
        if rules is not None:
            x = _vectors(table, settings, schema, catalogue.names, options, progress, notes)
            columns = rule_columns(table, schema, x, cases.score, table["anomaly"].to_numpy())
            hits = rules.evaluate(columns, rules.sets(lists))
            if empty := sorted(rules.lists.keys() - lists.keys()):
                notes.append(f"lists were taken as empty: {', '.join(empty)}; --list NAME=FILE says what one holds")
    costs = None
    if options.by_costs:
        costs = Costs(options.cost_review, options.cost_block, settings.worker.cost_recovered)
    other = act(cases, cases_per_day=options.cases_per_day, review=options.review, block=options.block,
                costs=costs, hits=hits)  # fmt: skip
    decided, would = outcome(cases, cases.action), outcome(cases, other)
    unjudged = int((cases.fraud[cases.counted] < 0).sum())
    if unjudged:
        notes.append(f"{unjudged:,} of {int(cases.counted.sum()):,} transactions are not judged yet: they count as "
                     "alerts and never as frauds or good ones")  # fmt: skip
    if as_json:
        facts = {"from": date_of(options.first_ms), "to": date_of(options.last_ms), "decided": asdict(decided),
                 "what_if": asdict(would), "notes": notes}  # fmt: skip
        print(msgspec.json.encode(facts).decode())
    else:
        _show(decided, would, options, notes)
    return decided, would


def _of_file(settings: Settings, schema: TransactionSchema, options: Options) -> pa.Table:
    """The scored transactions of a history with the backtest's columns."""
    assert options.transactions is not None and options.scores is not None
    history = read_transactions(options.transactions, schema, _delay_ms(settings))
    scores = _backtested(options.scores)
    history = history.append_column("fraud", pa.array(verdicts_of(history, schema).as_of()[0]))
    history = history.append_column("row", pa.array(np.arange(history.num_rows)))
    history = history.take(pa.array(_firsts(history[schema.id])))  # a repeat has the decision of the first
    place = pc.index_in(history[schema.id], value_set=scores["event_id"].combine_chunks())
    known = history.filter(pc.is_valid(place))
    told = scores.take(pc.drop_null(place))
    for name in ("score", "anomaly", "action"):
        known = known.append_column(name, told[name])
    everywhere = np.ones(known.num_rows, np.bool_)  # a backtest scores all, and runs no rules
    return known.append_column("scored", pa.array(everywhere)).append_column("ruled", pa.array(~everywhere))


def _backtested(file: Path) -> pa.Table:
    """What `headrace backtest fraud` wrote about each event."""
    try:
        if missing := {*_SCORED}.difference(pq.read_schema(file).names):
            raise pa.ArrowInvalid(f"it has no column {' and none '.join(sorted(missing))}")
        return pq.read_table(file, columns=list(_SCORED))
    except (OSError, pa.ArrowException) as error:
        raise HistoryError(f"{file}: not the scores of `headrace backtest fraud --out`: {error}") from None


def _delay_ms(settings: Settings) -> int:
    return int(settings.trainer.label_delay_days * DAY_MS)


def _firsts(column: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each different value comes for the first time, ascending."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    _, first = np.unique(values.dictionary_encode().indices.to_numpy(), return_index=True)
    return np.sort(first)


def _of_archive(settings: Settings, schema: TransactionSchema, options: Options) -> pa.Table:
    """The decisions of the archive's days with their transactions and the newest labels."""
    if settings.archive.url is None:
        raise SettingsError(["archive.url: expected the archive; give --archive URL, or --transactions with --scores"])
    archive, topics = Archive(archive_store(settings)), settings.topics
    first, last = date_of(options.first_ms - _WARM_DAYS * DAY_MS), date_of(options.last_ms)
    parts = []
    fields = [schema.id, *schema.id_fields, *(n.name for n in schema.numeric), *schema.categorical]
    for date in (date for date in archive.dates("decisions") if first <= date <= last):
        decided = archive.of_date("decisions", topics.decisions, date,
                                  ("record_partition", "source_offset", "score", "anomaly", "action", "duplicate",
                                   "rules", "degraded", "values"))  # fmt: skip
        given = archive.of_date("transactions", topics.transactions, date, ("record_partition", *fields, schema.time))
        if not decided.num_rows or not given.num_rows:
            continue
        decided = decided.filter(pc.invert(pc.fill_null(decided["duplicate"], False)))
        decided = decided.take(pa.array(_firsts(_source(decided, "source_offset"))))  # one may be written twice
        place = pc.index_in(_source(decided, "source_offset"), value_set=_source(given, "record_offset"))
        there = pc.is_valid(place)
        decided, given = decided.filter(there), given.take(pc.drop_null(place))
        for name in ("score", "anomaly", "action", "values"):
            given = given.append_column(name, decided[name])
        given = given.append_column("scored", _scored(decided["degraded"]))
        given = given.append_column("ruled", _ruled(decided["rules"]))
        parts.append(given.select([*fields, schema.time, "score", "anomaly", "action", "values", "scored",
                                   "ruled"]))  # fmt: skip
    if not parts:
        raise HistoryError(f"the archive at {settings.archive.url} has no decision from {first} to {last}")
    table = pa.concat_tables(parts, promote_options="permissive")
    table = table.set_column(table.column_names.index(schema.time), schema.time, table[schema.time].cast(pa.int64()))
    return table.append_column("fraud", pa.array(_labels(archive, topics.labels, schema, table)))


def _scored(degraded: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which decisions had a score, by what they say of the rung they were made on."""
    return pc.fill_null(pc.starts_with(degraded.cast(pa.string()), pattern="without_reasons:"), True)


def _ruled(rules: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which decisions a rule that counts had hit."""
    count = pc.list_value_length(rules.cast(pa.list_(pa.string())))  # an older archive has no such column
    return pc.greater(pc.fill_null(count, 0), 0)


def _source(table: pa.Table, offset: str) -> pa.Array:
    """One number for partition and offset."""
    partition = pc.cast(table["record_partition"], pa.int64())
    return pc.add(pc.multiply(partition, 1 << 48), table[offset]).combine_chunks()


def _labels(archive: Archive, topic: str, schema: TransactionSchema, table: pa.Table) -> np.ndarray[Any, Any]:
    """The newest verdict on each transaction; int8[n], -1 for none."""
    fraud = np.full(table.num_rows, -1, np.int8)
    newest = np.full(table.num_rows, -1, np.int64)
    ids = table[schema.id].combine_chunks()
    for date in archive.dates("labels"):
        told = archive.of_date("labels", topic, date, (schema.id, schema.label, schema.label_time))
        if not told.num_rows:
            continue
        place = pc.fill_null(pc.index_in(told[schema.id].combine_chunks(), value_set=ids), -1).to_numpy()
        for at, verdict, offset in zip(place.tolist(), told[schema.label].to_pylist(),
                                       told["record_offset"].to_pylist(), strict=True):  # fmt: skip
            if at >= 0 and offset > newest[at]:
                fraud[at], newest[at] = int(verdict), offset
    return fraud


def _cases(settings: Settings, schema: TransactionSchema, table: pa.Table, options: Options) -> Cases:
    time = table[schema.time].to_numpy()
    counted = (time >= options.first_ms) & (time < options.last_ms + DAY_MS)
    if not counted.any():
        raise HistoryError(
            f"no decision lies from {date_of(options.first_ms)} to {date_of(options.last_ms)}; there are some from "
            f"{date_of(int(time.min()))} to {date_of(int(time.max()))}"
        )
    amount = np.full(len(time), np.nan)
    if schema.numeric or options.by_costs:
        amount = table[schema.numeric[amount_column(settings.worker, schema)].name].to_numpy()
    action = pc.index_in(table["action"], value_set=pa.array(ACTIONS)).to_numpy().astype(np.int8)
    return Cases(
        time=time,
        card=string_hashes(pa.chunked_array([_ids(table, schema.key)])),
        score=table["score"].to_numpy(),
        amount=amount,
        action=action,
        fraud=table["fraud"].to_numpy(),
        counted=counted,
        scored=table["scored"].to_numpy(),
        ruled=table["ruled"].to_numpy(),
    )


def _ids(table: pa.Table, entity: Any) -> pa.Array:
    return entity_ids(table, entity).dictionary_decode().cast(pa.string())


def _vectors(table: pa.Table, settings: Settings, schema: TransactionSchema, names: list[str], options: Options,
             progress: Any, notes: list[str]) -> np.ndarray[Any, Any]:  # fmt: skip
    """The features that rules may ask about: replayed of a file, or as sampled decisions of the archive carry them."""
    if options.transactions is not None:
        history = read_transactions(options.transactions, schema, _delay_ms(settings))
        vectors = history_vectors(history, schema, progress=lambda done, total: progress("replay", done, total))
        return np.asarray(vectors.x[table["row"].to_numpy()])
    x = np.full((table.num_rows, len(names)), np.nan)
    column = {name: i for i, name in enumerate(names)}
    carried = 0
    for row, values in enumerate(table["values"].to_pylist()):
        if values is not None:
            carried += 1
            for name, value in values:
                if name in column and value is not None:
                    x[row, column[name]] = value
    if carried < len(x):
        notes.append(f"{carried:,} of {len(x):,} decisions carry their features (worker.vector_sample): to the rules, "
                     "those of the others are missing")  # fmt: skip
    return x


def _show(decided: Outcome, would: Outcome, options: Options, notes: list[str]) -> None:
    console = Console(highlight=False)
    days = f"{date_of(options.first_ms)} to {date_of(options.last_ms)}, {decided.days} days"
    table = Table(title=days, title_justify="left")
    for head in ("", "as decided", "what if", "difference"):
        table.add_column(head, justify="left" if not head else "right")
    for name, text in _ROWS.items():
        a, b = getattr(decided, name), getattr(would, name)
        both = a is not None and b is not None
        table.add_row(text, _told(a), _told(b), f"{'+' if b > a else ''}{_told(b - a)}" if both else "")
    console.print(table)
    for note in notes:
        console.print(note, markup=False)


def _told(value: float | None) -> str:
    if value is None:
        return "cannot be told"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
