"""Golden answers: what the models of an artifact said about a few inputs on the day that they were published.

In: models and inputs, or models and what they said. Out: arrays, or an error. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import ArtifactCorrupt
from features.recommender import Recommender
from features.scoring import FraudModel

Arrays = Mapping[str, NDArray[Any]]
K = 20
SCORE_TOLERANCE = 1e-9  # LightGBM's text holds every digit; the forest's sum is the same on every machine
ITEM_TOLERANCE = 1e-4  # float32 sums; another processor may round exponentials differently
LISTS_ALIKE_MIN = 0.9  # and where such a sum lies next to a split of the ranker, its list may change


def golden_answers(
    fraud: FraudModel | None,
    recommender: Recommender | None,
    vectors: NDArray[np.float64] | None,
    sessions: tuple[NDArray[np.uint64], NDArray[np.int64]] | None,
) -> dict[str, NDArray[Any]]:
    """Inputs and answers by name: vectors, scores, anomalies; hashes, counts, items, item_scores."""
    golden: dict[str, NDArray[Any]] = {}
    if fraud is not None and vectors is not None:
        scores, anomalies = fraud.score_many(vectors)
        golden |= {"vectors": vectors, "scores": scores, "anomalies": anomalies}
    if recommender is not None and sessions is not None:
        items, item_scores = recommender.recommend_many(*sessions, K)
        golden |= {"hashes": sessions[0], "counts": sessions[1], "items": items, "item_scores": item_scores}
    return golden


def compare(version: str, fraud: FraudModel | None, recommender: Recommender | None, golden: Arrays) -> None:
    """Ask the models again and compare.

    Raises
    ------
    ArtifactCorrupt
        If an answer differs from the golden one, or there is none to compare with.
    """
    problems = []
    try:
        if fraud is not None:
            problems += _scores(fraud, golden)
        if recommender is not None:
            problems += _items(recommender, golden)
    except (KeyError, ValueError, IndexError) as error:
        problems.append(f"golden.npz does not fit the models: {error}")
    if problems:
        raise ArtifactCorrupt(
            f"artifact {version}: {'; '.join(problems)}. Publish a new version with `headrace train`."
        )


def _scores(fraud: FraudModel, golden: Arrays) -> list[str]:
    problems = []
    for name, found in zip(("scores", "anomalies"), fraud.score_many(golden["vectors"]), strict=True):
        expected = golden[name]
        if len(expected) == 0 or not np.isfinite(found).all():
            problems.append(f"{name} are missing or not finite")
        elif not np.allclose(found, expected, rtol=0.0, atol=SCORE_TOLERANCE):
            furthest = float(np.abs(found - expected).max())
            problems.append(f"{name} differ by up to {furthest:.3g} from what they were when published")
    return problems


def _items(recommender: Recommender, golden: Arrays) -> list[str]:
    expected, expected_scores = golden["items"], golden["item_scores"]
    items, scores = recommender.recommend_many(golden["hashes"], golden["counts"], expected.shape[1])
    near = ITEM_TOLERANCE * np.maximum(np.abs(expected_scores), 1e-9)
    alike = (np.abs(scores - expected_scores) <= near).all(axis=1)
    if len(expected) == 0 or alike.mean() < LISTS_ALIKE_MIN:
        return ["scores of recommended items differ from what they were when published"]
    # Items whose scores are as good as equal may trade places.
    gaps = np.abs(np.diff(expected_scores, axis=1)) <= near[:, 1:]
    tied = np.zeros(expected.shape, bool)
    tied[:, 1:] |= gaps
    tied[:, :-1] |= gaps
    tied[:, -1] = True
    same = ((items == expected) | tied)[alike]
    return [] if same.all() else ["recommended items differ from what they were when published"]
