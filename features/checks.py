"""What one value of a message has to be: times, ids, numbers, and the reason where it is not.

In: values as msgspec read them. Out: clean values, or :class:`~features.errors.BadEvent`. Pure.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from features.errors import BadEvent
from features.messages import ID_BYTES_MAX, DeadLetterReason
from features.scan import TIME_MAX_MS, TIME_MIN_MS
from features.schema import TransactionSchema

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
FOREVER_MS = 2**62  # later than any event
_YEAR_1_MS, _YEAR_10000_MS = -62_135_596_800_000, 253_402_300_800_000
_RANGE = "from 2000-01-01 up to 2100-01-01"


class Refused(bytes):
    """No bytes, in the place of a value that must not be looked at: why it cannot be decided is known already.

    ``given`` is the value, if there is one. With a ``first`` its record stands for all from that offset to its own.
    """

    code: DeadLetterReason
    sentence: str
    given: bytes | None
    first: int | None

    @classmethod
    def of(cls, code: DeadLetterReason, sentence: str, given: bytes | None = None, first: int | None = None) -> Refused:
        self = cls()
        self.code, self.sentence, self.given, self.first = code, sentence, given, first
        return self


def parse_time_ms(value: str | int) -> int:
    """Epoch milliseconds of an RFC 3339 text or of epoch milliseconds.

    Raises
    ------
    BadEvent
        If the text is no RFC 3339 time with an offset, or the time is not from 2000 up to 2100.
    """
    time_ms = _moment_ms(value)
    if TIME_MIN_MS <= time_ms < TIME_MAX_MS:
        return time_ms
    hint = ""
    if TIME_MIN_MS <= time_ms * 1000 < TIME_MAX_MS:
        hint = "; it looks like seconds, milliseconds are expected"
    elif TIME_MIN_MS <= time_ms // 1000 < TIME_MAX_MS:
        hint = "; it looks like microseconds, milliseconds are expected"
    raise BadEvent("time_out_of_range", f"time {str(value)[:40]} is not {_RANGE}{hint}")


def parse_bound_ms(value: str | int) -> int:
    """As :func:`parse_time_ms`, of a bound: what lies outside of its range is ``-FOREVER_MS`` or ``FOREVER_MS``.

    Raises
    ------
    BadEvent
        As there, where a number is that of a time within the range in another unit, or of no year up to 9999.
    """
    time_ms = _moment_ms(value)
    if TIME_MIN_MS <= time_ms < TIME_MAX_MS:
        return time_ms
    if _YEAR_1_MS <= time_ms < _YEAR_10000_MS and not TIME_MIN_MS <= time_ms * 1000 < TIME_MAX_MS:
        return FOREVER_MS if time_ms >= TIME_MAX_MS else -FOREVER_MS
    return parse_time_ms(value)


def _moment_ms(value: str | int) -> int:
    if isinstance(value, int):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise BadEvent("wrong_type", f"time {value[:40]!r} is neither RFC 3339 nor epoch milliseconds") from None
    if moment.tzinfo is None:
        raise BadEvent("wrong_type", f"time {value[:40]!r} has no offset; end it with Z or +00:00")
    return (moment - _EPOCH) // _MILLISECOND  # cut, not rounded, as history files are read


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


def reason_of(error: Exception) -> tuple[DeadLetterReason, str]:
    """Reason code and sentence of what msgspec raised."""
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        if "missing required field" in text:
            return "missing_field", text
        if "out of range" in text or re.search(r"Expected `(int|float)` [<>]=", text):
            return "number_out_of_range", text
        return "wrong_type", text
    if isinstance(error, RecursionError):
        return "malformed_json", "JSON is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "malformed_json", f"not UTF-8: {text}"
    return "malformed_json", text


def _repeated(pairs: list[tuple[str, Any]]) -> str | None:
    if len(dict(pairs)) == len(pairs):
        return None
    seen: set[str] = set()
    return next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def check_names(value: bytes, quoted: Sequence[bytes]) -> None:
    """See that no field stands twice in a JSON object, since readers differ in which of the two counts, and that all
    of it is UTF-8, since msgspec does not look into fields that it skips.

    ``quoted`` are the names of the fields that are looked at, as JSON has them; an unknown one is nobody's matter.

    Raises
    ------
    BadEvent
        If one does.
    UnicodeDecodeError
        If it is not UTF-8.
    """
    _ = value.decode()
    # A tenth of the time of reading it again, and nearly always enough; escapes may spell a name in another way.
    if b"\\u" not in value and max(map(value.count, quoted)) < 2:
        return
    # The object of the whole comes last; of those inside only the names are looked at, never what becomes of them.
    try:
        name = json.loads(value, object_pairs_hook=_repeated, parse_int=len, parse_float=len, strict=False)
    except ValueError as error:  # msgspec has read it, so it does not come to this
        raise BadEvent("malformed_json", f"JSON is malformed: {error}") from None
    if name is not None:
        raise BadEvent("malformed_json", f"the field {name[:40]!r} stands twice")


def clean_numbers(schema: TransactionSchema, message: Any) -> list[float]:
    """The numeric fields of a message, NaN where one is missing.

    Raises
    ------
    BadEvent
        If one is out of its range.
    """
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


def tie_of(name: str, value: Any) -> str | None:
    """An id that decides nothing: what is no id is none."""
    try:
        return None if value is None else clean_id(name, value)
    except BadEvent:
        return None
