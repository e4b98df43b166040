"""Refits: on what was known, on what arrived since, and never at the expense of the version that serves."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from features.schema import load_schema
from stream.cli import app
from stream.crew import settings_environment
from stream.embedded import Broker
from stream.replay import replay_timeline
from stream.settings import KafkaSettings, Settings, TopicSettings, TrainerSettings
from stream.timeline import build_timeline
from stream.topics import create_topics
from stream.training import PeriodicTrainer, fit_history
from tests.servers import RunningBroker, fresh_name
from tests.sessions import checkerboard
from tests.test_fit import DAY_MS, START_MS, end_ms, payments
from trainer.artifacts import current_version, load_current
from trainer.growing import GrowingHistory, transaction_columns

SCHEMA = load_schema()
TRANSACTIONS = SCHEMA.transactions
TOPICS = ("transactions", "labels", "clicks", "decisions", "alerts", "recommendations", "dead_letters")


def row(event_id: str, hour: int, **more: Any) -> dict[str, list[Any]]:
    facts = {"event_id": event_id, "event_time": START_MS + hour, "card_id": "c", "merchant_id": "m", "amount": 1.0}
    return {name: [value] for name, value in (facts | more).items()}


def known(history: GrowingHistory) -> list[tuple[str, int | None, int | None]]:
    return [(r["event_id"], r["is_fraud"], r["label_time"]) for r in history.transactions.to_pylist()]


def test_a_label_waits_for_its_transaction_and_a_corrected_one_replaces_it() -> None:
    history = GrowingHistory(TRANSACTIONS, 100)
    history.add_labels(["b"], [1], [START_MS + 50])
    history.add_transactions(row("a", 1))
    history.join_labels()
    assert known(history) == [("a", None, None)]
    history.add_transactions(row("b", 2))
    history.join_labels()
    assert known(history)[1] == ("b", 1, START_MS + 50)
    history.add_labels(["b"], [0], [START_MS + 90])
    history.join_labels()
    assert known(history) == [("a", None, None), ("b", 0, START_MS + 90)]
    assert history.as_of_ms == START_MS + 90


def test_history_stays_sorted_bounded_and_without_repeats() -> None:
    history = GrowingHistory(TRANSACTIONS, 3)
    for event_id, hour in (("d", 4), ("a", 1), ("c", 3), ("d", 4), ("b", 2), ("c", 3)):
        history.add_transactions(row(event_id, hour))
    assert history.transactions["event_id"].to_pylist() == ["b", "c", "d"]
    assert history.transactions.schema == transaction_columns(TRANSACTIONS)
    history.add_labels([f"unknown-{n}" for n in range(10)], [1] * 10, [START_MS] * 10)
    history.join_labels()
    assert known(history) == [("b", None, None), ("c", None, None), ("d", None, None)]


def test_a_label_due_later_than_anything_seen_is_not_trained_on(tmp_path: Path) -> None:
    table = payments(delay_ms=3 * DAY_MS)
    history = GrowingHistory(TRANSACTIONS, 10_000, table)
    assert history.as_of_ms == end_ms(table)
    fit_history(Settings(artifacts=tmp_path), SCHEMA, history, threads=1)
    in_time = pc.sum(pc.less_equal(table["label_time"], end_ms(table))).as_py()
    training = load_current(tmp_path, SCHEMA.hash).manifest.training
    assert training["judged"] == in_time < table.num_rows - table["is_fraud"].null_count


def _settings(tmp_path: Path, broker: RunningBroker, **trainer: Any) -> Settings:
    name = fresh_name("training")
    names: dict[str, Any] = {topic: f"{name}-{topic}" for topic in TOPICS}
    topics = TopicSettings(**names, transaction_partitions=3, click_partitions=2)
    settings = Settings(
        kafka=KafkaSettings(bootstrap=broker.bootstrap, idempotence=broker.idempotence), topics=topics,
        trainer=TrainerSettings(**trainer), artifacts=tmp_path / "artifacts",
    )  # fmt: skip
    asyncio.run(create_topics(settings.kafka, topics))
    return settings


def _send(settings: Settings, transactions: pa.Table, labels: pa.Table, clicks: pa.Table | None) -> None:
    timeline = build_timeline(SCHEMA, settings.topics, transactions=transactions, labels=labels, clicks=clicks)
    asyncio.run(replay_timeline(settings.kafka, timeline, malformed=0.01))


def test_a_refit_takes_files_and_what_the_topics_have_brought_since(tmp_path: Path, broker: RunningBroker) -> None:
    table, clicks = payments(), checkerboard()
    older, newer = table.slice(0, 3000), table.slice(3000)
    unjudged = older.set_column(5, "is_fraud", pa.nulls(3000, pa.int8())).set_column(
        6, "label_time", pa.nulls(3000, pa.int64())
    )
    pq.write_table(unjudged, tmp_path / "older.parquet")
    settings = _settings(tmp_path, broker, transactions=tmp_path / "older.parquet")
    trainer = PeriodicTrainer(settings, SCHEMA)
    assert asyncio.run(trainer.refit()) is None  # no label at all
    _send(settings, newer, table, clicks)
    assert asyncio.run(trainer.refit()) == "000001"
    manifest = load_current(settings.artifacts, SCHEMA.hash).manifest
    assert manifest.training["rows"] == table.num_rows
    assert manifest.training["judged"] == pc.sum(pc.less_equal(table["label_time"], end_ms(table))).as_py()
    assert manifest.training["clicks"] == clicks.num_rows
    assert asyncio.run(trainer.refit()) is None  # nothing arrived since


def test_a_refit_that_fails_leaves_the_old_version_and_says_so(
    tmp_path: Path, embedded_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    settings = _settings(tmp_path, RunningBroker("embedded", embedded_broker.bootstrap, False), transactions=broken)
    fit_history(settings, SCHEMA, GrowingHistory(TRANSACTIONS, 10_000, payments()), threads=1)
    trainer = PeriodicTrainer(settings, SCHEMA)
    with caplog.at_level(logging.INFO, "headrace.trainer"):
        assert asyncio.run(trainer.refit()) is None
    assert "refit failed" in caplog.text and "broken.parquet" in caplog.text
    assert "version 000001 stays in place" in caplog.text
    few = GrowingHistory(TRANSACTIONS, 10_000, payments(50))
    trainer._history = few
    _send(settings, payments(60).slice(50), payments(60).slice(50), None)
    caplog.clear()
    assert asyncio.run(trainer.refit()) is None
    assert "refit failed: fraud model" in caplog.text
    assert current_version(settings.artifacts) == "000001"


def test_a_refit_without_kafka_says_so_and_the_next_one_goes_on(
    tmp_path: Path, embedded_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(payments(), tmp_path / "all.parquet")
    settings = _settings(
        tmp_path, RunningBroker("embedded", embedded_broker.bootstrap, False), transactions=tmp_path / "all.parquet"
    )
    trainer = PeriodicTrainer(replace(settings, kafka=replace(settings.kafka, bootstrap="127.0.0.1:1")), SCHEMA)
    with caplog.at_level(logging.INFO, "headrace.trainer"):
        assert asyncio.run(trainer.refit()) is None
    assert "Kafka at 127.0.0.1:1" in caplog.text
    assert asyncio.run(PeriodicTrainer(settings, SCHEMA).refit()) == "000001"


def test_train_fits_files_once_and_says_how_good_it_is(tmp_path: Path) -> None:
    pq.write_table(payments(), tmp_path / "t.parquet")
    arguments = ["train", "--transactions", str(tmp_path / "t.parquet"), "--artifacts", str(tmp_path / "models")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (
        "auc 0.9" in result.output and f"version 000001 is published: {tmp_path / 'models' / '000001'}" in result.output
    )


def test_train_without_a_file_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train"])
    assert result.exit_code == 2
    assert "give --transactions FILE, --clicks FILE, or --archive URL" in result.stderr


def test_the_trainer_refits_when_due_and_ends_at_once_on_sigterm(tmp_path: Path, embedded_broker: Broker) -> None:
    pq.write_table(payments(), tmp_path / "t.parquet")
    settings = _settings(
        tmp_path, RunningBroker("embedded", embedded_broker.bootstrap, False), transactions=tmp_path / "t.parquet"
    )
    log = tmp_path / "log.txt"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "stream.cli", "trainer"]
        process = subprocess.Popen(command, env=settings_environment(settings, os.environ), stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 90
        while current_version(settings.artifacts) is None:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "stopped" in log.read_text()
