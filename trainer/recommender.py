"""Fits the recommender on clicks, and measures one.

In: the canonical clicks table. Out: :class:`features.recommender.Recommender`, or hit rate and reciprocal rank.
Deterministic for a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from features.errors import TrainingError
from features.recommender import Recommender
from features.sources import CLICKS
from trainer.clicks import Clicks, grouped, queries
from trainer.ranker import RankerSettings, fit_ranker
from trainer.sources import SourceSettings, fit_sources


@dataclass(frozen=True, slots=True)
class RecommenderSettings:
    """How a recommender is fitted."""

    sources: SourceSettings = field(default_factory=SourceSettings)
    ranker: RankerSettings = field(default_factory=RankerSettings)


def fit_recommender(table: pa.Table, settings: RecommenderSettings | None = None,
                    progress: Callable[[int, int], None] | None = None) -> Recommender:  # fmt: skip
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
    clicks = grouped(table)
    ranker = fit_ranker(clicks, settings.sources, settings.ranker, progress or _silent)
    return Recommender.from_arrays(fit_sources(clicks, settings.sources), ranker)


def _silent(done: int, total: int) -> None:
    """Progress that nobody asked for."""


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
