"""What every row of the benchmark plays on: servers, real transactions, fitted models, filled topics.

In: a directory. Out: a :class:`Stage`. The Handbook's transactions are used where they lie beside the checkout, else
the simulator's. The first part of them trains the models and fills the state, the rest is sent to the topics, once:
every contender reads the same records. All servers listen on loopback and end with the benchmark.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic

from features.hashing import partitions_of
from features.schema import Schema, load_schema
from stream.connections import kafka_admin, kafka_producer, redis_client
from stream.embedded import Broker, RedisServer
from stream.offsets import offset_range
from stream.outbox import Outbox, Record, by_partition
from stream.processes import Child
from stream.settings import KafkaSettings, RedisSettings, TopicSettings
from stream.store import StateStore
from stream.timeline import build_timeline
from stream.topics import make_topics
from tests.servers import KafkaServer, kafka_libs
from trainer.fit import FitSettings, fit
from trainer.history import read_clicks, read_transactions
from trainer.simulator import simulate
from trainer.state import partition_states

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
DAY_MS = 86_400_000
LABEL_DELAY_MS = 7 * DAY_MS
TRAIN_ROWS = 500_000  # the models and the state begin with so many transactions
READY_S = 60.0
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Load:
    """Messages in the order in which they are sent: key, value, and the partition that the key belongs to."""

    keys: list[bytes]
    values: list[bytes]
    partitions: list[int]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(slots=True)
class Stage:
    """Running servers and what is played on them; ``source`` says where the transactions come from."""

    directory: Path
    kafka: KafkaSettings
    redis: RedisServer
    schema: Schema
    schema_files: tuple[Path, ...]
    artifacts: Path
    history: pa.Table
    load: Load
    clicks: Load
    source: str
    partitions: int = 4
    states: list[tuple[int, dict[bytes, bytes]]] = field(default_factory=list)

    def fresh(self, prefix: str) -> str:
        """A topic, group or namespace that nothing else uses."""
        return f"{prefix}-{next(_names)}"

    def topics(self, transactions: str, partitions: int | None = None, clicks: str = "") -> TopicSettings:
        """Topics around an input that exists or will; all outputs are new."""
        name, n = self.fresh("out"), partitions or self.partitions
        return TopicSettings(
            transactions=transactions, labels=f"{name}-labels", clicks=clicks or f"{name}-clicks",
            decisions=f"{name}-decisions", alerts=f"{name}-alerts", recommendations=f"{name}-recommendations",
            dead_letters=f"{name}-dead-letters", items=f"{name}-items", transaction_partitions=n, click_partitions=n,
        )  # fmt: skip

    async def create(self, *names: str, partitions: int | None = None) -> None:
        """Create topics whose records carry the moment at which the broker appended them."""
        count = partitions or self.partitions
        configs = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
        async with kafka_admin(self.kafka) as admin:
            await admin.create_topics([NewTopic(name, count, 1, topic_configs=configs) for name in names])
        await asyncio.sleep(0.3)

    async def create_around(self, topics: TopicSettings) -> None:
        """Create all topics but the input: labels, clicks and what a worker writes."""
        names = (topics.labels, topics.clicks, topics.decisions, topics.alerts, topics.recommendations,
                 topics.dead_letters)  # fmt: skip
        await self.create(*names, partitions=topics.transaction_partitions)
        async with kafka_admin(self.kafka) as admin:
            await make_topics(admin, {topics.items: topics.item_partitions}, topics)

    async def count(self, topic: str, partitions: int | None = None) -> int:
        """How many records a topic holds."""
        places = [TopicPartition(topic, p) for p in range(partitions or self.partitions)]
        return sum(end - first for first, end in (await offset_range(self.kafka, places)).values())

    async def fill(self, topic: str, load: Load, partitions: int) -> None:
        """Send everything, as fast as it goes."""
        producer = kafka_producer(self.kafka)
        await producer.start()
        try:
            outbox = Outbox(producer)
            places = partitions_of(load.keys, partitions).tolist()
            for at in range(0, len(load), 8192):
                part = slice(at, at + 8192)
                records = [Record(k, v) for k, v in zip(load.keys[part], load.values[part], strict=True)]
                for partition, mine in by_partition(records, places[part]).items():
                    await outbox.send(topic, partition, mine)
            await outbox.settle()
        finally:
            await producer.stop()

    async def begin_state(self, namespace: str, group: str, history: pa.Table | None = None) -> None:
        """Give a worker's namespace the state of a history (else of what trained), as ``headrace up`` does."""
        settings = RedisSettings(url=self.redis.url, namespace=namespace)
        client = redis_client(settings)
        try:
            store = StateStore(client, settings, group, "fraud")
            for partition, fields in self.history_states() if history is None else self._states(history):
                await store.begin_with(partition, fields)
        finally:
            await client.aclose()

    def _states(self, history: pa.Table) -> Iterator[tuple[int, dict[bytes, bytes]]]:
        for p, held in partition_states(history, self.schema.transactions, self.partitions):
            yield p, {f"{name}:{id_}".encode(): value for name, ids in held.items() for id_, value in ids.items()}

    def history_states(self) -> list[tuple[int, dict[bytes, bytes]]]:
        """The state of what trained, by partition."""
        self.states = self.states or list(self._states(self.history))
        return self.states

    def worker(self, topics: TopicSettings, namespace: str, extra: Mapping[str, str] | None = None) -> Child:
        """A worker as a user runs it; start and stop are the caller's."""
        ours = {
            "KAFKA_BOOTSTRAP": self.kafka.bootstrap,
            "KAFKA_IDEMPOTENCE": "true" if self.kafka.idempotence else "false",
            "REDIS_URL": self.redis.url,
            "REDIS_NAMESPACE": namespace,
            "WORKER_GROUP": namespace,
            "WORKER_METRICS_PORT": "0",
            "WORKER_AHEAD_MAX_S": "31536000",
            "WORKER_SESSION_TIMEOUT_S": "30",
            "ARTIFACTS": str(self.artifacts),
            "SCHEMA": os.pathsep.join(map(str, self.schema_files)),
            **{f"TOPICS_{name.upper()}": str(getattr(topics, name) or "") for name in topics.__slots__},
            **(extra or {}),
        }
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **{f"HEADRACE_{k}": v for k, v in ours.items() if v}}
        return self.child("worker", ["-m", "stream.cli", "worker"], environment)

    def child(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """A Python process of the benchmark in a folder of its own."""
        env = {**os.environ, "PYTHONPATH": str(ROOT)} if environment is None else environment
        return Child(name, [sys.executable, *arguments], self.directory / self.fresh(name), env=env)


def _transactions(schema_files: tuple[Path, ...], directory: Path, rows: int) -> tuple[pa.Table, Schema, str]:
    """Transactions in order of time: the Handbook's where they are, else simulated ones."""
    schema = load_schema(schema_files)
    handbook = DATA / "handbook" / "transactions.parquet"
    if handbook.exists():
        return read_transactions(handbook, schema.transactions, LABEL_DELAY_MS).slice(0, rows), schema, "Handbook"
    files = simulate(directory / "world", cards=5000, merchants=10_000, days=max(rows // 9000, 30))
    return (
        read_transactions(files.transactions, schema.transactions, LABEL_DELAY_MS).slice(0, rows),
        schema,
        "simulator",
    )


def loads(schema: Schema, transactions: pa.Table | None, clicks: pa.Table | None, partitions: int) -> Load:
    timeline = build_timeline(schema, TopicSettings(), transactions=transactions, clicks=clicks)
    keys: list[bytes] = []
    values: list[bytes] = []
    feed = timeline.feeds[0]
    for start in range(0, len(feed.times), 65_536):
        for key, value in feed.messages(start, min(start + 65_536, len(feed.times))):
            keys.append(key)
            values.append(value)
    return Load(keys, values, partitions_of(keys, partitions).tolist())


@contextmanager
def stage(directory: Path, *, rows: int, embedded: bool = False, partitions: int = 4) -> Iterator[Stage]:
    """Start the servers, fit the models, prepare ``rows`` transactions to send; stop everything at the end."""
    schema_files = (ROOT / "examples" / "handbook.toml",) if (DATA / "handbook").exists() else ()
    table, schema, source = _transactions(schema_files, directory, TRAIN_ROWS + rows)
    history, live = table.slice(0, TRAIN_ROWS), table.slice(TRAIN_ROWS)
    world = simulate(directory / "clicks-world", days=20, sessions_per_day=2000.0, items=5000)
    clicks = read_clicks(world.clicks, schema.clicks)
    cut = clicks.num_rows * 3 // 4
    as_of_ms = int(live[schema.transactions.time][0].as_py())
    clicks_as_of_ms = int(clicks["event_time"][cut].as_py())
    artifacts = directory / "artifacts"
    fit(history, clicks.slice(0, cut), schema, artifacts, as_of_ms=as_of_ms, created_ms=as_of_ms,
        clicks_as_of_ms=clicks_as_of_ms, settings=FitSettings(threads=1))  # fmt: skip
    with ExitStack() as stack:
        system = shutil.which("redis-server")
        redis = RedisServer(directory / "redis", binary=Path(system) if system and not embedded else None)
        broker = Broker(directory / "broker") if embedded else KafkaServer(directory / "kafka", kafka_libs())
        for server in (redis, broker):
            server.start()
            stack.callback(server.stop)
        yield Stage(
            directory, KafkaSettings(bootstrap=broker.bootstrap, idempotence=not embedded), redis, schema,
            schema_files, artifacts, history, loads(schema, live, None, partitions),
            loads(schema, None, clicks.slice(cut), partitions), source, partitions,
        )  # fmt: skip


def median(values: Sequence[float]) -> float:
    """The middle one; of an even number, the mean of the two."""
    return float(np.median(values))
