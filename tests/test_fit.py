"""One refit from history to a served version: what it uses, what it leaves out, what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.errors import TrainingError
from features.schema import Schema, load_schema, parse_schema
from tests.sessions import checkerboard
from trainer.artifacts import Artifact, check_golden, current_version, load_current
from trainer.fit import STAGES, FitSettings, fit
from trainer.fraud import FraudSettings
from trainer.vectors import history_vectors

SCHEMA = load_schema()
START_MS = 1_700_000_000_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SETTINGS = FitSettings(threads=1, fraud=FraudSettings(trees=30, learning_rate=0.2))


def payments(rows: int = 5000, seed: int = 1, delay_ms: int = 2 * DAY_MS) -> pa.Table:
    """Payments over 25 days of 80 cards that spend about 10; frauds are ten times as large. A tenth is not judged."""
    rng = np.random.default_rng(seed)
    time_ms = np.sort(START_MS + rng.integers(0, 25 * DAY_MS, rows))
    fraud = rng.random(rows) < 0.03
    judged = rng.random(rows) >= 0.1
    return pa.table(
        {
            "event_id": [f"t{n}" for n in range(rows)],
            "event_time": pa.array(time_ms),
            "card_id": [f"c{n}" for n in rng.integers(0, 80, rows)],
            "merchant_id": [f"m{n}" for n in rng.integers(0, 30, rows)],
            "amount": rng.lognormal(2.3, 0.3, rows) * np.where(fraud, 10, 1),
            "is_fraud": pa.array(fraud.astype(np.int8), mask=~judged),
            "label_time": pa.array(time_ms + delay_ms, mask=~judged),
        }
    )


def end_ms(table: pa.Table) -> int:
    return int(table["event_time"].to_numpy()[-1])


def refit(root: Path, transactions: pa.Table | None, clicks: pa.Table | None, as_of_ms: int, schema: Schema = SCHEMA,
          settings: FitSettings = SETTINGS) -> Artifact:  # fmt: skip
    version = fit(transactions, clicks, schema, root, as_of_ms=as_of_ms, created_ms=as_of_ms, settings=settings)
    artifact = load_current(root, schema.hash)
    assert artifact.version == version
    check_golden(artifact)
    return artifact


def test_history_becomes_a_version_with_models_that_tell_frauds_from_good_payments(tmp_path: Path) -> None:
    table = payments()
    stages: list[str] = []
    fit(
        table, checkerboard(), SCHEMA, tmp_path, as_of_ms=end_ms(table), created_ms=7, settings=SETTINGS,
        progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    artifact = load_current(tmp_path, SCHEMA.hash)
    assert tuple(dict.fromkeys(stages)) == STAGES
    assert artifact.fraud is not None and artifact.recommender is not None
    x = history_vectors(table, SCHEMA.transactions).x
    fraud = np.array(table["is_fraud"].to_pylist()) == 1
    score, anomaly = artifact.fraud.score_many(x)
    assert score[fraud].mean() > 0.8 and score[~fraud].mean() < 0.02
    assert anomaly[fraud].mean() > anomaly[~fraud].mean()
    auc = artifact.manifest.metrics["fraud"]["auc"]
    assert auc is not None and auc > 0.95 and artifact.manifest.metrics["recommendations"]["hr"] is not None
    assert artifact.manifest.created_ms == 7 and artifact.manifest.training["clicks"] == checkerboard().num_rows


def test_labels_that_are_not_in_yet_are_not_learned_from(tmp_path: Path) -> None:
    table = payments()
    as_of_ms = START_MS + 15 * DAY_MS
    training = refit(tmp_path, table, None, as_of_ms).manifest.training
    time_ms = table["event_time"].to_numpy()
    label_time = table["label_time"].to_pylist()
    assert training["rows"] == (time_ms <= as_of_ms).sum()
    assert training["judged"] == sum(known is not None and known <= as_of_ms for known in label_time)
    assert training["transactions_to_ms"] is not None and training["transactions_to_ms"] <= as_of_ms


def test_what_happens_later_changes_nothing(tmp_path: Path) -> None:
    table, as_of_ms = payments(), START_MS + 15 * DAY_MS
    late = np.array([t is not None and t > as_of_ms for t in table["label_time"].to_pylist()])
    flipped = np.where(late, 1, np.nan_to_num(np.array(table["is_fraud"].to_pylist(), float), nan=0)).astype(np.int8)
    unknown = np.array([t is None for t in table["is_fraud"].to_pylist()])
    other = table.set_column(5, "is_fraud", pa.array(flipped, mask=unknown))
    first = refit(tmp_path / "a", table, None, as_of_ms).fraud
    second = refit(tmp_path / "b", other.slice(0, 4500), None, as_of_ms).fraud
    assert first is not None and second is not None and first.text == second.text
    assert np.array_equal(first.forest.quantiles, second.forest.quantiles)


def test_an_event_sent_twice_is_fitted_on_once(tmp_path: Path) -> None:
    table = payments()
    twice = pa.concat_tables([table.slice(0, 100), table]).sort_by("event_time")
    once = refit(tmp_path / "a", table, None, end_ms(table)).manifest.training
    assert refit(tmp_path / "b", twice, None, end_ms(table)).manifest.training["rows"] == once["rows"]


def test_the_training_window_bounds_what_is_fitted_on(tmp_path: Path) -> None:
    table = payments()
    window = FitSettings(threads=1, train_days=15, fraud=SETTINGS.fraud)
    training = refit(tmp_path, table, None, end_ms(table), settings=window).manifest.training
    assert training["transactions_from_ms"] is not None
    assert training["transactions_from_ms"] >= end_ms(table) - 15 * DAY_MS
    with pytest.raises(TrainingError, match=r"0\.5 days"):
        refit(tmp_path, table, None, end_ms(table) + 40 * DAY_MS, settings=FitSettings(train_days=0.5))


def test_either_kind_of_event_alone_is_enough(tmp_path: Path) -> None:
    table, clicks = payments(), checkerboard()
    later = int(clicks["event_time"].to_numpy()[-1])
    assert refit(tmp_path / "a", table, clicks.slice(0, 0), end_ms(table)).recommender is None
    assert refit(tmp_path / "b", None, clicks, later).fraud is None
    assert refit(tmp_path / "c", None, clicks.slice(0, 1), later).recommender is not None


def test_nothing_to_fit_on_is_refused(tmp_path: Path) -> None:
    for transactions, as_of_ms in ((None, START_MS), (payments(), START_MS - DAY_MS)):
        with pytest.raises(TrainingError, match="neither a transaction nor a click"):
            refit(tmp_path, transactions, None, as_of_ms)


def test_a_refit_that_fails_leaves_the_old_version_in_place(tmp_path: Path) -> None:
    table = payments()
    refit(tmp_path, table, None, end_ms(table))
    with pytest.raises(TrainingError, match=r"frauds and .* good transactions"):
        refit(tmp_path, table, checkerboard(), START_MS + 2 * DAY_MS + HOUR_MS)
    assert current_version(tmp_path) == "000001"


def test_the_same_history_and_seed_give_the_same_models(tmp_path: Path) -> None:
    table = payments()
    first, second = (refit(tmp_path / name, table, checkerboard(), end_ms(table)).manifest for name in "ab")
    assert first.files == second.files
    other = FitSettings(seed=2, threads=1, fraud=SETTINGS.fraud)
    assert refit(tmp_path / "c", table, None, end_ms(table), settings=other).manifest.files != first.files


def test_a_schema_of_another_world_needs_no_code(tmp_path: Path) -> None:
    text = """
        [transactions]
        id = "login_id"
        numeric = []
        categorical = ["country"]
        entities = [
            { name = "account", fields = ["account_id"], windows = ["1h", "7d"], aggregates = ["count"] },
            { name = "origin", fields = ["device_id", "network_id"], windows = ["1h"], aggregates = ["count"] },
        ]
    """
    schema = Schema(**{"clicks": SCHEMA.clicks} | parse_schema(text))  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    rows = 4000
    fraud = rng.random(rows) < 0.05
    time_ms = START_MS + np.arange(rows) * 300_000
    table = pa.table(
        {
            "login_id": [str(n) for n in range(rows)],
            "event_time": pa.array(time_ms),
            "account_id": [f"a{n}" for n in rng.integers(0, 50, rows)],
            "device_id": [f"d{n}" for n in np.where(fraud, rng.integers(0, 2, rows), rng.integers(0, 60, rows))],
            "network_id": [f"n{n}" for n in rng.integers(0, 3, rows)],
            "country": pa.array(np.where(fraud, "xx", rng.choice(["nl", "de"], rows)), mask=rng.random(rows) < 0.1),
            "is_fraud": pa.array(fraud.astype(np.int8)),
            "label_time": pa.array(time_ms + DAY_MS),
        }
    )
    artifact = refit(tmp_path, table, None, end_ms(table), schema=schema)
    auc = artifact.manifest.metrics["fraud"]["auc"]
    assert auc is not None and auc > 0.9
    assert artifact.fraud is not None
    reasons = artifact.fraud.reasons(history_vectors(table, schema.transactions).x[np.flatnonzero(fraud)[-1]])
    assert reasons and all(reason.text for reason in reasons)
