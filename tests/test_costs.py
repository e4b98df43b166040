"""The cost policy: the action with the least expected cost, and the threshold that it comes to."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.costs import NEVER, Costs, decide

PRICES = st.one_of(st.none(), st.floats(0.01, 1000.0))


@settings(max_examples=300, deadline=None)
@given(PRICES, PRICES, st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1e6))
def test_the_action_is_the_one_with_the_least_expected_cost(
    review: float | None, block: float | None, recovered: float, p: float, amount: float
) -> None:
    action, threshold = decide(Costs(review, block, recovered), np.array([p]), np.array([amount]))
    costs = {0: p * amount}
    if review is not None:
        costs[1] = review + p * amount * (1.0 - recovered)
    if block is not None:
        costs[2] = (1.0 - p) * block
    assert costs[int(action[0])] <= min(costs.values()) + 1e-9 * (1.0 + amount)
    if abs(p - threshold[0]) > 2e-6:
        assert (action[0] > 0) == (p > threshold[0])


def test_a_small_amount_passes_at_a_score_at_which_a_large_one_is_blocked() -> None:
    action, threshold = decide(Costs(5.0, 20.0), np.full(3, 0.3), np.array([10.0, 40.0, 5000.0]))
    assert action.tolist() == [0, 1, 1]
    action, _ = decide(Costs(None, 20.0), np.full(3, 0.3), np.array([10.0, 40.0, 5000.0]))
    assert action.tolist() == [0, 0, 2]
    assert threshold[0] > threshold[1] > threshold[2]


def test_without_an_amount_there_is_nothing_to_lose() -> None:
    action, threshold = decide(Costs(5.0, 20.0), np.ones(3), np.array([np.nan, -3.0, 0.0]))
    assert action.tolist() == [0, 0, 0] and threshold.tolist() == [NEVER] * 3
