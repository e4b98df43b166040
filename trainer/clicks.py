"""Clicks as numbers, grouped by session: what every part of the recommender is fitted on, and questions to ask it.

In: the canonical clicks table. Out: arrays. Pure and deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.hashing import hash_strings

DAY_MS = 86_400_000
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Clicks:
    """Clicks by session (the one that ended last comes first), in order of time within.

    ``session`` and ``item`` are int64[n], ``time_ms`` int64[n]; ``ids[item]`` is the item's id. ``user`` int64[n] is
    the user's number or -1; None where no click has a user.
    """

    session: Longs
    item: Longs
    time_ms: Longs
    ids: list[str]
    user: Longs | None = None

    def __len__(self) -> int:
        return len(self.item)

    def take(self, keep: NDArray[np.bool_]) -> Clicks:
        """Those clicks only, with sessions numbered anew."""
        session = np.unique(self.session[keep], return_inverse=True)[1].astype(np.int64)
        return Clicks(session, self.item[keep], self.time_ms[keep], self.ids, of_rows(self.user, keep))


def grouped(table: pa.Table) -> Clicks:
    """The clicks of a canonical table, which is sorted by time, as numbers."""
    time_ms = table["event_time"].to_numpy().astype(np.int64)
    codes = {}
    for name in ("session_id", "item_id"):
        encoded = pc.dictionary_encode(table[name].combine_chunks())
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        codes[name] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()
    session, names = codes["session_id"]
    item, ids = codes["item_id"]
    user = None
    if table["user_id"].null_count < len(table):
        encoded = pc.dictionary_encode(table["user_id"].combine_chunks())
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        user = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return newest_first(session, len(names), item, time_ms, ids, user)


def of_rows(column: Longs | None, rows: NDArray[np.generic]) -> Longs | None:
    """Some rows of a column that may not be there."""
    return None if column is None else column[rows]


def newest_first(session: Longs, sessions: int, item: Longs, time_ms: Longs, ids: list[str],
                 user: Longs | None = None) -> Clicks:  # fmt: skip
    """Clicks in order of time, with sessions numbered by their ends: 0 ended last."""
    ended = np.zeros(sessions, np.int64)
    np.maximum.at(ended, session, time_ms)
    rank = np.empty(sessions, np.int64)
    rank[np.argsort(-ended, kind="stable")] = np.arange(sessions)
    order = np.lexsort((time_ms, rank[session]))  # lexsort is stable: equal times keep their order
    return Clicks(rank[session][order], item[order], time_ms[order], ids, of_rows(user, order))


def starts(group: Longs) -> Longs:
    """Where each run of equal values in ``group`` starts, and its length at the end."""
    return np.concatenate([np.flatnonzero(np.diff(group, prepend=-1)), [len(group)]])


def offsets(group: Longs, groups: int) -> Longs:
    """Where each of the groups 0..groups-1 begins once ``group`` is sorted; int64[groups + 1]."""
    return np.concatenate([[0], np.cumsum(np.bincount(group, minlength=groups))]).astype(np.int64)


def places(group: Longs) -> Longs:
    """For each element its place within its run of equal values."""
    begins = starts(group)
    return np.arange(len(group)) - np.repeat(begins[:-1], np.diff(begins))


@dataclass(frozen=True, slots=True)
class Queries:
    """Each click but a session's last as a query for the click after it.

    ``hashes`` uint64[n, length] the session's newest items up to the click, oldest first, ``counts`` int64[n] how many
    there are in each row, ``target`` int64[n] the number of the item clicked next, in ``ids``; ``place`` int64[n] the
    place of the query's click in its session, from 0.
    """

    hashes: NDArray[np.uint64]
    counts: Longs
    target: Longs
    place: Longs
    ids: list[str]


def queries(clicks: Clicks, length: int, limit: int | None = None, seed: int = 1) -> Queries:
    """The queries of these clicks in their order, or ``limit`` of them drawn without replacement."""
    place = places(clicks.session)
    asked = np.flatnonzero(clicks.session[1:] == clicks.session[:-1])
    if limit is not None and len(asked) > limit:
        asked = np.sort(np.random.default_rng(seed).choice(asked, limit, replace=False))
    hashes = hash_strings(clicks.ids)[clicks.item] if len(clicks) else np.zeros(0, np.uint64)
    counts = np.minimum(place[asked] + 1, length)
    rows = (asked - counts + 1)[:, None] + np.arange(length)
    return Queries(hashes[np.minimum(rows, len(hashes) - 1)], counts, clicks.item[asked + 1], place[asked], clicks.ids)
