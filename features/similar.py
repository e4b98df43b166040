"""Items that are looked at by the same sessions: what ``headrace similar`` shows. Pure.

In: a fitted recommender. Out: items by the cosine of their sessions. Not used in serving, where six sources and a
ranker say what comes next after a session; this says what goes with one item, whatever came first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.recommender import Recommender


def similar(model: Recommender, item: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The items most similar to one.

    Parameters
    ----------
    model : Recommender
        Its sessions are looked at, as far as it keeps them.
    item : int
        The number of an item of the catalogue.
    k : int
        How many, at most.

    Returns
    -------
    items : int64[m]
        Item numbers, most similar first, never ``item`` itself; m <= k, since only items that share a session with it
        are similar to it.
    scores : float64[m]
        The share of sessions in common, |A and B| / sqrt(|A| |B|), in (0, 1].
    """
    starts = model.posting_offsets
    sessions = model.posting_sessions[starts[item] : starts[item + 1]].astype(np.int64)
    begins, ends = model.session_offsets[sessions], model.session_offsets[sessions + 1]
    lengths = ends - begins
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    found = model.sequence[np.repeat(begins, lengths) + within].astype(np.int64)
    pairs = np.unique(np.repeat(sessions, lengths)[found >= 0] * model.items + found[found >= 0])
    shared = np.bincount(pairs % model.items, minlength=model.items)
    shared[item] = 0
    others = np.flatnonzero(shared)
    sizes = np.maximum(np.diff(starts)[others], shared[others])
    scores = shared[others] / np.sqrt(sizes * max(len(sessions), 1))
    best = np.lexsort((others, -scores))[:k]
    return others[best], scores[best]
