"""What a live worker computed and stored is what its inputs say, bit for bit, whatever killed it on the way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from stream.embedded import RedisServer
from stream.vectors import read_vector_log
from tests.servers import RunningBroker
from tests.workers import Deployment, assert_state_is_exact, by_source, refold
from tests.world import World
from trainer import backtest


def _deployment(broker: RunningBroker, redis: RedisServer, world: World, tmp_path: Path, **more: object) -> Deployment:
    deployment = Deployment(broker, redis.url, world.schema, world.artifacts, tmp_path, **more)  # type: ignore[arg-type]
    deployment.create()
    return deployment


def test_replayed_vectors_equal_those_of_a_live_worker_bit_for_bit_also_over_a_kill(
    broker: RunningBroker, redis_server: RedisServer, world: World, tmp_path: Path
) -> None:
    log = tmp_path / "vectors"
    deployment = _deployment(broker, redis_server, world, tmp_path, partitions=1,
                             extra={"WORKER_VECTOR_LOG": str(log)})  # fmt: skip
    topics = deployment.topics
    timeline = world.timeline(topics, payments=2500, clicks=0)
    worker = deployment.started()
    try:
        half = timeline.first(len(timeline) // 2)
        sent = deployment.replay(half, rate=3000.0)
        worker.kill()
        rest = type(timeline)(timeline.feeds, timeline.order)
        worker.start()
        deployment.replay(rest, rate=None)
        total = sent.good[topics.transactions] + 2500
        deployment.wait_for({topics.decisions: total})
        worker.stop()
        assert worker.exit_code() == 0
    finally:
        worker.kill()
    decisions = by_source(deployment.decoded(topics.decisions))
    assert len(decisions) == total
    logged = read_vector_log(log)
    replayed = refold(deployment, 0, decisions, deployment.read(topics.transactions), deployment.read(topics.labels))
    assert replayed.vectors.keys() == logged.keys()
    for source, vector in replayed.vectors.items():
        position, live = logged[source]
        assert position == decisions[source]["label_position"]
        assert np.array_equal(vector.view(np.int64), live.view(np.int64)), source
    assert {d["label_position"] for d in decisions.values()} > {0}
    assert_state_is_exact(deployment, decisions)
    # The second half repeats the first half's event ids: those still remembered are decided as before.
    assert any(d["duplicate"] for d in decisions.values())


def test_a_backtest_has_the_vectors_of_a_live_worker_bit_for_bit_with_labels_flowing(
    broker: RunningBroker, redis_server: RedisServer, world: World, tmp_path: Path
) -> None:
    log, schema = tmp_path / "vectors", world.schema.transactions
    deployment = _deployment(broker, redis_server, world, tmp_path, partitions=1,
                             extra={"WORKER_VECTOR_LOG": str(log)})  # fmt: skip
    topics, payments = deployment.topics, 2500
    table = world.later_payments.slice(0, payments)
    deployment.replay(world.timeline(topics, payments=payments, clicks=0), rate=None)
    worker = deployment.started()
    try:
        deployment.wait_for({topics.decisions: payments})
        worker.stop()
        assert worker.exit_code() == 0
    finally:
        worker.kill()
    logged = read_vector_log(log)
    replayed = backtest.replayed(table, schema, lambda stage, done, total: None)
    run = replayed.names.index("merchant_fraud_count_30d")
    assert replayed.x[:, run].max() > 0, "no label was known in time"
    for row in range(payments):
        _, live = logged[f"{topics.transactions}:0:{row}"]
        assert np.array_equal(replayed.x[row].view(np.int64), live.view(np.int64)), row


def test_a_worker_killed_again_and_again_loses_nothing_and_counts_nothing_twice(
    broker: RunningBroker, redis_server: RedisServer, world: World, tmp_path: Path
) -> None:
    deployment = _deployment(broker, redis_server, world, tmp_path)
    topics = deployment.topics
    timeline = world.timeline(topics, payments=3000, clicks=2000)
    worker = deployment.started()
    try:
        feeder = threading.Thread(target=deployment.replay, args=(timeline,), kwargs={"rate": 900.0, "malformed": 0.02})
        feeder.start()
        for pause_s in (1.3, 2.1):
            time.sleep(pause_s)
            worker.kill()
            worker.start()
        feeder.join()
        deployment.wait_for({topics.decisions: 3000, topics.recommendations: 2000})
        worker.stop()
        assert worker.exit_code() == 0
    finally:
        worker.kill()
    emitted = deployment.decoded(topics.decisions)
    decisions = by_source(emitted)
    letters = by_source(deployment.decoded(topics.dead_letters), "dead_letter_id")
    inputs = {f"{r.topic}:{r.partition}:{r.offset}" for t in (topics.transactions, topics.clicks, topics.labels)
              for r in deployment.read(t)}  # fmt: skip
    answers = by_source(deployment.decoded(topics.recommendations), "recommendation_id")
    labels = {source for source in inputs if source.startswith(topics.labels)}
    assert len(decisions) == 3000 and len(answers) == 2000
    assert decisions.keys() | answers.keys() | letters.keys() == inputs - (labels - letters.keys())
    assert len(emitted) == len(decisions), "a decision was emitted twice"
    assert_state_is_exact(deployment, decisions)


def test_when_one_of_two_workers_dies_the_other_takes_its_partitions_over(
    broker: RunningBroker, redis_server: RedisServer, world: World, tmp_path: Path
) -> None:
    deployment = _deployment(broker, redis_server, world, tmp_path)
    topics = deployment.topics
    first, second = deployment.started(1), deployment.started(2)
    try:
        feeder = threading.Thread(
            target=deployment.replay, args=(world.timeline(topics, 3000, 0),), kwargs={"rate": 600.0}
        )
        feeder.start()
        time.sleep(2.0)
        first.kill()
        feeder.join()
        deployment.wait_for({topics.decisions: 3000})
        second.stop()
        assert second.exit_code() == 0
    finally:
        first.kill()
        second.kill()
    decisions = by_source(deployment.decoded(topics.decisions))
    assert len(decisions) == 3000
    assert_state_is_exact(deployment, decisions)
