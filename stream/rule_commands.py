"""The commands ``headrace rules ...``: flags to settings, then one call into the module that does the work."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from stream.options import Config, SchemaFiles, schema_of, settings_of

rules = typer.Typer(help="Check the rules beside the model.", no_args_is_help=True)


@rules.callback()
def _group() -> None:
    """So that a group with one command stays a group."""


@rules.command()
def check(
    file: Annotated[Path, typer.Argument(help="The rules")],
    config: Config = None,
    schema: SchemaFiles = None,
) -> None:
    """Read a file of rules as a worker would, and say what each rule does and reads."""
    settings = settings_of(config, schema=schema)
    import_module("stream.rule_report").check(file, schema_of(settings).transactions)
