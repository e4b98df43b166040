"""Clicks whose right answer the eye can see, for tests of the recommender."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from features.hashing import hash_strings
from features.recommender import Recommender
from trainer.ranker import RankerSettings
from trainer.recommender import RecommenderSettings, fit_recommender

START_MS, MINUTE_MS = 1_600_000_000_000, 60_000
QUICK = RecommenderSettings(ranker=RankerSettings(trees=12, leaves=15, rows_in_leaf=20, rate=0.2, threads=1))


def clicks(sessions: Sequence[Sequence[str]], start_ms: int = START_MS) -> pa.Table:
    """Sessions one after the other, a click a minute."""
    rows = [(f"s{number:05d}", item) for number, session in enumerate(sessions) for item in session]
    times = [start_ms + MINUTE_MS * place for place in range(len(rows))]
    nothing = pa.nulls(len(rows), pa.string())
    return pa.table({
        "event_id": pa.array([f"e{place}" for place in range(len(rows))], pa.string()),
        "event_time": pa.array(times, pa.int64()),
        "session_id": pa.array([session for session, _ in rows], pa.string()),
        "user_id": nothing,
        "card_id": nothing,
        "item_id": pa.array([item for _, item in rows], pa.string()),
        "action": pa.array(["view"] * len(rows), pa.string()),
    })  # fmt: skip


def checkerboard(groups: int = 4, size: int = 5, sessions: int = 40, seed: int = 1) -> pa.Table:
    """Sessions walk within one group of items: what comes next is always of the same group."""
    rng = np.random.default_rng(seed)
    walks = []
    for number in range(sessions * groups):
        group = number % groups
        walks.append([f"g{group}-{item}" for item in rng.permutation(size)[: rng.integers(2, size + 1)]])
    return clicks(walks)


def fitted(table: pa.Table, settings: RecommenderSettings = QUICK) -> Recommender:
    """A recommender that was fitted in a moment."""
    return fit_recommender(table, settings).model


def answers(model: Recommender, sessions: Sequence[Sequence[str]], k: int) -> list[list[str]]:
    """The lists after the given items; what every answer must keep to is checked on the way."""
    length = max(1, *map(len, sessions))
    hashes = np.zeros((len(sessions), length), np.uint64)
    for row, session in enumerate(sessions):
        hashes[row, : len(session)] = hash_strings(session)
    items, scores = model.recommend_many(hashes, np.array([len(session) for session in sessions], np.int64), k)
    assert (np.diff(scores, axis=1) <= 0).all() and np.isfinite(scores).all()
    assert all(len({i for i in row if i >= 0}) == (row >= 0).sum() for row in items)
    return [[model.item_id(i) for i in row if i >= 0] for row in items]
