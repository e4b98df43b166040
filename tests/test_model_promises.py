"""Promises of the fraud models: missing is not zero, vocabularies are bounded, the unknown gets a sober score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from features.schema import parse_schema
from tests.test_fit import SCHEMA, end_ms, payments, refit
from trainer.vectors import history_vectors

EXTRA = """
[transactions]
numeric = [{ name = "amount" }, { name = "distance", required = false }]
categorical = ["country"]
entities = [{ name = "card", fields = ["card_id"], windows = ["1d"] }]
"""


def test_extra_fields_that_are_missing_are_missing_values_and_categories_are_bounded() -> None:
    schema = parse_schema(EXTRA)["transactions"]
    table = payments(rows=600)
    distance = pa.array([None if i % 3 else 0.0 for i in range(600)], pa.float64())
    country = pa.array([None if i % 4 == 0 else f"country-{i}" for i in range(600)], pa.string())
    table = table.append_column("distance", distance).append_column("country", country)
    vectors = history_vectors(table, schema)  # type: ignore[arg-type]
    told = vectors.x[:, vectors.names.index("event_distance")]
    assert np.array_equal(np.isnan(told), np.arange(600) % 3 != 0) and (told[::3] == 0.0).all()
    bucket = vectors.x[:, vectors.names.index("event_country")]
    assert np.isnan(bucket[::4]).all() and np.nanmin(bucket) >= 0 and np.nanmax(bucket) <= 255
    assert len(np.unique(bucket[~np.isnan(bucket)])) > 100, "450 countries share 256 buckets"


def test_a_card_and_a_merchant_that_nobody_knows_get_a_score_near_what_is_common(tmp_path: Path) -> None:
    table = payments()
    model = refit(tmp_path, table, None, end_ms(table)).fraud
    assert model is not None
    cold = table.slice(0, 1)
    x = history_vectors(cold, SCHEMA.transactions).x
    score, anomaly = model.score_many(x)
    assert np.isnan(x).any() and np.isfinite(score).all() and np.isfinite(anomaly).all()
    assert 0.0 <= score[0] < model.thresholds.block and 0.0 <= anomaly[0] <= 1.0
