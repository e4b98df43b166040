"""The commands with which people ask what is recommended: ``headrace recommend`` and ``headrace similar``.

In: the command line. Out: an exit code; see :mod:`stream.cli`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from stream.options import Artifacts, AsJson, Config, Kafka, Redis, SchemaFiles, schema_of, settings_of

questions = typer.Typer(add_completion=False)

Count = Annotated[int | None, typer.Option("--k", min=1, max=1000, help="How many items", show_default="as served")]
Titles = Annotated[Path | None, typer.Option(help="Parquet with item_id and title, for titles of your own")]


@questions.command()
def recommend(
    session: Annotated[str | None, typer.Option(help="The newest list of this session, from Redis")] = None,
    user: Annotated[str | None, typer.Option(help="The newest list of this user, from Redis")] = None,
    items: Annotated[str | None, typer.Option(metavar="A,B,C", help="A list after these items, oldest first")] = None,
    config: Config = None,
    kafka: Kafka = None,
    redis: Redis = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    k: Count = None,
    titles: Titles = None,
    as_json: AsJson = False,
) -> None:
    """Show what is recommended to a session or user now, or after some items."""
    settings = settings_of(config, kafka__bootstrap=kafka, redis__url=redis, schema=schema, artifacts=artifacts)
    given = {"session": session, "user": user, "items": items}
    lookup = import_module("stream.lookup")
    lookup.run_recommend(settings, schema_of(settings), given, k=k, titles=titles, as_json=as_json)


@questions.command()
def ab(config: Config = None, kafka: Kafka = None, as_json: AsJson = False) -> None:
    """Compare the two variants of an experiment, and say whether one is better yet."""
    import_module("stream.ab").run(settings_of(config, kafka__bootstrap=kafka), as_json=as_json)


@questions.command()
def similar(
    item: Annotated[str, typer.Argument(help="The id of an item")],
    config: Config = None,
    kafka: Kafka = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    k: Count = None,
    titles: Titles = None,
    as_json: AsJson = False,
) -> None:
    """Show the items that the same sessions look at."""
    settings = settings_of(config, kafka__bootstrap=kafka, schema=schema, artifacts=artifacts)
    lookup = import_module("stream.lookup")
    lookup.run_similar(settings, schema_of(settings), item, k=k, titles=titles, as_json=as_json)
