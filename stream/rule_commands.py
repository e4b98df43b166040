"""``headrace rules ...`` and ``headrace list ...``: flags to settings, then a call of what does the work."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from stream.options import Artifacts, Config, Redis, SchemaFiles, every_seconds, schema_of, settings_of

rules = typer.Typer(help="Check rules beside the model, and try them on a history.", no_args_is_help=True)

lists = typer.Typer(help="Change and show the lists that rules ask.", no_args_is_help=True)
beside = typer.Typer()
beside.add_typer(rules, name="rules")
beside.add_typer(lists, name="list")
_ListName = Annotated[str, typer.Argument(help="The list")]


@rules.command()
def check(
    file: Annotated[Path, typer.Argument(help="The rules")],
    config: Config = None,
    schema: SchemaFiles = None,
) -> None:
    """Read a file of rules as a worker would, and say what each rule does and reads."""
    settings = settings_of(config, schema=schema)
    import_module("stream.rule_report").check(file, schema_of(settings).transactions)


@rules.command()
def counts(
    config: Config = None,
    redis: Redis = None,
) -> None:
    """Say how often each rule has hit, and how much of that was fraud, from the state in Redis."""
    import_module("stream.rule_report").counts(settings_of(config, redis__url=redis))


@rules.command(name="test")
def try_on(
    file: Annotated[Path, typer.Argument(help="The rules")],
    transactions: Annotated[Path, typer.Option(help="History of transactions: Parquet, CSV or TSV")],
    held: Annotated[
        list[str] | None, typer.Option("--list", metavar="NAME=FILE", help="What a list holds, an id in each line")
    ] = None,
    config: Config = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
) -> None:
    """Run rules over a history, and say what each hits and how much of it was fraud."""
    settings = settings_of(config, schema=schema, artifacts=artifacts)
    import_module("stream.rule_report").try_on(settings, schema_of(settings), file, transactions, held or [])


@lists.command()
def add(
    name: _ListName,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids to put in")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with an id in each line")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Event time from which on it no longer "
                                              "holds, RFC 3339")] = None,
    valid: Annotated[float | None, typer.Option("--for", parser=every_seconds, metavar="DURATION",
                                                help="The same, from now: 30d, 12h")] = None,
    config: Config = None,
    redis: Redis = None,
    schema: SchemaFiles = None,
) -> None:  # fmt: skip
    """Put ids into a list; workers know within a second or two."""
    settings = settings_of(config, redis__url=redis, schema=schema)
    import_module("stream.listing").add(settings, name, ids or [], file, until, valid)


@lists.command()
def remove(
    name: _ListName,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids to take out")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with an id in each line")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="Those whose time is over")] = False,
    config: Config = None,
    redis: Redis = None,
    schema: SchemaFiles = None,
) -> None:
    """Take ids out of a list."""
    settings = settings_of(config, redis__url=redis, schema=schema)
    import_module("stream.listing").remove(settings, name, ids or [], file, expired=expired)


@lists.command()
def show(
    name: Annotated[str | None, typer.Argument(help="The list", show_default="all, with their counts")] = None,
    config: Config = None,
    redis: Redis = None,
    schema: SchemaFiles = None,
) -> None:
    """Print the ids in a list and until when each holds."""
    settings = settings_of(config, redis__url=redis, schema=schema)
    import_module("stream.listing").show(settings, name)
