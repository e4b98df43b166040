"""Fits the sources of candidates on clicks: neighbours, endings, transitions, popularity.

In: clicks as numbers. Out: the arrays of :class:`features.recommender.Recommender`. Pure and deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix

from features.sources import NOTHING, REACH
from trainer.clicks import DAY_MS, Clicks, offsets, places, starts
from trainer.linear import LinearSettings, fit_linear
from trainer.tastes import fit_tastes

Longs = NDArray[np.int64]
Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to look for neighbours.

    ``nearest`` sessions vote. Decays are per click of age in the query and per place in the neighbour, ``behind``
    weighs items before the shared one, and ``recency`` is the share of the history's span in which a session's weight
    falls to 1/e.
    """

    nearest: int
    query_decay: float
    place_decay: float
    behind: float
    recency: float


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """How the sources are fitted; the defaults hold up on short and on long histories.

    ``postings_max`` newest sessions are kept per item, as many occurrences that were followed by something, and
    ``session_items_max`` newest clicks per session. ``rarity`` is the power of an item's inverse document frequency.
    ``popularity_days`` is the time in which a click's weight for popularity falls to 1/e. Items repeated at once in
    less than ``repeat_share_min`` of all steps mean that the item now viewed is never recommended.
    """

    variants: tuple[Variant, Variant, Variant] = (
        Variant(500, 0.8, 0.3, 0.15, 1.0),
        Variant(250, 0.2, 0.4, 0.6, 2.0),
        Variant(250, 0.8, 0.6, 0.3, 0.1),
    )
    postings_max: int = 1000
    session_items_max: int = 60
    rarity: float = 1.0
    popularity_days: float = 3.0
    repeat_share_min: float = 0.005
    transition_reach: int = 5
    transitions_max: int = 100
    transition_decay: float = 0.8
    linear: LinearSettings = field(default_factory=LinearSettings)
    match_max: int = 5
    match_base: float = 4.0
    list_length: int = 50
    cut: int = 50


def by_popularity(clicks: Clicks, settings: SourceSettings) -> tuple[Clicks, NDArray[np.float64]]:
    """Items renumbered from the most popular of late on, and their share of the decayed clicks.

    A visitor (the user, else the session) counts an item once, by the newest click: nobody makes an item popular alone.
    """
    visitor = clicks.session
    if clicks.user is not None:
        visitor = np.where(clicks.user >= 0, clicks.user, int(clicks.user.max()) + 1 + clicks.session)
    order = np.lexsort((clicks.time_ms, clicks.item, visitor))
    newest = np.ones(len(order), bool)
    newest[:-1] = (np.diff(visitor[order]) != 0) | (np.diff(clicks.item[order]) != 0)
    once = order[newest]
    age_days = (clicks.time_ms.max() - clicks.time_ms[once]) / DAY_MS
    share = np.bincount(clicks.item[once], np.exp(-age_days / settings.popularity_days), len(clicks.ids))
    order = np.argsort(-share, kind="stable")
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    renumbered = Clicks(clicks.session, number[clicks.item], clicks.time_ms, [clicks.ids[i] for i in order],
                        clicks.user)  # fmt: skip
    return renumbered, share[order] / share.sum()


def repeat_share(clicks: Clicks) -> float:
    """The share of steps within sessions that repeat the item just viewed."""
    same = clicks.session[1:] == clicks.session[:-1]
    return float(np.mean(clicks.item[1:][same] == clicks.item[:-1][same])) if same.any() else 0.0


def facts(clicks: Clicks, share: NDArray[np.float64]) -> NDArray[np.float32]:
    """What the ranker knows of each item, see :data:`features.described.FACTS`; float32[n, 5]."""
    n, end = len(clicks.ids), int(clicks.time_ms.max())
    first, last = np.full(n, end, np.int64), np.zeros(n, np.int64)
    np.minimum.at(first, clicks.item, clicks.time_ms)
    np.maximum.at(last, clicks.item, clicks.time_ms)
    plain = np.bincount(clicks.item, minlength=n) / len(clicks)
    age_days = (end - clicks.time_ms).astype(np.float64) / DAY_MS
    span = max(float(age_days.max()), 1e-9)
    late = np.bincount(clicks.item, np.exp(-age_days / (span / 20)), n)
    late = late / late.sum()
    smooth = 1.0 / len(clicks)
    order = np.lexsort((np.arange(len(clicks)), clicks.item, clicks.session))
    session, item = clicks.session[order], clicks.item[order]
    again = np.zeros(len(order), bool)
    again[1:] = (session[1:] == session[:-1]) & (item[1:] == item[:-1])
    revisited = np.bincount(item, again, n) / np.maximum(np.bincount(item, minlength=n), 1)
    columns = (np.log(share + smooth), np.log((late + smooth) / (plain + smooth)), (end - first) / DAY_MS, revisited,
               (end - np.maximum(last, first)) / DAY_MS)  # fmt: skip
    return np.stack(columns, axis=1).astype(np.float32)


def kept_sessions(clicks: Clicks, limit: int) -> Clicks:
    """Sessions cut to their newest ``limit`` clicks; sessions of one click teach nothing about what comes next."""
    begins = starts(clicks.session)
    length = np.diff(begins)
    from_end = np.repeat(begins[1:], length) - np.arange(len(clicks))
    return clicks.take((from_end <= limit) & np.repeat(length > 1, length))


def _postings(clicks: Clicks, items: int, limit: int) -> Arrays:
    """Per item the newest sessions that hold it, and the place of its last occurrence in each."""
    place = places(clicks.session)
    order = np.lexsort((-place, clicks.session, clicks.item))
    item, session, place = clicks.item[order], clicks.session[order], place[order]
    last = np.ones(len(item), bool)
    last[1:] = (item[1:] != item[:-1]) | (session[1:] != session[:-1])
    item, session, place = item[last], session[last], place[last]
    newest = places(item) < limit
    return {
        "posting_offsets": offsets(item[newest], items),
        "posting_sessions": session[newest].astype(np.int32),
        "posting_places": place[newest].astype(np.int32),
    }


def _endings(clicks: Clicks, items: int, limit: int) -> Arrays:
    """The sessions one after the other, and per item where it was followed by something, newest session first."""
    sessions = int(clicks.session[-1]) + 1 if len(clicks) else 0
    at = np.arange(len(clicks)) + clicks.session + 1
    sequence = np.full(len(clicks) + sessions + 1, NOTHING, np.int32)
    sequence[at] = clicks.item
    asked = np.flatnonzero(clicks.session[1:] == clicks.session[:-1])
    order = asked[np.argsort(clicks.item[asked], kind="stable")]
    order = order[places(clicks.item[order]) < limit]
    return {
        "sequence": sequence,
        "session_offsets": np.concatenate([at[starts(clicks.session)[:-1]], [len(sequence)]]).astype(np.int64),
        "next_offsets": offsets(clicks.item[order], items),
        "next_places": at[order].astype(np.int32),
    }


def _transitions(clicks: Clicks, items: int, settings: SourceSettings) -> Arrays:
    """Per item what came after it within few clicks, by share and nearness, the likeliest first."""
    total = coo_matrix((items, items), dtype=np.float32).tocsr()
    for gap in range(1, settings.transition_reach + 1):
        same = clicks.session[gap:] == clicks.session[:-gap]
        pair = clicks.item[:-gap][same], clicks.item[gap:][same]
        total = total + coo_matrix((np.full(len(pair[0]), 1.0 / gap, np.float32), pair), (items, items)).tocsr()
    return best_of_rows(total, settings.transitions_max, "transition", normalized=True)


def best_of_rows(matrix: Any, limit: int, name: str, *, normalized: bool = False) -> Arrays:
    """The ``limit`` largest entries of each row of a CSR matrix, largest first, as offsets, items and weights."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    columns, values = matrix.indices.astype(np.int64), matrix.data.astype(np.float64)
    if normalized:
        values = values / np.maximum(np.bincount(rows, values, matrix.shape[0]), 1e-30)[rows]
    order = np.lexsort((columns, -values, rows))
    order = order[places(rows[order]) < limit]
    return {
        f"{name}_offsets": offsets(rows[order], matrix.shape[0]),
        f"{name}_items": columns[order].astype(np.int32),
        f"{name}_weights": values[order].astype(np.float32),
    }


def fit_sources(clicks: Clicks, settings: SourceSettings) -> Arrays:
    """All arrays of a recommender but the ranker."""
    clicks, share = by_popularity(clicks, settings)
    items = len(clicks.ids)
    exclude = repeat_share(clicks) < settings.repeat_share_min
    kept = kept_sessions(clicks, settings.session_items_max)
    sessions = int(kept.session[-1]) + 1 if len(kept) else 0
    holders = np.bincount(np.unique(kept.session * items + kept.item) % items, minlength=items)
    rarity = np.log1p(max(sessions, 1) / np.maximum(holders, 1)) ** settings.rarity
    ended = kept.time_ms[starts(kept.session)[1:] - 1] if sessions else np.zeros(0, np.int64)
    age = (ended.max() - ended) if sessions else np.zeros(0)
    span = max(int(age.max()) if sessions else 1, 1)
    recency = [np.maximum(np.exp(-age / (span * v.recency)), 1e-20) for v in settings.variants]
    distance = np.arange(-REACH, REACH + 1)
    weights = [
        np.exp(-v.place_decay * np.maximum(np.abs(distance) - 1, 0)) * np.where(distance <= 0, v.behind, 1.0)
        for v in settings.variants
    ]
    names = [name.encode() for name in clicks.ids]
    arrays: Arrays = {
        "item_bytes": np.frombuffer(b"".join(names), np.uint8).copy(),
        "item_offsets": np.concatenate([[0], np.cumsum([len(name) for name in names])]).astype(np.int64),
        "rarity": rarity.astype(np.float32),
        # Items that nobody wants any more would underflow to 0.
        "popularity": np.maximum(share / share[0], 1e-30).astype(np.float32),
        "facts": facts(clicks, share),
        "recency": np.stack(recency, axis=1).astype(np.float32),
        "place_weights": np.stack(weights).astype(np.float32),
        "variants": np.array([[v.nearest, v.query_decay] for v in settings.variants], np.float64),
        "settings": np.array([settings.linear.query_decay, settings.transition_decay, settings.match_max,
                              settings.match_base, settings.list_length, settings.cut, exclude], np.float64),
    }  # fmt: skip
    arrays |= _postings(kept, items, settings.postings_max)
    arrays |= _endings(kept, items, settings.postings_max)
    arrays |= _transitions(kept, items, settings)
    return arrays | fit_linear(kept, items, settings.linear) | fit_tastes(kept, items)
