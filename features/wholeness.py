"""Whether the arrays of a recommender fit each other, so that no compiled code is sent outside of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from features.described import FACTS
from features.sources import CUT, LIST, NEAREST, REACH, TASTE, VARIANTS, Longs
from features.toplist import Floats, Ints

if TYPE_CHECKING:
    from features.recommender import Recommender

_SETTINGS = 7
_NEAREST_MAX, _LIST_MAX = 10_000, 1000


def _offsets_fit(offsets: Longs, groups: int, total: int) -> bool:
    return (
        len(offsets) == groups + 1 and offsets[0] == 0 and offsets[-1] == total and bool((np.diff(offsets) >= 0).all())
    )


def _inside(numbers: Ints, limit: int, lowest: int = 0) -> bool:
    return len(numbers) == 0 or (int(numbers.min()) >= lowest and int(numbers.max()) < limit)


def _positive(weights: Floats) -> bool:
    return bool((np.isfinite(weights) & (weights > 0)).all())


def check_whole(model: Recommender) -> None:
    """Refuse a model whose arrays do not fit.

    Raises
    ------
    ValueError
        If any does not.
    """
    n, s = len(model.popularity), len(model.recency)
    lists = (("posting", "sessions", s), ("linear", "items", n), ("transition", "items", n))
    whole = (
        _offsets_fit(model.item_offsets, n, len(model.item_bytes))
        and all(
            _offsets_fit(getattr(model, f"{name}_offsets"), n, len(getattr(model, f"{name}_{what}")))
            and _inside(getattr(model, f"{name}_{what}"), limit)
            for name, what, limit in lists
        )
        and _offsets_fit(model.next_offsets, n, len(model.next_places))
        and _sequence_fits(model, n, s)
        and len(model.posting_places) == len(model.posting_sessions)
        and len(model.linear_weights) == len(model.linear_items)
        and len(model.transition_weights) == len(model.transition_items)
        and len(model.rarity) == n
        and model.facts.shape == (n, len(FACTS))
        and model.tastes.shape == (n, TASTE)
        and model.recency.shape == (s, VARIANTS)
        and model.place_weights.shape == (VARIANTS, 2 * REACH + 1)
        and all(map(_positive, (model.rarity, model.recency, model.popularity)))
        and all(bool(np.isfinite(a).all()) for a in (model.place_weights, model.linear_weights,
                                                     model.transition_weights, model.tastes, model.variants,
                                                     model.settings))
        and model.variants.shape == (VARIANTS, 2)
        and len(model.settings) == _SETTINGS
        and model.variants[:, NEAREST].min() >= 1 and model.variants[:, NEAREST].max() <= _NEAREST_MAX
        and all(1 <= model.settings[place] <= _LIST_MAX for place in (LIST, CUT))
    )  # fmt: skip
    if not whole:
        raise ValueError(f"recommender: the arrays of {n} items and {s} sessions do not fit each other")


def _sequence_fits(model: Recommender, n: int, s: int) -> bool:
    """Whether places in sessions, and the step before and after each place that was followed, lie inside."""
    sequence, begins = model.sequence, model.session_offsets
    if not (len(begins) == s + 1 and len(sequence) and _inside(sequence, n, -1) and sequence[0] == sequence[-1] == -1):
        return False
    if not (begins[0] >= 0 and begins[-1] == len(sequence) and bool((np.diff(begins) > 0).all())):
        return False
    lengths = np.diff(begins)
    if len(model.posting_places) and not _inside(model.posting_places, int(lengths.max())):
        return False
    if len(model.posting_places) and bool((model.posting_places >= lengths[model.posting_sessions]).any()):
        return False
    places = model.next_places
    followed = _inside(places, len(sequence) - 1, 1)
    return followed and bool((sequence[places + 1] >= 0).all()) and _sessions_apart(model)


def _sessions_apart(model: Recommender) -> bool:
    """Whether -1 stands between the sessions and nowhere in them, so that no walk leaves its session."""
    ends = model.session_offsets[1:] - 1
    return np.array_equal(np.flatnonzero(model.sequence < 0)[1:], ends)
