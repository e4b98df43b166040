"""The commands ``headrace backtest ...``: flags to settings, then one call into the module that does the work."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from stream.options import Config, SchemaFiles, Seed, schema_of, settings_of

backtests = typer.Typer(help="Train on what was known, answer what came next as a worker would, and report.",
                        no_args_is_help=True)  # fmt: skip


@backtests.command()
def fraud(
    transactions: Annotated[Path, typer.Option(help="History of transactions with labels: Parquet, CSV or TSV")],
    test_start: Annotated[str, typer.Option(metavar="DATE", help="First test day, in UTC")],
    out: Annotated[Path, typer.Option(help="Parquet file for the scores")],
    config: Config = None,
    schema: SchemaFiles = None,
    labels: Annotated[Path | None, typer.Option(help="Labels in a file of their own, besides those of the "
                                                "transactions; the latest on a transaction wins")] = None,
    folds: Annotated[int, typer.Option(min=1, help="How many times to train and test")] = 4,
    test_days: Annotated[int, typer.Option(min=1, max=366, help="Days that each fold tests")] = 7,
    delay_days: Annotated[int, typer.Option(min=0, max=365, help="Days until a label is known")] = 7,
    train_days: Annotated[str, typer.Option(metavar="D|all", help="Days that each fold trains on")] = "7",
    known_days: Annotated[int, typer.Option(min=0, max=3650, help="Days before the delay in which a fraud makes a "
                                            "card known to be compromised")] = 7,
    cards_a_day: Annotated[int, typer.Option(min=1, help="k of card precision@k")] = 100,
    report: Annotated[Path | None, typer.Option(help="Directory for the report")] = None,
    features: Annotated[Path | None, typer.Option(help="Parquet file for the vectors of all of history")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Repeat with so many seeds")] = 1,
    seed: Annotated[int | None, typer.Option(help="The first seed")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that train")] = 2,
    cases_per_day: Annotated[int | None, typer.Option(min=1, help="Cards to alert a day: an alert budget")] = None,
    cost_review: Annotated[float | None, typer.Option(help="What a review costs, in the unit of the amount")] = None,
    cost_block: Annotated[float | None, typer.Option(help="What it costs to refuse a good transaction")] = None,
) -> None:  # fmt: skip
    """Backtest the fraud models on a history file."""
    module = import_module("stream.backtest_fraud")
    settings = settings_of(config, schema=schema, trainer__seed=seed, worker__cases_per_day=cases_per_day,
                           worker__cost_review=cost_review, worker__cost_block=cost_block)  # fmt: skip
    protocol = module.Protocol(
        start_ms=module.day_ms(test_start),
        folds=folds,
        test_days=test_days,
        delay_days=delay_days,
        train_days=module.train_days(train_days),
        known_days=known_days,
    )
    options = module.Options(transactions, protocol, out, report, features, cards_a_day, seeds, threads, labels)
    module.run(settings, schema_of(settings).transactions, options)


@backtests.command()
def recommend(
    train: Annotated[Path, typer.Option(help="Clicks to train on: Parquet, CSV or TSV")],
    test: Annotated[Path, typer.Option(help="Clicks to answer, one by one")],
    out: Annotated[Path, typer.Option(help="Parquet to write: session_id, position, items")],
    config: Config = None,
    schema: SchemaFiles = None,
    k: Annotated[int, typer.Option(min=1, max=1000, help="Items in a list")] = 20,
    report: Annotated[Path | None, typer.Option(help="Directory for report.json and report.md")] = None,
    seed: Seed = None,
) -> None:
    """Record the list after every click, and how often the next click was in it."""
    settings = settings_of(config, schema=schema, trainer__seed=seed)
    import_module("stream.backtest_recommend").run(settings, schema_of(settings), train, test, k, out, report)
