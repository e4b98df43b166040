"""``headrace whatif`` counts what other settings would have done with the past, beside what was done."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from features.costs import Costs
from features.whatif import Cases, act, outcome
from stream.cli import app
from stream.whatif import _firsts

DAY = 86_400_000
T0 = 1_767_225_600_000  # 2026-01-01


def cases(days: int = 20, a_day: int = 400, seed: int = 1) -> Cases:
    """Some transactions a day of many cards; scores are probabilities that come true."""
    rng = np.random.default_rng(seed)
    n = days * a_day
    time = np.sort(T0 + rng.integers(0, days * DAY, n))
    score = rng.beta(0.3, 6.0, n).round(6)
    fraud = (rng.random(n) < score).astype(np.int8)
    action = np.where(score >= 0.8, 2, np.where(score >= 0.4, 1, 0)).astype(np.int8)
    counted = time >= T0 + 10 * DAY
    card, amount = rng.integers(0, 3000, n), rng.lognormal(3, 1, n)
    return Cases(time, card, score, amount, action, fraud, counted, np.ones(n, np.bool_), np.zeros(n, np.bool_))


def test_figures_are_those_of_a_few_transactions_counted_by_hand() -> None:
    few = Cases(
        time=np.array([T0, T0 + 1, T0 + 2, T0 + 3, T0 + DAY, T0 + DAY + 1]), card=np.array([1, 1, 2, 3, 1, 4]),
        score=np.zeros(6), amount=np.array([10.0, 20.0, 5.0, np.nan, 40.0, 7.0]),
        action=np.array([1, 2, 1, 0, 0, 1], np.int8), fraud=np.array([1, 0, 0, 1, 1, -1], np.int8),
        counted=np.ones(6, np.bool_), scored=np.ones(6, np.bool_), ruled=np.zeros(6, np.bool_),
    )  # fmt: skip
    found = outcome(few, few.action)
    assert (found.days, found.alerts, found.blocked, found.cases, found.cases_of_busiest_day) == (2, 4, 1, 3, 2)
    assert (found.frauds, found.frauds_caught, found.money_saved, found.money_lost) == (3, 1, 10.0, 40.0)
    assert found.good_disturbed == 1 and found.precision == 0.5, "card 1 had a fraud that day, card 4 is not judged"


def test_with_nothing_changed_everything_stays_and_thresholds_that_are_not_given_are_those_that_were() -> None:
    some = cases()
    assert np.array_equal(act(some, cases_per_day=None, review=None, block=None, hits=None), some.action)
    higher = act(some, cases_per_day=None, review=0.6, block=None, hits=None)
    assert np.array_equal(higher == 2, some.action == 2)
    assert np.array_equal(higher > 0, some.score >= 0.6)


def test_an_alert_of_a_rule_says_nothing_about_the_threshold_that_was_in_force() -> None:
    some = cases()
    at = int(np.flatnonzero(some.counted & (some.score < 0.001))[0])
    action, ruled = some.action.copy(), some.ruled.copy()
    action[at], ruled[at] = 1, True
    listed = replace(some, action=action, ruled=ruled)
    lowest = float(some.score[some.action > 0].min())
    found = act(listed, block=0.6)
    assert np.array_equal(found > 0, listed.score >= lowest) and np.array_equal(found == 2, listed.score >= 0.6)


@pytest.mark.parametrize("how", [{"review": 0.2}, {"costs": Costs(5.0, 500.0)}, {"cases_per_day": 20}])
def test_what_was_decided_without_a_score_stays_as_it_was(how: dict[str, Any]) -> None:
    some = cases()
    without = np.arange(len(some.time)) % 50 == 7
    degraded = replace(some, scored=~without, score=np.where(without, 0.0, some.score),
                       action=np.where(without, 1, some.action).astype(np.int8))  # fmt: skip
    found = act(degraded, **how)
    assert (found[without] == 1).all()
    assert 0 < (found[~without] > 0).sum() < (~without).sum() / 2
    assert outcome(degraded, found).alerts < len(some.time) / 2, "they do not lower the threshold to their score of 0"


def test_costs_decide_as_a_worker_decides_by_them() -> None:
    some = cases()
    found = act(some, costs=Costs(review=5.0, block=10.0))
    assert np.array_equal(found == 0, (some.score * some.amount <= 5.0)
                          & (some.score * some.amount <= (1 - some.score) * 10.0))  # fmt: skip
    assert {*found.tolist()} == {0, 1, 2}, "certain frauds are blocked, likely ones looked at"


@pytest.mark.parametrize("budget", [5, 20])
def test_a_budget_is_kept_to_on_the_days_that_count(budget: int) -> None:
    some = cases()
    found = outcome(some, act(some, cases_per_day=budget, review=None, block=None, hits=None))
    assert found.days == 10 and found.cases_per_day == pytest.approx(budget, rel=0.2)
    assert found.cases_of_busiest_day <= 1.5 * budget + 1


def test_days_without_a_judged_transaction_give_no_precision_and_no_division() -> None:
    some = cases(days=11, a_day=20)
    blind = replace(some, fraud=np.full(220, -1, np.int8))
    found = outcome(blind, blind.action)
    assert found.precision is None and found.frauds == 0 and found.good_disturbed == 0
    none = Cases(*(getattr(some, field.name)[:0] for field in fields(some)))
    assert outcome(none, none.action).cases_per_day == 0.0


def files(directory: Path) -> tuple[Path, Path, Cases]:
    some = cases(days=12, a_day=400)
    n = len(some.time)
    history, scores = directory / "history.parquet", directory / "scores.parquet"
    ids = [f"t{i}" for i in range(n)]
    pq.write_table(pa.table({"event_id": ids, "event_time": some.time, "card_id": [f"c{c}" for c in some.card],
                             "merchant_id": ["m1" if i % 2 else "m2" for i in range(n)], "amount": some.amount,
                             "is_fraud": some.fraud}), history)  # fmt: skip
    pq.write_table(pa.table({"event_id": ids, "score": some.score, "anomaly": some.score,
                             "action": [("allow", "review", "block")[a] for a in some.action]}), scores)  # fmt: skip
    return history, scores, some


def command(*words: str) -> Any:
    return CliRunner().invoke(app, ["whatif", *words])


def test_a_backtest_is_judged_again_with_rules_thresholds_and_a_budget(tmp_path: Path) -> None:
    history, scores, some = files(tmp_path)
    flags = ["--from", "2026-01-11", "--to", "2026-01-12", "--transactions", str(history), "--scores", str(scores)]
    done = command(*flags, "--review-score", "0.2", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    rows = some.counted
    assert facts["decided"]["alerts"] == int((some.action[rows] > 0).sum())
    assert facts["what_if"]["alerts"] == int((some.score[rows] >= 0.2).sum())
    assert facts["what_if"]["money_saved"] >= facts["decided"]["money_saved"] > 0
    rules = tmp_path / "rules.toml"
    head = '[[rule]]\nname = "m1"\n'
    rules.write_text(head + 'when = "merchant_id == \'m1\' and card_count_30d >= 0"\naction = "review"\n'
                     'reason = "one"\n', encoding="utf-8")  # fmt: skip
    facts = json.loads(command(*flags, "--rules", str(rules), "--json").stdout)
    odd = np.arange(len(rows)) % 2 == 1
    facts_costs = json.loads(command(*flags, "--cost-review", "5", "--cost-block", "500", "--json").stdout)
    assert facts_costs["what_if"]["alerts"] == int((act(some, costs=Costs(5.0, 500.0)) > 0)[rows].sum())
    assert facts["what_if"]["alerts"] == int(((some.action > 0) | odd)[rows].sum())
    rules.write_text('[lists]\nbad = "merchant"\n' + head + "when = 'merchant_id in bad'\naction = 'review'\n"
                     "reason = 'one'\n", encoding="utf-8")  # fmt: skip
    bad = tmp_path / "bad.txt"
    bad.write_text("m1\n", encoding="utf-8")
    listed = json.loads(command(*flags, "--rules", str(rules), "--list", f"bad={bad}", "--json").stdout)
    assert (listed["what_if"], listed["notes"]) == (facts["what_if"], [])
    empty = json.loads(command(*flags, "--rules", str(rules), "--json").stdout)
    assert empty["what_if"] == empty["decided"] and "lists were taken as empty: bad" in empty["notes"][0]
    table = command(*flags, "--cases-per-day", "5")
    assert table.exit_code == 0 and "as decided" in table.output and "cases of the busiest day" in table.output


def test_a_repeat_in_a_history_is_one_transaction(tmp_path: Path) -> None:
    history, scores, _ = files(tmp_path)
    flags = ["--from", "2026-01-11", "--to", "2026-01-12", "--transactions", str(history), "--scores", str(scores)]
    once = json.loads(command(*flags, "--review-score", "0.2", "--json").stdout)
    table = pq.read_table(history)
    pq.write_table(pa.concat_tables([table, table.slice(table.num_rows - 300)]).sort_by("event_time"), history)
    assert json.loads(command(*flags, "--review-score", "0.2", "--json").stdout) == once


def test_rules_ask_what_was_known_by_the_label_delay_of_the_settings(tmp_path: Path) -> None:
    history, scores, _ = files(tmp_path)
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rule]]\nname = 'bad'\nwhen = 'merchant_fraud_count_30d > 0'\naction = 'review'\n"
                     "reason = 'one'\n", encoding="utf-8")  # fmt: skip
    flags = ["--from", "2026-01-05", "--to", "2026-01-06", "--transactions", str(history), "--scores", str(scores)]
    found = []
    for days in (7, 1):
        config = tmp_path / "headrace.toml"
        config.write_text(f"[trainer]\nlabel_delay_days = {days}\n", encoding="utf-8")
        done = command(*flags, "--rules", str(rules), "--config", str(config), "--json")
        found.append(json.loads(done.stdout))
    assert found[0]["what_if"] == found[0]["decided"], "no label is a week old yet"
    assert found[1]["what_if"]["alerts"] > found[1]["decided"]["alerts"]


@pytest.mark.parametrize(("flags", "words"), [
    (["--from", "2026-01-11", "--to", "2026-01-12"], "nothing would differ: give --cases-per-day"),
    (["--from", "2026-01-12", "--to", "2026-01-11", "--cases-per-day", "5"], "lies before"),
    (["--from", "2026-01-11", "--to", "2026-01-12", "--cases-per-day", "5", "--cost-block", "9"],
     "--cases-per-day and --cost-block: expected one of them"),
    (["--from", "2026-01-11", "--to", "2026-01-12", "--cost-review", "0"], "--cost-review = 0: expected more than 0"),
    (["--from", "2026-01-11", "--to", "2026-01-12", "--cases-per-day", "5", "--list", "a=b"], "expected --rules FILE"),
    (["--from", "2026", "--to", "2026-01-11", "--cases-per-day", "5"], "--from = '2026': expected a date"),
    (["--from", "NaT", "--to", "2026-01-11", "--cases-per-day", "5"], "--from = 'NaT': expected a date"),
    (["--from", "2026-01-11", "--to", "2026-01-12", "--cases-per-day", "inf"], "--cases-per-day"),
    (["--from", "2026-01-11", "--to", "2026-01-12", "--cases-per-day", "5", "OTHER"], "it has no column action"),
    (["--from", "monday", "--to", "2026-01-11", "--cases-per-day", "5"], "--from = 'monday': expected a date"),
    (["--from", "2026-01-11", "--to", "2026-01-12", "--cases-per-day", "5"], "give --archive URL"),
    (["--from", "2025-01-11", "--to", "2025-01-12", "--cases-per-day", "5", "FILE"], "there are some from 2026-01-01"),
    (["--from", "2026-01-11", "--to", "2026-01-12", "--cases-per-day", "5", "HALF"], "a file needs both"),
])  # fmt: skip
def test_what_cannot_be_answered_is_said_with_the_way_out(tmp_path: Path, flags: list[str], words: str) -> None:
    history, scores, _ = files(tmp_path)
    more = {"FILE": ["--transactions", str(history), "--scores", str(scores)], "HALF": ["--scores", str(scores)],
            "OTHER": ["--transactions", str(history), "--scores", str(history)]}  # fmt: skip
    done = command(*(word for flag in flags for word in more.get(flag, [flag])))
    assert done.exit_code == 2 and words in done.output


def test_what_was_written_twice_counts_where_it_came_first() -> None:
    assert _firsts(pa.chunked_array([["b", "a"], ["b", "c", "a"]])).tolist() == [0, 1, 3]
    assert _firsts(pa.array([], pa.int64())).tolist() == []
