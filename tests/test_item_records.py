"""Records of the items topic: what is read, what is refused, and what becomes of the item then."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.checks import FOREVER_MS
from features.decode import Limits
from features.item_records import Faulty, Gone, ItemDecoder, ItemFacts

DECODE = ItemDecoder(Limits()).decode


def _read(key: str = "a", **fields: Any) -> ItemFacts | Gone | Faulty:
    return DECODE(key.encode(), json.dumps({"item_id": key, **fields}).encode())


def test_an_item_needs_its_id_only() -> None:
    assert _read() == ItemFacts("a", None, None, None, -FOREVER_MS, FOREVER_MS, False, False)
    assert _read(title=None, category=None, hidden=None, stock=None, available_from=None) == _read()


def test_what_is_known_is_read_by_the_rules_of_every_input() -> None:
    found = _read(title="Kite", category=7, seller="x", price=3.5, available_from="2026-03-01T12:00:00+01:00",
                  available_until=1_900_000_000_000, hidden=1, stock=0, colour="red")  # fmt: skip
    assert found == ItemFacts("a", "Kite", "7", "x", 1_772_362_800_000, 1_900_000_000_000, True, True)
    assert _read(stock=0.5) == _read()


def test_a_record_without_a_value_deletes_the_item_and_one_of_no_bytes_is_faulty() -> None:
    assert DECODE(b"a", None) == Gone("a")
    found = DECODE(b"a", b"")
    assert isinstance(found, Faulty) and (found.item_id, found.code) == ("a", "empty")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"stock": -1}, "number_out_of_range"),
        ({"price": "3"}, "wrong_type"),
        ({"hidden": "yes"}, "wrong_type"),
        ({"hidden": 2}, "number_out_of_range"),
        ({"available_from": 1_700_000_000}, "time_out_of_range"),
        ({"available_until": 1_700_000_000_000_000}, "time_out_of_range"),
        ({"available_until": 10**18}, "time_out_of_range"),
        ({"available_until": -(10**15)}, "time_out_of_range"),
        ({"available_until": "9999-12-31"}, "wrong_type"),
        ({"category": ""}, "invalid_id"),
        ({"item_id": "b"}, "invalid_id"),
    ],
)
def test_a_faulty_record_names_its_item_by_the_key_and_says_why(fields: dict[str, Any], code: str) -> None:
    found = DECODE(b"a", json.dumps({"item_id": "a", **fields}).encode())
    assert isinstance(found, Faulty) and (found.item_id, found.code) == ("a", code)
    assert found.sentence


@pytest.mark.parametrize(
    ("told", "read"),
    [
        (None, None), ("9999-12-31T23:59:59Z", FOREVER_MS), (253_402_300_799_999, FOREVER_MS),
        ("2100-01-01T00:00:00Z", FOREVER_MS), ("2099-12-31T23:59:59.999Z", 4_102_444_799_999),
        ("0001-01-01T00:00:00Z", -FOREVER_MS), (0, -FOREVER_MS), ("1999-12-31T23:59:59Z", -FOREVER_MS),
    ],
)  # fmt: skip
def test_a_bound_beyond_all_events_is_for_ever(told: Any, read: int | None) -> None:
    found = _read(available_from=told, available_until=told)
    assert isinstance(found, ItemFacts)
    assert (found.from_ms, found.until_ms) == ((-FOREVER_MS, FOREVER_MS) if read is None else (read, read))


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"\n", b"x" * 257])
def test_a_key_that_is_no_id_names_no_item(key: bytes | None) -> None:
    found = DECODE(key, b'{"item_id":"a"}')
    assert isinstance(found, Faulty) and found.item_id is None


def test_a_title_is_one_line_of_bounded_length() -> None:
    found = _read(title="  two\n\tlines \x00" + "x" * 1000)
    assert isinstance(found, ItemFacts) and found.title is not None
    assert found.title.startswith("two lines x") and len(found.title) == 300


@given(st.none() | st.binary(max_size=40), st.none() | st.binary(max_size=200))
def test_no_bytes_make_it_raise(key: bytes | None, value: bytes | None) -> None:
    assert isinstance(DECODE(key, value), ItemFacts | Gone | Faulty)
