"""What takes the place of models and outputs while state is rebuilt: nothing is scored, nothing is sent.

In: what a lane and the cycle ask of models, publisher and tails. Out: nothing that counts. No state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from features.listing import Clicked, Lister, Lists
from features.messages import Reason
from features.scoring import Thresholds
from features.shelf import Shelf
from stream.lane import Message, Target


class Unscored:
    """The place of the models: every score is replaced by the one that was emitted."""

    thresholds = Thresholds(1.0, 1.0)

    def score_many(self, x: NDArray[np.float64], beside: object = None) -> tuple[NDArray[np.float64], ...]:
        """Zeros."""
        return np.zeros(len(x)), np.zeros(len(x))

    def reasons_many(self, rows: NDArray[np.float64]) -> list[list[Reason]]:
        """None."""
        return [[] for _ in rows]

    def probability_many(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Zeros."""
        return np.zeros(len(x))

    anomaly_many = probability_many

    def numbers_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """No items."""
        return np.full(hashes.shape, -2, np.int32)


class NoLists(Lister):
    """The place of the lister."""

    def __init__(self) -> None:
        super().__init__(Shelf())

    def lists(self, model: object, clicked: Clicked, k: int, how: object = None, trends: object = None) -> Lists:
        """Empty ones."""
        return Lists([[] for _ in clicked.counts], [UNSET for _ in clicked.counts])


class Silent:
    """The place of the publisher and of the tails: nothing is sent; ``positions`` are where the answers begin."""

    def __init__(self, positions: Mapping[Target, int]) -> None:
        self._positions = positions

    async def settle(self) -> None:
        """Nothing is on its way."""

    async def send(self, outputs: Mapping[Target, list[Message]]) -> list[Any]:
        """Drop all answers."""
        return []

    async def acknowledged(self, pending: list[Any]) -> dict[Target, int]:
        """Nothing moves."""
        return {}

    async def ends(self, targets: list[Target]) -> dict[Target, int]:
        """Where the answers begin that the state will not include."""
        return {target: self._positions[target] for target in targets}

    async def read(self, positions: Mapping[Target, int]) -> dict[Target, list[bytes]]:
        """Nothing is adopted from here."""
        return {target: [] for target in positions}
