"""The quick way through JSON: one compiled pass over all records of a fetch, straight into columns.

In: the values of records end to end, and the fields that a message has. Out: spans of ids, times, numbers, and for
each record whether the scanner is sure of it. Pure.

The scanner takes what is plain: a flat object with known fields, each once, ASCII text without escapes, numbers of at
most 15 digits without an exponent, UTC times in the usual forms, everything within its limits. Whatever is not plain,
be it wrong or only unusual, it leaves to :mod:`features.decode`, which decides and says why. So it need not be
complete; it must only never take what the full decoder would not take, and never read another value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.hashing import pack
from features.messages import ID_BYTES_MAX
from features.uncounted import counting_nothing

_U8 = NDArray[np.uint8]
_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]

ID, OPTIONAL_ID, TIME, OPTIONAL_TIME, NUMBER, OPTIONAL_NUMBER, VERDICT = range(7)
TIME_MIN_MS = 946_684_800_000  # 2000-01-01
TIME_MAX_MS = 4_102_444_800_000  # 2100-01-01
DIGITS_MAX = 15  # a mantissa below 2**53 and a power of ten up to 10**22 divide to the nearest float (Clinger 1990)
_QUOTE, _BACKSLASH, _COLON, _COMMA, _OPEN, _CLOSE = 34, 92, 58, 44, 123, 125
_MINUS, _PLUS, _POINT, _ZERO, _NINE = 45, 43, 46, 48, 57
_DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334])


@njit(cache=True, nogil=True, inline="always")
def _skip(data: _U8, at: int, end: int) -> int:
    while at < end and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


@counting_nothing
def _text_end(data: _U8, at: int, end: int) -> int:
    """Where the text that begins at ``at`` has its closing quote; -1 if it is not plain."""
    while at < end:
        byte = data[at]
        if byte == _QUOTE:
            return at
        if byte < 32 or byte > 126 or byte == _BACKSLASH:
            return -1
        at += 1
    return -1


@counting_nothing
def _digits_end(data: _U8, at: int, end: int) -> int:
    while at < end and _ZERO <= data[at] <= _NINE:
        at += 1
    return at


@counting_nothing
def _integer(data: _U8, start: int, end: int) -> int:
    value = 0
    for at in range(start, end):
        value = value * 10 + (int(data[at]) - _ZERO)
    return value


@counting_nothing
def _integer_end(data: _U8, at: int, end: int) -> int:
    """Where the JSON integer without a sign at ``at`` ends; -1 if there is none or it is too long."""
    stop = _digits_end(data, at, end)
    if stop == at or stop - at > DIGITS_MAX or (data[at] == _ZERO and stop - at > 1):
        return -1
    if stop < end and (data[stop] == _POINT or data[stop] == 101 or data[stop] == 69):  # e, E
        return -1
    return stop


@counting_nothing
def _two(data: _U8, at: int) -> int:
    """Two digits as a number; -1 if they are none."""
    a, b = int(data[at]) - _ZERO, int(data[at + 1]) - _ZERO
    return a * 10 + b if 0 <= a <= 9 and 0 <= b <= 9 else -1


@counting_nothing
def _moment_ms(data: _U8, at: int, end: int) -> int:
    """Epoch ms of ``YYYY-MM-DDTHH:MM:SS``, 3, 6 or no digits of a fraction, and Z or +00:00; -1 if it is not that."""
    size = end - at
    if size < 20 or data[at + 4] != _MINUS or data[at + 7] != _MINUS or (data[at + 10] != 84 and data[at + 10] != 32):
        return -1
    if data[at + 13] != _COLON or data[at + 16] != _COLON:
        return -1
    century, year = _two(data, at), _two(data, at + 2)
    month, day = _two(data, at + 5), _two(data, at + 8)
    hour, minute, second = _two(data, at + 11), _two(data, at + 14), _two(data, at + 17)
    if century < 0 or year < 0 or hour < 0 or minute < 0 or second < 0 or hour > 23 or minute > 59 or second > 59:
        return -1
    year += century * 100
    if year < 2000 or year > 2099 or month < 1 or month > 12 or day < 1:
        return -1
    leap = 1 if year % 4 == 0 else 0  # within 2000 to 2099
    length = 31 - (month == 4 or month == 6 or month == 9 or month == 11)
    if month == 2:
        length = 28 + leap
    if day > length:
        return -1
    millis, zone = 0, at + 19
    if data[zone] == _POINT:
        stop = _digits_end(data, zone + 1, end)
        if stop - zone != 4 and stop - zone != 7:
            return -1
        millis, zone = _integer(data, zone + 1, zone + 4), stop
    if not (end - zone == 1 and data[zone] == 90):  # Z
        if end - zone != 6 or data[zone] != _PLUS or data[zone + 3] != _COLON:
            return -1
        if _two(data, zone + 1) != 0 or _two(data, zone + 4) != 0:
            return -1
    years = year - 2000
    days = 10_957 + years * 365 + (years + 3) // 4 + _DAYS_BEFORE[month - 1] + (leap if month > 2 else 0) + day - 1
    return int(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + millis)


@counting_nothing
def _number(data: _U8, at: int, end: int, out: _Floats, field: int, record: int) -> int:
    """Read a JSON number into ``out[field, record]``; returns where it ends, -1 if it is not plain."""
    negative = at < end and data[at] == _MINUS
    start = at + 1 if negative else at
    point = _digits_end(data, start, end)
    if point == start or (data[start] == _ZERO and point - start > 1):
        return -1
    mantissa, digits, fraction, stop = _integer(data, start, min(point, start + DIGITS_MAX)), point - start, 0, point
    if point < end and data[point] == _POINT:
        stop = _digits_end(data, point + 1, end)
        fraction = stop - point - 1
        digits += fraction
        if fraction == 0 or digits > DIGITS_MAX:
            return -1
        for p in range(point + 1, stop):
            mantissa = mantissa * 10 + (int(data[p]) - _ZERO)
    if digits > DIGITS_MAX or (stop < end and (data[stop] == 101 or data[stop] == 69)):  # e, E
        return -1
    value = float(mantissa) / 10.0**fraction
    out[field, record] = -value + 0.0 if negative else value
    return stop


@counting_nothing
def _same(data: _U8, at: int, end: int, words: _U8, start: int, stop: int) -> bool:
    """Whether ``data`` goes on with ``words[start:stop]`` at ``at``. No slices: each would count references."""
    if end - at < stop - start:
        return False
    for j in range(stop - start):  # noqa: SIM110 - compiled, where a generator is no help
        if data[at + j] != words[start + j]:
            return False
    return True


@counting_nothing
def _field(data: _U8, start: int, end: int, names: _U8, bounds: _Ints, guess: int) -> int:
    """Which field has this name; -1 if none. Messages of one producer name their fields in one order: try the next."""
    fields = len(bounds) - 1
    for step in range(fields):
        field = guess + step
        if field >= fields:
            field -= fields
        length = bounds[field + 1] - bounds[field]
        if length == end - start and _same(data, start, end, names, bounds[field], bounds[field + 1]):
            return field
    return -1


_WORDS = np.frombuffer(bytearray(b"nulltruefalse"), np.uint8)


@counting_nothing
def _value(data: _U8, at: int, end: int, kind: int, id_bytes_max: int, starts: _Ints, ends: _Ints, times: _Ints,
           numbers: _Floats, field: int, record: int) -> int:  # fmt: skip
    """Read one value of a kind into ``[field, record]``; returns where it ends, -1 if the scanner is not sure."""
    optional = kind in (OPTIONAL_ID, OPTIONAL_TIME, OPTIONAL_NUMBER)
    if optional and _same(data, at, end, _WORDS, 0, 4):
        return at + 4
    if kind == VERDICT:
        if _same(data, at, end, _WORDS, 4, 8) or _same(data, at, end, _WORDS, 8, 13):
            numbers[field, record] = 1.0 if data[at] == 116 else 0.0  # t
            return at + 4 if data[at] == 116 else at + 5
        stop = _number(data, at, end, numbers, field, record)
        return stop if stop == at + 1 and numbers[field, record] <= 1.0 else -1
    if kind in (NUMBER, OPTIONAL_NUMBER):
        return _number(data, at, end, numbers, field, record)
    quoted = at < end and data[at] == _QUOTE
    start = at + 1 if quoted else at
    stop = _text_end(data, start, end) if quoted else _integer_end(data, start, end)
    if stop < 0:
        return -1
    if kind in (ID, OPTIONAL_ID):
        if stop == start or stop - start > id_bytes_max:
            return -1
        starts[field, record], ends[field, record] = start, stop
    else:
        moment = _moment_ms(data, start, stop) if quoted else _integer(data, start, stop)
        times[field, record] = moment
        if not TIME_MIN_MS <= moment < TIME_MAX_MS:
            return -1
    return stop + 1 if quoted else stop


@njit(cache=True, nogil=True)
def scan(data: _U8, bounds: _Ints, names: _U8, name_bounds: _Ints, kinds: _Ints, required: _Ints, id_bytes_max: int,
         message_bytes_max: int, starts: _Ints, ends: _Ints, times: _Ints, numbers: _Floats,
         sure: NDArray[np.bool_]) -> None:  # fmt: skip
    """Scan n records for f fields.

    Parameters
    ----------
    data, bounds : uint8[b], int64[n + 1]
        Record i is ``data[bounds[i]:bounds[i + 1]]``.
    names, name_bounds : uint8[c], int64[f + 1]
        The names of the fields end to end, as they stand between the quotes.
    kinds, required : int64[f]
        ``ID``, ``TIME``, ..., and 1 for a field that must be there.
    starts, ends, times : int64[f, n]
        Results: where an id's text lies in ``data`` (-1 where it is absent), and times in epoch ms (-1: absent).
    numbers : float64[f, n]
        Result: numbers (NaN: absent), 0 or 1 for verdicts.
    sure : bool[n]
        Result: whether the record is plain and complete; else nothing of it counts.
    """
    fields = len(kinds)
    seen = np.empty(fields, np.int64)
    for i in range(len(bounds) - 1):
        sure[i] = False
        end = bounds[i + 1]
        at = _skip(data, bounds[i], end)
        seen[:] = 0
        if end - bounds[i] > message_bytes_max or at >= end or data[at] != _OPEN:
            continue
        for f in range(fields):
            starts[f, i], ends[f, i], times[f, i], numbers[f, i] = -1, -1, -1, np.nan
        at = _skip(data, at + 1, end)
        guess = 0
        while at < end and data[at] == _QUOTE:
            stop = _text_end(data, at + 1, end)
            if stop < 0:
                break
            field = _field(data, at + 1, stop, names, name_bounds, guess)
            at = _skip(data, stop + 1, end)
            if field < 0 or seen[field] or at >= end or data[at] != _COLON:
                break
            seen[field] = 1
            guess = field + 1 if field + 1 < fields else 0
            at = _skip(data, at + 1, end)
            at = _value(data, at, end, kinds[field], id_bytes_max, starts, ends, times, numbers, field, i)
            if at < 0:
                break
            at = _skip(data, at, end)
            if at < end and data[at] == _COMMA:
                at = _skip(data, at + 1, end)
                continue
            if at < end and data[at] == _CLOSE:
                sure[i] = _skip(data, at + 1, end) == end
                for f in range(fields):
                    sure[i] = sure[i] and seen[f] >= required[f]
            break


@dataclass(frozen=True, slots=True)
class Scanned:
    """What the scanner found: by field and record, as :func:`scan` gives it."""

    data: _U8
    starts: _Ints
    ends: _Ints
    times: _Ints
    numbers: _Floats
    sure: NDArray[np.bool_]


class Fields:
    """The fields of a message for the scanner: name, kind, and whether it must be there."""

    def __init__(self, fields: Sequence[tuple[str, int, bool]]) -> None:
        self.place = {name: i for i, (name, _, _) in enumerate(fields)}
        self._names, self._bounds = pack([name.encode() for name, _, _ in fields])
        self._kinds = np.array([kind for _, kind, _ in fields], np.int64)
        self._required = np.array([required for _, _, required in fields], np.int64)

    def scan(self, values: Sequence[bytes | None], message_bytes_max: int) -> Scanned:
        """Scan all records."""
        data, bounds = pack([value or b"" for value in values])
        shape = (len(self._kinds), len(values))
        found = Scanned(data, np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int64),
                         np.empty(shape), np.zeros(len(values), np.bool_))  # fmt: skip
        scan(data, bounds, self._names, self._bounds, self._kinds, self._required, ID_BYTES_MAX,
             message_bytes_max, found.starts, found.ends, found.times, found.numbers, found.sure)  # fmt: skip
        return found
