"""Columns of history files, of whatever type, as the types that Headrace works with.

In: one Arrow array as a file gave it. Out: :class:`Parsed`: the values, and per reason which rows cannot be used.
No state, no IO, no loop over rows. Reasons are those of dead letters, so that history drops what live refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.messages import ID_BYTES_MAX
from features.scan import TIME_MAX_MS, TIME_MIN_MS
from features.schema import Numeric

UNITS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Float seconds of this century are exact to 2.4e-7 s; this much of a millisecond more, and truncation is right.
_FLOAT_SLACK_MS = 1e-3
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"
_MISSING_NUMBERS = pa.array(["", "nan", "null", "none", "na", "n/a"])
_TRUE = pa.array(["1", "1.0", "true", "t", "yes"])
_FALSE = pa.array(["0", "0.0", "false", "f", "no"])
_ISO = (
    r"^\s*(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[Tt ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,3})\d*)?)?"
    r"\s?(?:[Zz]|(?P<sign>[+-])(?P<zone_hour>\d\d):?(?P<zone_minute>\d\d))?)?\s*$"
)

Mask = NDArray[np.bool_]
Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A column that was understood. ``faults`` maps a reason to a mask of the rows that it rules out."""

    values: pa.Array
    faults: dict[str, Mask]


def _mask(array: Any) -> Mask:
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)


def _plain(column: pa.Array) -> pa.Array:
    """The array with dictionaries decoded and every kind of string or bytes as plain strings."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or _is_binary(kind):
        return column.cast(pa.string())
    return column


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def texts(column: pa.Array) -> pa.Array:
    """Ids or categories as strings; missing, empty, NaN and infinite become null, whole floats lose their ``.0``."""
    column = _plain(column)
    kind = column.type
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.string())
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_finite(column), column, None)
        whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53))
        ints = pc.if_else(whole, column, None).cast(pa.int64()).cast(pa.string())
        return pc.coalesce(ints, column.cast(pa.string()))
    if pa.types.is_nested(kind):
        raise ValueError(f"is of type {kind}, which is no text")
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def ids(column: pa.Array, *, typed: bool = True) -> Parsed:
    """Ids as strings.

    Parameters
    ----------
    column
        Integers, floats (whole ones lose their ``.0``), strings, or anything that has a text.
    typed
        False for files without types (CSV): there ``12.0`` is what an integer column with gaps was written as.

    Returns
    -------
    Parsed
        Strings; ``missing_field`` where null or empty, ``invalid_id`` where longer than 256 bytes of UTF-8 or
        holding a character that cannot be printed (entities of several fields are joined by one).
    """
    values = texts(column)
    if not typed:
        values = pc.replace_substring_regex(values, r"^(-?\d+)\.0$", r"\1")
    faults = {"missing_field": _mask(pc.is_null(values))}
    if not pa.types.is_integer(column.type):
        too_long = pc.greater(pc.binary_length(values), ID_BYTES_MAX)
        faults["invalid_id"] = _mask(pc.or_(pc.invert(pc.utf8_is_printable(values)), too_long))
    return Parsed(values, faults)


def numbers(column: pa.Array, numeric: Numeric) -> Parsed:
    """A numeric field as float64, null where missing.

    Returns
    -------
    Parsed
        ``missing_field`` only if the field is required, ``wrong_type`` for text that is no number,
        ``number_out_of_range`` for infinities and values outside ``[numeric.minimum, numeric.maximum]``.
    """
    column = _plain(column)
    faults: dict[str, Mask] = {}
    if pa.types.is_string(column.type):
        text = pc.utf8_trim_whitespace(column)
        text = pc.if_else(pc.is_in(pc.utf8_lower(text), _MISSING_NUMBERS), None, text)
        readable = pc.match_substring_regex(text, _NUMBER)
        faults["wrong_type"] = _mask(pc.invert(readable))
        column = pc.utf8_ltrim(pc.if_else(readable, text, None), characters="+")
    elif pa.types.is_temporal(column.type) or pa.types.is_nested(column.type):
        raise ValueError(f"is of type {column.type}, which is no number")
    values = column.cast(pa.float64(), safe=False)
    values = pc.add(pc.if_else(pc.is_nan(values), None, values), 0.0)  # turns -0.0 into 0.0, as live does
    if numeric.required:
        faults["missing_field"] = _mask(pc.is_null(values)) & ~faults.get("wrong_type", np.zeros(len(values), bool))
    inside = pc.and_(pc.greater_equal(values, numeric.minimum), pc.less_equal(values, numeric.maximum))
    faults["number_out_of_range"] = _mask(pc.invert(inside))
    return Parsed(values, faults)


def labels(column: pa.Array) -> Parsed:
    """Verdicts as int8: 1 fraud, 0 good, null never judged; ``wrong_type`` for anything else."""
    column = _plain(column)
    if pa.types.is_null(column.type):
        return Parsed(pa.nulls(len(column), pa.int8()), {})
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if not pa.types.is_string(column.type):
        column = texts(column)
    text = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    text = pc.if_else(pc.is_in(text, _MISSING_NUMBERS), None, text)
    fraud, good = pc.is_in(text, _TRUE), pc.is_in(text, _FALSE)
    values = pc.if_else(fraud, pa.scalar(1, pa.int8()), pc.if_else(good, pa.scalar(0, pa.int8()), None))
    return Parsed(values.cast(pa.int8()), {"wrong_type": _mask(pc.and_(pc.is_null(values), pc.is_valid(text)))})


def times(column: pa.Array, unit: str) -> Parsed:
    """Times as int64 epoch milliseconds, cut (not rounded) to the millisecond.

    Parameters
    ----------
    column
        Timestamps of any unit and zone (without a zone: UTC), dates, epoch numbers, or strings: RFC 3339,
        ``YYYY-MM-DD HH:MM:SS``, a date, or an epoch number.
    unit
        ``s``, ``ms``, ``us`` or ``ns`` of epoch numbers; ``auto`` takes the unit that puts their median between the
        years 2000 and 2100, where the four ranges do not overlap.

    Returns
    -------
    Parsed
        ``missing_field`` where null, ``wrong_type`` for text that is no time, ``time_out_of_range`` before 2000 or
        from 2100 on.
    """
    column = _plain(column)
    kind = column.type
    missing = _mask(pc.is_null(column, nan_is_null=pa.types.is_floating(kind)))
    unreadable = np.zeros(len(column), dtype=bool)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("ms", getattr(kind, "tz", None)), safe=False)
        found = _filled(column.cast(pa.int64()))
    elif pa.types.is_integer(kind):
        found = _epoch_ms(_filled(column.cast(pa.int64(), safe=False)), ~missing, unit)
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        found = _epoch_ms(_floats(column), ~missing, unit)
    elif pa.types.is_string(kind):
        found, readable = _text_times(column, unit)
        missing |= _mask(pc.equal(pc.utf8_trim_whitespace(column), ""))
        unreadable = ~readable & ~missing
    elif pa.types.is_null(kind):
        found = np.zeros(len(column), dtype=np.int64)
    else:
        raise ValueError(f"is of type {kind}, which is no time")
    outside = ((found < TIME_MIN_MS) | (found >= TIME_MAX_MS)) & ~missing & ~unreadable
    faults = {"missing_field": missing, "wrong_type": unreadable, "time_out_of_range": outside}
    return Parsed(pa.array(found, mask=missing | unreadable | outside), faults)


def _filled(column: pa.Array) -> Int64s:
    return np.asarray(pc.fill_null(column, 0).to_numpy(zero_copy_only=False), dtype=np.int64)


def _floats(column: pa.Array) -> NDArray[np.float64]:
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def _unit_of(values: NDArray[Any]) -> str:
    """The unit that puts the median of epoch numbers into the years accepted; ``ms`` where none does."""
    median = float(np.median(values)) if len(values) else 0.0
    for name, per_s in UNITS_PER_S.items():
        if TIME_MIN_MS / 1e3 * per_s <= median < TIME_MAX_MS / 1e3 * per_s:
            return name
    return "ms"


def _epoch_ms(values: NDArray[Any], present: Mask, unit: str) -> Int64s:
    present = present & np.isfinite(values)
    per_s = UNITS_PER_S[_unit_of(values[present]) if unit == "auto" else unit]
    # Held just outside the accepted years, so that no factor can overflow and absurd values stay out of range.
    lowest, highest = (TIME_MIN_MS // 1_000 - 1) * per_s, (TIME_MAX_MS // 1_000 + 1) * per_s
    held = np.clip(np.where(present, values, lowest), lowest, highest)
    if np.issubdtype(held.dtype, np.integer):
        return np.asarray(held * 1_000 // per_s if per_s < 1_000 else held // (per_s // 1_000), dtype=np.int64)
    return np.asarray(np.floor(held * (1_000 / per_s) + _FLOAT_SLACK_MS), dtype=np.int64)


def _text_times(column: pa.Array, unit: str) -> tuple[Int64s, Mask]:
    """Epoch milliseconds of strings, and which of them are times at all."""
    text = pc.utf8_trim_whitespace(column)
    numeric = pc.match_substring_regex(text, _NUMBER)
    is_epoch = _mask(numeric)
    if is_epoch.all():
        return _epoch_ms(_floats(pc.utf8_ltrim(text, characters="+")), is_epoch, unit), is_epoch
    found, readable = _iso_ms(text)
    if is_epoch.any():
        epochs = _floats(pc.utf8_ltrim(pc.if_else(numeric, text, None), characters="+"))
        found = np.where(is_epoch, _epoch_ms(epochs, is_epoch, unit), found)
    return found, readable | is_epoch


def _iso_ms(text: pa.Array) -> tuple[Int64s, Mask]:
    """Epoch milliseconds of RFC 3339 and its looser kin. Arrow's own cast stops at the first bad value of a column."""
    parts = pc.extract_regex(text, _ISO)
    matched = _mask(pc.is_valid(parts))

    def part(name: str, width: int = 2) -> Int64s:
        digits = pc.utf8_rpad(pc.fill_null(pc.struct_field(parts, name), ""), width, "0")
        return _filled(digits.cast(pa.int64()))

    year, month, day = part("year", 4), part("month"), part("day")
    hour, minute, second = part("hour"), part("minute"), part("second")
    zone_hour, zone_minute = part("zone_hour"), part("zone_minute")
    months = (np.clip(year, 1, 9999) - 1970) * 12 + np.clip(month, 1, 12) - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    month_days = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) - first
    valid = matched & (month >= 1) & (month <= 12) & (day >= 1) & (day <= month_days)
    valid &= (hour < 24) & (minute < 60) & (second < 60) & (zone_hour < 24) & (zone_minute < 60)
    sign = np.where(_mask(pc.equal(pc.struct_field(parts, "sign"), "-")), -1, 1)
    minutes = ((first + day - 1) * 24 + hour - sign * zone_hour) * 60 + minute - sign * zone_minute
    return np.asarray((minutes * 60 + second) * 1_000 + part("fraction", 3), dtype=np.int64), valid
