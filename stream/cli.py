"""The command ``headrace``: flags to settings, then one call into the module that does the work.

In: the command line, ``headrace.toml`` and the environment. Out: an exit code: 0 done, 1 a check failed, 2 refused
with one line per problem, 130 interrupted. Modules are imported by the command that needs them, so that ``--help``
answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperGroup

from features.errors import HeadraceError, SettingsError
from stream.backtest_command import backtest_app
from stream.processes import ONE_THREAD
from stream.settings import Settings, load_settings, named_settings

if TYPE_CHECKING:
    from features.schema import Schema

_CONFIG = Path("headrace.toml")
_STATE = Path(".headrace")
_DEMO_EVERY_S = 8.0  # so that half a minute shows three versions


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
Seed = Annotated[int | None, typer.Option(help="Seed of everything random")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output")]
Rate = Annotated[float, typer.Option(min=0.001, help="Messages per second")]
Malformed = Annotated[float, typer.Option(min=0, max=1, help="Share of broken messages to mix in")]


def _every(text: str | float) -> float:
    """Seconds of ``--every 15m``; a default is a number already."""
    from features.schema import parse_duration_ms

    if isinstance(text, float):
        return text
    try:
        return parse_duration_ms(text) / 1000
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Every = Annotated[float | None, typer.Option(parser=_every, metavar="DURATION", help="Time between refits: 15m, 30s")]


def _sources(config: Path | None, flags: Mapping[str, object]) -> tuple[Path | None, dict[str, object]]:
    """The settings file, and the flags by dotted name."""
    file = _CONFIG if config is None and _CONFIG.is_file() else config
    return file, {name.replace("__", "."): (value or None) if name == "schema" else value
                  for name, value in flags.items()}  # fmt: skip


def _load(config: Path | None, defaults: Mapping[str, object] | None = None, **flags: object) -> Settings:
    file, overrides = _sources(config, flags)
    try:
        return load_settings(file, os.environ, overrides, defaults)
    except SettingsError as error:
        from features.schema import load_schema

        try:  # what is wrong with the schema is told together with the rest
            load_schema(cast("list[Path]", flags.get("schema") or []))
        except SettingsError as more:
            raise SettingsError([*error.problems, *more.problems]) from None
        raise


def _schema(settings: Settings) -> Schema:
    from features.schema import load_schema

    return load_schema(settings.schema)


def settings_and_schema(config: Path | None, **flags: object) -> tuple[Settings, Schema]:
    """For commands that stand in files of their own."""
    settings = _load(config, None, **flags)
    return settings, _schema(settings)


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
        typer.Option(parser=_every, metavar="DURATION", help="Time between refits: 15m, 30s", show_default="8s"),
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
    settings = _load(config, {"trainer.every_s": _DEMO_EVERY_S, "worker.metrics_port": 0}, **flags)
    file, overrides = _sources(config, flags)
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
    raise typer.Exit(module.run(settings, _schema(settings), options, state_dir, os.environ))


@app.command()
def train(
    config: Config = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    transactions: TransactionsFile = None,
    clicks: ClicksFile = None,
    seed: Seed = None,
) -> None:
    """Fit models on history files once and publish them."""
    settings = _load(
        config,
        schema=schema,
        artifacts=artifacts,
        trainer__transactions=transactions,
        trainer__clicks=clicks,
        trainer__seed=seed,
    )
    import_module("stream.training").run_once(settings, _schema(settings))


@app.command()
def trainer(
    config: Config = None,
    kafka: Kafka = None,
    schema: SchemaFiles = None,
    artifacts: Artifacts = None,
    transactions: TransactionsFile = None,
    clicks: ClicksFile = None,
    every: Every = None,
    seed: Seed = None,
) -> None:
    """Refit again and again on history files and what the topics have brought since, and publish each version."""
    settings = _load(
        config,
        kafka__bootstrap=kafka,
        schema=schema,
        artifacts=artifacts,
        trainer__transactions=transactions,
        trainer__clicks=clicks,
        trainer__every_s=every,
        trainer__seed=seed,
    )
    import_module("stream.training").run_forever(settings, _schema(settings))


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
    settings = _load(
        config,
        kafka__bootstrap=kafka,
        redis__url=redis,
        schema=schema,
        artifacts=artifacts,
        worker__metrics_port=metrics_port,
    )
    from stream import worker as module

    module.log_to_stderr()
    module.run(settings, _schema(settings))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="History: Parquet, CSV or TSV")],
    to: Annotated[Literal["transactions", "labels", "clicks"], typer.Option(help="The topic to send to")],
    config: Config = None,
    kafka: Kafka = None,
    schema: SchemaFiles = None,
    rate: Rate = 1000.0,
    fast: Annotated[bool, typer.Option("--fast", help="As fast as possible instead of --rate")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Send only the first N messages")] = None,
    malformed: Malformed = 0.0,
    seed: Seed = None,
) -> None:
    """Send a history file to a topic, keyed as the worker expects."""
    settings = _load(config, kafka__bootstrap=kafka, schema=schema, trainer__seed=seed)
    _quiet()
    from stream import replay as module

    timeline = module.read_timeline(settings, _schema(settings), file, to).first(limit)
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
    settings = _load(config, kafka__bootstrap=kafka)
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
    settings = _load(config, kafka__bootstrap=kafka)
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
    settings = _load(config, kafka__bootstrap=kafka, redis__url=redis, schema=schema, artifacts=artifacts)
    _quiet()
    from stream import doctor as module

    raise typer.Exit(module.run(settings, _schema(settings), as_json=as_json))


@app.command(name="schema")
def print_schema(config: Config = None, schema: SchemaFiles = None) -> None:
    """Print the JSON Schema of every message, by topic."""
    settings = _load(config, schema=schema)
    import json

    from stream.contract import json_schemas

    typer.echo(json.dumps(json_schemas(_schema(settings), settings.topics), indent=2))


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
    settings = _load(config, kafka__bootstrap=kafka, schema=schema)
    _quiet()
    from stream import repartition as module

    module.run(settings, _schema(settings), source, target, kind=kind, partitions=partitions)


app.add_typer(backtest_app, name="backtest")


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
