"""Fits the session nearest neighbour recommender on clicks, and measures one.

In: the canonical clicks table. Out: :class:`features.neighbours.Neighbours`, or hit rate and reciprocal rank. Pure and
deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.errors import TrainingError
from features.hashing import hash_strings
from features.neighbours import Neighbours

DAY_MS = 86_400_000
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NeighbourSettings:
    """How a recommender is fitted; the defaults hold up on short and on long histories.

    ``postings_max`` newest sessions are kept per item and ``session_items_max`` newest clicks per session. Decays are
    per click of age in the query and per place in the neighbour; ``behind`` weighs items that came before the shared
    one. ``recency_days`` and ``popularity_days`` are the times in which a weight falls to 1/e, ``rarity`` the power of
    an item's inverse document frequency. Items repeated at once in less than ``repeat_share_min`` of all steps mean
    that the item now viewed is never recommended.
    """

    nearest: int = 500
    postings_max: int = 1000
    session_items_max: int = 60
    query_decay: float = 0.8
    place_decay: float = 0.6
    behind: float = 0.4
    recency_days: float = 30.0
    popularity_days: float = 3.0
    rarity: float = 0.5
    repeat_share_min: float = 0.005


@dataclass(frozen=True, slots=True)
class Clicks:
    """Clicks as numbers, grouped by session (the session that ended last comes first), in order of time within.

    ``session`` and ``item`` are int64[n], ``time_ms`` int64[n]; ``ids[item]`` is the item's id.
    """

    session: Longs
    item: Longs
    time_ms: Longs
    ids: list[str]


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
    ended = np.zeros(len(names), np.int64)
    np.maximum.at(ended, session, time_ms)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(-ended, kind="stable")] = np.arange(len(names))
    order = np.lexsort((time_ms, rank[session]))  # lexsort is stable: equal times keep the order of the table
    return Clicks(rank[session][order], item[order], time_ms[order], ids)


def _starts(group: Longs) -> Longs:
    """Where each run of equal values in ``group`` starts, and its length at the end."""
    return np.concatenate([np.flatnonzero(np.diff(group, prepend=-1)), [len(group)]])


def _offsets(group: Longs, groups: int) -> Longs:
    return np.concatenate([[0], np.cumsum(np.bincount(group, minlength=groups))]).astype(np.int64)


def _by_popularity(clicks: Clicks, settings: NeighbourSettings) -> tuple[Clicks, NDArray[np.float32]]:
    """Items renumbered from the most popular of late on, and their popularity over that of the first."""
    age_days = (clicks.time_ms.max() - clicks.time_ms) / DAY_MS
    share = np.bincount(clicks.item, np.exp(-age_days / settings.popularity_days), len(clicks.ids))
    order = np.argsort(-share, kind="stable")
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    renumbered = Clicks(clicks.session, number[clicks.item], clicks.time_ms, [clicks.ids[i] for i in order])
    # Items that nobody wants any more would underflow to 0, which the compiled search takes for untouched.
    return renumbered, np.maximum(share[order] / share[order[0]], 1e-30).astype(np.float32)


def repeat_share(clicks: Clicks) -> float:
    """The share of steps within sessions that repeat the item just viewed."""
    same = clicks.session[1:] == clicks.session[:-1]
    return float(np.mean(clicks.item[1:][same] == clicks.item[:-1][same])) if same.any() else 0.0


def _newest_of_each_session(clicks: Clicks, limit: int) -> Clicks:
    """Sessions cut to their newest ``limit`` clicks; sessions of one click teach nothing about what comes next."""
    starts = _starts(clicks.session)
    length = np.diff(starts)
    from_end = np.repeat(starts[1:], length) - np.arange(len(clicks.session))
    keep = (from_end <= limit) & np.repeat(length > 1, length)
    dense = np.unique(clicks.session[keep], return_inverse=True)[1].astype(np.int64)
    return Clicks(dense, clicks.item[keep], clicks.time_ms[keep], clicks.ids)


def _postings(clicks: Clicks, items: int, limit: int) -> dict[str, NDArray[np.generic]]:
    """Per item the newest sessions that hold it, and the place of its last occurrence in each."""
    starts = _starts(clicks.session)
    place = np.arange(len(clicks.session)) - np.repeat(starts[:-1], np.diff(starts))
    order = np.lexsort((-place, clicks.session, clicks.item))
    item, session, place = clicks.item[order], clicks.session[order], place[order]
    last = np.ones(len(item), bool)
    last[1:] = (item[1:] != item[:-1]) | (session[1:] != session[:-1])
    item, session, place = item[last], session[last], place[last]
    starts = _starts(item)
    newest = np.arange(len(item)) - np.repeat(starts[:-1], np.diff(starts)) < limit
    return {
        "posting_offsets": _offsets(item[newest], items),
        "posting_sessions": session[newest].astype(np.int32),
        "posting_places": place[newest].astype(np.int32),
    }


def fit_neighbours(table: pa.Table, settings: NeighbourSettings | None = None) -> Neighbours:
    """Fit a recommender on clicks.

    Parameters
    ----------
    table : pa.Table
        Canonical clicks, sorted by time: ``session_id``, ``item_id``, ``event_time`` (ms) are read.
    settings : NeighbourSettings, optional

    Raises
    ------
    TrainingError
        If there is no click.
    """
    settings = settings or NeighbourSettings()
    if table.num_rows == 0:
        raise TrainingError("recommender: the history holds no clicks; it needs at least one")
    clicks, popularity = _by_popularity(grouped(table), settings)
    items = len(clicks.ids)
    exclude = repeat_share(clicks) < settings.repeat_share_min
    kept = _newest_of_each_session(clicks, settings.session_items_max)
    sessions = int(kept.session[-1]) + 1 if len(kept.session) else 0
    holders = np.bincount(np.unique(kept.session * items + kept.item) % items, minlength=items)
    weights = np.log1p(max(sessions, 1) / np.maximum(holders, 1)) ** settings.rarity
    ended = kept.time_ms[_starts(kept.session)[1:] - 1] if sessions else np.zeros(0, np.int64)
    age_days = (ended.max() - ended) / DAY_MS if sessions else np.zeros(0)
    names = [name.encode() for name in clicks.ids]
    arrays: dict[str, NDArray[np.generic]] = {
        "item_bytes": np.frombuffer(b"".join(names), np.uint8).copy(),
        "item_offsets": np.concatenate([[0], np.cumsum([len(name) for name in names])]).astype(np.int64),
        "item_weights": weights.astype(np.float32),
        "popularity": popularity,
        "session_offsets": _offsets(kept.session, sessions),
        "session_items": kept.item.astype(np.int32),
        "session_weights": np.maximum(np.exp(-age_days / settings.recency_days), 1e-20).astype(np.float32),
        "settings": np.array(
            [settings.nearest, settings.query_decay, settings.place_decay, settings.behind, float(exclude)]
        ),
    }
    return Neighbours.from_arrays(arrays | _postings(kept, items, settings.postings_max))


def hold_out(table: pa.Table, share: float = 0.1, clicks_max: int = 20_000) -> tuple[pa.Table, pa.Table]:
    """Older and newer sessions: those that began in the newest ``share`` of the clicks are held out.

    Of the newer ones only the first ``clicks_max`` clicks are kept, and of the older ones only what came before them.
    """
    cut = table.num_rows - int(table.num_rows * share)
    names = table["session_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first = np.full(int(names.max(initial=-1)) + 1, table.num_rows)
    np.minimum.at(first, names, np.arange(len(names)))
    newer = np.flatnonzero(first[names] >= cut)[:clicks_max]
    return table.slice(0, cut), table.take(pa.array(newer))


def queries(table: pa.Table, length: int) -> tuple[NDArray[np.uint64], Longs, list[str]]:
    """Each click but a session's last as a query for the click after it.

    Returns
    -------
    hashes : uint64[n, length]
        The session's newest items up to the click, oldest first.
    counts : int64[n]
        How many there are in each row.
    targets : list of str
        The item clicked next.
    """
    clicks = grouped(table)
    hashes = hash_strings(clicks.ids)[clicks.item]
    starts = _starts(clicks.session)
    place = np.arange(len(hashes)) - np.repeat(starts[:-1], np.diff(starts))
    asked = np.flatnonzero(clicks.session[1:] == clicks.session[:-1])
    counts = np.minimum(place[asked] + 1, length)
    rows = (asked - counts + 1)[:, None] + np.arange(length)
    return hashes[np.minimum(rows, len(hashes) - 1)], counts, [clicks.ids[i] for i in clicks.item[asked + 1]]


def evaluate(model: Neighbours, table: pa.Table, k: int = 20, length: int = 20) -> dict[str, float]:
    """Hit rate and mean reciprocal rank among the first ``k`` for every click but a session's last, next click sought.

    Returns
    -------
    dict
        ``hr`` and ``mrr`` in 0..1, ``queries`` the number of queries. An item that the model does not know is a miss.
    """
    hashes, counts, targets = queries(table, length)
    if not targets:
        return {"hr": 0.0, "mrr": 0.0, "queries": 0.0}
    numbers = {model.item_id(i): i for i in range(model.items)}
    wanted = np.array([numbers.get(target, -2) for target in targets])
    hits = model.recommend_many(hashes, counts, k)[0] == wanted[:, None]
    ranks = hits.argmax(1) + 1.0
    found = hits.any(1)
    return {"hr": float(found.mean()), "mrr": float(np.mean(found / ranks)), "queries": float(len(targets))}
