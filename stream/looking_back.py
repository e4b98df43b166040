"""Commands that look back at history and decisions: flags to settings, then one call into what does the work."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from stream.backtests import backtests
from stream.options import (
    ArchiveUrl,
    Artifacts,
    AsJson,
    Config,
    SchemaFiles,
    Seed,
    archive_url,
    schema_of,
    settings_file,
    settings_of,
)
from stream.settings import CASES_MAX

looking_back = typer.Typer(add_completion=False)
looking_back.add_typer(backtests, name="backtest")


@looking_back.command()
def tune(
    transactions: Annotated[Path, typer.Option(help="History of transactions with labels: Parquet, CSV or TSV")],
    config: Config = None,
    schema: SchemaFiles = None,
    labels: Annotated[Path | None, typer.Option(help="Labels in a file of their own")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Budget of the search")] = 10.0,
    trials: Annotated[int | None, typer.Option(min=1, help="End after so many trials", show_default="none")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Stretches of days to judge by; the newest is kept for the "
                                       "comparison")] = 3,
    test_days: Annotated[int, typer.Option(min=1, max=366, help="Days of each")] = 7,
    delay_days: Annotated[int, typer.Option(min=0, max=365, help="Days until a label is known")] = 7,
    train_days: Annotated[str, typer.Option(metavar="D|all", help="Days that each trains on")] = "all",
    seed: Seed = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that train")] = 2,
) -> None:  # fmt: skip
    """Look for better hyper-parameters of the fraud model and write them to the settings file."""
    module, backtest = import_module("stream.tuning"), import_module("stream.backtest_fraud")
    settings = settings_of(config, schema=schema, trainer__seed=seed)
    protocol = backtest.Protocol(0, folds, test_days, delay_days, backtest.train_days(train_days))
    options = module.Options(transactions, protocol, minutes, settings_file(config), trials, threads, labels)
    module.run(settings, schema_of(settings).transactions, options)


@looking_back.command()
def explain(
    event_id: Annotated[str, typer.Argument(help="Id of the transaction, or of its decision (topic:partition:offset)")],
    config: Config = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    archive: ArchiveUrl = None,
    rules: Annotated[Path | None, typer.Option(help="File of rules; else that of the settings")] = None,
    held: Annotated[list[str] | None, typer.Option("--list", metavar="NAME=FILE",
                                                   help="What one of their lists held, an id in each line")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compute one past decision again from the archive, compare it bit by bit, and say what it followed from."""
    settings = settings_of(config, schema=schema, artifacts=artifacts, archive__url=archive_url(archive),
                           worker__rules=rules)  # fmt: skip
    module = import_module("stream.explain")
    raise typer.Exit(module.run(settings, schema_of(settings), event_id, held or [], as_json=as_json))


@looking_back.command()
def whatif(
    first: Annotated[str, typer.Option("--from", metavar="DATE", help="First day, in UTC")],
    last: Annotated[str, typer.Option("--to", metavar="DATE", help="Last day")],
    cases_per_day: Annotated[float | None, typer.Option(min=1, max=CASES_MAX, help="Cards to alert a day")] = None,
    rules: Annotated[Path | None, typer.Option(help="File of rules")] = None,
    held: Annotated[list[str] | None, typer.Option("--list", metavar="NAME=FILE",
                                                   help="What a list of the rules holds, an id in each line")] = None,
    cost_review: Annotated[float | None, typer.Option(help="What one review costs, in the unit of the amount")] = None,
    cost_block: Annotated[float | None, typer.Option(help="What refusing a good transaction costs")] = None,
    review_score: Annotated[float | None, typer.Option(min=0, max=1, help="Score from which to review")] = None,
    block_score: Annotated[float | None, typer.Option(min=0, max=1, help="Score from which to block")] = None,
    transactions: Annotated[Path | None, typer.Option(help="History with labels, instead of the archive")] = None,
    scores: Annotated[Path | None, typer.Option(help="Scores of its backtest (--out)")] = None,
    config: Config = None,
    schema: SchemaFiles = None,
    archive: ArchiveUrl = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show what another budget, other thresholds, costs or rules would have done, beside what was decided."""
    settings = settings_of(config, schema=schema, archive__url=archive_url(archive))
    module, days = import_module("stream.whatif"), import_module("stream.backtest_fraud")
    options = module.Options(days.day_ms(first, "--from"), days.day_ms(last, "--to"), cases_per_day, review_score,
                             block_score, rules, transactions, scores, cost_review, cost_block, held or [])  # fmt: skip
    module.run(settings, schema_of(settings).transactions, options, as_json=as_json)
