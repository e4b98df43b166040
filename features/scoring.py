"""The fraud models as one object: LightGBM's probability, the isolation forest's anomaly, thresholds and reasons.

In: feature vectors. Out: score and anomaly of each, and the reasons behind one. No IO, no clock: the text and the
arrays come from :mod:`trainer.artifacts`, which has verified them before LightGBM parses the text (its parser aborts
the process on damaged input).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from features.catalogue import Feature
from features.forest import FlatForest
from features.messages import Reason
from features.reasons import sentence

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The lowest score that is looked at by a person, and the lowest that is refused; ``review <= block``."""

    review: float
    block: float


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
        If the parts were fitted for different columns, or LightGBM refuses the text.
    """

    def __init__(
        self, text: str, forest: FlatForest, features: Sequence[Feature], thresholds: Thresholds, version: str = ""
    ) -> None:
        try:
            self._booster = lgb.Booster(model_str=text)
        except lgb.basic.LightGBMError as error:
            raise ValueError(f"LightGBM: {error}") from error
        self.text = text
        self.forest = forest
        self.features = tuple(features)
        self.thresholds = thresholds
        self.version = version
        names = [feature.name for feature in self.features]
        if self._booster.feature_name() != names or forest.columns != len(names):
            raise ValueError(f"fraud models are not both fitted for the same {len(names)} features")
        if not 0.0 <= thresholds.review <= thresholds.block:
            raise ValueError(f"review {thresholds.review} is not in 0..block {thresholds.block}")

    def score_many(self, x: Floats) -> tuple[Floats, Floats]:
        """Probability of fraud and anomaly of each vector.

        Parameters
        ----------
        x : float64[n, F]
            Feature vectors, NaN = missing.

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
        anomaly = self.forest.anomaly(x)
        if len(x) == 0:
            return np.empty(0), anomaly
        # One thread: the next cycle's decoding and this one's acknowledgements want the other cores.
        score: Floats = np.asarray(self._booster.predict(x, num_threads=1), np.float64)
        return score, anomaly

    def reasons(self, row: Floats, limit: int = 3) -> list[Reason]:
        """The features that raised the score most, by TreeSHAP (Lundberg et al. 2020), which costs about 1 ms.

        Parameters
        ----------
        row : float64[F]
        limit : int
            At most so many.

        Returns
        -------
        list of Reason
            Largest contribution (in log-odds) first; only those that raise the score.
        """
        shares = np.asarray(self._booster.predict(row.reshape(1, -1), pred_contrib=True, num_threads=1))[0, :-1]
        best = [i for i in np.argsort(-shares, kind="stable")[:limit] if shares[i] > 0.0]
        return [self._reason(int(i), float(row[i]), float(shares[i])) for i in best]

    def reasons_many(self, rows: Floats) -> list[list[Reason]]:
        """:meth:`reasons` of each row."""
        return [self.reasons(row) for row in rows]

    def _reason(self, column: int, value: float, share: float) -> Reason:
        feature = self.features[column]
        return Reason(
            feature=feature.name,
            value=value if math.isfinite(value) else None,
            contribution=share,
            text=sentence(feature, value),
        )
