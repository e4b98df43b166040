"""Flat trees say what LightGBM says, bit for bit; contributions are its own; damaged text is refused."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from numpy.typing import NDArray

from features.model_text import parse
from features.shap import Explainer
from features.trees import FlatTrees

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
    {"num_leaves": 500, "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0},
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
    for size in (0, 1, 7, 8, 9, 255, 256, 257, 500):
        assert np.array_equal(model.probability(x[:size]), model.probability(x)[:size])


def test_values_of_a_ranker_are_those_of_lightgbm_bit_for_bit() -> None:
    x = rows(4, 2000)
    data = lgb.Dataset(x, np.nan_to_num(x[:, 0]) > 40, group=[20] * 100, feature_name=NAMES)
    booster = lgb.train(PLAIN | {"objective": "lambdarank", "max_bin": 63}, data, num_boost_round=30)
    asked = rows(104, 500)
    assert np.array_equal(FlatTrees(parse(booster.model_to_string())).raw(asked), booster.predict(asked, num_threads=1))


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


@pytest.mark.parametrize("leaves", [9, 40, 300])
def test_contributions_are_exact_where_the_way_to_a_leaf_asks_for_many_features(leaves: int) -> None:
    rng = np.random.default_rng(leaves)
    x = rng.normal(size=(3000, 60))
    # Each column alone says a little, so that a tree asks for another one at each split.
    y = rng.random(3000) < 1 / (1 + np.exp(-x @ rng.normal(0, 0.3, 60) - 2 * (x[:, :20] > -1.5).all(axis=1)))
    data = lgb.Dataset(x, y)
    booster = lgb.train(PLAIN | {"num_leaves": leaves, "feature_fraction_bynode": 0.2}, data, num_boost_round=6)
    model = parse(booster.model_to_string())
    expected = np.asarray(booster.predict(x[:100], pred_contrib=True, num_threads=1))[:, :-1]
    np.testing.assert_allclose(Explainer(model).contributions(x[:100]), expected, rtol=1e-9, atol=1e-12)
    assert np.array_equal(FlatTrees(model).probability(x), booster.predict(x, num_threads=1))


def test_one_row_is_explained_as_it_is_among_many() -> None:
    explainer, x = Explainer(parse(fitted(2, 20).model_to_string())), rows(3, 30)
    many = explainer.contributions(x)
    assert all(np.array_equal(explainer.contributions(x[i : i + 1])[0], many[i]) for i in range(30))


def test_no_layout_of_vectors_makes_a_warm_worker_compile() -> None:
    code = """
import numpy as np
from features import forest, shap, trees, warm
from features.model_text import parse
warm.warm()
compiled = (forest._scores, shap._contributions, trees._raw, trees._sigmoid)
assert [len(function.signatures) for function in compiled] == [1, 1, 1, 1]
text = open(TEXT).read()
x = np.random.default_rng(1).normal(size=(600, 5))
frozen = x.copy()
frozen.flags.writeable = False
flat, explainer = trees.FlatTrees(parse(text)), shap.Explainer(parse(text))
roots, leaf, one = np.array([0, 1], np.int32), np.zeros(1, np.int32), np.ones(1)
isolation = forest.FlatForest(roots, leaf - 1, one, leaf, leaf, one, one, np.zeros(5, np.float32), np.array([0.0, 1.0]))
for vectors in (x, frozen, x[::2], np.asfortranarray(x), x.astype(np.float32), x[:1], x[:0]):
    for ask in (flat.probability, explainer.contributions, isolation.anomaly):
        ask(vectors)
assert [len(function.signatures) for function in compiled] == [1, 1, 1, 1]
"""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(fitted(1, 3).model_to_string())
        file.flush()
        subprocess.run([sys.executable, "-c", code.replace("TEXT", repr(file.name))], check=True, timeout=240)


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
    with pytest.raises(ValueError, match="neither a model of two classes nor a ranker"):
        parse(booster.model_to_string())


def test_serving_needs_neither_lightgbm_nor_scikit_learn() -> None:
    code = "import sys, stream.worker; print(sorted({'lightgbm', 'sklearn', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
