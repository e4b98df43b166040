"""The example schemas read the files they are written for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.schema import Schema, load_schema
from trainer.history import read_clicks, read_transactions, reading

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parents[2] / "shared" / "data"
DAY_MS = 86_400_000


def example(name: str) -> Schema:
    return load_schema([ROOT / "examples" / name])


def shared(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def test_logins_are_read_with_three_entities_and_no_number(tmp_path: Path) -> None:
    schema = example("logins.toml").transactions
    assert [entity.fields for entity in schema.entities] == [("account_id",), ("device_id",), ("asn", "country")]
    content = (
        "login_id,login_time,account_id,device_id,asn,country,method,is_takeover\n"
        "1,2020-06-16T20:01:58Z,anna,phone,3320,DE,password,0\n"
        "2,2020-06-16T20:01:59Z,anna,tablet,36926,NA,,1\n"
    )
    path = tmp_path / "logins.csv"
    path.write_text(content, encoding="utf-8")
    table = read_transactions(path, schema, 7 * DAY_MS)
    assert table.column("country").to_pylist() == ["DE", "NA"]
    assert table.column("method").to_pylist() == ["password", None]
    assert table.column("is_takeover").to_pylist() == [0, 1]
    assert "amount" not in table.column_names


def test_the_handbook_file_is_read_whole() -> None:
    table = read_transactions(
        shared("handbook/transactions.parquet"), example("handbook.toml").transactions, 7 * DAY_MS
    )
    assert table.num_rows == 1_504_628
    assert reading(table).dropped == {}
    assert table.slice(0, 1).to_pylist() == [
        {
            "event_id": "0",
            "event_time": 1_522_540_831_000,
            "card_id": "596",
            "merchant_id": "3156",
            "amount": 57.16,
            "is_fraud": 0,
            "label_time": 1_522_540_831_000 + 7 * DAY_MS,
        }
    ]
    assert np.all(np.diff(table.column("event_time").to_numpy()) >= 0)
    assert 0.005 < np.mean(table.column("is_fraud").to_numpy()) < 0.02


@pytest.mark.parametrize(
    ("file", "schema", "rows"),
    [
        ("serenade/train.txt", "serenade.toml", 113_601),
        ("rsc15_100k/yoochoose-clicks-100k_test.txt", "serenade.toml", 13_568),
        ("yoochoose1_64/train.parquet", "sessions.toml", 486_026),
    ],
)
def test_the_public_click_files_are_read_whole(file: str, schema: str, rows: int) -> None:
    table = read_clicks(shared(file), example(schema).clicks)
    assert table.num_rows == rows
    assert reading(table).dropped == {}
    assert len(set(table.column("event_id").to_pylist())) == rows
    assert np.all(np.diff(table.column("event_time").to_numpy()) >= 0)
