"""The fraud models as one object: LightGBM's probability, the isolation forest's anomaly, thresholds and reasons.

In: feature vectors. Out: score and anomaly of each, and the reasons behind some. No IO, no clock: the text and the
arrays come from :mod:`trainer.artifacts`, which has verified them. LightGBM itself is not needed to serve its models.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.catalogue import Feature
from features.forest import FlatForest
from features.messages import Reason
from features.model_text import parse
from features.reason_codes import Reasoner
from features.shap import Explainer
from features.trees import FlatTrees

Floats = NDArray[np.float64]
_FOREST_BESIDE = 0.67  # its walk takes three times as long as that of the trees: so both threads end together


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The lowest score that is looked at by a person, and the lowest that is refused; ``review <= block``."""

    review: float
    block: float


def by_thresholds(score: Floats, review: float, block: float) -> NDArray[np.int8]:
    """Places in :data:`features.messages.ACTIONS` by scores alone, int8[n]; a missing score (NaN) lets pass.

    A ``block`` below ``review``, which settings may give, blocks all the same.

    >>> by_thresholds(np.array([0.1, 0.2, 0.9]), 0.2, 0.5).tolist()
    [0, 1, 2]
    """
    return np.where(score >= block, 2, np.where(score >= review, 1, 0)).astype(np.int8)


class FraudModel:
    """A fitted pair of fraud models.

    Parameters
    ----------
    text : str
        LightGBM's model text.
    forest : FlatForest
    features : sequence of Feature
        What the columns mean, in order.
    thresholds : Thresholds
    version : str
        The artifact's version, which every decision carries.

    Raises
    ------
    ValueError
        If the parts were fitted for different columns, or the text cannot be read.
    """

    def __init__(
        self, text: str, forest: FlatForest, features: Sequence[Feature], thresholds: Thresholds, version: str = ""
    ) -> None:
        model = parse(text)
        self._trees, self._explainer = FlatTrees(model), Explainer(model)
        self._reasoner = Reasoner(features)
        self.text = text
        self.forest = forest
        self.features = tuple(features)
        self.thresholds = thresholds
        self.version = version
        names = [feature.name for feature in self.features]
        if list(model.names) != names or forest.columns != len(names):
            raise ValueError(f"fraud models are not both fitted for the same {len(names)} features")
        if not 0.0 <= thresholds.review <= thresholds.block:
            raise ValueError(f"review {thresholds.review} is not in 0..block {thresholds.block}")

    def score_many(self, x: Floats, beside: Executor | None = None) -> tuple[Floats, Floats]:
        """Probability of fraud and anomaly of each vector.

        Parameters
        ----------
        x : float64[n, F]
            Feature vectors, NaN = missing.
        beside : Executor, optional
            Walks the forest for most rows while this thread walks the trees; both leave Python's lock to others.

        Returns
        -------
        score : float64[n]
            Probability of fraud in 0..1.
        anomaly : float64[n]
            Share of the training vectors that were less unusual, in 0..1.

        Raises
        ------
        ValueError
            If ``x`` does not have F columns.
        """
        if beside is not None:
            cut = int(len(x) * _FOREST_BESIDE)
            walking = beside.submit(self.forest.anomaly, x[:cut])
            score, rest = self._trees.probability(x), self.forest.anomaly(x[cut:])
            return score, np.concatenate([walking.result(), rest])
        anomaly = self.forest.anomaly(x)
        return self._trees.probability(x), anomaly

    def probability_many(self, x: Floats) -> Floats:
        """The score alone of each vector, see :meth:`score_many`; float64[n]."""
        return self._trees.probability(x)

    def anomaly_many(self, x: Floats) -> Floats:
        """The anomaly alone of each vector, see :meth:`score_many`; float64[n]."""
        return self.forest.anomaly(x)

    def reasons_many(self, rows: Floats, limit: int = 3) -> list[list[Reason]]:
        """What raised each score most, by TreeSHAP, see :mod:`features.shap`; about 40 us a row.

        Parameters
        ----------
        rows : float64[n, F]
        limit : int
            At most so many for each row.

        Returns
        -------
        list of list of Reason
            Of each row, at most one for each code (:mod:`features.reason_codes`), the largest contribution (in
            log-odds) first; only those that raise the score.
        """
        return self._reasoner.by_contribution(rows, self._explainer.contributions(rows), limit)

    def reasons(self, row: Floats, limit: int = 3) -> list[Reason]:
        """:meth:`reasons_many` of one row, float64[F]."""
        return self.reasons_many(row.reshape(1, -1), limit)[0]
