"""Fits the ranker: what the session clicked next, among the candidates of sources that had not seen it.

In: clicks as numbers. Out: LightGBM's text. Deterministic for a seed.

Rows come from blocks that walk back from the newest click. For each block the sources are fitted on what is earlier
than the block, as they will be earlier than what is served, and asked about the block's clicks. Lists are cut exactly
as in serving; one that lacks the item clicked next teaches nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from features.described import FEATURES, WIDTH
from features.recommender import Recommender
from features.sources import CLICKS
from trainer.clicks import Clicks, Longs, newest_first, of_rows, queries
from trainer.sources import SourceSettings, fit_sources

_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class RankerSettings:
    """How the ranker is fitted.

    ``blocks`` of ``block_share`` of the clicks each are asked about, ``queries_max`` in all; with fewer than
    ``queries_min`` lists there is no ranker. It has ``trees``, or one for ``lists_per_tree`` lists where these are
    few. ``unseen_share`` of the newest block is kept for measuring.
    """

    blocks: int = 4
    block_share: float = 0.1
    queries_max: int = 132_000
    queries_min: int = 200
    unseen_share: float = 0.1
    trees: int = 75
    lists_per_tree: int = 50
    leaves: int = 63
    rate: float = 0.12
    rows_in_leaf: int = 300
    seed: int = 1
    threads: int = 2


@dataclass(slots=True)
class Rows:
    """Lists of candidates: ``x`` float32[r, F], ``label`` int8[r] (1 where clicked next), ``sizes`` int64[lists]."""

    x: NDArray[np.float32]
    label: NDArray[np.int8]
    sizes: Longs


def in_time(clicks: Clicks) -> tuple[Clicks, Longs]:
    """Clicks in order of time, with the time rank of each session's first click."""
    order = np.lexsort((np.arange(len(clicks)), clicks.time_ms))
    timed = Clicks(clicks.session[order], clicks.item[order], clicks.time_ms[order], clicks.ids,
                   of_rows(clicks.user, order))  # fmt: skip
    first = np.full(int(clicks.session.max()) + 1, len(clicks))
    np.minimum.at(first, timed.session, np.arange(len(clicks)))
    return timed, first


def part(timed: Clicks, keep: NDArray[np.bool_]) -> Clicks:
    """Some of the clicks as a history of its own: items that it does not hold have no number."""
    session = np.unique(timed.session[keep], return_inverse=True)[1].astype(np.int64)
    known, item = np.unique(timed.item[keep], return_inverse=True)
    ids = [timed.ids[i] for i in known.tolist()]
    return newest_first(session, int(session.max(initial=-1)) + 1, item.astype(np.int64), timed.time_ms[keep], ids,
                        of_rows(timed.user, keep))  # fmt: skip


def block(timed: Clicks, first: Longs, start: int, end: int) -> tuple[Clicks, Clicks]:
    """What came before the click of rank ``start``, and the sessions that began between ``start`` and ``end``."""
    rank = np.arange(len(timed))
    began = first[timed.session]
    return part(timed, rank < start), part(timed, (began >= start) & (rank < end))


def rows_of(model: Recommender, asked: Clicks, limit: int, seed: int) -> Rows:
    """The candidates' features for the queries of some clicks, where the item clicked next is among them."""
    q = queries(asked, CLICKS, limit, seed)
    target = model.numbers(q.ids)[q.target]
    x, label, sizes = [], [], []
    for start in range(0, len(target), _CHUNK):
        rows = slice(start, start + _CHUNK)
        found = model.candidates_many(q.hashes[rows], q.counts[rows])
        size = np.diff(found.bounds)
        hit = found.items == np.repeat(target[rows], size)
        useful = np.repeat(np.bincount(np.repeat(np.arange(len(size)), size), hit, len(size)) > 0, size)
        x.append(found.x[useful].astype(np.float32))
        label.append(hit[useful].astype(np.int8))
        sizes.append(size[np.bincount(np.repeat(np.arange(len(size)), size), hit, len(size)) > 0])
    empty = np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int8), np.zeros(0, np.int64)
    return Rows(*(np.concatenate([none, *parts]) for none, parts in zip(empty, (x, label, sizes), strict=True)))


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranker's text, empty where there is too little to learn from; and what it can be measured on.

    ``model`` has the sources of before the newest block, and ``unseen`` are that block's newest sessions, of which
    the ranker saw nothing; None where there are none.
    """

    text: str
    model: Recommender | None = None
    unseen: Clicks | None = None


def fit_ranker(clicks: Clicks, sources: SourceSettings, settings: RankerSettings,
               progress: Callable[[int, int], None]) -> Ranked:  # fmt: skip
    """A ranker for a recommender with such sources.

    Parameters
    ----------
    progress : callable
        Called with steps done and steps in all; a step is a tenth of a block, or a tree.
    """
    timed, first = in_time(clicks)
    size, steps = int(len(timed) * settings.block_share), 10 * settings.blocks + settings.trees
    parts: list[Rows] = []
    ranked = Ranked("")
    for number in range(settings.blocks if settings.queries_max else 0):
        end = len(timed) - number * size
        earlier, asked = block(timed, first, end - size, end)
        if not (len(earlier) and len(asked)):
            break
        model = Recommender.from_arrays(fit_sources(earlier, sources))
        if number == 0:
            asked, unseen = _held_out(asked, settings.unseen_share)
            ranked = Ranked("", model, unseen)
        parts.append(rows_of(model, asked, settings.queries_max // settings.blocks, settings.seed + number))
        progress(10 * (number + 1), steps)
    lists = sum(len(rows.sizes) for rows in parts)
    if lists >= settings.queries_min:
        trees = min(settings.trees, max(10, lists // settings.lists_per_tree))
        text = _boost(parts, settings, trees, lambda n: progress(steps - settings.trees * (trees - n) // trees, steps))
        ranked = replace(ranked, text=text)
    progress(steps, steps)
    return ranked


def _held_out(clicks: Clicks, share: float) -> tuple[Clicks, Clicks]:
    """Without the newest sessions, which hold about that share of the clicks, and those sessions."""
    border = clicks.session[min(int(len(clicks) * share), len(clicks) - 1)]
    newest = clicks.session < border
    return clicks.take(~newest), clicks.take(newest)


def _boost(parts: list[Rows], settings: RankerSettings, trees: int, progress: Callable[[int], None]) -> str:
    """The ranker's text; ``parts`` is empty afterwards, so that their features are gone once they are in bins."""
    label, sizes = np.concatenate([rows.label for rows in parts]), np.concatenate([rows.sizes for rows in parts])
    parameters: dict[str, Any] = {
        "objective": "lambdarank", "lambdarank_truncation_level": 40, "learning_rate": settings.rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": min(settings.rows_in_leaf, max(20, len(label) // 2000)), "feature_fraction": 0.6,
        "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 5.0, "max_bin": 63, "seed": settings.seed,
        "num_threads": settings.threads, "deterministic": True, "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    # A list of arrays: one array of all rows would be a copy of all of them.
    data = lgb.Dataset([rows.x for rows in parts], label, group=sizes, feature_name=list(FEATURES), params=parameters)
    parts.clear()
    data.construct()
    booster = lgb.train(parameters, data, trees, callbacks=[lambda env: progress(env.iteration + 1)])
    text: str = booster.model_to_string()
    return text
