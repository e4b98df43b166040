"""Real workers under test: how to start one, feed it, read what it said, and fold its inputs again on the side."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiokafka import TopicPartition
from numpy.typing import NDArray
from redis import Redis
from redis.cluster import RedisCluster

from features import engine
from features.catalogue import build_catalogue
from features.codec import encode_rows
from features.decode import LabelDecoder, Limits, TransactionDecoder
from features.engine import Operations, Rows
from features.hashing import hash_strings
from features.kernel import LABEL, TRANSACTION
from features.messages import ACTIONS
from features.schema import Schema
from stream.connections import kafka_consumer
from stream.offsets import offset_range
from stream.processes import Child
from stream.replay import Sent, replay_timeline
from stream.settings import KafkaSettings, TopicSettings
from stream.timeline import Timeline
from stream.topics import create_topics
from tests.servers import RunningBroker, fresh_name

ROOT = Path(__file__).parents[1]
SESSION_TIMEOUT_S = 2.0
WAIT_S = 60.0


@dataclass(slots=True)
class Deployment:
    """Topics, group and state of one test, on servers that are shared."""

    broker: RunningBroker
    redis_url: str
    schema: Schema
    artifacts: Path
    directory: Path
    partitions: int = 4
    schema_files: tuple[Path, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    module: str = "stream.cli"
    name: str = field(default_factory=lambda: fresh_name("worker"))

    @property
    def kafka(self) -> KafkaSettings:
        """How the test itself reaches Kafka."""
        return KafkaSettings(bootstrap=self.broker.bootstrap, idempotence=self.broker.idempotence)

    @property
    def topics(self) -> TopicSettings:
        """Topics that no other test uses."""
        names = ("transactions", "labels", "clicks", "items", "decisions", "alerts", "recommendations", "dead_letters")
        named: dict[str, Any] = {name: f"{self.name}-{name}" for name in names}
        # Records carry times of years ago: the broker looks every five minutes for what is past its retention.
        return TopicSettings(**named, transaction_partitions=self.partitions, click_partitions=self.partitions,
                             retention_hours=1_000_000)  # fmt: skip

    def environment(self) -> dict[str, str]:
        """The settings of a worker as environment variables."""
        topics = self.topics
        ours = {
            "KAFKA_BOOTSTRAP": self.broker.bootstrap,
            "KAFKA_IDEMPOTENCE": "true" if self.broker.idempotence else "false",
            "REDIS_URL": self.redis_url,
            "REDIS_NAMESPACE": self.name,
            "WORKER_GROUP": self.name,
            "WORKER_METRICS_PORT": "0",
            "WORKER_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
            "WORKER_MODEL_POLL_S": "0.3",
            "ARTIFACTS": str(self.artifacts),
            "SCHEMA": os.pathsep.join(map(str, self.schema_files)),
            **{f"TOPICS_{name.upper()}": str(getattr(topics, name) or "") for name in topics.__slots__},
            **self.extra,
        }
        return {**os.environ, "PYTHONPATH": str(ROOT), **{f"HEADRACE_{k}": v for k, v in ours.items() if v}}

    def create(self) -> None:
        """Create the topics."""
        asyncio.run(create_topics(self.kafka, self.topics))

    def worker(self, number: int = 1) -> Child:
        """A worker process, not started yet."""
        folder = self.directory / f"worker-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", self.module, "worker"]
        return Child("worker", command, folder, env=self.environment())

    def started(self, number: int = 1) -> Child:
        """A worker that has its partitions."""
        worker = self.worker(number)
        worker.start()
        worker.wait_until(lambda: any(" reading " in line for line in worker.log_tail(50)), timeout_s=WAIT_S)
        return worker

    def replay(self, timeline: Timeline, **how: Any) -> Sent:
        """Send a timeline."""
        return asyncio.run(replay_timeline(self.kafka, timeline, **how))

    def read(self, topic: str) -> list[Any]:
        """All records of a topic, by partition and offset."""
        return asyncio.run(_read(self.kafka, topic))

    def decoded(self, topic: str) -> list[dict[str, Any]]:
        """All messages of a topic."""
        return [msgspec.json.decode(record.value) for record in self.read(topic)]

    def wait_for(self, counts: Mapping[str, int], timeout_s: float = WAIT_S) -> None:
        """Wait until topics hold at least so many records."""
        wait_until(lambda: all(self.count(topic) >= n for topic, n in counts.items()), f"{counts}", timeout_s)

    def count(self, topic: str) -> int:
        """How many records a topic holds."""
        partitions = self.topics.partitions()[topic]
        places = [TopicPartition(topic, p) for p in range(partitions)]
        return sum(end for _, end in asyncio.run(offset_range(self.kafka, places)).values())

    def _redis(self) -> Redis | RedisCluster:
        kind: type[Redis] | type[RedisCluster] = RedisCluster if self.extra.get("REDIS_CLUSTER") == "true" else Redis
        return kind.from_url(self.redis_url)

    def state(self, lane: str = "fraud") -> dict[int, dict[bytes, bytes]]:
        """The entities' fields in Redis by partition; what begins with @ (head, alert budget) is left out."""
        with self._redis() as redis:
            found = {}
            for partition in range(self.partitions):
                fields: Any = redis.hgetall(f"{self.name}:{{{self.name}:{lane}:{partition}}}")
                found[partition] = {name: value for name, value in fields.items() if not name.startswith(b"@")}
            return found

    def applied(self, lane: str = "fraud") -> dict[int, dict[str, int]]:
        """The applied offsets in Redis by partition."""
        with self._redis() as redis:
            heads = {p: redis.hget(f"{self.name}:{{{self.name}:{lane}:{p}}}", "@") for p in range(self.partitions)}
            return {p: msgspec.json.decode(head)["offsets"] for p, head in heads.items() if isinstance(head, bytes)}


async def _read(kafka: KafkaSettings, topic: str) -> list[Any]:
    consumer = kafka_consumer(kafka)
    await consumer.start()
    try:
        partitions = sorted(await consumer._client._wait_on_metadata(topic) or ())
        ranges = await offset_range(kafka, [TopicPartition(topic, p) for p in partitions])
        filled = {place: end for place, (first, end) in ranges.items() if first < end}
        found: list[Any] = []
        consumer.assign(list(filled))
        for place in filled:
            consumer.seek(place, ranges[place][0])
        while filled:
            for place, records in (await consumer.getmany(*filled, timeout_ms=200)).items():
                found += records
                if records[-1].offset + 1 >= filled[place]:
                    del filled[place]
        return sorted(found, key=lambda record: (record.partition, record.offset))
    finally:
        await consumer.stop()


def wait_until(done: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for a condition, or fail naming it."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)


@dataclass(slots=True)
class Refolded:
    """What folding the inputs of a partition again gives: vectors by source, and the state's fields."""

    vectors: dict[str, NDArray[np.float64]]
    state: dict[bytes, bytes]


def refold(deployment: Deployment, partition: int, decisions: Mapping[str, dict[str, Any]],
           transactions: Iterable[Any], labels: Iterable[Any]) -> Refolded:  # fmt: skip
    """Fold one partition's good inputs in the order that the decisions recorded, in one batch and a fresh state."""
    schema = deployment.schema.transactions
    catalogue = build_catalogue(schema)
    of_transactions = [r for r in transactions if r.partition == partition]
    of_labels = [r for r in labels if r.partition == partition]
    limits = Limits()
    batch = TransactionDecoder(schema, limits).decode([r.value for r in of_transactions],
                                                      [r.timestamp for r in of_transactions])  # fmt: skip
    verdicts = LabelDecoder(schema, limits).decode([r.value for r in of_labels], [r.timestamp for r in of_labels])
    sources = [f"{deployment.topics.transactions}:{partition}:{of_transactions[row].offset}" for row in batch.rows]
    order: list[tuple[int, int]] = []
    waiting = [(of_labels[row].offset, i) for i, row in enumerate(verdicts.rows)]
    for i, source in enumerate(sources):
        while waiting and waiting[0][0] < decisions[source]["label_position"]:
            order.append((LABEL, waiting.pop(0)[1]))
        order.append((TRANSACTION, i))
    order += [(LABEL, i) for _, i in waiting]
    tables = tuple(Rows(layout) for layout in catalogue.layouts)
    rows: list[dict[str, int]] = [{} for _ in tables]
    slots = np.zeros((len(order), len(tables)), np.int64)
    sides = {TRANSACTION: batch, LABEL: verdicts}
    ids = [[sides[kind].entities[e][i] for kind, i in order] for e in range(len(tables))]
    for e, table in enumerate(tables):
        for n, id_ in enumerate(ids[e]):
            if id_ not in rows[e]:
                rows[e][id_] = table.take()
            slots[n, e] = rows[e][id_]
    pick = [sides[kind] for kind, _ in order]
    at = [i for _, i in order]
    operations = Operations(
        kind=np.array([kind for kind, _ in order], np.int8),
        time=np.array([b.time[i] for b, i in zip(pick, at, strict=True)], np.int64),
        event_hash=hash_strings([b.event_id[i] for b, i in zip(pick, at, strict=True)]).view(np.int64),
        values=np.array([b.values[i] for b, i in zip(pick, at, strict=True)]).reshape(len(order), len(schema.numeric)),
        categories=np.array([b.categories[i] for b, i in zip(pick, at, strict=True)]).reshape(
            len(order), len(schema.categorical)
        ),
        fraud=np.array([b.fraud[i] for b, i in zip(pick, at, strict=True)], np.int8),
        entity_hash=np.stack([hash_strings(column).view(np.int64) for column in ids], axis=1),
        slots=slots,
        views=slots,
    )
    folded = engine.fold(catalogue, tables, operations)
    score, anomaly, action = np.zeros(len(order)), np.zeros(len(order)), np.zeros(len(order), np.int8)
    vectors = {}
    for n, (kind, i) in enumerate(order):
        if kind == TRANSACTION:
            decision = decisions[sources[i]]
            score[n], anomaly[n] = decision["score"], decision["anomaly"]
            action[n] = ACTIONS.index(decision["action"])
            vectors[sources[i]] = folded.x[n]
    engine.remember(catalogue, tables, operations, folded, score, anomaly, action)
    state: dict[bytes, bytes] = {}
    for table, found in zip(tables, rows, strict=True):
        values = encode_rows(table.layout, np.array(list(found.values()), np.int64), table.ints, table.floats)
        name = table.layout.entity.name.encode()
        state |= {name + b":" + id_.encode(): value for id_, value in zip(found, values, strict=True)}
    return Refolded(vectors, state)


def assert_state_is_exact(deployment: Deployment, decisions: Mapping[str, dict[str, Any]]) -> None:
    """Redis holds exactly what folding all inputs once gives, entity by entity, byte by byte."""
    transactions, labels = deployment.read(deployment.topics.transactions), deployment.read(deployment.topics.labels)
    held = deployment.state()
    for partition in range(deployment.partitions):
        expected = refold(deployment, partition, decisions, transactions, labels).state
        assert held[partition].keys() == expected.keys()
        other = {name: (held[partition][name].hex(), value.hex()) for name, value in expected.items()
                 if held[partition][name] != value}  # fmt: skip
        assert not other, f"partition {partition}: {len(other)} of {len(expected)}, held and expected: {other}"[:20_000]


def by_source(messages: Iterable[dict[str, Any]], name: str = "decision_id") -> dict[str, dict[str, Any]]:
    """Messages by the id of their source; a source that has two different messages fails."""
    found: dict[str, dict[str, Any]] = {}
    for message in messages:
        assert found.setdefault(message[name], message) == message
    return found
