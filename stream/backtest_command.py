"""The command ``headrace backtest``: flags to options. What does the work is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream.options import Config, SchemaFiles, schema_of, settings_of

backtest_app = typer.Typer(help="Walk history forward: train on what was known, score what came next, report.",
                           no_args_is_help=True)  # fmt: skip


@backtest_app.callback()
def backtest() -> None:
    """Walk history forward: train on what was known, score what came next, report."""


@backtest_app.command()
def fraud(
    transactions: Annotated[Path, typer.Option(help="History of transactions with labels: Parquet, CSV or TSV")],
    test_start: Annotated[str, typer.Option(metavar="DATE", help="First test day, in UTC")],
    out: Annotated[Path, typer.Option(help="Parquet file for the scores")],
    config: Config = None,
    schema: SchemaFiles = None,
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
) -> None:  # fmt: skip
    """Backtest the fraud models on a history file."""
    from stream import backtest as module
    from trainer.backtest import Protocol

    settings = settings_of(config, schema=schema, trainer__seed=seed)
    protocol = Protocol(
        start_ms=module.day_ms(test_start),
        folds=folds,
        test_days=test_days,
        delay_days=delay_days,
        train_days=module.train_days(train_days),
        known_days=known_days,
    )
    options = module.Options(transactions, protocol, out, report, features, cards_a_day, seeds, threads)
    module.run(settings, schema_of(settings).transactions, options)
