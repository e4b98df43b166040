"""Every bad record gets its reason and never touches the good ones beside it."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.checks import parse_time_ms
from features.decode import ClickDecoder, LabelDecoder, Limits, TransactionDecoder
from features.errors import BadEvent
from features.messages import DeadLetter, DeadLetterReason
from features.schema import load_schema, parse_schema
from stream.lane import dead_letter
from tests.fakes import FakeRecord

NOW_MS = 1_600_000_000_000
LIMITS = Limits(message_bytes_max=10_000)
SCHEMA = load_schema().transactions
TRANSACTIONS = TransactionDecoder(SCHEMA, LIMITS)
LABELS = LabelDecoder(SCHEMA, LIMITS)
CLICKS = ClickDecoder(LIMITS)
PAYMENT: dict[str, Any] = {"event_id": "e1", "event_time": NOW_MS, "card_id": "c1", "merchant_id": "m1", "amount": 9.5}
LABEL: dict[str, Any] = {"event_id": "e1", "label_time": NOW_MS, "card_id": "c1", "merchant_id": "m1", "is_fraud": True}
CLICK: dict[str, Any] = {"event_id": "k1", "event_time": NOW_MS, "session_id": "s1", "item_id": "i1", "action": "view"}
KINDS: dict[str, Any] = {"payment": (TRANSACTIONS, PAYMENT), "label": (LABELS, LABEL), "click": (CLICKS, CLICK)}


def one(decoder: Any, value: bytes | None) -> Any:
    return decoder.decode([value], [NOW_MS])


def reason(message: bytes | dict[str, Any] | None, decoder: Any = TRANSACTIONS) -> tuple[str, str]:
    """Code and sentence of a message that must be bad."""
    value = json.dumps(message).encode() if isinstance(message, dict) else message
    batch = one(decoder, value)
    assert batch.rows == [] and len(batch.bad) == 1
    bad = batch.bad[0]
    assert bad.code in get_args(DeadLetterReason)
    _, letter = dead_letter(("t", 0), FakeRecord("t", 0, 7, b"\xff", value, NOW_MS), bad)
    assert msgspec.json.decode(letter, type=DeadLetter).reason == bad.code
    return bad.code, bad.sentence


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in PAYMENT.items() if key != name}


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_record_of_each_kind_is_decoded(kind: str) -> None:
    decoder, message = KINDS[kind]
    batch = one(decoder, json.dumps(message).encode())
    assert batch.rows == [0] and batch.bad == [] and batch.unknown_fields == 0
    assert batch.time.tolist() == [NOW_MS]


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        (b"", "empty", "no value"),
        (None, "empty", "no value"),
        (b"{", "malformed_json", "truncated"),
        (b"\x80\x02", "malformed_json", ""),
        (b'{"event_id": "\xff\xfe"}', "malformed_json", "UTF-8"),
        (b'{"event_id": "\\ud800", "event_time": 1}', "malformed_json", "surrogate"),
        (b'{"event_id": NaN}', "malformed_json", ""),
        (b"[" * 2000 + b"]" * 2000, "wrong_type", "array"),
        (b'{"x": ' + b"[" * 4000 + b"]" * 4000 + b"}", "malformed_json", "nested too deeply"),
        (b"x" * 10_001, "oversized", "10001 bytes; at most 10000 (message_bytes_max)"),
        (b'"text"', "wrong_type", "Expected `object`"),
        (without("amount"), "missing_field", "amount"),
        (without("card_id"), "missing_field", "card_id"),
        (PAYMENT | {"amount": "9.5"}, "wrong_type", "amount"),
        (PAYMENT | {"amount": None}, "wrong_type", "amount"),
        (PAYMENT | {"amount": True}, "wrong_type", "amount"),
        (PAYMENT | {"card_id": False}, "wrong_type", "card_id"),
        (PAYMENT | {"card_id": 1.5}, "wrong_type", "card_id"),
        (PAYMENT | {"card_id": ["c"]}, "wrong_type", "card_id"),
        (PAYMENT | {"amount": -0.01}, "number_out_of_range", "amount -0.01 is not from 0 to 1e+07"),
        (PAYMENT | {"amount": 10_000_000.01}, "number_out_of_range", "from 0 to 1e+07"),
        (PAYMENT | {"event_id": ""}, "invalid_id", "event_id is empty"),
        (PAYMENT | {"card_id": "a\x1fb"}, "invalid_id", "cannot be printed"),
        (PAYMENT | {"merchant_id": "x" * 257}, "invalid_id", "257 bytes; at most 256"),
        (PAYMENT | {"merchant_id": "\u00e9" * 129}, "invalid_id", "258 bytes; at most 256"),
        (PAYMENT | {"event_time": NOW_MS // 1000}, "time_out_of_range", "looks like seconds"),
        (PAYMENT | {"event_time": NOW_MS * 1000}, "time_out_of_range", "looks like microseconds"),
        (PAYMENT | {"event_time": 0}, "time_out_of_range", "from 2000-01-01"),
        (PAYMENT | {"event_time": -5}, "time_out_of_range", "from 2000-01-01"),
        (PAYMENT | {"event_time": NOW_MS + 3_600_001}, "time_out_of_range", "3600 s after the record"),
        (PAYMENT | {"event_time": "yesterday"}, "wrong_type", "neither RFC 3339"),
        (PAYMENT | {"event_time": "2020-09-13T12:26:40"}, "wrong_type", "has no offset"),
        (PAYMENT | {"event_time": "1999-12-31T23:59:59Z"}, "time_out_of_range", "from 2000-01-01"),
        (PAYMENT | {"event_time": 1.5}, "wrong_type", "event_time"),
    ],
)  # fmt: skip
def test_each_kind_of_bad_payment_has_its_reason(value: Any, code: str, text: str) -> None:
    found, sentence = reason(value)
    assert found == code, sentence
    assert text in sentence


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400, "9" * 5000, "-" + "9" * 5000, "1" + "0" * 20])
@pytest.mark.parametrize("field", ["amount", "event_time", "card_id"])
def test_a_number_of_any_size_is_a_dead_letter_or_an_id(number: str, field: str) -> None:
    value = json.dumps(PAYMENT | {field: 0}).replace(f'"{field}": 0', f'"{field}": {number}').encode()
    batch = one(TRANSACTIONS, value)
    assert len(batch.rows) + len(batch.bad) == 1
    if batch.bad:
        assert batch.bad[0].code in get_args(DeadLetterReason)
        assert len(batch.bad[0].sentence) < 500
    else:
        assert field == "card_id" and list(batch.entities[0]) == [number]


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"is_fraud": 2}, "number_out_of_range"), ({"is_fraud": -1}, "number_out_of_range"),
     ({"is_fraud": "1"}, "wrong_type"), ({"is_fraud": None}, "wrong_type"), ({"label_time": 5}, "time_out_of_range"),
     ({"card_id": ""}, "invalid_id")],
)  # fmt: skip
def test_each_kind_of_bad_label_has_its_reason(changes: dict[str, Any], code: str) -> None:
    assert reason(LABEL | changes, LABELS)[0] == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"action": "look"}, "wrong_type"), ({"session_id": None}, "wrong_type"), ({"item_id": ""}, "invalid_id"),
     ({"user_id": ""}, "invalid_id"), ({"card_id": "\n"}, "invalid_id"), ({"event_time": 12}, "time_out_of_range")],
)  # fmt: skip
def test_each_kind_of_bad_click_has_its_reason(changes: dict[str, Any], code: str) -> None:
    assert reason(CLICK | changes, CLICKS)[0] == code


def test_a_label_may_be_a_boolean_or_0_or_1_and_a_boolean_is_no_number_elsewhere() -> None:
    values = [json.dumps(LABEL | {"is_fraud": value}).encode() for value in (True, False, 1, 0)]
    assert LABELS.decode(values, [NOW_MS] * 4).fraud.tolist() == [1, 0, 1, 0]
    assert reason(PAYMENT | {"event_time": True})[0] == "wrong_type"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@st.composite
def messages(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """A good message, one with some fields made into anything, or arbitrary bytes."""
    kind = draw(st.sampled_from(["good", "fields", "bytes", "flip", "json"]))
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    if kind == "json":
        return json.dumps(draw(JSON)).encode()
    changed = dict(good)
    if kind == "fields":
        changed |= draw(st.dictionaries(st.sampled_from([*good, "else"]), JSON, max_size=3))
    value = bytearray(json.dumps(changed).encode())
    if kind == "flip":
        value[draw(st.integers(0, len(value) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(value)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_whatever_comes_in_nothing_raises_and_no_record_changes_its_neighbours(kind: str, data: st.DataObject) -> None:
    decoder, good = KINDS[kind]
    values = data.draw(st.lists(messages(good), max_size=6))
    batch = decoder.decode(values, [NOW_MS] * len(values))
    alone = [one(decoder, value) for value in values]
    assert batch.rows == [i for i, single in enumerate(alone) if single.rows]
    assert [(bad.index, bad.code) for bad in batch.bad] == [
        (i, single.bad[0].code) for i, single in enumerate(alone) if single.bad
    ]
    assert list(batch.event_id) == [id_ for single in alone for id_ in single.event_id]
    assert np.array_equal(batch.time, [time for single in alone for time in single.time])
    assert batch.unknown_fields == sum(single.unknown_fields for single in alone)
    for bad in batch.bad:
        assert bad.sentence
        msgspec.json.encode(bad.sentence)
    if kind == "payment":
        assert np.array_equal(batch.values, np.array([v for s in alone for v in s.values]).reshape(len(batch.rows), -1)
                              if batch.rows else np.zeros((0, 1)))  # fmt: skip
        assert np.isfinite(batch.values).all()


def test_unknown_fields_are_ignored_and_counted() -> None:
    values = [json.dumps(PAYMENT | extra).encode() for extra in ({}, {"colour": "red"}, {"a": {"b": [1]}, "c": None})]
    batch = TRANSACTIONS.decode(values, [NOW_MS] * 3)
    assert batch.rows == [0, 1, 2] and batch.unknown_fields == 2
    assert reason(PAYMENT | {"colour": "red", "amount": -1})[0] == "number_out_of_range"
    assert reason({"colour": "red"})[0] == "missing_field"


@pytest.mark.parametrize(("given_id", "text"), [("7", "7"), (7, "7"), (-7, "-7"), ("caf\u00e9", "caf\u00e9"),
                                                (2**63, str(2**63)), ("x" * 256, "x" * 256)])  # fmt: skip
def test_an_id_is_a_text_or_a_whole_number(given_id: Any, text: str) -> None:
    batch = one(TRANSACTIONS, json.dumps(PAYMENT | {"card_id": given_id}).encode())
    assert list(batch.entities[0]) == [text]


def test_a_combined_entity_is_its_fields_joined_in_order_and_missing_numbers_are_nan() -> None:
    schema = parse_schema("""
        [transactions]
        numeric = ["amount", { name = "tip", required = false }]
        categorical = ["channel"]
        [[transactions.entities]]
        name = "pair"
        fields = ["b_id", "a_id"]
    """)["transactions"]
    message = {"event_id": 1, "event_time": NOW_MS, "a_id": "a", "b_id": 2, "amount": 0, "channel": None}
    batch = one(TransactionDecoder(schema, LIMITS), json.dumps(message).encode())  # type: ignore[arg-type]
    assert [list(ids) for ids in batch.entities] == [["2\x1fa"]]
    assert batch.values[0, 0] == 0.0 and math.isnan(batch.values[0, 1])
    assert math.isnan(batch.categories[0, 0])
    given_tip = one(TransactionDecoder(schema, LIMITS), json.dumps(message | {"tip": 3}).encode())  # type: ignore[arg-type]
    assert given_tip.values[0].tolist() == [0.0, 3.0]


@given(st.integers(946_684_800_000, 4_102_444_800_000 - 1), st.integers(-14 * 60, 14 * 60))
def test_rfc_3339_with_any_offset_is_the_same_moment_as_epoch_milliseconds(wanted: int, minutes: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=wanted)
    assert parse_time_ms(wanted) == wanted
    assert parse_time_ms(moment.isoformat()) == wanted
    assert parse_time_ms(moment.isoformat().replace("+00:00", "Z")) == wanted
    assert parse_time_ms(moment.astimezone(timezone(timedelta(minutes=minutes))).isoformat()) == wanted


def outcome(value: str | int) -> str:
    """The reason why a time is refused, or where it lies."""
    try:
        time_ms = parse_time_ms(value)
    except BadEvent as error:
        return error.code
    return "in range" if 946_684_800_000 <= time_ms < 4_102_444_800_000 else "out of range"


@settings(max_examples=300)
@given(st.text(max_size=30) | st.integers())
def test_a_time_is_in_range_or_refused(value: str | int) -> None:
    assert outcome(value) in ("in range", "wrong_type", "time_out_of_range")


@pytest.mark.parametrize("value", ["2020-W01-1T00:00:00Z", "20200101T000000Z", "0001-01-01T00:00:00+14:00",
                                   "9999-12-31T23:59:59-14:00", "2020-01-01", "12:00Z", str(NOW_MS)])  # fmt: skip
def test_a_text_that_is_nearly_a_time_never_raises_anything_but_its_reason(value: str) -> None:
    assert outcome(value) in ("in range", "wrong_type", "time_out_of_range")


def test_no_records_are_an_empty_batch_of_the_right_shape() -> None:
    batch = TRANSACTIONS.decode([], [])
    assert len(batch.rows) == 0 and batch.values.shape == (0, 1) and [len(ids) for ids in batch.entities] == [0, 0]
    assert CLICKS.decode([], []).rows == []
