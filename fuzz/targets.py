"""What is fuzzed, and what must hold whatever the bytes are: nothing raises but what says so, nothing bad is accepted.

In: bytes. Out: nothing, or an :class:`AssertionError` that tells what was broken. Used by :mod:`fuzz.__main__` with
atheris, and by ``tests/test_fuzz.py`` with the corpus and with hypothesis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from features.catalogue import build_catalogue
from features.decode import ClickDecoder, LabelDecoder, Limits, TransactionDecoder
from features.errors import SettingsError
from features.messages import CLICK_ACTIONS, ID_BYTES_MAX
from features.scan import TIME_MAX_MS, TIME_MIN_MS
from features.schema import load_schema, parse_schema

LIMITS: Final = Limits(message_bytes_max=100_000, ahead_max_ms=3_600_000)
TIMESTAMP_MS: Final = 1_772_366_400_000
SCHEMA_BYTES_MAX: Final = 20_000
_COMMON = {"event_id": "e", "card_id": "c", "merchant_id": "m"}
GOOD: Final[Mapping[str, dict[str, Any]]] = {
    "transactions": _COMMON | {"event_time": TIMESTAMP_MS, "amount": 41.9},
    "labels": _COMMON | {"label_time": TIMESTAMP_MS, "is_fraud": True},
    "clicks": {"event_id": "e", "event_time": TIMESTAMP_MS, "session_id": "s", "item_id": "i", "action": "cart"},
}
_SCHEMA = load_schema().transactions
_DECODERS: Final[Mapping[str, Any]] = {
    "transactions": TransactionDecoder(_SCHEMA, LIMITS),
    "labels": LabelDecoder(_SCHEMA, LIMITS),
    "clicks": ClickDecoder(LIMITS),
}


def decode(data: bytes) -> None:
    """A record of any topic, between two good ones."""
    for topic, decoder in _DECODERS.items():
        good = json.dumps(GOOD[topic]).encode()
        values, times = [good, data, good], [TIMESTAMP_MS] * 3
        batch = decoder.decode(values, times)
        rows, fields, bad, _ = decoder.rows(values, times)
        assert {0, 2} <= set(batch.rows), f"{topic}: a good record beside it was refused"
        assert batch.rows == rows, f"{topic}: the scanner and the decoder do not agree"
        assert sorted([*batch.rows, *(b.index for b in batch.bad)]) == [0, 1, 2]
        assert all(b.sentence for b in (*batch.bad, *bad))
        if rows == [0, 1, 2]:
            _accepted(topic, data, batch, fields[1])


def _accepted(topic: str, data: bytes, batch: Any, fields: Sequence[Any]) -> None:
    """Look at an accepted record with a reader that is not ours."""
    assert 0 < len(data) <= LIMITS.message_bytes_max
    pairs: list[tuple[str, Any]] = json.loads(data, object_pairs_hook=list, parse_constant=_no_constant, parse_int=str,
                                              parse_float=str, strict=False)  # fmt: skip
    assert isinstance(pairs, list), f"{topic}: accepted what is no object"
    names = [name for name, _ in pairs]
    known = [name for name in names if name in GOOD[topic]]
    assert len(known) == len(set(known)), f"{topic}: a field stands twice"
    message = dict(pairs)
    time = int(batch.time[1])
    assert TIME_MIN_MS <= time < TIME_MAX_MS and time <= TIMESTAMP_MS + LIMITS.ahead_max_ms
    columns = [batch.event_id, *(batch.entities if topic != "clicks" else (batch.session_id, batch.item_id))]
    wanted = ["event_id", *([entity.fields[0] for entity in _SCHEMA.entities] if topic != "clicks" else
                            ("session_id", "item_id"))]  # fmt: skip
    for column, name in zip(columns, wanted, strict=True):
        id_ = column[1]
        assert id_ == str(message[name]), f"{topic}: {name} is {message[name]!r}, read as {id_!r}"
        assert 1 <= len(id_.encode()) <= ID_BYTES_MAX and id_.isprintable()
    if topic == "transactions":
        for number, numeric in enumerate(_SCHEMA.numeric):
            value = float(batch.values[1, number])
            assert math.isnan(value) is (message.get(numeric.name) is None)
            assert math.isnan(value) or numeric.minimum <= value <= numeric.maximum
            assert math.isnan(value) or value == float(message[numeric.name])
            assert math.isnan(value) or value == fields[3][number]
    elif topic == "labels":
        assert batch.fraud[1] in (0, 1)
    else:
        assert 0 <= batch.action[1] < len(CLICK_ACTIONS)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON, and was accepted")


def schema(data: bytes) -> None:
    """A schema in TOML: refused with the reasons, or good for a catalogue of features."""
    text = data[:SCHEMA_BYTES_MAX].decode("utf-8", "replace")
    try:
        found = parse_schema(text)["transactions"]
    except SettingsError as refused:
        if not refused.problems or not all(refused.problems):
            raise AssertionError("refused without a reason") from refused
        return
    except KeyError:
        return  # a schema of something else
    catalogue = build_catalogue(found)  # type: ignore[arg-type]
    names = catalogue.names
    assert names and len(set(names)) == len(names)
    assert parse_schema(text)["transactions"] == found


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {"decoder": decode, "schema": schema}
