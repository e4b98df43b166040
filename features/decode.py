"""Raw records to columns: what is good in order, what is bad with its reason.

In: the values of a fetch (JSON) and their Kafka timestamps. Out: a batch of columns and a list of :class:`Bad`.
Pure: no clock; what is "too far ahead" is measured against the record's own timestamp. A bad record never raises and
never touches the good ones beside it.

:mod:`features.scan` reads the plain records in one compiled pass. Those that it is not sure of, the bad ones among
them, are decoded one by one here, and what is said here holds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.checks import Refused, check_names, clean_id, clean_numbers, parse_time_ms, reason_of, tie_of
from features.encoding import MISSING_TEXT, category_hashes, hash_buckets, span_hashes
from features.errors import BadEvent
from features.messages import CLICK_ACTIONS, Click, DeadLetterReason, StrictClick, label_type, transaction_type
from features.scan import (
    ID,
    NUMBER,
    OPTIONAL_ID,
    OPTIONAL_NUMBER,
    OPTIONAL_TIME,
    TIME,
    VERDICT,
    Fields,
    Scanned,
)
from features.schema import ID_SEPARATOR, Entity, TransactionSchema
from features.texts import Texts


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

    ``time`` int64 epoch ms (of a label: when it became known), ``values`` float64[n, numeric], ``category_hash``
    int64[n, categorical], ``entities`` n ids for each entity, ``fraud`` int8 (labels only).
    """

    rows: list[int]
    event_id: Texts
    time: NDArray[np.int64]
    values: NDArray[np.float64]
    category_hash: NDArray[np.int64]
    entities: list[Texts]
    fraud: NDArray[np.int8]
    bad: list[Bad] = field(default_factory=list)
    unknown_fields: int = 0

    @property
    def categories(self) -> NDArray[np.float64]:
        """Bucket of each category, float64[n, categorical]."""
        return hash_buckets(self.category_hash)

    def keep(self, at: NDArray[np.integer] | Sequence[int]) -> TransactionBatch:
        """The good ones at these places; the bad ones stay."""
        return TransactionBatch(
            [self.rows[i] for i in at], self.event_id.take(at), self.time[at], self.values[at], self.category_hash[at],
            [ids.take(at) for ids in self.entities], self.fraud[at], self.bad, self.unknown_fields,
        )  # fmt: skip

    def split(self, sizes: Sequence[int]) -> list[TransactionBatch]:
        """The batches of consecutive records, so many each; their indices count from 0 again.

        What counts records for all of them (``unknown_fields``) is with the first.
        """
        if len(sizes) == 1:
            return [self]
        batches: list[TransactionBatch] = []
        begin, record = 0, 0
        for size in sizes:
            end = bisect_left(self.rows, record + size)
            at = slice(begin, end)
            rows = [row - record for row in self.rows[at]] if record else self.rows[at]
            bad = [Bad(b.index - record, b.code, b.sentence) for b in self.bad if 0 <= b.index - record < size]
            batches.append(TransactionBatch(
                rows, self.event_id.part(at), self.time[at], self.values[at], self.category_hash[at],
                [ids.part(at) for ids in self.entities], self.fraud[at], bad, 0 if batches else self.unknown_fields,
            ))  # fmt: skip
            begin, record = end, record + size
        return batches


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


class Decoder:
    """Decodes the records of one topic; ``_read`` of the subclass turns one message into a tuple."""

    def __init__(self, strict: type[Any], lenient: type[Any], limits: Limits,
                 fields: Sequence[tuple[str, int, bool]]) -> None:  # fmt: skip
        self.limits = limits
        self._fields = Fields(fields)
        self._quoted = [f'"{name}"'.encode() for name, _, _ in fields]
        self._strict: Callable[[bytes], Any] = msgspec.json.Decoder(strict).decode
        self._lenient: Callable[[bytes], Any] = msgspec.json.Decoder(lenient).decode

    def _read(self, message: Any, latest_ms: int) -> tuple[Any, ...]:
        raise NotImplementedError

    def _message(self, value: bytes | None) -> tuple[Any, int]:
        """The message, and 1 if it has fields that nobody knows."""
        if not value:
            if isinstance(value, Refused):
                raise BadEvent(value.code, value.sentence)
            raise BadEvent("empty", "the record has no value")
        if len(value) > self.limits.message_bytes_max:
            limit = self.limits.message_bytes_max
            raise BadEvent("oversized", f"the record has {len(value)} bytes; at most {limit} (message_bytes_max)")
        extra = 0
        try:
            message = self._strict(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if "unknown field" not in str(error):
                raise BadEvent(*reason_of(error)) from None
            extra = 1
        try:
            if extra:
                message = self._lenient(value)
            check_names(value, self._quoted)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadEvent(*reason_of(error)) from None
        return message, extra

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

    def _slowly(self, unsure: NDArray[np.int64], values: Sequence[bytes | None], timestamps: Sequence[int]
                ) -> tuple[NDArray[np.int64], list[tuple[Any, ...]], list[Bad], int]:  # fmt: skip
        """:meth:`rows` of the records that the scanner left, by their index among all."""
        at = unsure.tolist()
        rows, fields, bad, unknown = self.rows([values[i] for i in at], [timestamps[i] for i in at])
        return unsure[rows], fields, [Bad(at[b.index], b.code, b.sentence) for b in bad], unknown

    def _in_time(self, times: NDArray[np.int64], timestamps: Sequence[int]) -> NDArray[np.bool_]:
        return times <= np.array(timestamps, np.int64) + self.limits.ahead_max_ms


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


class _EventDecoder(Decoder):
    """What transactions and labels have in common: an id, a time, entities."""

    def __init__(self, schema: TransactionSchema, strict: type[Any], lenient: type[Any], limits: Limits, time: str,
                 extra: Sequence[tuple[str, int, bool]]) -> None:  # fmt: skip
        ids = [(schema.id, ID, True), *((name, ID, True) for name in schema.id_fields)]
        super().__init__(strict, lenient, limits, [*ids, (time, TIME, True), *extra])
        self.schema = schema
        self._time_name = time
        self._entities = _EntityReader(schema.entities)

    def decode(self, values: Sequence[bytes | None], timestamps: Sequence[int]) -> TransactionBatch:
        """Columns of the good records of a fetch, and the bad ones."""
        schema, place = self.schema, self._fields.place
        found = self._fields.scan(values, self.limits.message_bytes_max)
        times = found.times[place[self._time_name]]
        sure = found.sure & self._in_time(times, timestamps) & self._in_range(found)
        slow, fields, bad, unknown = self._slowly(np.flatnonzero(~sure), values, timestamps)
        sure[slow] = True
        rows = np.flatnonzero(sure)
        at = np.searchsorted(rows, slow)  # where the slow ones stand among the good ones
        event_id, time, entities, numbers, categories, fraud, *_ = zip(*fields, strict=True) if fields else ((),) * 6

        def spans(name: str) -> Texts:
            starts, ends = found.starts[place[name]][rows], found.ends[place[name]][rows]
            starts[at] = ends[at] = 0
            return Texts(found.data, starts, ends)

        ids = []
        for e, names in enumerate(self._entities.combined):
            plain = spans(names[0]) if len(names) == 1 else Texts.joined([spans(n) for n in names], ID_SEPARATOR)
            ids.append(plain.replaced(at, [all_[e].encode() for all_ in entities]))
        times = times[rows]
        times[at] = time
        batch = TransactionBatch(
            rows=rows.tolist(),
            event_id=spans(schema.id).replaced(at, [id_.encode() for id_ in event_id]),
            time=times,
            values=np.full((len(rows), len(schema.numeric)), np.nan),
            category_hash=np.full((len(rows), len(schema.categorical)), MISSING_TEXT),
            entities=ids,
            fraud=np.zeros(len(rows), np.int8),
            bad=bad,
            unknown_fields=unknown,
        )
        self._fill(batch, found, rows, at, numbers, categories, fraud)
        return batch

    def _in_range(self, found: Scanned) -> NDArray[np.bool_]:
        """Which records hold numbers within their limits, as far as this kind of message has any."""
        return np.ones(len(found.sure), np.bool_)

    def _fill(self, batch: TransactionBatch, found: Scanned, rows: NDArray[np.int64], at: NDArray[np.int64],
              numbers: Sequence[list[float]], categories: Sequence[tuple[str | None, ...]],
              fraud: Sequence[int]) -> None:  # fmt: skip
        """Fill the columns that only this kind of message has; those at ``at`` were decoded one by one."""
        raise NotImplementedError


class TransactionDecoder(_EventDecoder):
    """Decodes transactions as the schema names their fields."""

    def __init__(self, schema: TransactionSchema, limits: Limits) -> None:
        extra = [(n.name, NUMBER if n.required else OPTIONAL_NUMBER, n.required) for n in schema.numeric]
        extra += [(name, OPTIONAL_ID, False) for name in schema.categorical]
        taken = {schema.id, schema.time, *schema.id_fields, *(name for name, _, _ in extra)}
        extra += [(name, OPTIONAL_ID, False) for name in ("session_id", "user_id") if name not in taken]
        super().__init__(schema, transaction_type(schema, strict=True), transaction_type(schema), limits, schema.time,
                         extra)  # fmt: skip

    def _read(self, message: Any, latest_ms: int) -> tuple[Any, ...]:
        schema = self.schema
        categories = tuple([
            None if (value := getattr(message, name)) is None else clean_id(name, value) for name in schema.categorical
        ])  # fmt: skip
        return (
            clean_id(schema.id, getattr(message, schema.id)),
            self._time(getattr(message, schema.time), latest_ms),
            self._entities.read(message),
            clean_numbers(schema, message),
            categories,
            0,
            tuple([tie_of(name, getattr(message, name, None)) for name in ("session_id", "user_id")]),
        )

    def _in_range(self, found: Scanned) -> NDArray[np.bool_]:
        good = np.ones(len(found.sure), np.bool_)
        for numeric in self.schema.numeric:
            values = found.numbers[self._fields.place[numeric.name]]
            good &= np.isnan(values) | ((values >= numeric.minimum) & (values <= numeric.maximum))
        return good

    def _fill(self, batch: TransactionBatch, found: Scanned, rows: NDArray[np.int64], at: NDArray[np.int64],
              numbers: Sequence[list[float]], categories: Sequence[tuple[str | None, ...]],
              fraud: Sequence[int]) -> None:  # fmt: skip
        place = self._fields.place
        for f, numeric in enumerate(self.schema.numeric):
            batch.values[:, f] = found.numbers[place[numeric.name]][rows]
            batch.values[at, f] = [row[f] for row in numbers]
        for c, name in enumerate(self.schema.categorical):
            starts, ends = found.starts[place[name]][rows], found.ends[place[name]][rows]
            batch.category_hash[:, c] = span_hashes(found.data, starts, ends)
            batch.category_hash[at, c] = category_hashes([row[c] for row in categories])


class LabelDecoder(_EventDecoder):
    """Decodes labels: verdicts on transactions, known at ``label_time``."""

    def __init__(self, schema: TransactionSchema, limits: Limits) -> None:
        extra = [(schema.label, VERDICT, True), (schema.time, OPTIONAL_TIME, False)]
        extra += [(n.name, OPTIONAL_NUMBER, False) for n in schema.numeric]
        super().__init__(schema, label_type(schema, strict=True), label_type(schema), limits, schema.label_time, extra)

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

    def _fill(self, batch: TransactionBatch, found: Scanned, rows: NDArray[np.int64], at: NDArray[np.int64],
              numbers: Sequence[list[float]], categories: Sequence[tuple[str | None, ...]],
              fraud: Sequence[int]) -> None:  # fmt: skip
        verdicts = found.numbers[self._fields.place[self.schema.label]][rows]
        verdicts[at] = fraud
        batch.fraud[:] = verdicts


class ClickDecoder(Decoder):
    """Decodes clicks."""

    def __init__(self, limits: Limits) -> None:
        ids = [("event_id", ID, True), ("event_time", TIME, True), ("session_id", ID, True), ("item_id", ID, True)]
        others = [("action", ID, False), ("user_id", OPTIONAL_ID, False), ("card_id", OPTIONAL_ID, False)]
        super().__init__(StrictClick, Click, limits, [*ids, *others])

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
        found, place = self._fields.scan(values, self.limits.message_bytes_max), self._fields.place
        data = found.data.tobytes().decode("latin-1")  # what the scanner takes is ASCII

        def texts(name: str) -> list[Any]:
            pairs = zip(found.starts[place[name]].tolist(), found.ends[place[name]].tolist(), strict=True)
            return [data[a:b] if a >= 0 else None for a, b in pairs]

        actions = [_ACTION_NUMBERS.get(name, -1) for name in texts("action")]
        times = found.times[place["event_time"]]
        good = found.sure & self._in_time(times, timestamps) & (np.array(actions, np.int64) >= 0)
        slow, fields, bad, unknown = self._slowly(np.flatnonzero(~good), values, timestamps)
        names = ("event_id", "session_id", "user_id", "card_id", "item_id")
        columns: list[list[Any]] = [texts("event_id"), times.tolist(), *(texts(name) for name in names[1:]), actions]
        for i, message in zip(slow.tolist(), fields, strict=True):
            for column, value in zip(columns, message, strict=True):
                column[i] = value
        good[slow] = True
        rows = np.flatnonzero(good).tolist()
        if len(rows) < len(values):
            columns = [[column[i] for i in rows] for column in columns]
        event_id, time, session_id, user_id, card_id, item_id, action = columns
        return ClickBatch(rows, event_id, np.array(time, np.int64), session_id, user_id, card_id, item_id,
                          np.array(action, np.int8), bad, unknown)  # fmt: skip


_ACTION_NUMBERS: dict[str | None, int] = {None: 0, **{name: n for n, name in enumerate(CLICK_ACTIONS)}}
