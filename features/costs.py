"""The cost policy: of letting pass, reviewing and blocking the one with the least expected cost. Pure.

In: probabilities of fraud and amounts. Out: actions, and the lowest probability at which each is not let pass.

With probability p and amount a, all in the currency of the amount:

- to let it pass costs ``p * a``: a fraud's amount is lost;
- to review it costs ``review``, the time of whoever looks, and ``p * a * (1 - recovered)``, what is lost all the same;
- to block it costs ``(1 - p) * block``: a good customer was refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NEVER = 1.000001  # above every probability


@dataclass(frozen=True, slots=True)
class Costs:
    """What acting costs; an action whose cost is None is not taken.

    ``review`` of one look, ``block`` of one good transaction refused, ``recovered``: share in 0..1 of a fraud's amount
    that a review saves.
    """

    review: float | None = None
    block: float | None = None
    recovered: float = 1.0


def decide(costs: Costs, score: Floats, amount: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Action and threshold in force of each of n transactions.

    Parameters
    ----------
    costs : Costs
    score : float64[n]
        Probability of fraud, 0..1.
    amount : float64[n]
        What is lost if it is a fraud. Below 0 counts as 0; a missing one (NaN) leaves nothing to weigh: let pass.

    Returns
    -------
    action : int8[n]
        0 let pass, 1 review, 2 block; of equal costs the mildest.
    threshold : float64[n]
        The probability above which it would not be let pass, rounded to 6 decimals; ``NEVER`` if none is.

    >>> action, threshold = decide(Costs(review=5.0, block=100.0), np.array([0.04, 0.06, 0.99]), np.full(3, 100.0))
    >>> action.tolist(), threshold.tolist()
    ([0, 1, 2], [0.05, 0.05, 0.05])
    """
    stake = np.nan_to_num(np.maximum(amount, 0.0), nan=0.0, posinf=np.finfo(np.float64).max)
    loss = score * stake
    review = np.full(len(score), np.inf)
    block = review.copy()
    lowest = np.full(len(score), NEVER)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if costs.review is not None:
            review = costs.review + loss * (1.0 - costs.recovered)
            lowest = np.fmin(lowest, costs.review / (stake * costs.recovered))
        if costs.block is not None:
            block = (1.0 - score) * costs.block
            lowest = np.fmin(lowest, costs.block / (stake + costs.block))
    action = np.where(review < loss, 1, 0)
    action = np.where(block < np.minimum(review, loss), 2, action)
    threshold = np.where(stake > 0.0, lowest, NEVER).astype(np.float64)
    return action.astype(np.int8), np.round(threshold, 6)
