"""Which label counts: the latest, as of a moment, from the table or a file beside it; what it says about the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import HistoryError
from features.schema import load_schema
from trainer.history import read_labels, reading
from trainer.vectors import history_vectors
from trainer.verdicts import verdicts_of

SCHEMA = load_schema().transactions
T0 = 1_700_000_000_000
HOUR = 3_600_000


def payments(ids: list[str], labels: list[int | None], known: list[int | None]) -> pa.Table:
    n = len(ids)
    return pa.table({
        "event_id": ids, "event_time": pa.array(T0 + HOUR * np.arange(n)), "card_id": ["c"] * n,
        "merchant_id": ["m"] * n, "amount": np.full(n, 10.0), "is_fraud": pa.array(labels, pa.int8()),
        "label_time": pa.array(known, pa.int64()),
    })  # fmt: skip


def told(*rows: tuple[str, int, int]) -> pa.Table:
    ids, times, labels = zip(*rows, strict=True)
    return pa.table(
        {"event_id": ids, "label_time": pa.array(times, pa.int64()), "is_fraud": pa.array(labels, pa.int8())}
    )


def test_the_latest_label_wins_as_of_each_moment_and_the_others_are_counted() -> None:
    table = payments(["a", "b", "c"], [0, 1, None], [T0 + 10 * HOUR, T0 + 10 * HOUR, None])
    verdicts = verdicts_of(table, SCHEMA, told(("a", T0 + 20 * HOUR, 1), ("nowhere", T0 + 5 * HOUR, 1),
                                               ("b", T0 + 12 * HOUR, 1), ("a", T0 + 15 * HOUR, 0)))  # fmt: skip
    assert verdicts.as_of()[0].tolist() == [1, 1, -1]
    assert verdicts.as_of(T0 + 20 * HOUR)[0].tolist() == [0, 1, -1]
    assert verdicts.as_of(T0 + 10 * HOUR)[0].tolist() == [-1, -1, -1]
    assert verdicts.as_of()[1].tolist() == [T0 + 20 * HOUR, T0 + 12 * HOUR, 0]
    assert (verdicts.unknown, verdicts.contradicted) == (1, 1)


def test_rows_that_repeat_a_transaction_share_its_latest_label() -> None:
    table = payments(["a", "b", "a"], [1, 0, 0], [T0 + 9 * HOUR, T0 + 9 * HOUR, T0 + 8 * HOUR])
    verdicts = verdicts_of(table, SCHEMA)
    assert verdicts.as_of()[0].tolist() == [1, 0, 1]
    assert verdicts.as_of(T0 + 9 * HOUR)[0].tolist() == [0, -1, 0]
    assert verdicts.contradicted == 1


def test_the_kernel_sees_each_label_when_it_came_and_a_correction_replaces_the_first() -> None:
    ids = [f"t{i}" for i in range(40)]
    table = payments(ids, [None] * 40, [None] * 40)
    labels = told(("t0", T0 + 10 * HOUR + 1, 1), ("t0", T0 + 20 * HOUR + 1, 0))
    vectors = history_vectors(table, SCHEMA, verdicts=verdicts_of(table, SCHEMA, labels))
    for entity in ("card", "merchant"):
        column = vectors.x[:, vectors.names.index(f"{entity}_fraud_count_30d")]
        assert column.tolist() == [0.0] * 11 + [1.0] * 10 + [0.0] * 19


def test_labels_that_no_table_has_give_the_vectors_that_the_tables_own_would() -> None:
    rng = np.random.default_rng(1)
    ids = [f"t{i}" for i in range(300)]
    label = [int(v) for v in rng.random(300) < 0.2]
    known = [int(T0 + HOUR * i + v) for i, v in enumerate(rng.integers(1, 50 * HOUR, 300))]
    own = payments(ids, list(label), list(known))
    bare = payments(ids, [None] * 300, [None] * 300)
    beside = told(*zip(ids, known, label, strict=True))
    first, second = (
        history_vectors(own, SCHEMA),
        history_vectors(bare, SCHEMA, verdicts=verdicts_of(bare, SCHEMA, beside)),
    )
    assert first.x.tobytes() == second.x.tobytes()


def test_a_file_of_labels_is_read_in_order_of_time_and_what_says_nothing_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("event_id,label_time,is_fraud\nb,2026-01-03T00:00:00Z,1\na,2026-01-02T00:00:00Z,no\n"
                    "c,2026-01-02T00:00:00Z,\nd,never,1\n", encoding="utf-8")  # fmt: skip
    table = read_labels(file, SCHEMA)
    assert table["event_id"].to_pylist() == ["a", "b"]
    assert table["is_fraud"].to_pylist() == [0, 1]
    assert reading(table).dropped == {"no_verdict": 1, "wrong_type": 1}
    lacking = tmp_path / "lacking.parquet"
    pq.write_table(table.drop_columns(["label_time"]), lacking)
    with pytest.raises(HistoryError, match=r"no column 'label_time' \(for label_time\)"):
        read_labels(lacking, SCHEMA)
