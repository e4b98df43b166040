"""What is told of rules: ``headrace rules check`` and ``headrace rules test``.

In: a file of rules, the schema, a history, the state in Redis. Out: a table on standard output. No state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from features.catalogue import build_catalogue
from features.errors import SettingsError
from features.expressions import nearest
from features.rule_machine import NEVER, Columns
from features.rules import Lists, Rules
from features.schema import Schema, TransactionSchema
from stream.connections import redis_client
from stream.progress import stage_bars
from stream.rule_books import FIELDS, read_totals, summed
from stream.rule_lists import hashed
from stream.settings import Settings
from stream.store import StateStore
from trainer import artifacts
from trainer.history import read_transactions
from trainer.rule_columns import rule_columns
from trainer.vectors import history_vectors

_DAY_MS = 86_400_000


def check(file: Path, schema: TransactionSchema) -> None:
    """Print what each rule does and reads.

    Raises
    ------
    SettingsError
        With every problem of the file.
    """
    rules = Rules.load(file, build_catalogue(schema))
    table = Table("rule", "action", "priority", "reads", box=None, header_style="bold")
    for rule in rules.rules:
        action = f"{rule.action} (shadow)" if rule.shadow else rule.action
        table.add_row(rule.name, action, str(rule.priority), ", ".join(rule.reads))
    console = Console(soft_wrap=True)
    console.print(table)
    lists = "".join(f"; list {name} of {of}" for name, of in rules.lists.items())
    console.print(f"{file}: {len(rules)} rules, version {rules.version}{lists}", highlight=False, markup=False)


def try_on(settings: Settings, schema: Schema, file: Path, transactions: Path, lists: Sequence[str]) -> None:
    """Run rules over a history, and print what each hit and how much of it was fraud.

    Raises
    ------
    SettingsError, HistoryError, ArtifactError
        If the rules, a list (``NAME=FILE``), the history, or the models that a rule asks cannot be used.
    """
    rules = Rules.load(file, build_catalogue(schema.transactions))
    known = held(rules, lists)
    table = read_transactions(transactions, schema.transactions, int(settings.trainer.label_delay_days * _DAY_MS))
    with stage_bars() as progress:
        vectors = history_vectors(table, schema.transactions, progress=lambda d, t: progress("replay", d, t))
    score = anomaly = np.full(table.num_rows, np.nan)
    if any({"score", "anomaly"} & {*rule.reads} for rule in rules.rules):
        fraud = artifacts.load_current(settings.artifacts, schema.hash).fraud
        if fraud is None:
            raise SettingsError([f"{settings.artifacts}: the published version has no fraud model, and a rule asks it"])
        score, anomaly = (np.round(part, 6) for part in fraud.score_many(np.ascontiguousarray(vectors.x)))
    columns = rule_columns(table, schema.transactions, vectors.x, score, anomaly)
    label = pc.fill_null(table[schema.transactions.label], -1).to_numpy().astype(np.int8)
    _tell(rules, columns, known, label)


def counts(settings: Settings) -> None:
    """Print how often each rule has hit, and how much of that was fraud, over all partitions.

    Raises
    ------
    ServiceUnavailable, StateMismatch
        If Redis cannot be reached, or its bytes cannot be read.
    """

    async def read() -> list[bytes | None]:
        redis = redis_client(settings.redis)
        try:
            store = StateStore(redis, settings.redis, settings.worker.group, "fraud")
            found = await store.read({p: [FIELDS[0]] for p in range(settings.topics.transaction_partitions)})
        finally:
            await redis.aclose()
        return [value for (value,) in found.values()]

    totals = summed(map(read_totals, asyncio.run(read())))
    table = Table("rule", "hits", "judged", "fraud", "precision", box=None, header_style="bold")
    for (name, shadow), (hits, frauds, good) in sorted(totals.items()):
        judged = frauds + good
        table.add_row(f"{name} (shadow)" if shadow else name, f"{hits:,}", f"{judged:,}", f"{frauds:,}",
                      f"{frauds / judged:.3f}" if judged else "-")  # fmt: skip
    console = Console(soft_wrap=True)
    console.print(table if totals else "no rule has hit anything yet")


def held(rules: Rules, lists: Sequence[str]) -> Lists:
    """What lists hold by ``NAME=FILE``, files with an id in each line.

    Raises
    ------
    SettingsError
        If there is no such list or file.
    """
    found: dict[str, Mapping[str, int]] = {}
    for given in lists:
        name, _, path = given.partition("=")
        if name not in rules.lists:
            raise SettingsError([f"--list = {given!r}: no list {name!r} under [lists]{nearest(name, rules.lists)}"])
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError([f"--list = {given!r}: expected NAME=FILE with an id in each line: {error}"]) from None
        found[name] = dict.fromkeys((line.strip() for line in lines if line.strip()), NEVER)
    return hashed(found)


def _tell(rules: Rules, columns: Columns, lists: Lists, label: np.ndarray[tuple[int], np.dtype[np.int8]]) -> None:
    hits = rules.evaluate(columns, rules.sets(lists)).matrix
    frauds = int((label == 1).sum())
    table = Table("rule", "action", "hits", "judged", "fraud", "precision", "of all fraud", box=None,
                  header_style="bold")  # fmt: skip
    for r, rule in enumerate(rules.rules):
        hit = hits[:, r]
        judged, found = int((label[hit] >= 0).sum()), int((label[hit] == 1).sum())
        table.add_row(
            rule.name,
            f"{rule.action} (shadow)" if rule.shadow else rule.action,
            f"{int(hit.sum()):,}",
            f"{judged:,}",
            f"{found:,}",
            f"{found / judged:.3f}" if judged else "-",
            f"{found / frauds:.3f}" if frauds else "-",
        )
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"{len(label):,} transactions, {int((label >= 0).sum()):,} judged, {frauds:,} of them fraud",
                  highlight=False)  # fmt: skip
