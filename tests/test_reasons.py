"""Reasons: what they are grouped by, what they say, and what is said when there is no time for them."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from features.catalogue import build_catalogue
from features.reason_codes import Reasoner, reason_code
from features.reasons import sentence
from features.schema import load_schema
from stream.explaining import REASONS_S_MAX, ReasonsBudget
from tests.fakes import FakeWorker, World
from tests.test_cycle import filled

CATALOGUE = build_catalogue(load_schema().transactions)
NAMES = CATALOGUE.names
REASONER = Reasoner(CATALOGUE.features)


def vector(**values: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """One row with these features; all others are missing."""
    row = np.full((1, len(NAMES)), np.nan)
    for name, value in values.items():
        row[0, NAMES.index(name)] = value
    return row


def pushed(**shares: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.nan_to_num(vector(**shares))


def test_features_of_one_kind_are_one_reason_and_their_contributions_add_up() -> None:
    row = vector(event_amount=412.0, card_amount_ratio_30d=9.1, card_amount_ratio_7d=8.0, card_count_10m=3.0)
    shares = pushed(card_amount_ratio_30d=0.7, card_amount_ratio_7d=0.5, card_count_10m=0.9, card_count_1h=-0.4,
                    event_hour=-1.0)  # fmt: skip
    (reasons,) = REASONER.by_contribution(row, shares, 3)
    assert [(reason.code, reason.feature) for reason in reasons] == [
        ("card_amount_unusual", "card_amount_ratio_30d"), ("card_activity", "card_count_10m"),
    ]  # fmt: skip
    assert [reason.contribution for reason in reasons] == pytest.approx([1.2, 0.5])
    assert reasons[0].text == "amount 412.00 is 9.1 times this card's 30-day mean of 45.27"
    assert reasons[0].value == 9.1 and reasons[0].usual == pytest.approx(412 / 9.1)


def test_no_more_reasons_than_asked_for_and_none_that_lowers_the_score() -> None:
    row = vector(event_amount=1.0)
    shares = pushed(event_amount=0.1, card_count_10m=0.2, card_seconds_since_first=0.3, merchant_count_1h=0.4)
    (reasons,) = REASONER.by_contribution(row, shares, 2)
    assert [reason.code for reason in reasons] == ["merchant_activity", "card_age"]
    assert REASONER.by_contribution(row, -shares, 3) == [[]]


def test_the_reasons_of_a_vector_have_the_same_bits_whatever_is_explained_beside_it() -> None:
    rng = np.random.default_rng(1)
    rows, shares = rng.lognormal(size=(41, len(NAMES))), rng.normal(size=(41, len(NAMES)))
    alone = [REASONER.by_contribution(rows[i : i + 1], shares[i : i + 1], 3)[0] for i in range(len(rows))]
    assert REASONER.by_contribution(rows, shares, 3) == alone


def test_what_is_usual_is_read_from_the_vector() -> None:
    day_s = 86_400.0
    row = vector(event_amount=60.0, card_amount_usual_ratio=3.0, card_amount_usual_zscore=5.0, card_count_10m=9.0,
                 card_count_30d=60.0, card_seconds_since_first=400 * day_s, card_seconds_since_last=30.0)  # fmt: skip
    told = {}
    for name in ("event_amount", "card_amount_usual_ratio", "card_amount_usual_zscore", "card_count_10m",
                 "card_seconds_since_last"):  # fmt: skip
        ((told[name],),) = REASONER.by_contribution(row, pushed(**{name: 1.0}), 1)
    assert told["event_amount"].usual == 20.0
    assert told["card_amount_usual_ratio"].text == "amount 60.00 is 3.0 times what is usual for this card, 20.00"
    assert (
        told["card_amount_usual_zscore"].text
        == "amount 60.00 is 5.0 deviations above what is usual for this card, 20.00"
    )
    assert told["card_count_10m"].usual == pytest.approx(60 / 30 / 24 / 6)
    assert told["card_count_10m"].text.endswith("within 10 minutes, where 0.0139 is usual")
    assert told["card_seconds_since_last"].usual == pytest.approx(day_s / 2)
    assert told["card_seconds_since_last"].text.endswith("last transaction; the mean between two is 12 hours")


def test_a_young_card_is_compared_with_its_own_time_and_an_unknown_one_with_nothing() -> None:
    young = vector(card_count_1h=4.0, card_count_30d=10.0, card_seconds_since_first=5 * 3600.0)
    ((reason,),) = REASONER.by_contribution(young, pushed(card_count_1h=1.0), 1)
    assert reason.usual == pytest.approx(2.0)
    unknown = vector(card_count_1h=0.0, card_count_30d=0.0)
    for name in ("card_count_1h", "card_amount_ratio_30d", "card_seconds_since_last"):
        ((reason,),) = REASONER.by_contribution(unknown, pushed(**{name: 1.0}), 1)
        assert reason.usual in (None, 0.0) and "nan" not in reason.text


def test_every_feature_has_a_code_made_of_names_of_the_schema() -> None:
    assert {reason_code(feature) for feature in CATALOGUE.features} == {
        "event_amount", "event_time", "card_activity", "card_amount_level", "card_amount_unusual",
        "card_fraud_history", "card_age", "card_merchant_novelty", "merchant_activity", "merchant_amount_level",
        "merchant_amount_unusual", "merchant_fraud_history", "merchant_age",
    }  # fmt: skip


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, 1e9, math.nan])
def test_sentences_are_whole_with_and_without_what_is_usual(value: float) -> None:
    for feature in CATALOGUE.features:
        for given, usual in ((math.nan, math.nan), (5.0, 2.5), (5.0, math.nan)):
            text = sentence(feature, value, given, usual)
            assert text and "nan" not in text and "{" not in text


def test_without_time_what_is_furthest_from_usual_is_told_and_always_something() -> None:
    far = vector(event_amount=90.0, card_amount_usual_zscore=6.0, card_amount_ratio_30d=2.0, merchant_fraud_run=3.0)
    plain = vector(event_amount=10.0, card_amount_usual_zscore=0.4)
    empty = vector()
    found = REASONER.by_deviation(np.concatenate([far, plain, empty]), 2)
    assert [reason.code for reason in found[0]] == ["merchant_fraud_history", "card_amount_unusual"]
    assert [len(reasons) for reasons in found] == [2, 1, 1]
    assert all(reason.contribution is None and reason.text for reasons in found for reason in reasons)


def test_the_budget_follows_what_the_last_reasons_took() -> None:
    budget = ReasonsBudget(0.1)
    for _ in range(9):
        budget.spent(0.0005 * 4, 4)
    assert budget.count(0.0) == 4  # 2 ms for any cycle
    assert budget.count(0.091) == 20  # a tenth of 100 ms in all
    budget.spent(1.0, 1)
    assert budget.count(0.091) == 20  # one outlier is none


def test_reasons_that_are_too_dear_are_left_out_and_tried_again_later() -> None:
    budget = ReasonsBudget(0.5)
    for _ in range(9):
        budget.spent(2 * REASONS_S_MAX, 1)
    tries = [budget.count(1.0) for _ in range(2000)]
    assert sum(tries) <= 2 and max(tries) == 1
    budget.spent(0.0001, 1)
    assert budget.count(0.0) == 20


def test_a_share_of_one_or_none_asks_no_clock() -> None:
    assert ReasonsBudget(1.0).count(0.0) > 100_000
    assert ReasonsBudget(0.0).count(1e9) == 0


def explained(share: float) -> tuple[World, FakeWorker]:
    async def run() -> tuple[World, FakeWorker]:
        world = filled(count=60)
        worker = world.worker(reasons_share=share)
        await worker.take_over()
        await worker.finish()
        return world, worker

    return asyncio.run(run())


def test_where_the_budget_is_spent_decisions_go_out_with_partial_reasons_and_are_counted() -> None:
    (whole, all_), (cut, none) = explained(1.0), explained(0.0)
    for topic in ("decisions", "alerts"):
        for one, other in zip(whole.answers(topic), cut.answers(topic), strict=True):
            alerted = one["action"] != "allow"
            assert (one.pop("reasons_partial"), other.pop("reasons_partial")) == (False, alerted)
            given, cheap = one.pop("reasons"), other.pop("reasons")
            assert (given != cheap) == alerted and bool(cheap) == alerted
            assert one == other
    assert whole.state() == cut.state()
    alerts = len(whole.answers("alerts"))
    for worker, kinds in ((all_, {"full": alerts}), (none, {"partial": alerts})):
        (family,) = worker.pipeline._metrics.reasons.collect()
        found = family.samples
        assert {s.labels["reasons"]: s.value for s in found if s.name.endswith("_total")} == kinds
