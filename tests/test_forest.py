"""The flat isolation forest: equal to scikit-learn, and safe against damaged arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from features.errors import TrainingError
from features.forest import FlatForest
from trainer.isolation import column_medians, filled, fit_isolation, flatten


def vectors(seed: int, rows: int, columns: int, missing: float) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    x: NDArray[np.float64] = rng.lognormal(0.0, 2.0, (rows, columns)) * rng.choice([1.0, -1.0, 1e-6, 1e6], columns)
    x[rng.random(x.shape) < 0.2] = 0.0
    x[rng.random(x.shape) < missing] = np.nan
    return x


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    rows=st.integers(2, 600),
    columns=st.integers(1, 12),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
    share=st.sampled_from([0.5, 1.0]),
)
def test_scores_equal_those_of_scikit_learn(seed: int, rows: int, columns: int, missing: float, share: float) -> None:
    x = vectors(seed, rows, columns, missing)
    medians = column_medians(x)
    model = IsolationForest(n_estimators=20, max_samples=min(256, rows), max_features=share, random_state=seed)
    model.fit(filled(x, medians))
    forest = flatten(model, medians, np.zeros(3))
    unseen = np.vstack([x, vectors(seed + 1, 50, columns, missing)])
    np.testing.assert_allclose(
        forest.score_samples(unseen), model.score_samples(filled(unseen, medians)), rtol=0, atol=1e-9
    )


def test_a_single_training_sample_per_tree_scores_as_scikit_learn_does() -> None:
    x = vectors(1, 30, 3, 0.0)
    model = IsolationForest(n_estimators=5, max_samples=1, random_state=1).fit(filled(x, column_medians(x)))
    flat = flatten(model, column_medians(x), np.zeros(2))
    np.testing.assert_allclose(flat.score_samples(x), model.score_samples(x.astype(np.float32)), rtol=0, atol=1e-9)


def test_scoring_one_row_equals_scoring_many() -> None:
    x = vectors(2, 500, 7, 0.2)
    forest = fit_isolation(x, seed=1)
    together = forest.anomaly(x)
    assert [forest.anomaly(x[i : i + 1])[0] for i in range(50)] == list(together[:50])


def test_anomaly_is_a_quantile_and_an_outlier_is_near_one() -> None:
    x = np.random.default_rng(3).normal(size=(5000, 4))
    forest = fit_isolation(x, seed=1)
    anomaly = forest.anomaly(x)
    assert anomaly.min() >= 0.0
    assert anomaly.max() <= 1.0
    assert abs(np.mean(anomaly > 0.9) - 0.1) < 0.01
    assert forest.anomaly(np.array([[40.0, -40.0, 40.0, -40.0]]))[0] > 0.999
    assert forest.anomaly(np.zeros((1, 4)))[0] < 0.2


def test_infinite_and_missing_values_score_without_an_error() -> None:
    x = vectors(4, 300, 3, 0.1)
    strange = np.array([[np.nan, np.inf, -np.inf], [1e300, -1e300, np.nan]])
    assert np.isfinite(fit_isolation(x, seed=1).score_samples(strange)).all()


def test_the_same_seed_gives_the_same_forest_and_sub_samples_large_histories() -> None:
    x = vectors(5, 3000, 5, 0.1)
    first, second = (fit_isolation(x, seed=7, rows_max=1000).to_arrays() for _ in range(2))
    other = fit_isolation(x, seed=8, rows_max=1000)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["quantiles"], other.quantiles)


def test_arrays_survive_the_round_trip() -> None:
    x = vectors(6, 200, 3, 0.1)
    forest = fit_isolation(x, seed=1)
    again = FlatForest.from_arrays(forest.to_arrays())
    assert np.array_equal(forest.score_samples(x), again.score_samples(x))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("left", lambda a: np.full_like(a, 2**30)),
        ("right", lambda a: np.zeros_like(a)),
        ("feature", lambda a: np.where(a >= 0, 99, a).astype(np.int32)),
        ("roots", lambda a: a[:-1]),
        ("depth", lambda a: a[:-1]),
        ("threshold", lambda a: a.astype(np.float32)),
        ("medians", lambda a: a[:0]),
    ],
)
def test_arrays_that_would_lead_outside_are_refused(name: str, change: object) -> None:
    arrays = fit_isolation(vectors(7, 200, 3, 0.1), seed=1).to_arrays()
    assert callable(change)
    with pytest.raises(ValueError, match=r"isolation forest|arrays of|a tree|child"):
        FlatForest.from_arrays(arrays | {name: change(arrays[name])})


def test_vectors_of_another_width_are_refused() -> None:
    forest = fit_isolation(vectors(8, 50, 3, 0.0), seed=1)
    with pytest.raises(ValueError, match="3 columns"):
        forest.score_samples(np.zeros((2, 4)))


def test_a_history_of_one_row_is_refused_with_what_is_needed() -> None:
    with pytest.raises(TrainingError, match="at least 2"):
        fit_isolation(np.zeros((1, 3)), seed=1)
