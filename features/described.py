"""What the ranker sees of each candidate, compiled.

In: what :mod:`features.sources` wrote about a query, and the candidates that :mod:`features.candidates` cut it to. Out:
a row of features for each, written in place.
"""

from __future__ import annotations

import numpy as np

from features.sources import (
    BEFORE,
    BIGRAM,
    DIRECT,
    ENDINGS,
    LINEAR,
    LINEAR_BEFORE,
    LINEAR_MOST,
    LINEAR_NOW,
    LIST,
    LISTED,
    NOW,
    SOURCES,
    TASTE,
    TASTE_DECAY,
    TRANSITIONS,
    VARIANTS,
    VOTERS,
    Doubles,
    Index,
    Scratch,
)
from features.uncounted import counting_nothing

_S = len(SOURCES)
FACTS = ("popularity", "trend", "age_days", "revisited", "idle_days")  # of an item, columns of ``Index.facts``
_F = len(FACTS)
FEATURES = (
    *(f"share_{name}" for name in SOURCES),
    *(f"rank_{name}" for name in SOURCES),
    *(f"part_{name}" for name in SOURCES),
    "linear", "linear_now", "linear_before", "transitions", "now", "before",
    "rank_sum", "rank_best", "rank_union", "sources",
    "direct", "bigram", "bigram_support", "voters", "lift",
    "last_seen", "times_seen", "session_length", "session_repeats", "current_times", "certainty",
    *(f"item_{name}" for name in FACTS),
    "current_popularity", "current_revisited",
    "score_neighbours", "score_history", "score_lately", "score_endings", "linear_most", "listed", "rank_mean",
    "matched", "back", "followed_here", "alike_session", "alike_current", "alike_lead",
)  # fmt: skip
WIDTH = len(FEATURES)
# Where the columns of each function below begin.
_STEPS, _SESSION, _EVIDENCE, _TASTES = map(FEATURES.index, ("direct", "last_seen", "score_neighbours", "alike_session"))
_UNRANKED = 200.0  # the rank of an item that a source does not name


@counting_nothing
def _sources(size: int, scratch: Scratch, x: Doubles) -> None:
    """What each source says of a candidate, and all of them together."""
    tops, sums = scratch.tops, scratch.sums
    for source in range(_S):
        tops[source] = sums[source] = 0.0
    scores, ranks, slots = scratch.scores, scratch.ranks, scratch.slots
    list_scores, list_items = scratch.list_scores, scratch.list_items
    for t in range(size):
        item = list_items[t]
        for source in range(_S):
            sums[source] += scores[item, source]
            tops[source] = max(tops[source], scores[item, source])
    for t in range(size):
        item = list_items[t]
        at, best, names = 3 * _S, _UNRANKED, 0
        for source in range(_S):
            score, rank = scores[item, source], ranks[slots[item], source]
            x[t, source] = score / tops[source] if tops[source] > 0.0 else np.float32(0.0)
            x[t, _S + source] = rank if rank >= 0 else _UNRANKED
            x[t, 2 * _S + source] = score / sums[source] if sums[source] > 0.0 else np.float32(0.0)
            if rank >= 0:
                best = min(best, rank)
                names += 1
        x[t, at] = scores[item, LINEAR]
        x[t, at + 1] = scores[item, LINEAR_NOW]
        x[t, at + 2] = scores[item, LINEAR_BEFORE]
        x[t, at + 3] = scores[item, TRANSITIONS]
        x[t, at + 4] = scores[item, NOW]
        x[t, at + 5] = scores[item, BEFORE]
        at += 6
        x[t, at] = list_scores[t]
        x[t, at + 1] = best
        x[t, at + 2] = t
        x[t, at + 3] = names


@counting_nothing
def _steps(size: int, index: Index, scratch: Scratch, x: Doubles) -> None:
    """How often a candidate came next after the item now viewed, and after the two last items."""
    scores, list_items, popularity, at = scratch.scores, scratch.list_items, index.popularity, _STEPS
    followed, followed_two = np.float32(scratch.counts[0]), np.float32(scratch.counts[1])
    for t in range(size):
        item = list_items[t]
        direct = scores[item, DIRECT] / followed if followed > 0.0 else np.float32(np.nan)
        x[t, at] = direct
        x[t, at + 1] = scores[item, BIGRAM] / followed_two if followed_two > 0.0 else np.float32(np.nan)
        x[t, at + 2] = min(followed_two, np.float32(30.0))
        x[t, at + 3] = scores[item, VOTERS]
        x[t, at + 4] = direct / popularity[item]


@counting_nothing
def _session(length: int, found: int, size: int, index: Index, scratch: Scratch, x: Doubles) -> None:
    """Where a candidate stands in the session, and what is known of both."""
    scores, raw, facts, list_items = scratch.scores, scratch.raw, index.facts, scratch.list_items
    current = raw[0] if length else -1
    current_times, certainty, followed = 0, np.float32(0.0), np.float32(scratch.counts[0])
    for age in range(length):
        current_times += raw[age] == current
    for t in range(size):
        certainty = max(certainty, scores[list_items[t], DIRECT])
    for t in range(size):
        item, at = list_items[t], _SESSION
        last, times = -1, 0
        for age in range(length):
            if raw[age] == item:
                times += 1
                last = age if last < 0 else last
        x[t, at] = last if last >= 0 else np.nan
        x[t, at + 1] = times
        x[t, at + 2] = length
        x[t, at + 3] = length - found
        x[t, at + 4] = current_times
        x[t, at + 5] = certainty / followed if followed > 0.0 else np.float32(np.nan)
        at += 6
        for fact in range(_F):
            x[t, at + fact] = facts[item, fact]
        at += _F
        x[t, at] = facts[current, 0] if current >= 0 else np.float32(np.nan)
        x[t, at + 1] = facts[current, 3] if current >= 0 else np.float32(np.nan)


@counting_nothing
def _evidence(length: int, size: int, index: Index, scratch: Scratch, x: Doubles) -> None:
    """How much there is behind a candidate: scores as they are, in how many lists it stands, and the way back."""
    scores, ranks, slots, raw = scratch.scores, scratch.ranks, scratch.slots, scratch.raw
    offsets, items, weights = index.transition_offsets, index.transition_items, index.transition_weights
    list_items, limit, at = scratch.list_items, np.float32(index.settings[LIST]), _EVIDENCE
    current = raw[0] if length else -1
    for t in range(size):
        item = list_items[t]
        for variant in range(VARIANTS):
            x[t, at + variant] = scores[item, variant]
        x[t, at + 3] = scores[item, ENDINGS]
        x[t, at + 4] = scores[item, LINEAR_MOST]
        x[t, at + 5] = scores[item, LISTED]
        ranked, back, here = np.float32(0.0), np.float32(0.0), 0
        for source in range(_S):
            rank = ranks[slots[item], source]
            ranked += np.float32(rank) if rank >= 0 else limit
        for p in range(offsets[item], offsets[item + 1]):
            if items[p] == current:
                back = weights[p]
                break
        for age in range(length - 1):
            here += raw[age] == item and raw[age + 1] == current
        x[t, at + 6] = ranked / np.float32(_S)
        x[t, at + 7] = scratch.counts[2]
        x[t, at + 8] = back
        x[t, at + 9] = here


@counting_nothing
def _tastes(length: int, size: int, index: Index, scratch: Scratch, x: Doubles) -> None:
    """How near a candidate lies to the session, and to the item now viewed; and how far behind the nearest one."""
    raw, list_items, tastes, taste = scratch.raw, scratch.list_items, index.tastes, scratch.taste
    taste[:] = np.float32(0.0)
    for age in range(length):
        if raw[age] >= 0:
            weight = np.float32(np.exp(-TASTE_DECAY * age))
            for d in range(TASTE):
                taste[d] += weight * tastes[raw[age], d]
    norm = np.float32(0.0)
    for d in range(TASTE):
        norm += taste[d] * taste[d]
    norm = max(np.sqrt(norm), np.float32(1e-6))
    current, best = raw[0] if length else -1, np.float32(-1.0)
    for t in range(size):
        item, session, now = list_items[t], np.float32(0.0), np.float32(0.0)
        for d in range(TASTE):
            session += taste[d] * tastes[item, d]
        for d in range(TASTE if current >= 0 else 0):
            now += tastes[current, d] * tastes[item, d]
        x[t, _TASTES], x[t, _TASTES + 1] = session / norm, now
        best = max(best, session / norm)
    for t in range(size):
        x[t, _TASTES + 2] = np.float32(x[t, _TASTES]) - best


@counting_nothing
def describe(length: int, found: int, size: int, index: Index, scratch: Scratch, x: Doubles) -> None:
    """Write the features of the candidates, see :data:`FEATURES`, one row each."""
    _sources(size, scratch, x)
    _steps(size, index, scratch, x)
    _session(length, found, size, index, scratch, x)
    _evidence(length, size, index, scratch, x)
    _tastes(length, size, index, scratch, x)
