"""The command ``headrace``: flags to settings, then one call into the module that does the work.

In: the command line, ``headrace.toml`` and the environment. Out: an exit code: 0 done, 1 a check failed, 2 refused
with one line per problem, 130 interrupted. Modules are imported by the command that needs them, so that ``--help``
answers at once.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from features.errors import HeadraceError
from stream.looking_back import looking_back
from stream.options import (
    ArchiveUrl,
    Artifacts,
    AsJson,
    ClicksFile,
    Config,
    Every,
    Kafka,
    Malformed,
    Rate,
    Redis,
    SchemaFiles,
    Seed,
    TransactionsFile,
    archive_url,
    every_seconds,
    named_sources,
    schema_of,
    settings_of,
)
from stream.processes import ONE_THREAD
from stream.questions import questions
from stream.rule_commands import beside
from stream.settings import named_settings

_STATE = Path(".headrace")
# So that half a minute shows three versions.
_DEMO = {"trainer.every_s": 8.0, "trainer.ranker_queries": 1000, "worker.metrics_port": 0}


class _Group(TyperGroup):
    """Turns every error raised on purpose into one line per problem on standard error, and no stack trace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HeadraceError as error:
            for line in str(error).splitlines():
                typer.echo(f"headrace: {line}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Group,
    help="Fraud decisions and recommendations on Kafka and Redis within milliseconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _quiet() -> None:
    """Client libraries log every retry; the commands that end at once say what went wrong in one line of their own."""
    import logging

    for name in ("aiokafka", "redis"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False


@app.command()
def up(
    config: Config = None,
    kafka: Kafka = None,
    redis: Redis = None,
    schema: SchemaFiles = None,
    transactions: TransactionsFile = None,
    clicks: ClicksFile = None,
    state_dir: Annotated[
        Path, typer.Option(help="Directory of the embedded servers, history, models and logs")
    ] = _STATE,
    rate: Rate = 200.0,
    every: Annotated[
        float | None,
        typer.Option(parser=every_seconds, metavar="DURATION", help="Time between refits: 15m, 30s", show_default="8s"),
    ] = None,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds to run", show_default="until Ctrl-C")] = None,
    history_rows: Annotated[
        int, typer.Option(min=1, help="Train on so many transactions, and clicks, at most: the newest")
    ] = 200_000,
    malformed: Malformed = 0.0,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, help="Port of the worker's metrics; 0 for any free one", show_default="0")
    ] = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Run everything: servers, history, training, worker, live events, periodic refits, and a live view.

    Without --kafka and --redis it starts its own servers; without --transactions and --clicks it simulates history.
    """
    flags: dict[str, object] = {
        "kafka__bootstrap": kafka,
        "redis__url": redis,
        "schema": schema,
        "trainer__transactions": transactions,
        "trainer__clicks": clicks,
        "trainer__every_s": every,
        "trainer__seed": seed,
        "worker__metrics_port": metrics_port,
    }
    settings = settings_of(config, _DEMO, **flags)
    file, overrides = named_sources(config, flags)
    named = named_settings(file, os.environ, overrides)
    from stream import up as module

    options = module.Options(
        embedded=module.both_or_neither("kafka.bootstrap" in named, "redis.url" in named),
        rate=rate,
        duration_s=duration,
        malformed=malformed,
        history_rows=history_rows,
        as_json=as_json,
    )
    raise typer.Exit(module.run(settings, schema_of(settings), options, state_dir, os.environ))


@app.command()
def train(
    config: Config = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    transactions: TransactionsFile = None,
    clicks: ClicksFile = None,
    archive: ArchiveUrl = None,
    seed: Seed = None,
) -> None:
    """Fit models on history files and the archive once and publish them."""
    settings = settings_of(
        config,
        schema=schema,
        artifacts=artifacts,
        trainer__transactions=transactions,
        trainer__clicks=clicks,
        archive__url=archive_url(archive),
        trainer__seed=seed,
    )
    import_module("stream.training").run_once(settings, schema_of(settings))


@app.command()
def trainer(
    config: Config = None,
    kafka: Kafka = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    transactions: TransactionsFile = None,
    clicks: ClicksFile = None,
    archive: ArchiveUrl = None,
    every: Every = None,
    seed: Seed = None,
) -> None:
    """Refit again and again on history files, the archive and what the topics have brought since; publish each."""
    settings = settings_of(
        config,
        kafka__bootstrap=kafka,
        schema=schema,
        artifacts=artifacts,
        trainer__transactions=transactions,
        trainer__clicks=clicks,
        archive__url=archive_url(archive),
        trainer__every_s=every,
        trainer__seed=seed,
    )
    import_module("stream.training").run_forever(settings, schema_of(settings))


@app.command()
def worker(
    config: Config = None,
    kafka: Kafka = None,
    redis: Redis = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics on loopback; 0 for any free one")
    ] = None,
) -> None:
    """Decide: read transactions, labels and clicks, write decisions, alerts and recommendations."""
    for name, count in ONE_THREAD.items():  # before the first of the libraries is imported
        os.environ.setdefault(name, count)
    settings = settings_of(
        config,
        kafka__bootstrap=kafka,
        redis__url=redis,
        schema=schema,
        artifacts=artifacts,
        worker__metrics_port=metrics_port,
    )
    from stream import worker as module

    module.log_to_stderr()
    module.run(settings, schema_of(settings))


@app.command()
def archive(
    config: Config = None,
    kafka: Kafka = None,
    schema: SchemaFiles = None,
    archive: ArchiveUrl = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics on loopback; 0 for any free one")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Write what the topics hold now, compact, and end")] = False,
) -> None:
    """Write transactions, labels, clicks and decisions to Parquet files, each once, for as long as it runs."""
    settings = settings_of(
        config,
        kafka__bootstrap=kafka,
        schema=schema,
        archive__url=archive_url(archive),
        archive__metrics_port=metrics_port,
    )
    import_module("stream.archive").run(settings, schema_of(settings), once=once)


@app.command()
def rebuild(
    config: Config = None,
    kafka: Kafka = None,
    redis: Redis = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    archive: ArchiveUrl = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make state anew that is there")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Go on without records or decisions that are nowhere any more")
    ] = False,
) -> None:
    """Make the state in Redis anew, as the workers left it, from the archive and what the topics hold."""
    for name, count in ONE_THREAD.items():  # before the first of the libraries is imported
        os.environ.setdefault(name, count)
    settings = settings_of(
        config,
        kafka__bootstrap=kafka,
        redis__url=redis,
        schema=schema,
        artifacts=artifacts,
        archive__url=archive_url(archive),
    )
    _quiet()
    import_module("stream.rebuild").run(settings, schema_of(settings), replace_state=replace, partial=partial)


@app.command()
def replay(
    to: Annotated[Literal["transactions", "labels", "clicks"], typer.Option(help="The topic to send to")],
    file: Annotated[
        Path | None, typer.Argument(help="History: Parquet, CSV or TSV", show_default="the archive")
    ] = None,
    archive: ArchiveUrl = None,
    config: Config = None,
    kafka: Kafka = None,
    schema: SchemaFiles = None,
    rate: Rate = 1000.0,
    fast: Annotated[bool, typer.Option("--fast", help="As fast as possible instead of --rate")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Send only the first N messages")] = None,
    malformed: Malformed = 0.0,
    seed: Seed = None,
) -> None:
    """Send a history file to a topic, keyed as the worker expects, or what the archive holds, as it was."""
    settings = settings_of(
        config, kafka__bootstrap=kafka, schema=schema, archive__url=archive_url(archive), trainer__seed=seed
    )
    _quiet()
    from stream import replay as module

    if file is None:
        timeline = module.archived_timeline(settings, schema_of(settings), to)
    else:
        timeline = module.read_timeline(settings, schema_of(settings), file, to)
    timeline = timeline.first(limit)
    module.run(settings, timeline, rate=None if fast else rate, malformed=malformed, seed=settings.trainer.seed)


@app.command()
def watch(
    kind: Annotated[Literal["decisions", "alerts", "recommendations", "dead-letters"], typer.Argument()],
    config: Config = None,
    kafka: Kafka = None,
    key: Annotated[str | None, typer.Option(help="Only this card (the id of the key entity), user or session")] = None,
    action: Annotated[Literal["allow", "review", "block"] | None, typer.Option(help="Only this action")] = None,
    min_score: Annotated[float | None, typer.Option(min=0, max=1, help="Only scores from this on")] = None,
    session: Annotated[str | None, typer.Option(help="Only recommendations for this session")] = None,
    reason: Annotated[str | None, typer.Option(help="Only with this reason: words of it, a feature, or a code")] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Start with the oldest record")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after N records")] = None,
    items: Annotated[Path | None, typer.Option(help="Parquet with item_id and title, to show titles")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what the worker writes, as it comes."""
    settings = settings_of(config, kafka__bootstrap=kafka)
    _quiet()
    from stream import watch as module

    wanted = module.Filter(key=key, action=action, min_score=min_score, session=session, reason=reason)
    module.run(settings, kind, wanted, from_beginning=from_beginning, limit=limit, items=items, as_json=as_json)


@app.command()
def topics(
    config: Config = None,
    kafka: Kafka = None,
    create: Annotated[bool, typer.Option("--create/--check", help="Create what is missing, or only look")] = False,
    as_json: AsJson = False,
) -> None:
    """Create the topics, or check their names, partition counts and retention."""
    settings = settings_of(config, kafka__bootstrap=kafka)
    _quiet()
    from stream import topics as module

    raise typer.Exit(module.run(settings, create=create, as_json=as_json))


@app.command()
def doctor(
    config: Config = None,
    kafka: Kafka = None,
    redis: Redis = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    as_json: AsJson = False,
) -> None:
    """Check Kafka, Redis, topics, the group, models, versions and clocks: each is ok, or says what to do."""
    settings = settings_of(config, kafka__bootstrap=kafka, redis__url=redis, schema=schema, artifacts=artifacts)
    _quiet()
    from stream import doctor as module

    raise typer.Exit(module.run(settings, schema_of(settings), as_json=as_json))


@app.command(name="schema")
def print_schema(config: Config = None, schema: SchemaFiles = None) -> None:
    """Print the JSON Schema of every message, by topic."""
    settings = settings_of(config, schema=schema)
    import json

    from stream.contract import json_schemas

    typer.echo(json.dumps(json_schemas(schema_of(settings), settings.topics), indent=2))


@app.command()
def repartition(
    source: Annotated[str, typer.Argument(help="The topic to read")],
    target: Annotated[str, typer.Argument(help="The topic to write; created if it is missing")],
    config: Config = None,
    kafka: Kafka = None,
    schema: SchemaFiles = None,
    kind: Annotated[
        Literal["transactions", "labels", "clicks"] | None,
        typer.Option(help="What the topic holds", show_default="by its name in the settings"),
    ] = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Partitions of the target", show_default="as set")
    ] = None,
) -> None:
    """Copy a topic, each record keyed and partitioned as the worker expects."""
    settings = settings_of(config, kafka__bootstrap=kafka, schema=schema)
    _quiet()
    from stream import repartition as module

    module.run(settings, schema_of(settings), source, target, kind=kind, partitions=partitions)


app.add_typer(looking_back)
app.add_typer(questions)
app.add_typer(beside)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
