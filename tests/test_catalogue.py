"""Features are named by rule, columns are stable, and any schema runs the same kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.catalogue import build_catalogue
from features.codec import decode_rows, encode_rows
from features.engine import Operations, Rows, fold, remember
from features.hashing import hash_strings
from features.kernel import LABEL, TRANSACTION
from features.reasons import sentence
from features.schema import TransactionSchema, load_schema, parse_schema
from tests.streams import CATALOGUE
from trainer.history import read_transactions
from trainer.vectors import history_vectors

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_default_features_stand_in_stable_columns_named_by_rule() -> None:
    names = build_catalogue(load_schema().transactions).names
    assert names[:5] == ["event_amount", "event_hour", "event_weekday", "card_count_10m", "card_amount_sum_10m"]
    assert names[-6:] == ["merchant_seconds_since_last", "merchant_seconds_since_first", "merchant_fraud_run",
                          "merchant_seconds_since_fraud_run", "merchant_seconds_since_good_label",
                          "merchant_fraud_run_ratio"]  # fmt: skip
    for name in ("card_amount_mean_7d", "card_amount_ratio_30d", "merchant_fraud_rate_30d", "card_merchant_seen",
                 "card_merchant_distinct", "card_amount_std_1h", "merchant_count_1h", "card_amount_usual_ratio",
                 "card_amount_usual_zscore", "card_seconds_since_unusual_amount"):  # fmt: skip
        assert name in names
    assert len(names) == 74


@pytest.mark.parametrize("schema", ["default", "logins", "handbook", "random streams"])
def test_every_column_is_filled_by_exactly_one_feature(schema: str) -> None:
    if schema == "random streams":
        catalogue = CATALOGUE
    else:
        catalogue = build_catalogue(
            load_schema([EXAMPLES / f"{schema}.toml"] if schema != "default" else []).transactions
        )
    columns = [
        int(column)
        for layout in catalogue.layouts
        for part in (layout.count_columns, layout.field_columns, layout.label_columns, layout.time_columns,
                     layout.memory_columns, layout.run_columns, layout.usual_columns)
        for column in part.ravel()
        if column >= 0
    ]  # fmt: skip
    lead = sum(feature.entity == "event" for feature in catalogue.features)
    assert sorted(columns) == list(range(lead, len(catalogue.features)))
    assert len(set(catalogue.names)) == len(catalogue.names)
    for feature in catalogue.features:
        assert feature.definition and sentence(feature, 1.0)
        assert feature.name.startswith(f"{feature.entity}_")


def operations_of(schema: TransactionSchema, count: int) -> Operations:
    """Transactions of two keys and their labels, with every numeric and category missing now and then."""
    entities = len(schema.entities)
    kind = np.tile(np.array([TRANSACTION, TRANSACTION, LABEL], np.int8), count)
    n = len(kind)
    rows = np.stack([(np.arange(n) // 3) % (2 + e) for e in range(entities)], axis=1)
    values = np.tile(np.arange(n, dtype=np.float64)[:, None], (1, len(schema.numeric)))
    values[::5] = np.nan
    return Operations(
        kind=kind,
        time=1_600_000_000_000 + np.arange(n) * 7_919_000,
        event_hash=hash_strings([f"e{i // 3}{i % 2}" for i in range(n)]).view(np.int64),
        values=values,
        categories=np.full((n, len(schema.categorical)), 3.0),
        fraud=(np.arange(n) % 2).astype(np.int8),
        entity_hash=rows + 11,
        slots=rows,
        views=rows,
    )


STRANGE = {
    "no windows at all": "windows = []\nlabel_windows = []",
    "no labels": 'windows = ["1h"]\nlabel_windows = []',
    "one second": 'windows = ["1s"]\nlabel_windows = ["1s"]',
    "ten years": 'windows = ["3650d"]\nlabel_windows = ["3650d"]',
    "aggregates of no number": 'aggregates = ["mean", "std"]',
}


@pytest.mark.parametrize("name", ["logins", *STRANGE])
def test_any_schema_runs_the_kernel_and_its_state_survives_its_bytes(name: str) -> None:
    if name == "logins":
        schema = load_schema([EXAMPLES / "logins.toml"]).transactions
    else:
        text = f"[transactions]\n[[transactions.entities]]\nname = 'a'\nfields = ['a_id']\n{STRANGE[name]}\n"
        found = parse_schema(text)["transactions"]
        assert isinstance(found, TransactionSchema)
        schema = found
    catalogue = build_catalogue(schema)
    tables = tuple(Rows(layout, 6) for layout in catalogue.layouts)
    operations = operations_of(schema, 40)
    folded = fold(catalogue, tables, operations)
    zeros = np.zeros(len(operations))
    remember(catalogue, tables, operations, folded, zeros, zeros.copy(), np.zeros(len(operations), np.int8))
    assert folded.x.shape == (120, len(catalogue.features))
    assert not np.isinf(folded.x).any()
    for table in tables:
        rows = np.arange(6)
        values = encode_rows(table.layout, rows, table.ints, table.floats)
        again = Rows(table.layout, 6)
        decode_rows(table.layout, values, rows, again.ints, again.floats)
        assert encode_rows(table.layout, rows, again.ints, again.floats) == values


def test_logins_count_what_they_should_without_any_number(tmp_path: Path) -> None:
    schema = load_schema([EXAMPLES / "logins.toml"]).transactions
    path = tmp_path / "logins.csv"
    rows = [
        "login_id,login_time,account_id,device_id,asn,country,method,is_takeover",
        "1,2020-06-16T20:00:00Z,anna,phone,3320,DE,password,1",
        "2,2020-06-16T20:00:05Z,anna,phone,3320,DE,password,0",
        "3,2020-06-16T20:00:06Z,bert,phone,3320,FR,,0",
        "4,2020-06-16T23:30:00Z,anna,tablet,3320,DE,code,0",
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    vectors = history_vectors(read_transactions(path, schema, 3_600_000), schema)
    column = {name: vectors.x[:, i].tolist() for i, name in enumerate(vectors.names)}
    assert column["account_count_10m"] == [0.0, 1.0, 0.0, 0.0]
    assert column["account_count_1d"] == [0.0, 1.0, 0.0, 2.0]
    assert column["device_count_1h"] == [0.0, 1.0, 2.0, 0.0]
    assert column["network_count_1d"] == [0.0, 1.0, 0.0, 2.0]
    assert column["account_device_seen"] == [0.0, 1.0, 0.0, 0.0]
    assert column["account_fraud_count_30d"] == [0.0, 0.0, 0.0, 1.0]
    assert column["network_fraud_rate_30d"][3] == 0.5
    assert column["event_method"][0] == column["event_method"][1] != column["event_method"][3]
    assert np.isnan(column["event_method"][2])


def test_no_history_is_no_vectors(tmp_path: Path) -> None:
    schema = load_schema().transactions
    path = tmp_path / "one.csv"
    path.write_text(
        "event_id,event_time,card_id,merchant_id,amount,is_fraud\n1,2020-06-16T20:00:00Z,a,b,1,0\n", "utf-8"
    )
    table = read_transactions(path, schema, 0)
    assert history_vectors(table.slice(0, 0), schema).x.shape == (0, 74)
    assert history_vectors(table, schema).x.shape == (1, 74)
