"""The JSON of decisions that need no reasons, many at once, compiled. The others are few and go through msgspec.

In: columns of decisions. Out: the bytes of one message each, end to end. Pure. What is written here reads as exactly
the same :class:`~features.messages.Decision` that msgspec would write.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.bits import copy_bytes
from features.hashing import pack
from features.texts import Texts

_U8 = NDArray[np.uint8]
_Ints = NDArray[np.int64]

MICRO = 1_000_000  # scores, anomalies and thresholds are rounded to 6 decimals
UNKNOWN = -1  # in the place of millionths: null
_QUOTE, _BACKSLASH, _MINUS, _ZERO, _POINT = 34, 92, 45, 48, 46
_PIECES, _BOUNDS = pack([
    b'{"decision_id":"', b'","event_id":"', b'","key":"', b'","event_time":', b',"score":', b',"anomaly":',
    b',"action":"allow","reasons":[],"model_version":"', b'","label_position":', b',"duplicate":true,"review_score":',
    b',"duplicate":false,"review_score":', b"null",
])  # fmt: skip
_FIXED_BYTES = len(_PIECES) + 6 * 20  # all pieces and the digits of every number


@njit(cache=True, nogil=True)
def copied(out: _U8, at: int, data: _U8, start: int, end: int) -> int:
    """Bytes as they are; returns where they end, as all of these do."""
    return int(copy_bytes(out, at, data, start, end - start))


@njit(cache=True, nogil=True)
def escaped(out: _U8, at: int, data: _U8, start: int, end: int) -> int:
    """Ids hold no control characters: only these two have to be escaped."""
    for j in range(start, end):
        if data[j] == _QUOTE or data[j] == _BACKSLASH:
            out[at] = _BACKSLASH
            at += 1
        out[at] = data[j]
        at += 1
    return at


@njit(cache=True, nogil=True)
def digits(out: _U8, at: int, value: int) -> int:
    """Write a whole number in decimal; returns where it ends."""
    if value < 0:
        out[at] = _MINUS
        at += 1
        value = -value
    end = at + 1
    rest = value // 10
    while rest > 0:
        end += 1
        rest //= 10
    p = end
    while p > at:
        p -= 1
        out[p] = _ZERO + value % 10
        value //= 10
    return end


@njit(cache=True, nogil=True)
def _fraction(out: _U8, at: int, micro: int) -> int:
    """``micro`` millionths, 0 to 1, without trailing zeros."""
    out[at] = _ZERO + micro // MICRO
    out[at + 1] = _POINT
    rest, scale = micro % MICRO, MICRO // 10
    at += 2
    out[at] = _ZERO
    if rest == 0:
        return at + 1
    while rest > 0:
        out[at] = _ZERO + rest // scale
        rest %= scale
        scale //= 10
        at += 1
    return at


@njit(cache=True, nogil=True)
def _allowed(topic: _U8, partition: int, offsets: _Ints, id_data: _U8, id_starts: _Ints, id_ends: _Ints, key_data: _U8,
             key_starts: _Ints, key_ends: _Ints, times: _Ints, scores: _Ints, anomalies: _Ints, version: _U8,
             positions: _Ints, repeats: NDArray[np.int8], reviews: _Ints, tails: _U8, tail_bounds: _Ints,
             which: _Ints, pieces: _U8, bounds: _Ints, out: _U8, ends: _Ints) -> None:  # fmt: skip
    at = 0
    for i in range(len(offsets)):
        at = copied(out, at, pieces, bounds[0], bounds[1])
        at = copied(out, at, topic, 0, len(topic))
        out[at] = 58  # :
        at = digits(out, at + 1, partition)
        out[at] = 58
        at = digits(out, at + 1, offsets[i])
        at = copied(out, at, pieces, bounds[1], bounds[2])
        at = escaped(out, at, id_data, id_starts[i], id_ends[i])
        at = copied(out, at, pieces, bounds[2], bounds[3])
        at = escaped(out, at, key_data, key_starts[i], key_ends[i])
        at = copied(out, at, pieces, bounds[3], bounds[4])
        at = digits(out, at, times[i])
        at = copied(out, at, pieces, bounds[4], bounds[5])
        at = _fraction(out, at, scores[i])
        at = copied(out, at, pieces, bounds[5], bounds[6])
        at = _fraction(out, at, anomalies[i])
        at = copied(out, at, pieces, bounds[6], bounds[7])
        at = escaped(out, at, version, 0, len(version))
        at = copied(out, at, pieces, bounds[7], bounds[8])
        at = digits(out, at, positions[i])
        ending = 8 if repeats[i] else 9
        at = copied(out, at, pieces, bounds[ending], bounds[ending + 1])
        known = reviews[i] != UNKNOWN
        at = _fraction(out, at, reviews[i]) if known else copied(out, at, pieces, bounds[10], bounds[11])
        at = copied(out, at, tails, tail_bounds[which[i]], tail_bounds[which[i] + 1])
        ends[i] = at


def trailing(rules: Sequence[str], shadow_rules: Sequence[str], rules_version: str | None, degraded: str | None
             ) -> bytes:  # fmt: skip
    """The end of a decision whose reasons are not partial, behind its ``review_score``."""
    fields = {"rules": rules, "shadow_rules": shadow_rules, "rules_version": rules_version, "degraded": degraded,
              "reasons_partial": False}  # fmt: skip
    return b"," + msgspec.json.encode(fields)[1:]


def allowed(topic: str, partition: int, offsets: _Ints, event_id: Texts, key: Texts, times: _Ints, scores: _Ints,
            anomalies: _Ints, version: str, positions: _Ints, repeats: NDArray[np.int8], reviews: _Ints,
            tails: Sequence[bytes], which: _Ints | None = None) -> Texts:  # fmt: skip
    """The JSON of each of n decisions to allow.

    Parameters
    ----------
    topic, partition, offsets : str, int, int64[n]
        Where the transactions lie.
    times : int64[n]
        Event times in epoch ms.
    scores, anomalies : int64[n]
        Millionths, 0 to ``MICRO``.
    positions : int64[n]
        Label positions seen.
    repeats : int8[n]
        1 for a transaction that was decided before.
    reviews : int64[n]
        Review thresholds in millionths, or ``UNKNOWN``.
    tails, which : sequence of bytes, int64[n]
        The ends of the messages, see :func:`trailing`, and which one each has; the first for None.
    """
    name, label = (
        np.frombuffer(bytearray(topic.encode()), np.uint8),
        np.frombuffer(bytearray(version.encode()), np.uint8),
    )
    texts = int((event_id.ends - event_id.starts).sum() + (key.ends - key.starts).sum())
    data, bounds = pack(tails)
    fixed = _FIXED_BYTES + len(name) + 2 * len(label) + max(map(len, tails))
    which = np.zeros(len(offsets), np.int64) if which is None else which
    out = np.empty(2 * texts + len(offsets) * fixed, np.uint8)
    ends = np.zeros(len(offsets), np.int64)
    _allowed(name, partition, offsets, event_id.data, event_id.starts, event_id.ends, key.data, key.starts, key.ends,
             times, scores, anomalies, label, positions, repeats, reviews, data, bounds, which, _PIECES, _BOUNDS, out,
             ends)  # fmt: skip
    return Texts(out[: int(ends[-1]) if len(ends) else 0], np.concatenate([[0], ends[:-1]])[: len(ends)], ends)
