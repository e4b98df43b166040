"""The commands ``headrace backtest ...``: flags to settings, then one call into the module that does the work."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from stream.options import Config, SchemaFiles, Seed, schema_of, settings_of

backtests = typer.Typer(help="Train on one file and answer another as a worker would.", no_args_is_help=True)


@backtests.callback()
def _group() -> None:
    """Keeps the name of a command beside ``backtest`` where there is only one."""


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
    import_module("stream.backtest").run(settings, schema_of(settings), train, test, k, out, report)
