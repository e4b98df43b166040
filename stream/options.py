"""The options that commands share, and how they become settings and a schema.

In: the command line, ``headrace.toml`` and the environment. Out: :class:`~stream.settings.Settings`, the schema.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from features.errors import SettingsError
from stream.settings import Settings, load_settings

if TYPE_CHECKING:
    from features.schema import Schema

_CONFIG = Path("headrace.toml")

Config = Annotated[
    Path | None,
    typer.Option(envvar="HEADRACE_CONFIG", help="Settings file", show_default="./headrace.toml if there"),
]
Kafka = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Kafka's bootstrap servers")]
Redis = Annotated[str | None, typer.Option(metavar="URL", help="redis://HOST:PORT/DATABASE, or rediss:// for TLS")]
SchemaFiles = Annotated[
    list[Path] | None, typer.Option("--schema", help="Schema TOML laid over the shipped one; may be repeated")
]
Artifacts = Annotated[Path | None, typer.Option(help="Directory of the models")]
TransactionsFile = Annotated[
    Path | None, typer.Option("--transactions", help="History of transactions: Parquet, CSV or TSV")
]
ClicksFile = Annotated[Path | None, typer.Option("--clicks", help="History of clicks: Parquet, CSV or TSV")]
ArchiveUrl = Annotated[
    str | None, typer.Option("--archive", metavar="URL", help="The archive: a directory, s3://BUCKET/PREFIX, ...")
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output")]
Rate = Annotated[float, typer.Option(min=0.001, help="Messages per second")]
Malformed = Annotated[float, typer.Option(min=0, max=1, help="Share of broken messages to mix in")]


def every_seconds(text: str | float) -> float:
    """Seconds of ``--every 15m``; a default is a number already."""
    from features.schema import parse_duration_ms

    if isinstance(text, float):
        return text
    try:
        return parse_duration_ms(text) / 1000
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Every = Annotated[
    float | None, typer.Option(parser=every_seconds, metavar="DURATION", help="Time between refits: 15m, 30s")
]


def settings_file(config: Path | None) -> Path:
    """The settings file that is read where it exists, and written."""
    return _CONFIG if config is None else config


def archive_url(archive: str | None) -> str | None:
    """A directory as it is from here; a URL as it is."""
    return str(Path(archive).expanduser().absolute()) if archive and "://" not in archive else archive


def named_sources(config: Path | None, flags: Mapping[str, object]) -> tuple[Path | None, dict[str, object]]:
    """The settings file, and the flags by dotted name."""
    file = _CONFIG if config is None and _CONFIG.is_file() else config
    return file, {name.replace("__", "."): (value or None) if name == "schema" else value
                  for name, value in flags.items()}  # fmt: skip


def settings_of(config: Path | None, defaults: Mapping[str, object] | None = None, **flags: object) -> Settings:
    file, overrides = named_sources(config, flags)
    try:
        return load_settings(file, os.environ, overrides, defaults)
    except SettingsError as error:
        from features.schema import load_schema

        try:  # what is wrong with the schema is told together with the rest
            load_schema(cast("list[Path]", flags.get("schema") or []))
        except SettingsError as more:
            raise SettingsError([*error.problems, *more.problems]) from None
        raise


def schema_of(settings: Settings) -> Schema:
    from features.schema import load_schema

    return load_schema(settings.schema)
