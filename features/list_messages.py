"""The JSON of recommendations whose lists are the same as others', many at once, compiled. Others go through msgspec.

In: columns of clicks, each different list once. Out: the bytes of one message each, end to end. Pure. What is written
here is, byte for byte, what msgspec writes of the same :class:`~features.messages.Recommendation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.answers import copied, digits, escaped
from features.hashing import pack
from features.messages import Degraded, LeftOut, RecommendedItem
from features.texts import Texts

_U8 = NDArray[np.uint8]
Longs = NDArray[np.int64]
_PIECES, _BOUNDS = pack([
    b'{"recommendation_id":"', b'","event_id":"', b'","session_id":"', b'","user_id":', b',"item_id":"',
    b'","event_time":', b"null", b"true", b"false",
])  # fmt: skip
(_ID, _EVENT, _SESSION, _USER, _ITEM, _TIME, _NULL, _TRUE, _FALSE) = range(9)
_FIXED_BYTES = len(_PIECES) + 3 * 20 + 4  # all pieces, the digits of every number, quotes and colons
_QUOTE, _COLON = 34, 58


@dataclass(frozen=True, eq=False, slots=True)
class Clicks:
    """n clicks of one partition: where they lie, their ids (``user_id`` begins below 0 where there is none), ``time``
    int64[n] in ms and ``long`` int8[n], 1 in a session of too many clicks.
    """

    topic: str
    partition: int
    offset: Longs
    event_id: Texts
    session_id: Texts
    user_id: Texts
    item_id: Texts
    time: Longs
    long: NDArray[np.int8]


@njit(cache=True, nogil=True)
def _spliced(topic: _U8, partition: int, offsets: Longs, event: _U8, event_starts: Longs, event_ends: Longs,
             session: _U8, session_starts: Longs, session_ends: Longs, user: _U8, user_starts: Longs, user_ends: Longs,
             item: _U8, item_starts: Longs, item_ends: Longs, times: Longs, longs: NDArray[np.int8], which: Longs,
             bodies: _U8, body_bounds: Longs, tails: _U8, tail_bounds: Longs, pieces: _U8, bounds: Longs, out: _U8,
             ends: Longs) -> None:  # fmt: skip
    at = 0
    for i in range(len(offsets)):
        at = copied(out, at, pieces, bounds[_ID], bounds[_ID + 1])
        at = copied(out, at, topic, 0, len(topic))
        out[at] = _COLON
        at = digits(out, at + 1, partition)
        out[at] = _COLON
        at = digits(out, at + 1, offsets[i])
        at = copied(out, at, pieces, bounds[_EVENT], bounds[_EVENT + 1])
        at = escaped(out, at, event, event_starts[i], event_ends[i])
        at = copied(out, at, pieces, bounds[_SESSION], bounds[_SESSION + 1])
        at = escaped(out, at, session, session_starts[i], session_ends[i])
        at = copied(out, at, pieces, bounds[_USER], bounds[_USER + 1])
        if user_starts[i] < 0:
            at = copied(out, at, pieces, bounds[_NULL], bounds[_NULL + 1])
        else:
            out[at] = _QUOTE
            at = escaped(out, at + 1, user, user_starts[i], user_ends[i])
            out[at] = _QUOTE
            at += 1
        at = copied(out, at, pieces, bounds[_ITEM], bounds[_ITEM + 1])
        at = escaped(out, at, item, item_starts[i], item_ends[i])
        at = copied(out, at, pieces, bounds[_TIME], bounds[_TIME + 1])
        at = digits(out, at, times[i])
        at = copied(out, at, bodies, body_bounds[which[i]], body_bounds[which[i] + 1])
        verdict = _TRUE if longs[i] else _FALSE
        at = copied(out, at, pieces, bounds[verdict], bounds[verdict + 1])
        at = copied(out, at, tails, tail_bounds[which[i]], tail_bounds[which[i] + 1])
        ends[i] = at


def _body(items: list[RecommendedItem], version: str) -> bytes:
    """What stands between a click's time and whether its session is too long."""
    return (b',"items":' + msgspec.json.encode(items) + b',"model_version":' + msgspec.json.encode(version)
            + b',"long_session":')  # fmt: skip


def _tail(left_out: list[LeftOut] | msgspec.UnsetType, degraded: Degraded | None) -> bytes:
    left = b"" if left_out is msgspec.UNSET else b',"left_out":' + msgspec.json.encode(left_out)
    return b',"degraded":' + msgspec.json.encode(degraded) + left + b"}"


def spliced(clicks: Clicks, lists: Sequence[tuple[list[RecommendedItem], list[LeftOut] | msgspec.UnsetType]],
            which: Longs, version: str, degraded: Degraded | None) -> Texts:  # fmt: skip
    """The JSON of each of n recommendations.

    Parameters
    ----------
    lists : sequence of pairs
        Each different list: its items, and what caps kept out of it.
    which : int64[n]
        Which of them each click is answered with.
    """
    bodies, body_bounds = pack([_body(items, version) for items, _ in lists])
    tails, tail_bounds = pack([_tail(left_out, degraded) for _, left_out in lists])
    topic = np.frombuffer(bytearray(clicks.topic.encode()), np.uint8)
    ids = (clicks.event_id, clicks.session_id, clicks.user_id, clicks.item_id)
    texts = sum(int(np.maximum(each.ends - each.starts, 0).sum()) for each in ids)
    own = np.diff(body_bounds)[which].sum() + np.diff(tail_bounds)[which].sum()
    out = np.empty(2 * texts + len(which) * (_FIXED_BYTES + len(topic)) + int(own), np.uint8)
    ends = np.zeros(len(which), np.int64)
    event, session, user, item = ids
    _spliced(topic, clicks.partition, clicks.offset, event.data, event.starts, event.ends, session.data, session.starts,
             session.ends, user.data, user.starts, user.ends, item.data, item.starts, item.ends, clicks.time,
             clicks.long, which, bodies, body_bounds, tails, tail_bounds, _PIECES, _BOUNDS, out, ends)  # fmt: skip
    starts = np.concatenate([[0], ends[:-1]])[: len(ends)]
    return Texts(out[: int(ends[-1]) if len(ends) else 0], starts, ends)
