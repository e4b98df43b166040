"""pandas makes the columns that the kernel makes, and the benchmark notices where one of them does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bench.pandas_columns import frames, other_columns, windowed_columns
from bench.replay import compare, measure
from features.schema import TransactionSchema, load_schema
from trainer.vectors import Vectors, history_vectors

_DAY_MS = 86_400_000
_ROWS = 6000


def _history(schema: TransactionSchema) -> pa.Table:
    """A year of 30 cards: shared seconds, amounts far from the usual, frauds by the dozen, pauses of months."""
    rng = np.random.default_rng(8)
    times = np.sort(rng.integers(0, 365 * 86_400, _ROWS)) * 1000 + 1_600_000_000_000
    times[1::50] = times[::50]
    cards = rng.integers(0, 30, _ROWS)
    resting = (cards < 3) & (times > times[_ROWS // 3]) & (times < times[2 * _ROWS // 3])
    cards[resting] += 5
    merchants = rng.integers(0, 40, _ROWS)
    judged = rng.random(_ROWS) < 0.9
    fraud = (rng.random(_ROWS) < 0.1) | ((merchants < 6) & (rng.random(_ROWS) < 0.97))
    columns: dict[str, Any] = {
        schema.id: [f"t{i}" for i in range(_ROWS)],
        schema.time: times,
        "card_id": [f"c{card}" for card in cards],
        "merchant_id": [f"m{merchant}" for merchant in merchants],
        "amount": np.round(rng.lognormal(3, 1, _ROWS), 2),
        schema.label: pa.array(fraud.astype(np.int8), mask=~judged),
        schema.label_time: pa.array(times + 7 * _DAY_MS, mask=~judged),
    }
    return pa.table(columns)


@pytest.fixture(scope="module")
def made() -> tuple[Vectors, Any, Any, Any, Any, TransactionSchema]:
    schema = load_schema().transactions
    table = _history(schema)
    frame, labels = frames(table, schema)
    narrow, wide = (windowed_columns(frame, labels, schema, hop_more=hop_more) for hop_more in (False, True))
    return history_vectors(table, schema), frame, narrow, wide, other_columns(frame, labels, schema), schema


def test_pandas_makes_every_column_of_the_catalogue_as_the_kernel_does(made: Any) -> None:
    vectors = made[0]
    agreement = compare(*made)
    assert agreement.columns == len(vectors.names) and agreement.outside == 0
    assert agreement.equal > agreement.compared / 2
    x = dict(zip(vectors.names, vectors.x.T, strict=True))
    # The history holds what is hard: full runs, amounts far from the usual, memories that emptied.
    assert {7, 8} < set(x["merchant_fraud_run"]) and np.nanmax(x["merchant_fraud_run_ratio"]) > 1
    assert np.isfinite(x["card_seconds_since_unusual_amount"]).any()
    assert np.count_nonzero(x["card_merchant_distinct"] == 0) > 30


def test_a_value_that_differs_is_noticed_in_every_column(made: Any) -> None:
    vectors, frame, narrow, wide, others, schema = made
    for column, name in enumerate(vectors.names):
        x = vectors.x.copy()
        x[:, column] = np.nan_to_num(x[:, column]) * 1.001 + 0.5
        with pytest.raises(AssertionError, match=f"^{name}: "):
            compare(Vectors(x, vectors.names, vectors.repeat), frame, narrow, wide, others, schema)


def test_a_column_that_pandas_does_not_make_is_noticed(made: Any) -> None:
    vectors, frame, narrow, wide, others, schema = made
    fewer = {name: column for name, column in others.items() if name != "card_merchant_seen"}
    with pytest.raises(AssertionError, match="pandas makes no card_merchant_seen"):
        compare(vectors, frame, narrow, wide, fewer, schema)


def test_the_row_says_both_ratios_and_what_they_were_measured_on(tmp_path: Path) -> None:
    found = measure(True, file=tmp_path / "absent.parquet", rounds=1)
    (turn,) = found["rounds"]
    assert turn["pandas_s"] > turn["pandas_windows_s"] > 0
    assert found["ratio"] >= found["ratio_windows"] > 0
    assert found["subset"].endswith("labels: simulator") and found["compared"]["columns"] == 74
