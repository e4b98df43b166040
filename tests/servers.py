"""Servers and topics for the tests: Apache Kafka as a Maven dependency, and helpers to fill and read topics."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import ConsumerRecord

from stream.embedded import LOOPBACK, free_port, kafka_answers
from stream.processes import Child

KAFKA_VERSION = "4.3.1"
_JAVA_MIN = 17
_CLUSTER_ID = "aGVhZHJhY2UtdGVzdHMtMQ"  # 16 bytes in base64, as Kafka wants it
_names = itertools.count(1)

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>headrace</groupId><artifactId>test-kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


class Unavailable(Exception):
    """A server that this machine cannot run; the text is the reason of the skip."""


class RunningBroker(NamedTuple):
    """A broker under test: which one, where, and whether it takes idempotent producers."""

    kind: str
    bootstrap: str
    idempotence: bool


def fresh_name(prefix: str) -> str:
    """A topic, group or namespace that no other test uses."""
    return f"{prefix}-{next(_names)}-{uuid.uuid4().hex[:8]}"


def java_binary() -> str:
    """The Java that can run Kafka 4: version 17 or later.

    Raises
    ------
    Unavailable
        If there is none.
    """
    java = shutil.which("java")
    if java is None:
        raise Unavailable("no java on PATH; real Kafka needs Java 17")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < _JAVA_MIN:
        raise Unavailable(f"{java} is not Java {_JAVA_MIN} or later: {said.splitlines()[:1]}")
    return java


def kafka_libs() -> Path:
    """The folder of Kafka's jars: ``HEADRACE_TEST_KAFKA_LIBS``, or a cache that Maven fills once.

    Raises
    ------
    Unavailable
        If the cache is empty and Maven is missing or fails.
    """
    given = os.environ.get("HEADRACE_TEST_KAFKA_LIBS")
    if given:
        if not _holds_kafka(Path(given)):
            raise Unavailable(f"HEADRACE_TEST_KAFKA_LIBS={given} does not hold kafka_2.13-{KAFKA_VERSION}.jar")
        return Path(given)
    cache = Path.home() / ".cache" / "headrace"
    cache.mkdir(parents=True, exist_ok=True)
    libs = cache / f"kafka-{KAFKA_VERSION}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one download, also when two test runs start at once
        if not _holds_kafka(libs):
            _fetch_kafka(cache, libs)
    return libs


def _holds_kafka(libs: Path) -> bool:
    return (libs / f"kafka_2.13-{KAFKA_VERSION}.jar").is_file()


def _fetch_kafka(cache: Path, libs: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable(f"no mvn on PATH to fetch Kafka {KAFKA_VERSION}; or set HEADRACE_TEST_KAFKA_LIBS to its jars")
    draft = cache / f"kafka-{KAFKA_VERSION}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    pom = draft / "pom.xml"
    pom.write_text(_POM, encoding="utf-8")
    command = [maven, "-B", "-q", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={draft}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0 or not _holds_kafka(draft):
        raise Unavailable(f"mvn could not fetch Kafka {KAFKA_VERSION}: {(done.stdout + done.stderr)[-2000:]}")
    shutil.rmtree(libs, ignore_errors=True)
    draft.rename(libs)


class KafkaServer(Child):
    """Apache Kafka in KRaft mode, one node, on loopback.

    Parameters
    ----------
    directory : Path
        Holds the log, the pid file, the configuration and the data; a restart finds the data again.
    libs : Path
        The jars, from :func:`kafka_libs`.
    """

    def __init__(self, directory: Path, libs: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._properties = directory / "server.properties"
        self._java = (java_binary(), "-Xmx512m", "-XX:+UseSerialGC", "-cp", f"{libs}/*")
        super().__init__("kafka", [*self._java, "kafka.Kafka", str(self._properties)], directory)
        self._controller_port = free_port()

    @property
    def bootstrap(self) -> str:
        """Where clients connect."""
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Format the storage once, start, and wait until a metadata request is answered.

        Raises
        ------
        ServiceUnavailable
            If Kafka ends at start or does not answer within a minute.
        """
        if not self._properties.exists():
            self._format()
        super().start()
        self.wait_until(lambda: self.running() and kafka_answers(self.port), timeout_s=60.0)

    def _format(self) -> None:
        self._properties.write_text(self._settings(), encoding="utf-8")
        tool = [*self._java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(self._properties)]
        done = subprocess.run(tool, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            self._properties.unlink()
            raise RuntimeError(f"Kafka's storage could not be formatted: {done.stdout}{done.stderr}")

    def _settings(self) -> str:
        broker, controller = f"{LOOPBACK}:{self.port}", f"{LOOPBACK}:{self._controller_port}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{broker}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.directory / "kafka"),
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


async def create_topics(bootstrap: str, topics: Mapping[str, int], configs: Mapping[str, str] | None = None) -> None:
    """Create topics (name to partition count) and wait until each partition has a leader."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answer = await admin.create_topics(
            [NewTopic(name, count, 1, topic_configs=dict(configs or {})) for name, count in topics.items()]
        )
        failed = [error for error in answer.topic_errors if error[1] != 0]
        assert not failed, failed
    finally:
        await admin.close()
    for name, count in topics.items():
        assert len(await _partitions(bootstrap, name)) == count


async def produce(
    bootstrap: str,
    topic: str,
    records: Iterable[tuple[bytes | None, bytes | None]],
    *,
    partition: int | None = None,
    timestamp_ms: int | None = None,
) -> None:
    """Append (key, value) records in order, each where Kafka's default partitioner says unless told otherwise."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=2)
    await producer.start()
    try:
        sent = [
            await producer.send(topic, value, key, partition=partition, timestamp_ms=timestamp_ms)
            for key, value in records
        ]
        for future in sent:
            await future
    finally:
        await producer.stop()


async def consume_all(bootstrap: str, topic: str) -> list[ConsumerRecord[bytes, bytes]]:
    """Everything that ``topic`` holds now, sorted by partition and offset."""
    partitions = [TopicPartition(topic, number) for number in await _partitions(bootstrap, topic)]
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(partitions)
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        found: list[Any] = []
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found.extend(records)
        return sorted(found, key=lambda record: (record.partition, record.offset))
    finally:
        await consumer.stop()


async def committed(bootstrap: str, group: str, topic: str) -> dict[int, int]:
    """The committed offset of each partition that ``group`` has committed."""
    partitions = [TopicPartition(topic, number) for number in await _partitions(bootstrap, topic)]
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(partitions)
        offsets = {tp.partition: await consumer.committed(tp) for tp in partitions}
        return {number: offset for number, offset in offsets.items() if offset is not None}
    finally:
        await consumer.stop()


async def _partitions(bootstrap: str, topic: str) -> list[int]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        return sorted(await producer.partitions_for(topic))
    finally:
        await producer.stop()
