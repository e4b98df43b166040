"""Weighted choice for many segments at once: one search in one running sum, whatever the number of draws.

In: weights and a numpy Generator. Out: places. The Generator is the only state and belongs to the caller.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Choices:
    """Weighted choice within segments of one flat array.

    Parameters
    ----------
    weights : float64[n]
        Not negative; each segment has at least one that is positive.
    bounds : int64[s + 1]
        Segment i is ``weights[bounds[i]:bounds[i + 1]]``.

    Examples
    --------
    >>> choices = Choices(np.array([0.0, 1.0, 5.0]), np.array([0, 2, 3]))
    >>> choices.draw(np.random.default_rng(1), np.array([0, 1, 0])).tolist()
    [1, 2, 1]
    """

    def __init__(self, weights: Floats, bounds: Ints) -> None:
        self._bounds = bounds
        self._sums = np.concatenate([[0.0], np.cumsum(weights)])

    def draw(self, rng: np.random.Generator, segments: Ints) -> Ints:
        """For each of ``segments`` the place in the flat array of one choice; int64[len(segments)]."""
        first, last = self._bounds[segments], self._bounds[segments + 1]
        low, high = self._sums[first], self._sums[last]
        places = np.searchsorted(self._sums, low + rng.random(len(segments)) * (high - low), side="right") - 1
        return np.asarray(np.clip(places, first, last - 1), dtype=np.int64)


def geometric_shares(count: int, ratio: float) -> Floats:
    """``count`` shares that sum to 1, each ``ratio`` times the one before."""
    shares = ratio ** np.arange(count, dtype=np.float64)
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def labelled(prefix: str, numbers: Ints, width: int) -> list[str | None]:
    """Ids such as ``card-00042``; None for negative numbers."""
    return [f"{prefix}{number:0{width}d}" if number >= 0 else None for number in numbers.tolist()]
