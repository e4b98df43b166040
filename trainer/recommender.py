"""Fits the recommender on clicks, and measures one.

In: the canonical clicks table. Out: :class:`features.recommender.Recommender`, or hit rate and reciprocal rank.
Deterministic for a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.errors import TrainingError
from features.recommender import Recommender
from features.sources import CLICKS
from trainer.clicks import Clicks, Longs, grouped, queries
from trainer.ranker import RankerSettings, fit_ranker
from trainer.sources import SourceSettings, fit_sources, repeat_share


@dataclass(frozen=True, slots=True)
class RecommenderSettings:
    """How a recommender is fitted.

    Sessions of more than ``session_clicks_max`` clicks are left out; figures come from ``measured_max`` queries.
    """

    sources: SourceSettings = field(default_factory=SourceSettings)
    ranker: RankerSettings = field(default_factory=RankerSettings)
    session_clicks_max: int = 500
    measured_max: int = 4000


@dataclass(frozen=True, slots=True)
class Fitted:
    """A recommender, what it was fitted on (counts, times in ms), and how well it ranks sessions it had not seen."""

    model: Recommender
    training: dict[str, int | None]
    metrics: dict[str, float | None]


def fit_recommender(table: pa.Table, settings: RecommenderSettings | None = None,
                    progress: Callable[[int, int], None] | None = None) -> Fitted:  # fmt: skip
    """Fit a recommender on clicks.

    Parameters
    ----------
    table : pa.Table
        Canonical clicks, sorted by time: ``session_id``, ``item_id``, ``event_time`` (ms) are read.
    settings : RecommenderSettings, optional
    progress : callable, optional
        Called with steps done and steps in all.

    Raises
    ------
    TrainingError
        If there is no click.
    """
    settings = settings or RecommenderSettings()
    if table.num_rows == 0:
        raise TrainingError("recommender: the history holds no clicks; it needs at least one")
    times = table["event_time"]
    clicks, long_sessions = without_bots(grouped(table), settings.session_clicks_max)
    ranked = fit_ranker(clicks, settings.sources, settings.ranker, progress or _silent)
    metrics: dict[str, float | None] = {"hr": None, "mrr": None, "queries": 0.0,
                                           "repeats": repeat_share(clicks)}  # fmt: skip
    if ranked.model is not None and ranked.unseen is not None and len(ranked.unseen):
        metrics.update(evaluate(replace(ranked.model, ranker=ranked.text), ranked.unseen, limit=settings.measured_max))
    model = Recommender.from_arrays(fit_sources(clicks, settings.sources), ranked.text)
    training: dict[str, int | None] = {
        "clicks": len(clicks),
        "clicks_from_ms": times[0].as_py(),
        "clicks_to_ms": times[-1].as_py(),
        "items": model.items,
        "sessions_left_out": long_sessions,
    }
    return Fitted(model, training, metrics)


def _silent(done: int, total: int) -> None:
    """Progress that nobody asked for."""


def without_bots(clicks: Clicks, limit: int) -> tuple[Clicks, int]:
    """Clicks without sessions of more than ``limit``, and how many these are; all clicks if no other is left.

    Nobody looks at a thousand items in one visit. A crawler's session says nothing of what people want next, and
    would be asked about and counted as many visitors are.
    """
    length = np.bincount(clicks.session)
    people = length[clicks.session] <= limit
    return (clicks.take(people), int((length > limit).sum())) if people.any() else (clicks, 0)


def golden_sessions(table: pa.Table, limit: int) -> tuple[NDArray[np.uint64], Longs]:
    """A cold session and the newest queries of a table, ``limit`` in all: questions for the golden answers."""
    newest = queries(grouped(table.slice(max(0, table.num_rows - 2000))), CLICKS)
    hashes = np.concatenate([np.zeros((1, CLICKS), np.uint64), newest.hashes[-limit + 1 :]])
    return hashes, np.concatenate([np.zeros(1, np.int64), newest.counts[-limit + 1 :]])


def evaluate(model: Recommender, clicks: Clicks, k: int = 20, limit: int | None = None) -> dict[str, float]:
    """Hit rate and mean reciprocal rank among the first ``k`` for every click but a session's last, next click sought.

    Returns
    -------
    dict
        ``hr`` and ``mrr`` in 0..1, ``queries`` the number of queries. An item that the model does not know is a miss.
    """
    q = queries(clicks, CLICKS, limit)
    if not len(q.target):
        return {"hr": 0.0, "mrr": 0.0, "queries": 0.0}
    wanted = model.numbers(q.ids)[q.target]
    hits = model.recommend_many(q.hashes, q.counts, k)[0] == np.where(wanted < 0, -2, wanted)[:, None]
    found = hits.any(1)
    return {"hr": float(found.mean()), "mrr": float(np.mean(found / (hits.argmax(1) + 1.0))),
            "queries": float(len(wanted))}  # fmt: skip
