"""Flat trees say what LightGBM says, bit for bit; contributions are its own; damaged text is refused."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from numpy.typing import NDArray

from features.shap import Explainer
from features.trees import FlatTrees, parse

NAMES = ["amount", "ratio", "kind", "count", "whole"]
PLAIN = {"objective": "binary", "verbosity": -1, "num_threads": 1, "deterministic": True, "seed": 1,
         "min_data_in_leaf": 3, "min_data_in_bin": 1, "learning_rate": 0.2, "feature_pre_filter": False}  # fmt: skip


def rows(seed: int, n: int) -> NDArray[np.float64]:
    """Vectors with missing values, zeros, categories and a column that never misses one."""
    rng = np.random.default_rng(seed)
    x = np.stack([rng.gamma(2, 20, n), rng.normal(1, 1, n), rng.integers(0, 60, n), rng.integers(0, 4, n),
                  rng.normal(0, 1, n)], axis=1)  # fmt: skip
    x[rng.random((n, 5)) < [0.2, 0.3, 0.1, 0.0, 0.0]] = np.nan
    x[rng.random((n, 5)) < [0.1, 0.1, 0.0, 0.3, 0.1]] = 0.0
    return x.astype(np.float64)


def fitted(seed: int, trees: int, **how: Any) -> lgb.Booster:
    x, rng = rows(seed, 2000), np.random.default_rng(seed)
    odds = 0.03 * np.nan_to_num(x[:, 0], nan=90) + np.nan_to_num(x[:, 1]) - 2 + (x[:, 2] % 3 == 1)
    y = rng.random(2000) < 1 / (1 + np.exp(-odds))
    data = lgb.Dataset(x, y, feature_name=NAMES, categorical_feature=[2])
    return lgb.train(PLAIN | how, data, num_boost_round=trees)


MODELS: list[dict[str, Any]] = [
    {},
    {"num_leaves": 2},
    {"num_leaves": 120, "min_data_in_leaf": 1},
    {"zero_as_missing": True},
    {"use_missing": False},
    {"sigmoid": 0.7, "boost_from_average": False},
    {"max_cat_to_onehot": 100, "cat_smooth": 1, "min_data_per_group": 1},
    {"min_gain_to_split": 1e9},  # nothing but constants
    {"bagging_fraction": 0.5, "bagging_freq": 1, "feature_fraction": 0.5, "max_bin": 4095},
]


@pytest.mark.parametrize("how", MODELS, ids=lambda how: ",".join(how) or "plain")
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_lightgbm_bit_for_bit(how: dict[str, Any], seed: int) -> None:
    booster = fitted(seed, 30, **how)
    model = FlatTrees(parse(booster.model_to_string()))
    x = rows(seed + 100, 500)
    odd = np.array([np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-36, -1e-36, 1e300, -1.0, 1e9, 59.9, 2000.0])
    x[:200] = np.random.default_rng(seed).choice(odd, (200, 5))
    x[:200, 2] = np.random.default_rng(seed).choice(odd[[0, 1, 8, 10, 11]], 200)
    assert np.array_equal(model.raw(x), booster.predict(x, raw_score=True, num_threads=1))
    assert np.array_equal(model.probability(x), booster.predict(x, num_threads=1))
    for size in (0, 1, 7, 32, 33):
        assert np.array_equal(model.probability(x[:size]), model.probability(x)[:size])


@pytest.mark.parametrize("how", MODELS, ids=lambda how: ",".join(how) or "plain")
def test_contributions_are_those_of_lightgbm(how: dict[str, Any]) -> None:
    booster = fitted(7, 20, **how)
    model = parse(booster.model_to_string())
    x = rows(8, 200)
    found, expected = Explainer(model).contributions(x), booster.predict(x, pred_contrib=True, num_threads=1)
    np.testing.assert_allclose(found, np.asarray(expected)[:, :-1], rtol=0, atol=1e-10)
    total = FlatTrees(model).raw(x) - np.asarray(expected)[:, -1]
    np.testing.assert_allclose(found.sum(axis=1), total, rtol=0, atol=1e-9)
    assert Explainer(model).contributions(x[:0]).shape == (0, 5)


def test_vectors_of_another_width_are_refused() -> None:
    model = parse(fitted(1, 2).model_to_string())
    for ask in (FlatTrees(model).raw, Explainer(model).contributions):
        with pytest.raises(ValueError, match=r"\(3, 4\) for a model of 5 columns"):
            ask(np.zeros((3, 4)))


def test_damaged_text_is_refused_or_harmless_and_never_ends_the_process() -> None:
    text = fitted(3, 5).model_to_string()
    rng, refused = random.Random(1), 0

    def other(found: re.Match[str]) -> str:
        return str(rng.randrange(-9, 99)) if rng.random() < 0.05 else found[0]

    for number in range(300):
        at = rng.randrange(len(text))
        damaged = [
            text[:at],
            text[:at] + text[at + rng.randrange(1, 40) :],
            text[:at] + rng.choice("0123456789-=. \nx") + text[at + 1 :],
            re.sub(r"-?\d+", other, text),
        ][number % 4]
        try:
            model = parse(damaged)
            flat = FlatTrees(model)
        except ValueError:
            refused += 1
            continue
        if len(model.names) == 5:
            flat.raw(rows(1, 10))
            Explainer(model).contributions(rows(1, 10))
    assert refused > 100


@pytest.mark.parametrize("objective", ["regression", "multiclass"])
def test_models_of_another_kind_are_refused(objective: str) -> None:
    x = rows(1, 300)
    extra = {"num_class": 3} if objective == "multiclass" else {}
    data = lgb.Dataset(x, np.arange(300) % 3, feature_name=NAMES)
    booster = lgb.train(PLAIN | {"objective": objective} | extra, data, num_boost_round=2)
    with pytest.raises(ValueError, match="not a model of two classes"):
        parse(booster.model_to_string())


def test_serving_needs_neither_lightgbm_nor_scikit_learn() -> None:
    code = "import sys, stream.worker; print(sorted({'lightgbm', 'sklearn', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
