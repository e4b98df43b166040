"""The archive holds every record once, whatever kills it, on any filesystem."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from features.decode import Limits, TransactionDecoder
from stream.archive_store import KINDS, ArchiveStore
from stream.archived import Archive
from stream.arrivals import Arrivals
from stream.embedded import RedisServer
from stream.processes import Child
from stream.replay import archived_timeline
from stream.settings import ArchiveSettings, Settings
from tests.servers import KafkaServer, RunningBroker
from tests.workers import Deployment, wait_until
from tests.world import World
from trainer.growing import GrowingHistory


def archiver(deployment: Deployment, *more: str) -> Child:
    command = [sys.executable, "-m", "stream.cli", "archive", *more]
    return Child("archive", command, deployment.directory, env=deployment.environment())


def held(deployment: Deployment, url: str) -> dict[str, list[tuple[int, int, Any, Any, int]]]:
    """Partition, offset, key, value and timestamp of everything in an archive, by topic."""
    archive, topics = Archive(ArchiveStore(url)), deployment.topics
    found: dict[str, list[tuple[int, int, Any, Any, int]]] = {}
    for kind, topic in zip(KINDS, (topics.transactions, topics.labels, topics.clicks, topics.decisions), strict=True):
        found[topic] = []
        for partition in range(topics.partitions()[topic]):
            for first, end in archive.ranges(topic, partition):
                rows = archive.records(kind, topic, partition, first, end)
                found[topic] += [(partition, r.offset, r.key, r.value, r.timestamp) for r in rows]
    return found


def test_an_archive_that_is_killed_again_and_again_holds_every_record_once(
    kafka: KafkaServer, redis_server: RedisServer, world: World, tmp_path: Path
) -> None:
    url = str(tmp_path / "archive")
    extra = {"ARCHIVE_URL": url, "ARCHIVE_EVERY_S": "0.05", "ARCHIVE_METRICS_PORT": "0", "ARCHIVE_ROWS_MAX": "60",
             "ARCHIVE_COMPACT_FILES": "4", "ARCHIVE_CARE_EVERY_S": "0.5"}  # fmt: skip
    broker = RunningBroker("kafka", kafka.bootstrap, idempotence=True)
    deployment = Deployment(
        broker, redis_server.url, world.schema, world.artifacts, tmp_path, partitions=2, extra=extra
    )
    deployment.create()
    topics, rng = deployment.topics, random.Random(5)
    child = archiver(deployment)
    feeder = threading.Thread(target=deployment.replay, args=(world.timeline(topics, 6000, 3000),),
                              kwargs={"rate": 900.0, "malformed": 0.02})  # fmt: skip
    feeder.start()
    kills = 0
    try:
        while feeder.is_alive():
            child.start()
            wait_until(lambda: child.log_path.read_text("utf-8").count(" archiving ") > kills, "it reads")  # noqa: B023
            time.sleep(rng.uniform(0.0, 1.2))
            child.kill()
            kills += 1
    finally:
        feeder.join()
        child.kill()
    assert kills >= 3
    last = archiver(deployment, "--once")
    last.start()
    wait_until(lambda: last.exit_code() is not None, "everything is archived")
    assert last.exit_code() == 0, last.log_tail(20)
    found = held(deployment, url)
    for topic in (topics.transactions, topics.labels, topics.clicks):
        expected = [(r.partition, r.offset, r.key, r.value, r.timestamp) for r in deployment.read(topic)]
        assert found[topic] == expected
        assert expected
    trainer_and_replay_read_it(deployment, world, url)


def trainer_and_replay_read_it(deployment: Deployment, world: World, url: str) -> None:
    """What is archived comes from there, what came later from the topics, and nothing from both."""
    topics = deployment.topics
    settings = Settings(kafka=deployment.kafka, topics=topics, archive=ArchiveSettings(url=url))
    timeline = archived_timeline(settings, world.schema, "transactions")
    sent = timeline.feeds[0].messages(0, len(timeline))
    records = deployment.read(topics.transactions)
    decoder = TransactionDecoder(world.schema.transactions, Limits())
    good = decoder.rows([r.value for r in records], [r.timestamp for r in records])[0]
    assert 0 < len(good) < len(records)
    assert sorted(sent) == sorted((records[i].key, records[i].value) for i in good)
    arrivals, history = Arrivals(settings, world.schema), GrowingHistory(world.schema.transactions, 10**6)
    taken = arrivals.read_archive(Archive(ArchiveStore(url)), history, 10**6)
    rows = history.transactions.num_rows
    assert rows == len({msgspec.json.decode(value)["event_id"] for _, value in sent})
    later = world.timeline(topics, 30, 20)
    deployment.replay(later)
    assert asyncio.run(arrivals.catch_up(history)) == len(later)
    assert taken > rows and history.transactions.num_rows == rows
