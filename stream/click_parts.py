"""What a cycle of clicks is made of: one partition's share, its hashed ids, and the queries that its sessions ask.

In: decoded clicks, sessions. Out: columns. No state.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.decode import ClickBatch
from features.texts import Texts
from features.watermark import Watermark
from stream.lane import Answers, Record
from stream.sessions import SESSION_ITEMS, Session


@dataclass(slots=True)
class Part:
    """One partition's share of a cycle; ``watermark`` and ``marks`` as of :mod:`features.watermark`."""

    partition: int
    offsets: dict[str, int]
    answers: Answers
    records: list[Record]
    batch: ClickBatch
    marks: NDArray[np.int64]
    watermark: Watermark
    items: NDArray[np.uint64]  # hashes of what was clicked
    events: NDArray[np.uint64]  # of the clicks' own ids
    visitors: NDArray[np.uint64]  # and of who clicked: the user, else the session
    long_session: list[bool] = field(default_factory=list)
    bought: list[list[int]] = field(default_factory=list)  # where repeat buying is off, item hashes by click
    earlier: dict[int, list[int]] = field(default_factory=dict)  # by row of the cycle, last items of a returning user

    @property
    def users(self) -> list[str]:
        """The user ids of its clicks, each once."""
        return [id_ for id_ in dict.fromkeys(self.batch.user_id) if id_ is not None]


class Ids(NamedTuple):
    """Of a batch of clicks the keys, and the hashes of items, events and keys; packed once for all."""

    keys: Texts
    items: NDArray[np.uint64]
    events: NDArray[np.uint64]
    visitors: NDArray[np.uint64]

    @classmethod
    def of(cls, batch: ClickBatch) -> Ids:
        n = len(batch.rows)
        keys = [user or session for user, session in zip(batch.user_id, batch.session_id, strict=True)]
        texts = Texts.of([*batch.item_id, *batch.event_id, *keys])
        hashes = texts.hashes().view(np.uint64)
        return cls(texts.part(slice(2 * n, 3 * n)), hashes[:n], hashes[n : 2 * n], hashes[2 * n :])


class Queries:
    """The items of the session after each click of a cycle, end to end, oldest first."""

    __slots__ = ("counts", "items")

    def __init__(self) -> None:
        self.items = array("Q")
        self.counts: list[int] = []

    def add(self, session: Session) -> None:
        self.items.extend([click[1] for click in session.clicks])
        self.counts.append(len(session.clicks))

    def arrays(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """As :class:`features.listing.Clicked` takes them."""
        counts = np.array(self.counts, np.int64)
        hashes = np.zeros((len(counts), SESSION_ITEMS), np.uint64)
        hashes[np.arange(SESSION_ITEMS) < counts[:, None]] = np.frombuffer(self.items, np.uint64)
        return hashes, counts
