"""A compressed batch is unpacked up to a limit, whatever codec; one that is refused costs its own records only."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition, codec
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from features.checks import Refused
from features.messages import DeadLetter
from stream.arrivals import Arrivals
from stream.connections import kafka_consumer
from stream.embedded import RedisServer
from stream.settings import KafkaSettings, Settings, WorkerSettings
from stream.unpacking import Records, UnreadableBatch, bound_unpacking, gunzip, patched_modules
from tests.servers import KafkaServer, RunningBroker
from tests.test_worker import START_MS, payment
from tests.workers import ROOT, Deployment, wait_until
from tests.world import World
from trainer.growing import GrowingHistory

CODECS = ("gzip", "snappy", "lz4", "zstd")
NUMBERS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
LIMIT = 1 << 20
PLACE = TopicPartition("t", 0)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    bound_unpacking(LIMIT)
    yield
    bound_unpacking(KafkaSettings().batch_bytes_max)


def packed(name: str, data: bytes) -> bytes:
    return bytes(getattr(codec, f"{name}_encode")(data))


def unpack(name: str, data: bytes) -> bytes:
    """As aiokafka's compiled code does it."""
    found = {bytes(getattr(module, f"{name}_decode")(memoryview(data))) for module in patched_modules()
             if hasattr(module, f"{name}_decode")}  # fmt: skip
    (one,) = found
    return one


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [0, 1, 70_000, LIMIT])
def test_what_fits_is_unpacked_as_before(name: str, size: int) -> None:
    data = (b'{"amount": 41.9}' * (size // 16 + 1))[:size]
    assert unpack(name, packed(name, data)) == data


def test_both_kinds_of_snappy_and_several_gzip_members_are_read() -> None:
    raw = codec.snappy_encode(b"x" * 5000, xerial_compatible=False)
    assert unpack("snappy", raw) == b"x" * 5000
    assert gunzip(gzip.compress(b"a") + gzip.compress(b"b") + bytes(7)) == b"ab"


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [LIMIT + 1, 64 * LIMIT])
def test_what_does_not_fit_is_refused_with_the_limit(name: str, size: int) -> None:
    with pytest.raises(UnreadableBatch, match=f"unpacks to more than {LIMIT} bytes .kafka.batch_bytes_max"):
        unpack(name, packed(name, bytes(size)))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("damage", [lambda d: d[:-20], lambda d: b"\xff" * 40])
def test_what_is_damaged_is_refused(name: str, damage: Any) -> None:
    with pytest.raises(UnreadableBatch):
        _ = unpack(name, damage(packed(name, bytes(range(256)) * 20)))


_CHILD = """
import resource, gzip, sys
from stream.unpacking import UnreadableBatch, bound_unpacking, gunzip, _FUNCTIONS
bound_unpacking(32 << 20)
bomb = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    _FUNCTIONS[sys.argv[2] + "_decode"](bomb)
except UnreadableBatch:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize("name", ["gzip", "lz4", "zstd"])
def test_a_bomb_of_a_gigabyte_takes_no_more_memory_than_a_few_times_the_limit(name: str, tmp_path: Path) -> None:
    piece = packed(name, bytes(1 << 26))
    (tmp_path / "bomb").write_bytes(piece * 16)
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "bomb"), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert int(done.stdout) < 3 * 32 * 1024 + len(piece) * 32 // 1024


def batch(first: int, values: Sequence[bytes], name: str = "", damage: bool = False) -> bytes:
    """A batch of Kafka's format as a broker stores it."""
    builder = DefaultRecordBatchBuilder(2, NUMBERS.get(name, 0), False, -1, -1, -1, 1 << 30)
    for i, value in enumerate(values):
        builder.append(i, 1000 + i, b"k", value, [])
    data = bytearray(builder.build())
    data[:8] = first.to_bytes(8, "big")
    if damage:
        data[-3] ^= 0xFF
    assert DefaultRecordBatch(bytes(data)).validate_crc() is not damage
    return bytes(data)


def read(log: bytes, position: int = 0) -> list[tuple[int, bytes | None]]:
    records = fetcher.PartitionRecords(PLACE, MemoryRecords(log), [], position, None, None, True, 0)
    found = [(record.offset, record.value) for record in records]
    assert all(isinstance(value, Refused) == (value == b"") for _, value in found)
    return [*found, (records.next_fetch_offset, None)]


@pytest.mark.parametrize("name", CODECS)
def test_reading_goes_on_after_a_batch_that_is_refused_from_wherever_it_begins(name: str) -> None:
    bomb = [bytes(LIMIT), b"small"]
    parts = [batch(0, [b"a", b"b"], name), batch(2, bomb, name), batch(10, bomb, name), batch(12, [b"c"], name)]
    expected = [(0, b"a"), (1, b"b"), (3, b""), (11, b""), (12, b"c"), (13, None)]
    for position, part, after in ((0, 0, 0), (1, 0, 1), (2, 1, 2), (3, 1, 2), (4, 2, 3), (12, 3, 4)):
        assert read(b"".join(parts[part:]), position) == expected[after:]  # a broker begins with the batch


def test_a_stand_in_says_which_offsets_are_skipped_and_why() -> None:
    log = batch(7, [bytes(LIMIT), b"small"], "zstd")
    (record,) = fetcher.PartitionRecords(PLACE, MemoryRecords(log), [], 7, None, None, True, 0)
    assert (record.offset, record.timestamp, record.key) == (8, 1001, None)
    assert record.value.code == "unreadable_batch"
    assert record.value.sentence.startswith("offsets 7 to 8 are skipped: a batch of ")


def test_damage_on_the_way_is_worth_another_fetch_and_skips_nothing() -> None:
    records = fetcher.PartitionRecords(
        PLACE, MemoryRecords(batch(0, [b"a"]) + batch(1, [b"b"], damage=True)), [], 0, None, None, True, 0
    )
    assert next(records).value == b"a"
    with pytest.raises(Exception, match="Invalid CRC"):
        next(records)
    assert records.next_fetch_offset == 1


def test_what_is_relied_on_inside_aiokafka_is_still_there() -> None:
    assert fetcher.PartitionRecords is Records
    theirs = Records.__base__
    assert "PartitionRecords(" in inspect.getsource(fetcher.Fetcher)
    source = inspect.getsource(theirs)
    for text in ("self._records_iterator = self._unpack_records()", "records = self._records", "records.has_next()",
                 "records.next_batch()", "self._consumer_record(tp, record)", "next_batch.next_offset",
                 "next_batch.base_offset", "self._records_iterator = None", 'f"Invalid CRC - {tp}"'):  # fmt: skip
        assert text in source, text
    assert {module.__name__.rpartition(".")[2] for module in patched_modules()} == {"default_records", "legacy_records"}
    assert any("_crecords" in module.__name__ for module in patched_modules())
    assert all(hasattr(DefaultRecordBatch, name) for name in ("base_offset", "next_offset", "max_timestamp"))


async def send_batch(deployment: Deployment, topic: str, partition: int, name: str | None,
                     values: Sequence[bytes]) -> None:  # fmt: skip
    producer = AIOKafkaProducer(bootstrap_servers=deployment.broker.bootstrap, compression_type=name,
                                max_batch_size=1 << 27, max_request_size=1 << 27)  # fmt: skip
    await producer.start()
    try:
        builder = producer.create_batch()
        for value in values:
            assert builder.append(key=b"card", value=value, timestamp=START_MS + 10**9)
        await (await producer.send_batch(builder, topic, partition=partition))
    finally:
        await producer.stop()


@pytest.fixture
def deployment(kafka: KafkaServer, redis_server: RedisServer, world: World, tmp_path: Path) -> Deployment:
    broker = RunningBroker("kafka", kafka.bootstrap, idempotence=True)
    found = Deployment(broker, redis_server.url, world.schema, world.artifacts, tmp_path, partitions=1,
                       extra={"KAFKA_BATCH_BYTES_MAX": str(LIMIT)})  # fmt: skip
    found.create()
    return found


def test_a_worker_and_a_trainer_go_on_after_bombs_of_every_codec(deployment: Deployment) -> None:
    topics = deployment.topics
    bomb = [bytes(900_000)] * 10  # 9 MB, of which a broker sees some 400 kB at most
    worker = deployment.started()
    number = 0
    try:
        for name in CODECS:
            good = [msgspec.json.encode(payment(f"e{number + i}", (number + i) * 1000)) for i in range(5)]
            number += 5
            asyncio.run(send_batch(deployment, topics.transactions, 0, name, good))
            asyncio.run(send_batch(deployment, topics.transactions, 0, name, bomb))
        asyncio.run(send_batch(deployment, topics.labels, 0, "zstd", bomb))
        asyncio.run(send_batch(deployment, topics.clicks, 0, "gzip", bomb))
        deployment.wait_for({topics.decisions: number, topics.dead_letters: 6})
        wait_until(lambda: deployment.applied()[0][topics.labels] == 10, "labels are applied")
        worker.stop()
        worker = deployment.started(2)
        asyncio.run(send_batch(deployment, topics.transactions, 0, None, [msgspec.json.encode(payment("last", 10**6))]))
        deployment.wait_for({topics.decisions: number + 1})
        worker.stop()
        assert worker.exit_code() == 0
    finally:
        worker.kill()
    letters = [msgspec.json.decode(record.value, type=DeadLetter) for record in deployment.read(topics.dead_letters)]
    assert {letter.reason for letter in letters} == {"unreadable_batch"} and len(letters) == 6
    skipped = [(letter.first_offset, letter.offset) for letter in letters if letter.topic == topics.transactions]
    assert skipped == [(5, 14), (20, 29), (35, 44), (50, 59)]
    assert all(f"offsets {letter.first_offset} to {letter.offset}" in letter.sentence for letter in letters)
    kafka = KafkaSettings(bootstrap=deployment.broker.bootstrap, batch_bytes_max=LIMIT)
    settings = Settings(kafka=kafka, topics=topics, worker=WorkerSettings())
    history = GrowingHistory(deployment.schema.transactions, 1000)
    assert asyncio.run(Arrivals(settings, deployment.schema).catch_up(history)) == number + 1 + 6


def test_a_plain_consumer_gets_the_stand_in_as_a_record_without_a_value(deployment: Deployment) -> None:
    topic = deployment.topics.decisions
    asyncio.run(send_batch(deployment, topic, 0, "lz4", [bytes(900_000)] * 3))

    async def run() -> list[Any]:
        consumer = kafka_consumer(KafkaSettings(bootstrap=deployment.broker.bootstrap, batch_bytes_max=LIMIT))
        await consumer.start()
        try:
            consumer.assign([place := TopicPartition(topic, 0)])
            consumer.seek(place, 0)
            found = [r for records in (await consumer.getmany(timeout_ms=5000)).values() for r in records]
            return [(record.offset, record.value, await consumer.position(place)) for record in found]
        finally:
            await consumer.stop()

    assert asyncio.run(run()) == [(2, b"", 3)]
