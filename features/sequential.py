"""A comparison of two variants that may be looked at after every observation: always-valid, and exact at any size.

In: observations in [0, 1] in the order in which they were finished, each with the variant that a coin of known odds
chose. Out: whether the means differ, with a confidence interval that holds at all times together. Pure.

The test is by betting (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", Journal of
the Royal Statistical Society B 86, 2024; doi 10.1093/jrsssb/qkad009). With a coin W of odds p for B and an outcome Y,

    Z = (W - p) / (p (1 - p)) * (Y - m)

has the mean of B less the mean of A for any m that was chosen before; m is the mean of all outcomes so far, which
makes Z small (the augmented inverse-propensity score of Robins, Rotnitzky and Zhao, 1994). Whoever bets at fair odds
that the mean of Z is not d multiplies the stake by 1 + l (Z - d), and by Ville's inequality the stake ever reaches
1 / alpha with a probability of at most alpha if the mean is d. Half of the stake is bet on more, half on less, by the
predictable plug-in of their section 4.3. The interval holds every d whose stake never came so far. Nothing is
asymptotic, and no number of looks makes false alarms more frequent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
_STEP = 0.005  # between the differences that are tried
_TRUNCATED = 0.5  # share of the stake that may be lost at once
_PRIOR = 0.25  # variance of an outcome that nothing is known of


@dataclass(frozen=True, slots=True)
class Compared:
    """Two variants after so many observations of each.

    ``lower`` and ``upper`` hold the mean of B less that of A, at all times together with probability 1 - ``alpha``;
    ``p_value`` is always valid: the smallest alpha at which the two had differed at some time until now. ``decided_at``
    is the number of observations after which they did at ``alpha``, or None.
    """

    observations: tuple[int, int]
    means: tuple[float, float]
    lower: float
    upper: float
    p_value: float
    alpha: float
    decided_at: int | None

    @property
    def better(self) -> str | None:
        """``A`` or ``B`` if one is better, None if it is not known yet."""
        if self.decided_at is None:
            return None
        return "B" if self.lower + self.upper > 0 else "A"


@njit(cache=True, nogil=True)
def _bet(z: Doubles, candidates: Doubles, low: float, high: float, variance: float, alpha: float
         ) -> tuple[Doubles, Doubles, Doubles]:  # fmt: skip
    """Highest log of the stake so far for each candidate difference, and of the two halves for a difference of 0."""
    n, count = len(z), len(candidates)
    more, less = np.zeros(count), np.zeros(count)
    highest = np.full(count, -np.inf)
    zero = np.zeros((2, n))
    total, squares = 0.0, variance
    of_zero, refuted = count // 2, math.log(1.0 / alpha)
    for i in range(n):
        spread = squares / (i + 1)
        wish = math.sqrt(2.0 * math.log(2.0 / alpha) / (spread * (i + 1) * math.log(i + 2.0)))
        for c in range(count):
            if highest[c] >= refuted and c != of_zero:
                continue
            d = candidates[c]
            more[c] += math.log1p(min(wish, _TRUNCATED / (d - low)) * (z[i] - d))
            less[c] += math.log1p(-min(wish, _TRUNCATED / (high - d)) * (z[i] - d))
            larger = max(more[c], less[c])
            both = larger + math.log(0.5 * (math.exp(more[c] - larger) + math.exp(less[c] - larger)))
            highest[c] = max(highest[c], both)
        zero[0, i], zero[1, i] = more[of_zero], less[of_zero]
        total += z[i]
        squares += (z[i] - total / (i + 1)) ** 2
    return highest, zero[0], zero[1]


def scores(outcomes: Doubles, of_b: NDArray[np.bool_], share: float) -> Doubles:
    """Z of each observation, see the module's text; float64[n]."""
    before = np.concatenate([[0.0], np.cumsum(outcomes)[:-1]])
    centre = (0.5 + before) / (1.0 + np.arange(len(outcomes)))
    return np.asarray((of_b - share) / (share * (1.0 - share)) * (outcomes - centre))


def compare(outcomes: Doubles, of_b: NDArray[np.bool_], share: float, alpha: float = 0.05) -> Compared:
    """Compare two variants.

    Parameters
    ----------
    outcomes : float64[n]
        In [0, 1], in the order in which they were finished.
    of_b : bool[n]
        Whether B was shown.
    share : float
        The odds of B, in (0, 1), the same for all.
    alpha : float
        How often at most two equal variants may ever be said to differ.

    Raises
    ------
    ValueError
        If an outcome or the odds are outside of their range.
    """
    if not 0.0 < share < 1.0 or not 0.0 < alpha < 1.0:
        raise ValueError(f"share = {share}, alpha = {alpha}: both lie between 0 and 1")
    if len(outcomes) and not (outcomes.min() >= 0.0 and outcomes.max() <= 1.0):
        raise ValueError(f"outcomes reach from {outcomes.min()} to {outcomes.max()}; they lie in 0..1")
    b = of_b.astype(bool)
    z = scores(outcomes.astype(np.float64), b, share)
    steps = round(1.0 / _STEP)
    candidates = np.arange(-steps, steps + 1) / steps
    # A candidate of -1 or 1 lies inside: Z reaches from -1 / min(p, 1 - p) to 1 / min(p, 1 - p).
    bound = 1.0 / min(share, 1.0 - share)
    low, high = -bound - _STEP, bound + _STEP
    highest, more, less = _bet(z, candidates, low, high, _PRIOR / (share * (1.0 - share)), alpha)
    kept = candidates[highest < math.log(1.0 / alpha)]
    log_stakes = np.logaddexp(more, less) - math.log(2.0)
    crossed = np.flatnonzero(log_stakes >= math.log(1.0 / alpha))
    peak = float(log_stakes.max(initial=0.0))
    counts = int(np.count_nonzero(~b)), int(np.count_nonzero(b))
    means = tuple(float(outcomes[side].mean()) if side.any() else math.nan for side in (~b, b))
    lower, upper = (float(kept[0]), float(kept[-1])) if len(kept) else (means[1] - means[0],) * 2
    return Compared(counts, (means[0], means[1]), max(lower - _STEP, -1.0), min(upper + _STEP, 1.0),
                    min(1.0, math.exp(-peak)), alpha, int(crossed[0]) + 1 if len(crossed) else None)  # fmt: skip
