"""A backtest of simulated payments, from the command line to the files; what it trains on; what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from features.catalogue import build_catalogue
from features.errors import HistoryError, TrainingError
from features.schema import TransactionSchema, load_schema
from stream.backtest_fraud import day_ms
from stream.cli import app
from trainer import backtest
from trainer.backtest import DAY_MS, Protocol
from trainer.fraud import FraudSettings
from trainer.history import read_transactions
from trainer.simulator import simulate

SCHEMA = load_schema().transactions
QUICK = FraudSettings(trees=10, threads=1)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty days of payments with labels."""
    directory = tmp_path_factory.mktemp("payments")
    return simulate(directory, days=40, cards=400, merchants=80, sessions_per_day=5.0, items=200).transactions


@pytest.fixture(scope="module")
def table(history: Path) -> pa.Table:
    """The same as a table, labels two days late."""
    return read_transactions(history, SCHEMA, 2 * DAY_MS)


def start_of(table: pa.Table, day: int) -> int:
    """Midnight before that day of the history, from 0."""
    return int(table["event_time"][0].as_py()) // DAY_MS * DAY_MS + day * DAY_MS


def protocol_of(table: pa.Table, **more: Any) -> Protocol:
    return Protocol(**({"start_ms": start_of(table, 30), "folds": 2, "test_days": 3, "delay_days": 2,
                        "train_days": 25} | more))  # fmt: skip


def silent(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


def walked(table: pa.Table, protocol: Protocol, schema: TransactionSchema = SCHEMA) -> backtest.Backtest:
    return backtest.run(table, schema, backtest.replayed(table, schema, silent), protocol, QUICK, silent)


def command(history: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["backtest", "fraud", "--transactions", str(history), *more])


def test_the_command_writes_scores_vectors_and_a_report_without_a_hole(history: Path, table: pa.Table, tmp_path: Path
                                                                       ) -> None:  # fmt: skip
    day = backtest.date_of(start_of(table, 32))
    out, report, features = tmp_path / "deep" / "scores.parquet", tmp_path / "report", tmp_path / "features.parquet"
    done = command(history, "--test-start", day, "--folds", "1", "--test-days", "6", "--delay-days", "2",
                   "--train-days", "all", "--out", str(out), "--report", str(report), "--features", str(features),
                   "--threads", "1", "--cards-a-day", "5")  # fmt: skip
    assert done.exit_code == 0, done.output
    scores = pq.read_table(out)
    assert scores.column_names == ["event_id", "event_time", "card_id", "fold", "score", "anomaly", "action", "reasons"]
    times = table["event_time"].to_numpy()
    assert scores.num_rows == np.count_nonzero((times >= day_ms(day)) & (times < day_ms(day) + 6 * DAY_MS))
    score, action = scores["score"].to_numpy(), np.array(scores["action"].to_pylist())
    assert ((score >= 0) & (score <= 1)).all()
    assert set(action) > {"allow"}
    assert score[action != "allow"].min() >= score[action == "allow"].max()
    reasons = scores["reasons"].to_pylist()
    assert all(bool(texts) == (act != "allow") or act != "allow" for texts, act in zip(reasons, action, strict=True))
    assert any(reasons)
    vectors = pq.read_table(features)
    assert vectors.num_rows == table.num_rows
    assert vectors.column_names[2:] == build_catalogue(SCHEMA).names
    facts = json.loads((report / "report.json").read_text("utf-8"))
    took = facts["resources"]
    assert took["replayed_transactions"] == table.num_rows and took["replay_seconds"] <= took["total_seconds"]
    assert 50 < took["peak_memory_mb"] < 4000 and took["replay_events_per_second"] > 0
    assert "events/s" in done.output and "peak memory" in done.output
    assert facts["mean"]["auc"] > 0.6
    assert facts["intervals"]["auc"][0] <= facts["intervals"]["auc"][1]
    assert facts["features"].keys() == set(build_catalogue(SCHEMA).names)
    page = (report / "report.md").read_text("utf-8")
    assert "nan" not in (page + json.dumps(facts)).lower().replace("finance", "")
    for plot in re.findall(r"\]\((\w+\.svg)\)", page):
        assert (report / plot).read_text("utf-8").startswith("<svg")


def test_the_same_seed_gives_the_same_scores_and_another_seed_others(table: pa.Table) -> None:
    vectors, protocol = backtest.replayed(table, SCHEMA, silent), protocol_of(table)
    runs = [backtest.run(table, SCHEMA, vectors, protocol, FraudSettings(trees=10, threads=1, seed=seed), silent)
            for seed in (1, 1, 2)]  # fmt: skip
    first, again, other = (run.scores for run in runs)
    assert first.score.tobytes() == again.score.tobytes() and first.anomaly.tobytes() == again.anomaly.tobytes()
    assert not np.array_equal(first.score, other.score)


def test_what_happens_and_what_becomes_known_from_the_test_on_changes_no_model(table: pa.Table) -> None:
    protocol = protocol_of(table, folds=1)
    cut = int(np.searchsorted(table["event_time"].to_numpy(), protocol.start_ms))
    label = pc.fill_null(table["is_fraud"], -1).to_numpy().copy()
    late = pc.fill_null(table["label_time"], 0).to_numpy() >= protocol.start_ms
    label[late] = 1 - label[late]
    place = table.column_names.index("is_fraud")
    other = table.set_column(place, "is_fraud", pa.array(label, pa.int8(), mask=label < 0))
    one, two = walked(table, protocol), walked(other, protocol)
    assert late[:cut].any()
    assert one.folds[0].model.text == two.folds[0].model.text
    first_day = one.scores.day == 0
    first_label = int(table["label_time"].to_numpy()[late].min())
    early = first_day & (table["event_time"].to_numpy()[one.scores.at] <= first_label)
    assert early.any()
    assert np.array_equal(one.scores.score[early], two.scores.score[early])


def test_training_ends_a_delay_before_the_test_and_is_as_long_as_asked(table: pa.Table) -> None:
    protocol = protocol_of(table)
    times = table["event_time"].to_numpy()
    for fold in walked(table, protocol).folds:
        low, high = np.searchsorted(times, [fold.start_ms - 27 * DAY_MS, fold.start_ms - 2 * DAY_MS])
        known = table["label_time"].slice(low, high - low).to_numpy() < fold.start_ms
        assert fold.trained == np.count_nonzero(known) > 0
        assert fold.trained_from_ms == fold.start_ms - 27 * DAY_MS


def test_cards_known_to_be_compromised_leave_the_days_on_which_that_is_known(table: pa.Table) -> None:
    protocol = protocol_of(table, folds=1, known_days=7)
    scores = walked(table, protocol).scores
    times, fraud = table["event_time"].to_numpy(), table["is_fraud"].to_numpy() == 1
    cards = np.array(table["card_id"].to_pylist())
    for day in range(3):
        start = protocol.start_ms + day * DAY_MS
        told = fraud & (times >= protocol.start_ms - 9 * DAY_MS) & (times < start - 2 * DAY_MS)
        rows = scores.day == day
        assert np.array_equal(scores.known[rows], np.isin(cards[scores.at[rows]], cards[told]))
    assert scores.known.any() and not scores.known.all()


def without_labels(table: pa.Table, value: int | None) -> pa.Table:
    place = table.column_names.index("is_fraud")
    return table.set_column(place, "is_fraud", pa.array([value] * table.num_rows, pa.int8()))


def test_what_cannot_be_backtested_is_refused_with_the_way_out(table: pa.Table) -> None:
    protocol = protocol_of(table)
    for broken, words in (
        (without_labels(table, None), "has a label .* needs verdicts"),
        (without_labels(table, 0), "labels say good; a backtest needs both kinds"),
        (without_labels(table, 1), "labels say fraud; a backtest needs both kinds"),
    ):
        with pytest.raises(TrainingError, match=words):
            backtest.check(broken, SCHEMA, protocol)
    for more, words in (
        ({"train_days": 29}, "training would begin on .* history begins on .* later --test-start"),
        ({"start_ms": start_of(table, 0), "train_days": None}, "training would begin on"),
        ({"folds": 9}, "9 x 3 test days .* history ends on .* fewer --folds"),
    ):
        with pytest.raises(TrainingError, match=words):
            backtest.check(table, SCHEMA, protocol_of(table, **more))


def test_a_training_window_without_frauds_names_its_fold_and_dates(table: pa.Table) -> None:
    with pytest.raises(TrainingError, match=r"fold 1, trained on \d{4}-\d\d-\d\d to .*: fraud model: "):
        walked(table, protocol_of(table, train_days=1))


def test_test_days_without_fraud_are_told_and_never_nan(history: Path, table: pa.Table, tmp_path: Path) -> None:
    start = start_of(table, 32)
    label = pc.fill_null(table["is_fraud"], -1).to_numpy().copy()
    label[(table["event_time"].to_numpy() >= start) & (label > 0)] = 0
    good = table.set_column(
        table.column_names.index("is_fraud"), "is_fraud", pa.array(label, pa.int8(), mask=label < 0)
    )
    file = tmp_path / "good.parquet"
    pq.write_table(good, file)
    done = command(file, "--test-start", backtest.date_of(start), "--folds", "1", "--test-days", "3",
                   "--train-days", "20", "--out", str(tmp_path / "s.parquet"), "--report", str(tmp_path / "r"),
                   "--threads", "1")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "AUC cannot be told" in done.output
    facts = json.loads((tmp_path / "r" / "report.json").read_text("utf-8"))
    assert facts["mean"]["auc"] is None and facts["mean"]["card_precision"] == 0.0
    assert "nan" not in (tmp_path / "r" / "report.md").read_text("utf-8").lower()


@pytest.mark.parametrize(("flags", "words"), [
    (["--test-start", "next week"], "expected a date such as 2018-08-08"),
    (["--test-start", ""], "expected a date such as 2018-08-08"),
    (["--test-start", "20180808"], "expected a date such as 2018-08-08"),
    (["--test-start", "2018-08-08", "--train-days", "some"], "expected a number of days from 1 to 36500, or all"),
    (["--test-start", "1999-01-01"], "training would begin on"),
])  # fmt: skip
def test_flags_that_mean_nothing_end_with_a_sentence(
    history: Path, tmp_path: Path, flags: list[str], words: str
) -> None:
    done = command(history, *flags, "--out", str(tmp_path / "s.parquet"))
    assert done.exit_code == 2
    assert words in done.output


def test_labels_beside_the_history_are_counted_where_they_are_unknown_or_contradict(
    history: Path, table: pa.Table, tmp_path: Path
) -> None:
    early = table.slice(0, 50)
    other = [1 - label for label in early["is_fraud"].fill_null(1).to_pylist()]
    labels = pa.table({"event_id": [*early["event_id"].to_pylist(), "nowhere"],
                       "label_time": [*(t + 9 * DAY_MS for t in early["event_time"].to_pylist()), 1_700_000_000_000],
                       "is_fraud": [*other, 1]})  # fmt: skip
    pq.write_table(labels, tmp_path / "labels.parquet")
    done = command(history, "--labels", str(tmp_path / "labels.parquet"), "--test-start",
                   backtest.date_of(start_of(table, 32)), "--folds", "1", "--test-days", "1", "--train-days", "20",
                   "--out", str(tmp_path / "s.parquet"), "--report", str(tmp_path / "r"), "--threads", "1")  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "r" / "report.json").read_text("utf-8"))["input"]
    judged = early["is_fraud"].drop_null()
    assert facts["labels_of_unknown_transactions"] == 1 and facts["contradicted_transactions"] == len(judged) > 0
    for text in (done.output, (tmp_path / "r" / "report.md").read_text("utf-8")):
        assert "1 labels judge transactions that the history has not" in text
        assert f"{len(judged)} transactions have contradicting labels: the latest wins" in text


def test_what_cannot_be_written_is_said_before_the_work_and_what_is_there_stays(history: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("kept", encoding="utf-8")
    for flags in (
        ["--out", str(blocked / "s.parquet")],
        ["--out", str(tmp_path)],
        ["--out", str(tmp_path / "s.parquet"), "--report", str(blocked)],
        ["--out", str(tmp_path / "s.parquet"), "--features", str(blocked / "f")],
    ):
        done = command(tmp_path / "not-even-read.parquet", "--test-start", "2026-01-01", *flags)
        assert done.exit_code == 2 and "cannot be written" in done.output
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and blocked.read_text("utf-8") == "kept"


def test_columns_that_are_missing_or_cannot_be_read_are_named(table: pa.Table, tmp_path: Path) -> None:
    flags = ("--test-start", "2026-01-01", "--out", str(tmp_path / "s.parquet"))
    pq.write_table(table.drop_columns(["amount"]), tmp_path / "lacking.parquet")
    done = command(tmp_path / "lacking.parquet", *flags)
    assert done.exit_code == 2 and "no column 'amount'" in done.output
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    done = command(tmp_path / "broken.parquet", *flags)
    assert done.exit_code == 2 and "cannot be read" in done.output


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="nowhere"):
        read_transactions(tmp_path / "nowhere.parquet", SCHEMA, 0)


@pytest.mark.parametrize(("how", "most"), [(("--cases-per-day", "10"), 15), (("--cost-review", "4"), 400)])
def test_a_budget_or_costs_decide_in_a_backtest_and_the_report_counts_cards_by_day(
    history: Path, table: pa.Table, tmp_path: Path, how: tuple[str, str], most: int
) -> None:
    day, out, report = backtest.date_of(start_of(table, 31)), tmp_path / "scores.parquet", tmp_path / "report"
    done = command(history, "--test-start", day, "--folds", "2", "--test-days", "4", "--delay-days", "2",
                   "--train-days", "20", "--out", str(out), "--report", str(report), "--threads", "1",
                   *how)  # fmt: skip
    assert done.exit_code == 0, done.output
    scores = pq.read_table(out)
    action, days = np.array(scores["action"].to_pylist()), scores["event_time"].to_numpy() // DAY_MS
    cards, in_force = np.array(scores["card_id"].to_pylist()), scores["review_score"].to_numpy()
    assert ((action != "allow") == (scores["score"].to_numpy() >= in_force)).mean() > 0.999
    alerts = json.loads((report / "report.json").read_text(encoding="utf-8"))["alerts"]
    found = [len(set(cards[(days == d) & (action != "allow")])) for d in np.unique(days)]
    assert [one["cases"] for one in alerts["days"]] == found and max(found) <= most
    if "--cases-per-day" in how:
        assert 8 <= alerts["mean"] <= 12 and alerts["cases_per_day"] == 10
    assert "alerts.svg" in (report / "report.md").read_text(encoding="utf-8") and (report / "alerts.svg").exists()
    assert "cards alerted a day, after the first" in done.output
