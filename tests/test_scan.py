"""The compiled scanner never says anything else than the decoder that explains; compiled answers read as msgspec's."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.answers import MICRO, UNKNOWN, allowed, trailing
from features.decode import ClickDecoder, LabelDecoder, Limits, TransactionDecoder
from features.encoding import category_buckets
from features.messages import Decision
from features.schema import load_schema
from features.texts import Texts

NOW_MS = 1_700_000_000_000
SCHEMA = load_schema().transactions
LIMITS = Limits(message_bytes_max=400)
PAYMENT: dict[str, Any] = {"event_id": "e1", "event_time": NOW_MS, "card_id": "c1", "merchant_id": "m1", "amount": 9.5}
LABEL: dict[str, Any] = {"event_id": "e1", "label_time": NOW_MS, "card_id": "c1", "merchant_id": "m1", "is_fraud": True}
CLICK: dict[str, Any] = {"event_id": "k1", "event_time": NOW_MS, "session_id": "s1", "item_id": "i1", "action": "view"}
TIMES = [
    NOW_MS, "2023-11-14T22:13:20Z", "2023-11-14T22:13:20.123Z", "2023-11-14 22:13:20.123456+00:00",
    "2024-02-29T00:00:00Z", "2023-02-29T00:00:00Z", "2000-03-01T00:00:00.000Z", "2023-11-14T22:13:20+01:00",
    "2023-11-14T22:13:20", "2023-11-14T24:00:00Z", "2023-11-14T22:13:60Z", "20231114T221320Z", "1999-12-31T23:59:59Z",
    946_684_800_000, 946_684_799_999, 1_700_000_000, -5, 1.7e12, None, "", True,
]  # fmt: skip
NUMBERS = [0, -0.0, 1, 12.34, 0.1, 99999999.99, 123456789012345, 1234567890123456, 0.30000000000000004, 1e3, -1, 1e-7,
           None, "5", True, 10_000_000, 10_000_000.01]  # fmt: skip
IDS = ["a", "", "é", 'q"uote', "back\\slash", "tab\t", "x" * 256, "x" * 257, 7, -7, 0, 12345678901234567890, 1.5, None,
       "with space", "\x7f", True]  # fmt: skip
VERDICTS = [True, False, 0, 1, 2, -1, 1.0, "true", None]


def spoilt(rng: random.Random, message: dict[str, Any]) -> bytes:
    """A message with some odd values, in an odd order, with odd spaces, cut, or with a field too many."""
    odd = dict(message)
    for name in message:
        if rng.random() < 0.25:
            kind = TIMES if name.endswith("time") else NUMBERS if name == "amount" else IDS
            odd[name] = rng.choice(VERDICTS if name == "is_fraud" else kind)
    names = list(odd)
    if rng.random() < 0.3:
        rng.shuffle(names)
    if rng.random() < 0.1:
        names.remove(rng.choice(names))
    extra = rng.choice(["session_id", "user_id", "surprise", "amount", "event_time", "action"])
    if rng.random() < 0.2 and extra not in names:
        names.append(extra)
        odd[extra] = rng.choice([*IDS, [], {}, "buy"])
    separators = rng.choice([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])
    text = json.dumps({name: odd[name] for name in names}, separators=separators, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:
        text = text[:-1] + ',"event_id":"twice"}'
    if rng.random() < 0.1:
        text = rng.choice([" " + text, text + "\n", text + "}", text[:-2], text.replace(":", "", 1)])
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", ["payment", "label"])
def test_the_scanner_reads_what_the_decoder_reads(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    plain, decoder = {
        "payment": (PAYMENT, TransactionDecoder(SCHEMA, LIMITS)),
        "label": (LABEL, LabelDecoder(SCHEMA, LIMITS)),
    }[kind]
    values = [spoilt(rng, plain | {"event_id": f"e{i}"}) for i in range(60)]
    stamps = [NOW_MS + rng.choice([0, 0, -3_700_000]) for _ in values]
    batch = decoder.decode(values, stamps)
    rows, fields, bad, unknown = decoder.rows(values, stamps)
    assert batch.rows == rows
    assert sorted(batch.bad, key=lambda b: b.index) == bad
    assert batch.unknown_fields == unknown
    for i, (event_id, time, entities, numbers, categories, fraud, *_) in enumerate(fields):
        assert (batch.event_id[i], batch.time[i]) == (event_id, time)
        assert tuple(ids[i] for ids in batch.entities) == entities
        assert np.array_equal(batch.values[i], numbers if kind == "payment" else [np.nan], equal_nan=True)
        assert not np.signbit(batch.values[i]).any()
        assert batch.fraud[i] == fraud and categories == ()


@pytest.mark.parametrize("seed", range(40))
def test_the_scanner_reads_clicks_as_the_decoder_does(seed: int) -> None:
    rng, decoder = random.Random(seed), ClickDecoder(LIMITS)
    actions = ["view", "cart", "buy", "look", None, 3]
    values = [spoilt(rng, CLICK | {"event_id": f"k{i}", "action": rng.choice(actions)}) for i in range(60)]
    batch = decoder.decode(values, [NOW_MS] * 60)
    rows, fields, bad, unknown = decoder.rows(values, [NOW_MS] * 60)
    columns = (batch.event_id, batch.time.tolist(), batch.session_id, batch.user_id, batch.card_id, batch.item_id,
               batch.action.tolist())  # fmt: skip
    assert list(zip(*columns, strict=True)) == fields
    assert (batch.rows, batch.unknown_fields) == (rows, unknown)
    assert sorted(batch.bad, key=lambda b: b.index) == bad


@settings(max_examples=300, deadline=None)
@given(st.floats(min_value=0, max_value=1e7), st.integers(0, 12), st.integers(0, 10**15))
def test_every_number_is_read_to_the_last_bit(value: float, decimals: int, whole: int) -> None:
    decoder = TransactionDecoder(SCHEMA, Limits())
    texts = [repr(value), f"{value:.{decimals}f}", str(whole), f"{whole}.5"]
    values = [json.dumps(PAYMENT | {"amount": "?"}).replace('"?"', text).encode() for text in texts]
    batch = decoder.decode(values, [NOW_MS] * len(values))
    expected = [float(text) for text in texts if 0 <= float(text) <= 1e7]
    assert batch.values[:, 0].tolist() == expected


def test_categories_and_combined_entities_are_the_same_either_way(tmp_path: Any) -> None:
    file = tmp_path / "schema.toml"
    file.write_text(
        '[transactions]\nnumeric = [{ name = "amount", required = false }]\ncategorical = ["channel"]\n'
        '[[transactions.entities]]\nname = "pair"\nfields = ["b_id", "a_id"]\nwindows = ["1h"]\n',
        encoding="utf-8",
    )
    schema = load_schema([file]).transactions
    decoder = TransactionDecoder(schema, Limits())
    base = {"event_id": 1, "event_time": NOW_MS, "a_id": "a", "b_id": 2}
    messages = [base | {"channel": "web", "amount": 1.5}, base | {"channel": "é"}, base, base | {"channel": None}]
    values = [json.dumps(message, ensure_ascii=False).encode() for message in messages]
    batch = decoder.decode(values, [NOW_MS] * 4)
    assert list(batch.entities[0]) == ["2\x1fa"] * 4
    wanted = category_buckets(["web", "é", None, None])
    assert np.array_equal(batch.categories[:, 0], wanted, equal_nan=True)
    assert np.array_equal(batch.values[:, 0], [1.5, np.nan, np.nan, np.nan], equal_nan=True)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_compiled_decision_reads_as_the_one_that_msgspec_writes(data: st.DataObject) -> None:
    ids = st.text(st.characters(min_codepoint=32, max_codepoint=0x2000, categories=["L", "N", "P", "S"]), min_size=1)
    n = data.draw(st.integers(0, 5))
    event_ids, keys = ([data.draw(ids) for _ in range(n)] for _ in range(2))
    numbers = np.array([[data.draw(st.integers(0, MICRO)) for _ in range(2)] for _ in range(n)], np.int64).reshape(n, 2)
    offsets, times, positions = (
        np.array([data.draw(st.integers(0, 2**62)) for _ in range(n)], np.int64) for _ in range(3)
    )
    repeats = np.array([data.draw(st.integers(0, 1)) for _ in range(n)], np.int8)
    version = data.draw(ids)
    reviews = np.array([data.draw(st.integers(UNKNOWN, MICRO)) for _ in range(n)], np.int64)
    ends = [([data.draw(ids)], [], "v", None), ([], [data.draw(ids), "b"], "v", "why"), ([], [], None, None)]
    which = np.array([data.draw(st.integers(0, 2)) for _ in range(n)], np.int64)
    found = allowed("transactions", 3, offsets, Texts.of(event_ids), Texts.of(keys), times, numbers[:, 0],
                    numbers[:, 1], version, positions, repeats, reviews, [trailing(*end) for end in ends],
                    which)  # fmt: skip
    for i, message in enumerate(found):
        expected = Decision(
            decision_id=f"transactions:3:{offsets[i]}", event_id=event_ids[i], key=keys[i], event_time=int(times[i]),
            score=int(numbers[i, 0]) / MICRO, anomaly=int(numbers[i, 1]) / MICRO, action="allow", reasons=[],
            model_version=version, label_position=int(positions[i]), duplicate=bool(repeats[i]),
            review_score=None if reviews[i] == UNKNOWN else int(reviews[i]) / MICRO, rules=ends[which[i]][0],
            shadow_rules=ends[which[i]][1], rules_version=ends[which[i]][2], degraded=ends[which[i]][3],
        )  # fmt: skip
        assert msgspec.json.decode(message, type=Decision) == expected
        assert list(msgspec.json.decode(message)) == list(msgspec.json.decode(msgspec.json.encode(expected)))
    assert len(found) == n
