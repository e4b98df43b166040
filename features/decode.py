"""Raw records to columns: what is good in order, what is bad with its reason.

In: the values of a fetch (JSON) and their Kafka timestamps. Out: a batch of columns and a list of :class:`Bad`.
Pure: no clock; what is "too far ahead" is measured against the record's own timestamp. A bad record never raises and
never touches the good ones beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.encoding import category_buckets
from features.errors import BadEvent
from features.messages import (
    CLICK_ACTIONS,
    ID_BYTES_MAX,
    Click,
    DeadLetterReason,
    StrictClick,
    label_type,
    transaction_type,
)
from features.schema import ID_SEPARATOR, Entity, TransactionSchema

TIME_MIN_MS = 946_684_800_000  # 2000-01-01
TIME_MAX_MS = 4_102_444_800_000  # 2100-01-01
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_RANGE = "from 2000-01-01 up to 2100-01-01"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is accepted: bytes of a message, and how far a time may lie ahead of its record's timestamp."""

    message_bytes_max: int = 1_000_000
    ahead_max_ms: int = 3_600_000


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that cannot be decided: its index in the fetch, the reason code, and a sentence."""

    index: int
    code: DeadLetterReason
    sentence: str


@dataclass(slots=True)
class TransactionBatch:
    """The good transactions or labels of a fetch. ``rows`` are their indices in it; all columns are aligned with it.

    ``time`` int64 epoch ms (of a label: when it became known), ``values`` float64[n, numeric], ``categories``
    float64[n, categorical] buckets, ``entities`` one list of n ids for each entity, ``fraud`` int8 (labels only).
    """

    rows: list[int]
    event_id: list[str]
    time: NDArray[np.int64]
    values: NDArray[np.float64]
    categories: NDArray[np.float64]
    entities: list[list[str]]
    fraud: NDArray[np.int8]
    bad: list[Bad] = field(default_factory=list)
    unknown_fields: int = 0


@dataclass(slots=True)
class ClickBatch:
    """The good clicks of a fetch, aligned with ``rows``. ``action`` int8 indexes ``messages.CLICK_ACTIONS``."""

    rows: list[int]
    event_id: list[str]
    time: NDArray[np.int64]
    session_id: list[str]
    user_id: list[str | None]
    card_id: list[str | None]
    item_id: list[str]
    action: NDArray[np.int8]
    bad: list[Bad] = field(default_factory=list)
    unknown_fields: int = 0


def parse_time_ms(value: str | int) -> int:
    """Epoch milliseconds of an RFC 3339 text or of epoch milliseconds.

    Raises
    ------
    BadEvent
        If the text is no RFC 3339 time with an offset, or the time is not from 2000 up to 2100.
    """
    if isinstance(value, int):
        time_ms = value
    else:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise BadEvent("wrong_type", f"time {value[:40]!r} is neither RFC 3339 nor epoch milliseconds") from None
        if moment.tzinfo is None:
            raise BadEvent("wrong_type", f"time {value[:40]!r} has no offset; end it with Z or +00:00")
        time_ms = (moment - _EPOCH) // _MILLISECOND  # cut, not rounded, as history files are read
    if TIME_MIN_MS <= time_ms < TIME_MAX_MS:
        return time_ms
    hint = ""
    if TIME_MIN_MS <= time_ms * 1000 < TIME_MAX_MS:
        hint = "; it looks like seconds, milliseconds are expected"
    elif TIME_MIN_MS <= time_ms // 1000 < TIME_MAX_MS:
        hint = "; it looks like microseconds, milliseconds are expected"
    raise BadEvent("time_out_of_range", f"time {str(value)[:40]} is not {_RANGE}{hint}")


def clean_id(name: str, value: str | int) -> str:
    """The text of an id.

    Raises
    ------
    BadEvent
        If it is empty, longer than ``ID_BYTES_MAX`` or has characters that cannot be printed.
    """
    text = value if isinstance(value, str) else str(value)
    if text.isprintable() and 0 < len(text) <= ID_BYTES_MAX and (text.isascii() or len(text.encode()) <= ID_BYTES_MAX):
        return text
    if not text:
        raise BadEvent("invalid_id", f"{name} is empty")
    if not text.isprintable():
        raise BadEvent("invalid_id", f"{name} has characters that cannot be printed: {text[:40]!a}")
    raise BadEvent("invalid_id", f"{name} has {len(text.encode())} bytes; at most {ID_BYTES_MAX}")


def _reason(error: Exception) -> tuple[DeadLetterReason, str]:
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        if "missing required field" in text:
            return "missing_field", text
        if "out of range" in text or "Expected `int` <=" in text or "Expected `int` >=" in text:
            return "number_out_of_range", text
        return "wrong_type", text
    if isinstance(error, RecursionError):
        return "malformed_json", "JSON is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "malformed_json", f"not UTF-8: {text}"
    return "malformed_json", text


class _Decoder:
    """Decodes the records of one topic one by one; ``_read`` of the subclass turns a message into a tuple."""

    def __init__(self, strict: type[Any], lenient: type[Any], limits: Limits) -> None:
        self.limits = limits
        self._strict: Callable[[bytes], Any] = msgspec.json.Decoder(strict).decode
        self._lenient: Callable[[bytes], Any] = msgspec.json.Decoder(lenient).decode

    def _read(self, message: Any, latest_ms: int) -> tuple[Any, ...]:
        raise NotImplementedError

    def _message(self, value: bytes | None) -> tuple[Any, int]:
        """The message, and 1 if it has fields that nobody knows."""
        if not value:
            raise BadEvent("empty", "the record has no value")
        if len(value) > self.limits.message_bytes_max:
            limit = self.limits.message_bytes_max
            raise BadEvent("oversized", f"the record has {len(value)} bytes; at most {limit} (message_bytes_max)")
        try:
            return self._strict(value), 0
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if "unknown field" not in str(error):
                raise BadEvent(*_reason(error)) from None
        try:
            return self._lenient(value), 1
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadEvent(*_reason(error)) from None

    def _time(self, value: str | int, latest_ms: int) -> int:
        time_ms = parse_time_ms(value)
        if time_ms > latest_ms:
            ahead_s = (time_ms - latest_ms + self.limits.ahead_max_ms) / 1000
            raise BadEvent(
                "time_out_of_range",
                f"time {value} is {ahead_s:.0f} s after the record's own timestamp; "
                f"at most {self.limits.ahead_max_ms / 1000:.0f} (ahead_max_s)",
            )
        return time_ms

    def rows(
        self, values: Sequence[bytes | None], timestamps: Sequence[int]
    ) -> tuple[list[int], list[tuple[Any, ...]], list[Bad], int]:
        """Indices and fields of the good records, the bad ones, and how many had unknown fields."""
        rows: list[int] = []
        fields: list[tuple[Any, ...]] = []
        bad: list[Bad] = []
        unknown = 0
        for index, value in enumerate(values):
            try:
                message, extra = self._message(value)
                fields.append(self._read(message, timestamps[index] + self.limits.ahead_max_ms))
            except BadEvent as error:
                bad.append(Bad(index, error.code, str(error)))  # type: ignore[arg-type]
                continue
            rows.append(index)
            unknown += extra
        return rows, fields, bad, unknown


class _EntityReader:
    def __init__(self, entities: Sequence[Entity]) -> None:
        self.names = tuple(dict.fromkeys(name for entity in entities for name in entity.fields))
        self.combined = tuple(entity.fields for entity in entities)
        self.plain = all(len(fields) == 1 for fields in self.combined)

    def read(self, message: Any) -> tuple[str, ...]:
        """The id of each entity; a combined one is its fields joined by ``ID_SEPARATOR``."""
        if self.plain:
            return tuple([clean_id(fields[0], getattr(message, fields[0])) for fields in self.combined])
        ids = {name: clean_id(name, getattr(message, name)) for name in self.names}
        return tuple([ID_SEPARATOR.join([ids[name] for name in fields]) for fields in self.combined])


def _numbers(schema: TransactionSchema, message: Any) -> list[float]:
    numbers = []
    for numeric in schema.numeric:
        value = getattr(message, numeric.name)
        if value is None:
            value = math.nan
        elif not numeric.minimum <= value <= numeric.maximum:
            limits = f"from {numeric.minimum:g} to {numeric.maximum:g}"
            raise BadEvent("number_out_of_range", f"{numeric.name} {value:g} is not {limits}")
        numbers.append(value + 0.0)  # turns -0.0 into 0.0
    return numbers


def _columns(schema: TransactionSchema, parts: tuple[list[int], list[tuple[Any, ...]], list[Bad], int]
             ) -> TransactionBatch:  # fmt: skip
    rows, fields, bad, unknown = parts
    n = len(rows)
    event_id, time, entities, values, categories, fraud = zip(*fields, strict=True) if fields else ((),) * 6
    buckets = [category_buckets(column) for column in zip(*categories, strict=True)] if schema.categorical else []
    return TransactionBatch(
        rows=rows,
        event_id=list(event_id),
        time=np.array(time, np.int64),
        values=np.array(values, np.float64).reshape(n, len(schema.numeric)),
        categories=np.array(buckets, np.float64).reshape(len(schema.categorical), n).T,
        entities=[list(column) for column in zip(*entities, strict=True)] if n else [[] for _ in schema.entities],
        fraud=np.array(fraud, np.int8),
        bad=bad,
        unknown_fields=unknown,
    )


class TransactionDecoder(_Decoder):
    """Decodes transactions as the schema names their fields."""

    def __init__(self, schema: TransactionSchema, limits: Limits) -> None:
        super().__init__(transaction_type(schema, strict=True), transaction_type(schema), limits)
        self.schema = schema
        self._entities = _EntityReader(schema.entities)

    def _read(self, message: Any, latest_ms: int) -> tuple[Any, ...]:
        schema = self.schema
        categories = tuple([
            None if (value := getattr(message, name)) is None else clean_id(name, value) for name in schema.categorical
        ])  # fmt: skip
        return (
            clean_id(schema.id, getattr(message, schema.id)),
            self._time(getattr(message, schema.time), latest_ms),
            self._entities.read(message),
            _numbers(schema, message),
            categories,
            0,
        )

    def decode(self, values: Sequence[bytes | None], timestamps: Sequence[int]) -> TransactionBatch:
        """Columns of the good records of a fetch, and the bad ones."""
        return _columns(self.schema, self.rows(values, timestamps))


class LabelDecoder(_Decoder):
    """Decodes labels: verdicts on transactions, known at ``label_time``."""

    def __init__(self, schema: TransactionSchema, limits: Limits) -> None:
        super().__init__(label_type(schema, strict=True), label_type(schema), limits)
        self.schema = schema
        self._entities = _EntityReader(schema.entities)

    def _read(self, message: Any, latest_ms: int) -> tuple[Any, ...]:
        schema = self.schema
        return (
            clean_id(schema.id, getattr(message, schema.id)),
            self._time(getattr(message, schema.label_time), latest_ms),
            self._entities.read(message),
            [math.nan] * len(schema.numeric),
            (None,) * len(schema.categorical),
            int(getattr(message, schema.label)),
        )

    def decode(self, values: Sequence[bytes | None], timestamps: Sequence[int]) -> TransactionBatch:
        """Columns of the good records of a fetch, and the bad ones."""
        return _columns(self.schema, self.rows(values, timestamps))


class ClickDecoder(_Decoder):
    """Decodes clicks."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(StrictClick, Click, limits)

    def _read(self, message: Any, latest_ms: int) -> tuple[Any, ...]:
        return (
            clean_id("event_id", message.event_id),
            self._time(message.event_time, latest_ms),
            clean_id("session_id", message.session_id),
            None if message.user_id is None else clean_id("user_id", message.user_id),
            None if message.card_id is None else clean_id("card_id", message.card_id),
            clean_id("item_id", message.item_id),
            CLICK_ACTIONS.index(message.action),
        )

    def decode(self, values: Sequence[bytes | None], timestamps: Sequence[int]) -> ClickBatch:
        """Columns of the good records of a fetch, and the bad ones."""
        rows, fields, bad, unknown = self.rows(values, timestamps)
        columns = zip(*fields, strict=True) if fields else ((),) * 7
        event_id, time, session_id, user_id, card_id, item_id, action = columns
        return ClickBatch(rows, list(event_id), np.array(time, np.int64), list(session_id), list(user_id),
                          list(card_id), list(item_id), np.array(action, np.int8), bad, unknown)  # fmt: skip
