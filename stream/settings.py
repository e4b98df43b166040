"""Every setting of Headrace: frozen values, built once at each entry point and passed down.

In: ``headrace.toml``, the environment and command-line flags; flags win over the environment, the environment over
the file, the file over the defaults below. Out: :class:`Settings`, or one :class:`SettingsError` with every problem.

The environment variable of ``section.field`` is ``HEADRACE_SECTION_FIELD`` (``HEADRACE_KAFKA_BOOTSTRAP``); lists are
separated as ``PATH`` is. ``examples/headrace.example.toml`` explains each setting. A relative path in the file is
relative to the file. Secrets are in no ``repr`` and in no error text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from msgspec import Meta

from features.errors import SettingsError
from features.messages import Action
from stream import policy_settings
from stream.ab_settings import AbSettings
from stream.settings_reader import Check, Reader, Secret

FLAGS = {
    "kafka.bootstrap": "--kafka",
    "redis.url": "--redis",
    "schema": "--schema",
    "artifacts": "--artifacts",
    "trainer.every_s": "--every",
    "trainer.transactions": "--transactions",
    "trainer.clicks": "--clicks",
    "trainer.seed": "--seed",
    "worker.metrics_port": "--metrics-port",
    "archive.url": "--archive",
    "archive.metrics_port": "--metrics-port",
}


def _is_bootstrap(text: str) -> bool:
    matches = [re.fullmatch(r"\s*(?:\[[0-9A-Fa-f:]+\]|[^\s:,/@]+):(\d{1,5})\s*", part) for part in text.split(",")]
    return all(match is not None and 1 <= int(match[1]) <= 65535 for match in matches)


def _is_redis_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme == "unix":
        return bool(parts.path)
    database = parts.path.strip("/")
    return (
        parts.scheme in ("redis", "rediss")
        and bool(parts.hostname)
        and port != 0
        and (not database or database.isdecimal())
    )


def _is_topic(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9._-]{1,249}", text) is not None and text not in (".", "..")


_EVENTS_EACH = 256  # of a partition in a cycle, from which on a write for each costs little
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Partitions = Annotated[int, Meta(ge=1, le=1024)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Milliseconds = Annotated[int, Meta(ge=0, le=86_400_000)]
Cost = Annotated[float, Meta(gt=0, le=1e12)]
CASES_MAX = 1_000_000  # cards of a day that an alert budget remembers
Probability = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(min_length=1)]
SecretText = Annotated[str, Secret()]
Bootstrap = Annotated[str, Check(_is_bootstrap, "HOST:PORT, or several with commas between them")]
RedisUrl = Annotated[
    str, Secret(), Check(_is_redis_url, "redis://HOST:PORT/DATABASE, rediss://... for TLS, or unix:///PATH")
]
TopicName = Annotated[str, Check(_is_topic, "1 to 249 letters, digits, '.', '_' or '-'")]
ArchiveUrl = Annotated[str, Check(lambda t: re.match(r"[a-z][a-z0-9+.-]*://.|/", t) is not None,
                                  "a URL (file:///DIRECTORY, s3://BUCKET/PREFIX) or an absolute path")]  # fmt: skip
Namespace = Annotated[str, Check(lambda t: re.fullmatch(r"[A-Za-z0-9._-]{1,64}", t) is not None,
                                 "1 to 64 letters, digits, '.', '_' or '-'")]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """How to reach Kafka."""

    bootstrap: Bootstrap = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretText | None = field(default=None, repr=False)
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    idempotence: bool = True
    request_timeout_s: Seconds = 30.0
    batch_bytes_max: Annotated[int, Meta(ge=65_536, le=2**31 - 1)] = 33_554_432


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """How to reach Redis. A user and password inside ``url`` are moved to their fields, and win over them."""

    url: RedisUrl = "redis://127.0.0.1:6379/0"
    username: str | None = None
    password: SecretText | None = field(default=None, repr=False)
    ssl_cafile: Path | None = None
    cluster: bool = False
    namespace: Namespace = "headrace"
    timeout_s: Seconds = 5.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        query = dict(parse_qsl(parts.query))
        username = query.pop("username", None) or unquote(parts.username or "") or self.username
        password = query.pop("password", None) or unquote(parts.password or "") or self.password
        netloc = parts.netloc.rpartition("@")[2]
        url = urlunsplit((parts.scheme, netloc, parts.path, urlencode(query), ""))
        if parts.scheme == "unix":  # urlunsplit drops the empty host's slashes
            url = f"unix://{parts.path}" + (f"?{urlencode(query)}" if query else "")
        for name, value in (("url", url), ("username", username), ("password", password)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings:
    """Topic names and shapes. Labels, decisions and alerts have as many partitions as transactions have."""

    transactions: TopicName = "transactions"
    labels: TopicName = "labels"
    clicks: TopicName = "clicks"
    items: TopicName = "items"
    decisions: TopicName = "decisions"
    alerts: TopicName = "alerts"
    recommendations: TopicName = "recommendations"
    dead_letters: TopicName = "dead-letters"
    lists: TopicName | None = None
    transaction_partitions: Partitions = 4
    click_partitions: Partitions = 4
    item_partitions: Partitions = 1
    replication: Annotated[int, Meta(ge=1, le=100)] = 1
    retention_hours: Annotated[int, Meta(ge=1, le=1_000_000)] = 168

    def partitions(self) -> dict[str, int]:
        """Partitions by topic name, in the order of the contract."""
        per_card, per_user = self.transaction_partitions, self.click_partitions
        return {
            self.transactions: per_card,
            self.labels: per_card,
            self.clicks: per_user,
            self.items: self.item_partitions,
            self.decisions: per_card,
            self.alerts: per_card,
            self.recommendations: per_user,
            self.dead_letters: max(per_card, per_user),
            **({} if self.lists is None else {self.lists: 1}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How a worker reads, decides and writes."""

    group: Text = "headrace"
    fetch_max_wait_ms: Milliseconds = 5
    fetch_bytes_max: Annotated[int, Meta(ge=65_536, le=2**30)] = 524_288
    cycle_events_max: Annotated[int, Meta(ge=1, le=100_000)] = 4096
    cycles_in_flight: Annotated[int, Meta(ge=1, le=64)] = 8
    cache_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 112
    cache_sessions: Count = 50_000
    foreign_refresh_ms: Milliseconds = 1000
    drain_deadline_s: Seconds = 10.0
    metrics_host: Text = "127.0.0.1"
    metrics_port: Port = 9464
    accept_mispartitioned: bool = False
    vector_log: Path | None = None
    vector_sample: Probability = 0.0
    review_score: Probability | None = None
    block_score: Probability | None = None
    reasons_share: Probability = 0.1
    rules: Path | None = None
    without_model: Literal["wait", "rules"] = "wait"
    score_deadline_ms: Annotated[float, Meta(gt=0, le=86_400_000)] | None = None
    anomaly_review: Probability = 0.995
    default_action: Action = "allow"
    cases_per_day: Annotated[int, Meta(ge=1, le=CASES_MAX)] | None = None
    cost_review: Cost | None = None
    cost_block: Cost | None = None
    cost_recovered: Annotated[float, Meta(gt=0, le=1)] = 1.0
    cost_amount: Text | None = None
    recommendations_k: Annotated[int, Meta(ge=1, le=1000)] = 20
    message_bytes_max: Annotated[int, Meta(ge=1024, le=2**28)] = 1_000_000
    ahead_max_s: Seconds = 3600.0
    model_poll_s: Seconds = 1.0
    map_models: bool = False
    session_days: Annotated[float, Meta(gt=0, le=3650)] = 30.0
    session_clicks_max: Count = 500
    user_days: Annotated[float, Meta(gt=0, le=3650)] = 365.0
    repeat_buying: bool = True
    list_ttl_s: Annotated[int, Meta(ge=0, le=31_536_000)] = 600
    online_learning: bool = True
    online_half_life_s: Seconds = 1800.0
    degrade: bool = True
    answer_deadline_ms: Annotated[int, Meta(ge=1, le=86_400_000)] = 100
    viewed_item: Literal["auto", "hide", "show"] = "auto"
    unlisted_items: Literal["hide", "show"] = "hide"
    levers: Path | None = None
    sweep_every_s: Seconds = 3600.0
    session_timeout_s: Annotated[float, Meta(ge=1, le=1800)] = 10.0

    def cycle_events(self, partitions: int) -> int:
        """How many records are collected for one cycle while the one before is computed.

        With a backlog in many partitions up to twice ``cycle_events_max``: each partition costs the broker and Redis a
        write of its own, however few its records are.
        """
        return min(max(_EVENTS_EACH * partitions, self.cycle_events_max), 2 * self.cycle_events_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How models are refitted."""

    every_s: Seconds = 900.0
    label_delay_days: Annotated[float, Meta(ge=0, le=365)] = 7.0
    train_days: Annotated[float, Meta(gt=0, le=36_500)] | None = None
    rows_max: Count = 1_000_000
    ranker_queries: Annotated[int, Meta(ge=0, le=100_000_000)] = 132_000
    transactions: Path | None = None
    clicks: Path | None = None
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FraudModelSettings:
    """Hyper-parameters of the fraud model, see :class:`trainer.fraud.FraudSettings`; ``headrace tune`` writes them."""

    trees: Annotated[int, Meta(ge=1, le=10_000)] = 100
    leaves: Annotated[int, Meta(ge=2, le=1024)] = 8
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.05
    bins: Annotated[int, Meta(ge=15, le=65_535)] = 4095
    leaf_rows: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    l2: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    feature_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    row_share: Annotated[float, Meta(gt=0, le=1)] = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSettings:
    """Where the archive lies (None: there is none), and how it is written."""

    url: ArchiveUrl | None = None
    every_s: Seconds = 60.0
    rows_max: Count = 100_000
    compact_files: Annotated[int, Meta(ge=2, le=1_000_000)] = 16
    compact_mb: Annotated[int, Meta(ge=1, le=10_000)] = 32
    care_every_s: Seconds = 600.0
    retention_days: Annotated[float, Meta(gt=0, le=36_500)] | None = None
    metrics_port: Port = 9465


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one process. ``schema`` holds the files laid over the shipped schema, in order."""

    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)
    topics: TopicSettings = field(default_factory=TopicSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    fraud_model: FraudModelSettings = field(default_factory=FraudModelSettings)
    archive: ArchiveSettings = field(default_factory=ArchiveSettings)
    ab: AbSettings = field(default_factory=AbSettings)
    schema: tuple[Path, ...] = ()
    artifacts: Path = Path(".headrace/artifacts")


def load_settings(
    path: Path | None,
    environment: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Settings:
    """Settings from a TOML file, the environment and flags.

    Parameters
    ----------
    path : Path or None
        The TOML file; None for none.
    environment : mapping
        Usually ``os.environ``; only ``HEADRACE_*`` is looked at.
    overrides : mapping
        Flags by dotted name (``{"kafka.bootstrap": "broker:9092"}``); None means that the flag was not given.
    defaults : mapping
        What a command takes instead of the defaults above where nobody names a setting.

    Raises
    ------
    SettingsError
        With every problem found: the setting, where its value came from, the value, and what was expected.
    """
    reader = Reader(Settings, FLAGS)
    reader.read_flags(defaults or {})
    _read(reader, path, environment, overrides)
    values = reader.values()
    settings = _build(values, path.parent if path is not None else Path())
    if problems := [*reader.problems, *_contradictions(settings)]:
        raise SettingsError(problems)
    return settings


def named_settings(
    path: Path | None, environment: Mapping[str, str], overrides: Mapping[str, object] | None = None
) -> frozenset[str]:
    """The dotted names of the settings that file, environment or flags name, whatever their values."""
    reader = Reader(Settings, FLAGS)
    _read(reader, path, environment, overrides)
    return frozenset(reader.given)


def _read(
    reader: Reader, path: Path | None, environment: Mapping[str, str], overrides: Mapping[str, object] | None
) -> None:
    if path is not None:
        reader.read_file(path)
    reader.read_environment(environment)
    reader.read_flags(overrides or {})


def _build(values: Mapping[str, Any], base: Path) -> Settings:
    tree: dict[str, dict[str, Any]] = {}
    top = {name: value for name, value in values.items() if "." not in name}
    for name, value in values.items():
        section, _, inner = name.partition(".")
        if inner:
            tree.setdefault(section, {})[inner] = value
    return Settings(
        kafka=KafkaSettings(**tree.get("kafka", {})),
        redis=RedisSettings(**tree.get("redis", {})),
        topics=TopicSettings(**tree.get("topics", {})),
        worker=WorkerSettings(**tree.get("worker", {})),
        trainer=TrainerSettings(**tree.get("trainer", {})),
        fraud_model=FraudModelSettings(**tree.get("fraud_model", {})),
        archive=ArchiveSettings(**tree.get("archive", {})),
        ab=AbSettings(**tree.get("ab", {})),
        **({"artifacts": base / Settings().artifacts} | top),
    )


def _contradictions(settings: Settings) -> Iterator[str]:
    """What no single setting shows: settings that do not go together, files that are not there."""
    kafka, worker, names = settings.kafka, settings.worker, settings.topics
    if kafka.security_protocol.startswith("SASL") and not (kafka.sasl_username and kafka.sasl_password):
        yield (
            f"kafka.security_protocol = {kafka.security_protocol!r}: expected kafka.sasl_username and "
            "kafka.sasl_password too"
        )
    if kafka.ssl_keyfile and not kafka.ssl_certfile:
        yield "kafka.ssl_keyfile: expected kafka.ssl_certfile too"
    for name, file in (
        ("kafka.ssl_cafile", kafka.ssl_cafile),
        ("kafka.ssl_certfile", kafka.ssl_certfile),
        ("kafka.ssl_keyfile", kafka.ssl_keyfile),
        ("redis.ssl_cafile", settings.redis.ssl_cafile),
    ):
        if file is not None and not file.is_file():
            yield f"{name} = '{file}': expected a PEM file; there is none"
    redis = urlsplit(settings.redis.url)
    database = dict(parse_qsl(redis.query)).get("db") or redis.path.strip("/") or "0"
    if settings.redis.cluster and (redis.scheme == "unix" or database != "0"):
        yield (
            f"redis.cluster = true: expected redis.url = 'redis://HOST:PORT' of one of its nodes, not "
            f"'{settings.redis.url}'; a cluster has no sockets and only database 0"
        )
    if kafka.batch_bytes_max < worker.message_bytes_max:
        yield (
            f"kafka.batch_bytes_max = {kafka.batch_bytes_max}: expected at least worker.message_bytes_max = "
            f"{worker.message_bytes_max}; a batch holds whole messages"
        )
    if len(names.partitions()) < 8 + (names.lists is not None):
        yield "topics: expected different names; each topic has one kind of message"
    if worker.review_score is not None and worker.block_score is not None and worker.review_score > worker.block_score:
        yield f"worker.review_score = {worker.review_score}: expected at most worker.block_score = {worker.block_score}"
    yield from policy_settings.contradictions(worker)
