"""History files of every shape become the same canonical tables, and bad ones say what to do."""

from __future__ import annotations

import datetime as dt
import gzip
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import HistoryError
from features.schema import ClickSchema, TransactionSchema, load_schema, parse_schema
from trainer.history import read_clicks, read_transactions, reading, split_by_time

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parents[2] / "shared" / "data"
DAY_MS = 86_400_000
NOON_MS = 1_592_337_718_000  # 2020-06-16T20:01:58Z

PAYMENTS = load_schema()


def payments(**columns: object) -> dict[str, object]:
    """Three payments in the default schema's columns, overridden or extended by ``columns``; None removes one."""
    table: dict[str, object] = {
        "event_id": ["a", "b", "c"],
        "event_time": [NOON_MS, NOON_MS + 1, NOON_MS + 2],
        "card_id": ["1", "2", "1"],
        "merchant_id": ["x", "y", "y"],
        "amount": [1.0, 2.5, 3.0],
    } | columns
    return {name: values for name, values in table.items() if values is not None}


def written(tmp_path: Path, columns: dict[str, object], name: str = "history.parquet") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def text(tmp_path: Path, content: str, name: str = "history.csv") -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def read(path: Path, schema: TransactionSchema = PAYMENTS.transactions, label_delay_ms: int = 7 * DAY_MS) -> pa.Table:
    return read_transactions(path, schema, label_delay_ms)


def read_times(tmp_path: Path, column: object, unit: str = "auto") -> list[int]:
    section = parse_schema(f'[clicks]\ntime_unit = "{unit}"\n')["clicks"]
    assert isinstance(section, ClickSchema)
    array = column if isinstance(column, pa.Array) else pa.array(column)
    same = ["s"] * len(array)
    path = written(tmp_path, {"session_id": same, "item_id": same, "event_time": array})
    return list(read_clicks(path, section).column("event_time").to_pylist())


def test_transactions_have_the_schemas_fields_with_fixed_types(tmp_path: Path) -> None:
    table = read(written(tmp_path, payments(is_fraud=[0, 1, None], note=["n", "n", "n"])))
    assert {f.name: str(f.type) for f in table.schema} == {
        "event_id": "string",
        "event_time": "int64",
        "card_id": "string",
        "merchant_id": "string",
        "amount": "double",
        "is_fraud": "int8",
        "label_time": "int64",
    }
    assert table.column("is_fraud").to_pylist() == [0, 1, None]
    assert reading(table).rows_read == 3
    assert reading(table).dropped == {}


def test_csv_tsv_semicolons_gzip_and_parquet_read_the_same(tmp_path: Path) -> None:
    rows = [
        ["event_id", "event_time", "card_id", "merchant_id", "amount", "is_fraud", "session_id"],
        ["e1", "2020-06-16T20:01:58Z", "007", "m-1", "12.5", "0", "s1"],
        ["e2", "2020-06-16 20:01:59", "8", "m-1", "1e2", "1", ""],
    ]
    expected = {
        "event_id": ["e1", "e2"],
        "event_time": [NOON_MS, NOON_MS + 1_000],
        "card_id": ["007", "8"],
        "merchant_id": ["m-1", "m-1"],
        "amount": [12.5, 100.0],
        "is_fraud": [0, 1],
        "label_time": [NOON_MS + 7 * DAY_MS, NOON_MS + 1_000 + 7 * DAY_MS],
        "session_id": ["s1", None],
    }
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t"), ("a.txt", ";"), ("b.txt", "\t")):
        content = "\n".join(delimiter.join(row) for row in rows) + "\n"
        assert read(text(tmp_path, content, name)).to_pydict() == expected, name
    zipped = tmp_path / "a.csv.gz"
    zipped.write_bytes(gzip.compress("\r\n".join(",".join(row) for row in rows).encode("utf-8-sig")))
    assert read(zipped).to_pydict() == expected
    again = written(tmp_path, {name: pa.array(values) for name, values in expected.items()})
    assert read(again).to_pydict() == expected


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Amsterdam", "-07:00"])
def test_parquet_timestamps_of_any_unit_and_zone_are_read_as_the_instant(
    tmp_path: Path, unit: str, zone: str | None
) -> None:
    instant = dt.datetime.fromtimestamp(NOON_MS / 1000, dt.UTC)
    column = pa.array([instant.replace(tzinfo=None if zone is None else dt.UTC)], pa.timestamp(unit, zone))
    assert read_times(tmp_path, column) == [NOON_MS]


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("declared", [True, False])
def test_epoch_numbers_are_read_in_their_unit_declared_or_by_magnitude(
    tmp_path: Path, unit: str, factor: int, declared: bool
) -> None:
    number = NOON_MS // 1000 * factor
    for column in (pa.array([number]), pa.array([float(number)]), pa.array([str(number)])):
        assert read_times(tmp_path, column, unit if declared else "auto") == [NOON_MS]


def test_float_seconds_keep_their_milliseconds(tmp_path: Path) -> None:
    wanted = [1_396_860_669_000 + i for i in range(1000)]
    assert read_times(tmp_path, [t / 1000 for t in wanted]) == wanted
    assert read_times(tmp_path, [f"{t / 1000:.3f}" for t in wanted]) == wanted


@pytest.mark.parametrize(
    ("written_time", "expected_ms"),
    [
        ("2020-06-16T20:01:58Z", NOON_MS),
        ("2020-06-16t20:01:58z", NOON_MS),
        ("2020-06-16 20:01:58", NOON_MS),
        ("2020-06-16T22:01:58+02:00", NOON_MS),
        ("2020-06-16T12:31:58-0730", NOON_MS),
        ("2020-06-16T20:01:58.1Z", NOON_MS + 100),
        ("2020-06-16T20:01:58.123456789+00:00", NOON_MS + 123),
        ("2020-06-16T20:01", NOON_MS - 58_000),
        ("2020-06-16", NOON_MS // DAY_MS * DAY_MS),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000),
        (" 1592337718 ", NOON_MS),
        ("1592337718.0", NOON_MS),
    ],
)
def test_times_as_text_are_read(tmp_path: Path, written_time: str, expected_ms: int) -> None:
    assert read_times(tmp_path, [written_time]) == [expected_ms]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("2023-02-29T00:00:00Z", "wrong_type"),
        ("2020-13-01", "wrong_type"),
        ("2020-06-16T24:00:00Z", "wrong_type"),
        ("yesterday", "wrong_type"),
        ("", "missing_field"),
        (None, "missing_field"),
        ("1999-12-31T23:59:59Z", "time_out_of_range"),
        ("2100-01-01T00:00:00Z", "time_out_of_range"),
        ("0", "time_out_of_range"),
        ("99999999999999999999", "time_out_of_range"),
    ],
)
def test_a_time_that_cannot_be_used_drops_its_row_and_is_counted(tmp_path: Path, bad: str | None, reason: str) -> None:
    path = written(tmp_path, payments(event_time=["2020-06-16T20:01:58Z", bad, "2020-06-16T20:01:59Z"]))
    table = read(path)
    assert table.column("event_id").to_pylist() == ["a", "c"]
    assert reading(table).dropped == {reason: 1}


def test_milliseconds_among_seconds_are_out_of_range_and_not_guessed_row_by_row(tmp_path: Path) -> None:
    table = read(written(tmp_path, payments(event_time=[NOON_MS // 1000, NOON_MS, NOON_MS // 1000])))
    assert table.column("event_time").to_pylist() == [NOON_MS, NOON_MS]
    assert reading(table).dropped == {"time_out_of_range": 1}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([7, 8, 9], pa.int32()), ["7", "8", "9"]),
        (pa.array([7.0, 8.5, 9.0]), ["7", "8.5", "9"]),
        (pa.array(["007", "x", "7.0"]), ["007", "x", "7.0"]),
        (pa.array(["p", "q", "p"]).dictionary_encode(), ["p", "q", "p"]),
        (pa.array([b"p", b"q", b"p"]), ["p", "q", "p"]),
        (pa.array(["p", "q", "p"], pa.large_string()), ["p", "q", "p"]),
    ],
)
def test_ids_of_any_type_become_strings_as_a_person_would_write_them(
    tmp_path: Path, column: pa.Array, expected: list[str]
) -> None:
    table = read(written(tmp_path, payments(card_id=column)))
    assert table.column("card_id").to_pylist() == expected


def test_integer_ids_that_csv_wrote_with_gaps_lose_their_decimal_point(tmp_path: Path) -> None:
    content = (
        f"event_id,event_time,card_id,merchant_id,amount,user_id\n1.0,{NOON_MS},7.0,NA,1,\n2.0,{NOON_MS},,NA,1,3.0\n"
    )
    table = read(text(tmp_path, content))
    assert table.column("card_id").to_pylist() == ["7"]
    assert table.column("merchant_id").to_pylist() == ["NA"]
    assert reading(table).dropped == {"missing_field": 1}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"card_id": ["1", None, "1"]}, "missing_field"),
        ({"card_id": ["1", "", "1"]}, "missing_field"),
        ({"merchant_id": [1.0, float("nan"), 2.0]}, "missing_field"),
        ({"merchant_id": ["x", "y\x1fz", "y"]}, "invalid_id"),
        ({"merchant_id": ["x", "y\u200bz", "y"]}, "invalid_id"),
        ({"event_id": ["a", "é" * 129, "c"]}, "invalid_id"),
        ({"amount": [1.0, None, 2.0]}, "missing_field"),
        ({"amount": [1.0, float("nan"), 2.0]}, "missing_field"),
        ({"amount": [1.0, float("inf"), 2.0]}, "number_out_of_range"),
        ({"amount": [1.0, -0.01, 2.0]}, "number_out_of_range"),
        ({"amount": ["1", "much", "2"]}, "wrong_type"),
        ({"amount": ["1", "", "+2.5e0"]}, "missing_field"),
        ({"is_fraud": [0, 2, 1]}, "wrong_type"),
        ({"is_fraud": ["true", "maybe", "no"]}, "wrong_type"),
    ],
)
def test_a_row_that_live_would_refuse_is_dropped_and_counted_under_the_same_reason(
    tmp_path: Path, columns: dict[str, object], reason: str
) -> None:
    table = read(written(tmp_path, payments(**columns)))
    assert table.num_rows == 2
    assert reading(table).dropped == {reason: 1}
    assert reason in str(reading(table))


def test_a_row_with_two_faults_is_counted_once(tmp_path: Path) -> None:
    table = read(written(tmp_path, payments(card_id=["1", None, "1"], amount=[1.0, -1.0, 1.0])))
    assert reading(table).dropped == {"missing_field": 1}


def test_a_number_that_may_be_missing_is_null_and_keeps_its_row(tmp_path: Path) -> None:
    section = parse_schema(
        '[transactions]\nnumeric = [{name = "amount", required = false}]\n'
        '[[transactions.entities]]\nname = "card"\nfields = ["card_id"]\n'
    )["transactions"]
    assert isinstance(section, TransactionSchema)
    table = read(written(tmp_path, payments(amount=[1.0, float("nan"), None])), section)
    assert table.column("amount").to_pylist() == [1.0, None, None]


@pytest.mark.parametrize(
    "column",
    [
        [False, True, None],
        [0, 1, None],
        [0.0, 1.0, float("nan")],
        [Decimal("0.0"), Decimal("1.0"), None],
        ["0", "1", ""],
        ["False", "TRUE", "null"],
    ],
)
def test_labels_of_any_type_are_good_fraud_or_never_judged(tmp_path: Path, column: list[object]) -> None:
    assert read(written(tmp_path, payments(is_fraud=column))).column("is_fraud").to_pylist() == [0, 1, None]


def test_a_label_without_a_time_is_known_after_the_delay_and_no_label_is_never_known(tmp_path: Path) -> None:
    delayed = read(written(tmp_path, payments(is_fraud=[0, 1, None])), label_delay_ms=5)
    assert delayed.column("label_time").to_pylist() == [NOON_MS + 5, NOON_MS + 6, None]
    unjudged = read(written(tmp_path, payments()))
    assert unjudged.column("is_fraud").null_count == 3
    assert unjudged.column("label_time").null_count == 3


def test_label_times_of_the_file_win_over_the_delay_but_never_precede_the_event(tmp_path: Path) -> None:
    columns = payments(is_fraud=[0, 1, 1], label_time=[NOON_MS + 100, NOON_MS - 100, None])
    table = read(written(tmp_path, columns), label_delay_ms=5)
    assert table.column("label_time").to_pylist() == [NOON_MS + 100, NOON_MS + 1, NOON_MS + 2 + 5]


def test_rows_are_sorted_by_time_and_rows_of_one_time_keep_their_order(tmp_path: Path) -> None:
    table = read(written(tmp_path, payments(event_time=[NOON_MS + 9, NOON_MS, NOON_MS])))
    assert table.column("event_id").to_pylist() == ["b", "c", "a"]


def test_a_directory_of_parquet_is_one_history_whatever_types_its_files_have(tmp_path: Path) -> None:
    written(tmp_path, payments(event_time=[NOON_MS + 5, NOON_MS + 6, NOON_MS + 7], session_id=["s"] * 3), "d/b.parquet")
    written(tmp_path, payments(card_id=[1, 2, 3]), "d/day=1/a.parquet")
    written(tmp_path, payments(event_id=["t", "t", "t"]), "d/_temporary/c.parquet")
    written(tmp_path, payments(event_id=["t", "t", "t"]), "d/.half.parquet")
    table = read(tmp_path / "d")
    assert table.column("event_id").to_pylist() == ["a", "b", "c"] * 2
    assert table.column("card_id").to_pylist() == ["1", "2", "3", "1", "2", "1"]
    assert table.column("session_id").to_pylist() == [None] * 3 + ["s"] * 3


def test_malformed_lines_of_text_are_skipped_and_counted(tmp_path: Path) -> None:
    content = f"event_id,event_time,card_id,merchant_id,amount\na,{NOON_MS},1,x,1\nbroken,line\nb,{NOON_MS},1,x,1\n"
    table = read(text(tmp_path, content))
    assert table.column("event_id").to_pylist() == ["a", "b"]
    assert reading(table).rows_read == 3
    assert reading(table).dropped == {"malformed_row": 1}


def test_clicks_without_ids_get_the_session_and_the_place_in_it(tmp_path: Path) -> None:
    content = "session_id,item_id,event_time\n7,30,1592337720\n8,10,1592337718\n7,10,1592337718.5\n7,20,1592337719\n"
    table = read_clicks(text(tmp_path, content), PAYMENTS.clicks)
    assert table.to_pydict() == {
        "event_id": ["8:0", "7:0", "7:1", "7:2"],
        "event_time": [NOON_MS, NOON_MS + 500, NOON_MS + 1_000, NOON_MS + 2_000],
        "session_id": ["8", "7", "7", "7"],
        "user_id": [None] * 4,
        "card_id": [None] * 4,
        "item_id": ["10", "10", "20", "30"],
        "action": ["view"] * 4,
    }


def test_clicks_with_all_fields_keep_them_and_a_missing_action_is_a_view(tmp_path: Path) -> None:
    content = (
        "event_id,event_time,session_id,item_id,user_id,card_id,action\n"
        f"e1,{NOON_MS},s,i,u,,BUY\ne2,{NOON_MS},s,i,,c,\ne3,{NOON_MS},s,i,,,stare\n"
    )
    table = read_clicks(text(tmp_path, content), PAYMENTS.clicks)
    assert table.column("event_id").to_pylist() == ["e1", "e2"]
    assert table.column("user_id").to_pylist() == ["u", None]
    assert table.column("card_id").to_pylist() == [None, "c"]
    assert table.column("action").to_pylist() == ["buy", "view"]
    assert reading(table).dropped == {"wrong_type": 1}


def fails(path: Path, *fragments: str) -> None:
    with pytest.raises(HistoryError) as error:
        read(path)
    for fragment in (str(path), *fragments):
        assert fragment in str(error.value)


def test_a_missing_file_says_what_history_is(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere.parquet", "no such file", "Parquet, CSV or TSV")


def test_an_empty_file_and_a_file_of_only_a_header_say_so(tmp_path: Path) -> None:
    fails(text(tmp_path, ""), "0 bytes")
    for ending in ("", "\n", "\r\n\r\n"):
        header = "event_id,event_time,card_id,merchant_id,amount"
        fails(text(tmp_path, header + ending), "no rows", "event_time")
    fails(written(tmp_path, {name: pa.array(v)[:0] for name, v in payments().items()}), "no rows")


def test_a_directory_without_parquet_says_so(tmp_path: Path) -> None:
    text(tmp_path, "event_id\n")
    fails(tmp_path, "without *.parquet")


def test_absent_columns_are_named_together_with_those_found_and_the_way_out(tmp_path: Path) -> None:
    path = written(tmp_path, payments(event_id=None, card_id=None, customer=["a", "b", "c"]))
    fails(path, "'event_id'", "'card_id'", "'customer'", "[transactions.columns]")


def test_a_label_column_that_the_schema_maps_must_be_there(tmp_path: Path) -> None:
    path = written(
        tmp_path, {"TRANSACTION_ID": [1], "TX_DATETIME": [NOON_MS], "CUSTOMER_ID": [1], "TERMINAL_ID": [1],
                   "TX_AMOUNT": [1.0]}
    )  # fmt: skip
    with pytest.raises(HistoryError, match="'TX_FRAUD'"):
        read(path, load_schema([Path(__file__).parents[1] / "examples" / "handbook.toml"]).transactions)


def test_a_file_that_is_not_what_its_name_says_is_unreadable(tmp_path: Path) -> None:
    fails(text(tmp_path, "PAR1 is how it begins", "torn.bin"), "cannot be read")
    fails(text(tmp_path, "hello", "hello.parquet"), "cannot be read")
    binary = tmp_path / "bytes.csv"
    binary.write_bytes(b"event_id,event_time,card_id,merchant_id,amount\n\xff\xfe,1592337718,1,x,1\n")
    fails(binary, "cannot be read", "not UTF-8")


def test_a_column_of_a_type_that_cannot_serve_is_named(tmp_path: Path) -> None:
    fails(written(tmp_path, payments(event_time=[True, False, True])), "event_time", "bool")
    fails(written(tmp_path, payments(card_id=[[1], [2], [3]])), "card_id", "list")
    fails(written(tmp_path, payments(amount=pa.array([1, 2, 3], pa.timestamp("s")))), "amount", "timestamp")


def test_a_history_of_only_unusable_rows_says_why(tmp_path: Path) -> None:
    fails(written(tmp_path, payments(event_time=[1, 2, 3])), "no usable row", "time_out_of_range 3")


def test_a_split_keeps_rows_of_one_time_together(tmp_path: Path) -> None:
    table = pa.table({"t": [1, 2, 2, 2, 5]})
    early, late = split_by_time(table, "t", fraction=0.6)
    assert (early.column("t").to_pylist(), late.column("t").to_pylist()) == ([1], [2, 2, 2, 5])
    early, late = split_by_time(table, "t", at_ms=5)
    assert (early.num_rows, late.num_rows) == (4, 1)
    assert split_by_time(table, "t", fraction=1.0)[1].num_rows == 0
    assert split_by_time(table, "t", fraction=0.0)[0].num_rows == 0
    with pytest.raises(ValueError, match="either"):
        split_by_time(table, "t")
    with pytest.raises(ValueError, match=r"0\.\.1"):
        split_by_time(table, "t", fraction=70)
