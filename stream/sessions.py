"""What is known of a session and of a user: their state, its bytes, and how a click changes it. Pure.

In: clicks in the order in which they arrive. Out: the last items to answer from, and the items that were bought.

A session's state is its last ``SESSION_ITEMS`` clicks: one version byte, 4 bytes count of all its clicks, one byte
count of bought items, then per click 8 bytes hash of the event id, 8 bytes hash of the item id and 8 bytes event time
in ms, oldest first, then 8 bytes hash of each item that was bought without a user id. A user's state, of those clicks
that have a user id, is the last ``USER_ITEMS`` items over all sessions and the last ``BOUGHT_MAX`` bought ones: one
version byte, 8 bytes newest event time in ms, one byte each count of items and of bought ones, then 8 bytes hash of
each item, oldest first, and of each bought one. Everything is little-endian.

A session begins anew when its newest click lies ``worker.session_days`` before a click, or before the watermark
(:mod:`features.watermark`), and a user after ``worker.user_days``. A click whose event id is among the last of its
session counts in neither.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from sys import byteorder
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import StateMismatch

SESSION_ITEMS = USER_ITEMS = 20
SESSION_BOUGHT_MAX, BOUGHT_MAX = 20, 100
SESSION_VERSION = 3  # version 1 had no count, version 2 nothing bought
USER_VERSION = 1
_HEAD = struct.Struct("<BIB")
_STARTS = {1: 1, 2: 5, SESSION_VERSION: _HEAD.size}
_CLICK = struct.Struct("<QQq")
_USER = struct.Struct("<BqBB")
CLICK_BYTES, ITEM_BYTES = _CLICK.size, 8

Clicks = Sequence[tuple[int, int, int]]


@dataclass(slots=True)
class Session:
    """The last clicks of a session (event hash, item hash, time in ms), oldest first, and how many there were.

    ``bought`` are hashes of items bought in clicks without a user id, oldest first. ``cycle`` used it last.
    """

    clicks: list[tuple[int, int, int]] = field(default_factory=list)
    count: int = 0
    cycle: int = -1
    bought: list[int] = field(default_factory=list)
    # Of an experiment, in memory only (stream/variants.py): hashes of what was shown, how many are of the newest list,
    # and whether any was clicked.
    shown: array[int] | None = None
    newest: int = 0
    found: bool = False

    def is_over(self, earliest_ms: int) -> bool:
        """Whether it reads as empty: no click since ``earliest_ms``."""
        clicks = self.clicks
        return not clicks or (clicks[-1][2] < earliest_ms and max(click[2] for click in clicks) < earliest_ms)


@dataclass(slots=True)
class User:
    """Hashes of a user's last items over all sessions and of the bought ones, oldest first, and the newest time."""

    items: list[int] = field(default_factory=list)
    bought: list[int] = field(default_factory=list)
    time: int = 0
    cycle: int = -1


def fold(session: Session, user: User | None, click: tuple[int, int, int], *, bought: bool) -> None:
    """Count a click in its session and, where it has one, for its user; one that is known counts in neither."""
    if click[0] in [known[0] for known in session.clicks]:
        return
    session.clicks = [*session.clicks[1 - SESSION_ITEMS :], click]
    session.count += 1
    if user is not None:
        user.items = [*user.items[1 - USER_ITEMS :], click[1]]
        user.time = max(user.time, click[2])
    if bought:
        owner, most = (session, SESSION_BOUGHT_MAX) if user is None else (user, BOUGHT_MAX)
        owner.bought = [*[item for item in owner.bought if item != click[1]][1 - most :], click[1]]


def start_from_earlier(earlier: Mapping[int, Sequence[int]], model: Any, hashes: NDArray[np.uint64],
                       counts: NDArray[np.int64]) -> None:  # fmt: skip
    """Put a user's last items (by row) in the place of a session's of which the model knows none.

    Where it knows one, what the user looked at before makes the list worse: in the simulated world it costs the first
    click's list 0.9 points of HR@20 and 1.9 of MRR@20.
    """
    if earlier:
        rows = list(earlier)
        known = model.numbers_of(hashes[rows]) >= 0
        known &= np.arange(hashes.shape[1]) < counts[rows, None]
        for row in np.array(rows)[~known.any(axis=1)].tolist():
            counts[row] = len(earlier[row])
            hashes[row, : counts[row]] = earlier[row]


def _hashes(items: Sequence[int]) -> bytes:
    words = array("Q", items)
    if byteorder == "big":
        words.byteswap()
    return words.tobytes()


def _read_hashes(value: bytes) -> list[int]:
    words = array("Q", value)
    if byteorder == "big":
        words.byteswap()
    return words.tolist()


@cache
def _layout(clicks: int) -> struct.Struct:
    return struct.Struct("<" + "QQq" * clicks)


def encode_session(session: Session) -> bytes:
    """The bytes of a session's state."""
    head = _HEAD.pack(SESSION_VERSION, min(session.count, 2**32 - 1), len(session.bought))
    clicks = _layout(len(session.clicks)).pack(*chain.from_iterable(session.clicks))
    return head + clicks + (_hashes(session.bought) if session.bought else b"")


def decode_session(value: bytes | None) -> Session:
    """The inverse of :func:`encode_session`; ``None`` is a new session.

    Raises
    ------
    StateMismatch
        If the bytes are of another version or length.
    """
    if value is None:
        return Session()
    version = value[0] if value else 0
    start = _STARTS.get(version)
    bought = value[5] if version == SESSION_VERSION and len(value) >= _HEAD.size else 0
    end = len(value) - ITEM_BYTES * bought
    if start is None or end < start or (end - start) % CLICK_BYTES:
        raise StateMismatch(f"a session's state ({len(value)} bytes) does not fit versions 1 to {SESSION_VERSION}")
    clicks: list[Any] = list(_CLICK.iter_unpack(value[start:end]))
    count = len(clicks) if version == 1 else int.from_bytes(value[1:5], "little")
    return Session(clicks, count, bought=_read_hashes(value[end:]))


def encode_user(user: User) -> bytes:
    """The bytes of a user's state."""
    head = _USER.pack(USER_VERSION, user.time, len(user.items), len(user.bought))
    return head + _hashes(user.items) + _hashes(user.bought)


def decode_user(value: bytes | None) -> User:
    """The inverse of :func:`encode_user`; ``None`` is a new user.

    Raises
    ------
    StateMismatch
        If the bytes are of another version or length.
    """
    if value is None:
        return User()
    if len(value) >= _USER.size:
        version, time, items, bought = _USER.unpack_from(value)
        if version == USER_VERSION and len(value) == _USER.size + ITEM_BYTES * (items + bought):
            hashes = _read_hashes(value[_USER.size :])
            return User(hashes[:items], hashes[items:], time)
    raise StateMismatch(f"a user's state ({len(value)} bytes) does not fit version {USER_VERSION}")
