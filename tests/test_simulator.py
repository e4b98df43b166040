"""The simulated world is the same for the same seed, has the frauds it promises, and can be learned from."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from features.schema import load_schema
from trainer.draws import Choices, geometric_shares
from trainer.history import read_clicks, read_transactions, reading, split_by_time
from trainer.simulator import END_MS, SimulatedFiles, figures, main, simulate

DAY_MS = 86_400_000
SMALL: dict[str, Any] = {"days": 6, "cards": 60, "merchants": 50, "sessions_per_day": 20, "items": 220}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFiles:
    """The default world."""
    return simulate(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def payments(world: SimulatedFiles) -> pa.Table:
    return pq.read_table(world.transactions)


@pytest.fixture(scope="module")
def clicks(world: SimulatedFiles) -> pa.Table:
    return pq.read_table(world.clicks)


def column(table: pa.Table, name: str) -> NDArray[Any]:
    values = table[name].cast(pa.int64()) if pa.types.is_timestamp(table[name].type) else table[name]
    return np.array(values.to_pylist())


def digests(files: SimulatedFiles) -> list[str]:
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in (files.transactions, files.clicks, files.items)]


def auc(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Share of (fraud, honest) pairs that the score puts in order; ties count half."""
    values, place = np.unique(score, return_inverse=True)
    fraud, honest = (np.bincount(place[mask], minlength=len(values)) for mask in (truth, ~truth))
    below = np.cumsum(honest) - honest / 2
    return float((fraud * below).sum() / (fraud.sum() * honest.sum()))


def test_the_same_arguments_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, again, other = (
        digests(simulate(tmp_path / name, seed=seed, **SMALL)) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first == again
    assert all(mine != theirs for mine, theirs in zip(first, other, strict=True))


def test_nothing_but_the_three_files_is_left_behind(tmp_path: Path) -> None:
    files = simulate(tmp_path / "deep" / "world", **SMALL)
    assert sorted((tmp_path / "deep" / "world").iterdir()) == [files.clicks, files.items, files.transactions]


def test_the_default_world_has_the_size_a_demonstration_needs(payments: pa.Table, clicks: pa.Table) -> None:
    assert 60_000 <= payments.num_rows <= 80_000
    assert 60_000 <= clicks.num_rows <= 80_000


def test_events_fill_the_days_before_the_end_and_are_sorted(payments: pa.Table, clicks: pa.Table) -> None:
    for table in (payments, clicks):
        times = column(table, "event_time")
        assert np.all(np.diff(times) >= 0)
        assert END_MS - 45 * DAY_MS <= times[0] < END_MS - 44 * DAY_MS
        assert END_MS - DAY_MS < times[-1] < END_MS
        assert len(set(column(table, "event_id").tolist())) == table.num_rows


def test_both_files_read_as_history_without_a_dropped_row(world: SimulatedFiles, payments: pa.Table) -> None:
    schema = load_schema()
    history = read_transactions(world.transactions, schema.transactions, label_delay_ms=0)
    assert reading(history).dropped == {}
    assert history["label_time"].to_pylist() == payments["label_time"].cast(pa.int64()).to_pylist()
    assert history["is_fraud"].to_pylist() == payments["is_fraud"].to_pylist()
    assert reading(read_clicks(world.clicks, schema.clicks)).dropped == {}


def test_fraud_is_rare_and_every_pattern_happens_early_and_late(payments: pa.Table) -> None:
    pattern, times = column(payments, "pattern"), column(payments, "event_time")
    assert 0.005 <= np.mean(pattern != "honest") <= 0.012
    half = END_MS - 22 * DAY_MS
    for name in ("stolen_card", "compromised_terminal", "card_testing", "account_takeover"):
        assert np.sum((pattern == name) & (times < half)) >= 10, name
        assert np.sum((pattern == name) & (times >= half)) >= 10, name


def test_labels_agree_with_the_patterns_arrive_days_late_and_some_never(payments: pa.Table) -> None:
    judged = payments.filter(pc.is_valid(payments["is_fraud"]))
    assert np.array_equal(column(judged, "is_fraud") == 1, column(judged, "pattern") != "honest")
    delay_days = (column(judged, "label_time") - column(judged, "event_time")) / DAY_MS
    assert delay_days.min() >= 1 / 24
    assert np.median(delay_days) == pytest.approx(3.0, abs=0.1)
    assert 5 < np.percentile(delay_days, 90) < 8
    unjudged = payments.filter(pc.is_null(payments["is_fraud"]))
    assert unjudged["label_time"].null_count == unjudged.num_rows
    fraud_never = np.sum(column(unjudged, "pattern") != "honest") / np.sum(column(payments, "pattern") != "honest")
    assert 0.05 < fraud_never < 0.2
    assert 0.03 < unjudged.num_rows / payments.num_rows < 0.06


def incidents(payments: pa.Table, pattern: str, gap_ms: int) -> Iterator[dict[str, list[Any]]]:
    """The frauds of one pattern, grouped by card, a pause of ``gap_ms`` beginning a new group."""
    frauds = payments.filter(pc.equal(payments["pattern"], pattern))
    frauds = frauds.append_column("ms", frauds["event_time"].cast(pa.int64()))
    frauds = frauds.sort_by([("card_id", "ascending"), ("ms", "ascending")])
    card, ms = column(frauds, "card_id"), column(frauds, "ms")
    starts = np.flatnonzero(np.append(True, (card[1:] != card[:-1]) | (np.diff(ms) > gap_ms)))
    for start, end in zip(starts, [*starts[1:], len(card)], strict=True):
        yield frauds.slice(start, end - start).to_pydict()


def test_a_stolen_card_is_used_in_a_burst_at_merchants_new_to_it(payments: pa.Table) -> None:
    honest = payments.filter(pc.equal(payments["pattern"], "honest"))
    usual = set(zip(column(honest, "card_id"), column(honest, "merchant_id"), strict=True))
    bursts = list(incidents(payments, "stolen_card", gap_ms=6 * 3_600_000))
    assert np.mean([len(burst["ms"]) for burst in bursts]) > 3
    assert np.median([burst["ms"][-1] - burst["ms"][0] for burst in bursts]) < 4 * 3_600_000
    pairs = [pair for b in bursts for pair in zip(b["card_id"], b["merchant_id"], strict=True)]
    assert np.mean([pair in usual for pair in pairs]) < 0.25


def test_a_compromised_terminal_yields_many_frauds_among_honest_payments_for_days(payments: pa.Table) -> None:
    frauds = payments.filter(pc.equal(payments["pattern"], "compromised_terminal"))
    assert frauds["device_id"].null_count == frauds.num_rows
    for merchant, count in Counter(column(frauds, "merchant_id").tolist()).most_common(3):
        there = payments.filter(pc.equal(payments["merchant_id"], merchant))
        times, fraud = column(there, "event_time"), column(there, "pattern") == "compromised_terminal"
        first, last = times[fraud][0], times[fraud][-1]
        assert count >= 10
        assert 3 * DAY_MS < last - first < 17 * DAY_MS
        assert 0.15 < np.mean(fraud[(times >= first) & (times <= last)]) < 0.6


def test_card_testing_is_tiny_payments_and_then_a_large_one(payments: pa.Table) -> None:
    complete = [i for i in incidents(payments, "card_testing", gap_ms=2 * 3_600_000) if i["amount"][-1] > 20]
    assert len(complete) >= 10
    for tests in complete:
        assert len(tests["amount"]) >= 4
        assert max(tests["amount"][:3]) <= 3.0 < tests["amount"][-1] / 10
        assert tests["ms"][2] - tests["ms"][0] < 3_600_000


def test_an_account_takeover_comes_from_a_device_that_no_honest_payment_used(payments: pa.Table) -> None:
    devices = defaultdict(set)
    for device, pattern in zip(column(payments, "device_id"), column(payments, "pattern"), strict=True):
        devices[pattern].add(device)
    assert None not in devices["account_takeover"]
    assert devices["account_takeover"].isdisjoint(devices["honest"])
    for takeover in incidents(payments, "account_takeover", gap_ms=10 * DAY_MS):
        assert 1 <= len(set(takeover["device_id"])) <= 2


def test_an_amount_alone_does_not_tell_fraud_but_the_history_of_the_card_does(payments: pa.Table) -> None:
    card = np.unique(column(payments, "card_id"), return_inverse=True)[1]
    merchant = np.unique(column(payments, "merchant_id"), return_inverse=True)[1]
    times, amount = column(payments, "event_time"), column(payments, "amount")
    fraud = column(payments, "pattern") != "honest"
    order = np.lexsort((times, card))
    pair = card * (merchant.max() + 1) + merchant
    is_new = np.zeros(len(pair), dtype=bool)
    is_new[np.unique(pair, return_index=True)[1]] = True
    third_before = np.full(len(pair), np.inf)
    same = card[order][2:] == card[order][:-2]
    third_before[order[2:]] = np.where(same, times[order][2:] - times[order][:-2], np.inf)
    later = times > END_MS - 30 * DAY_MS
    hurry = is_new.astype(float) - np.log1p(np.minimum(third_before, 30 * DAY_MS) / 60_000) / 3
    alone, knowing = auc(fraud[later], amount[later]), auc(fraud[later], hurry[later])
    assert alone < 0.7
    assert knowing > alone + 0.1


def test_a_purchase_in_a_click_session_leads_to_a_payment_by_that_user(payments: pa.Table, clicks: pa.Table) -> None:
    linked = payments.filter(pc.is_valid(payments["session_id"])).to_pylist()
    assert len(linked) > 300
    buys = clicks.filter(pc.equal(clicks["action"], "buy")).to_pylist()
    by_session = {buy["session_id"]: buy for buy in buys}
    for payment in linked:
        buy = by_session[payment["session_id"]]
        assert payment["user_id"] == buy["user_id"]
        assert buy["card_id"] in (None, payment["card_id"])
        assert 0 < (payment["event_time"] - buy["event_time"]).total_seconds() < 5
        assert payment["category"] == "webshop"


def test_what_is_bought_was_in_the_cart_and_what_is_in_the_cart_was_seen(clicks: pa.Table) -> None:
    known: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in clicks.to_pylist():
        place = (row["session_id"], row["item_id"])
        if row["action"] == "cart":
            assert place in known["view"]
        if row["action"] == "buy":
            assert place in known["cart"]
        known[row["action"]].add(place)
    assert len(known["view"]) > len(known["cart"]) > len(known["buy"]) > 300


def transitions(clicks: pa.Table) -> Iterator[tuple[str, str]]:
    last: dict[str, str] = {}
    views = clicks.filter(pc.equal(clicks["action"], "view"))
    for session, item in zip(views["session_id"].to_pylist(), views["item_id"].to_pylist(), strict=True):
        if session in last:
            yield last[session], item
        last[session] = item


def test_what_people_click_next_can_be_learned_from_what_others_clicked_next(clicks: pa.Table) -> None:
    earlier, later = split_by_time(
        clicks.set_column(1, "ms", clicks["event_time"].cast(pa.int64())), "ms", fraction=0.8
    )
    followers: dict[str, Counter[str]] = defaultdict(Counter)
    for item, follower in transitions(earlier):
        followers[item][follower] += 1
    best = {item: {other for other, _ in seen.most_common(20)} for item, seen in followers.items()}
    popular = {item for item, _ in Counter(earlier["item_id"].to_pylist()).most_common(20)}
    queries = list(transitions(later))
    hits = np.mean([target in best.get(item, ()) for item, target in queries])
    assert 0.4 < hits < 0.8
    assert np.mean([target in popular for _, target in queries]) < hits / 4


def test_popularity_shifts_within_weeks_and_items_are_launched(clicks: pa.Table) -> None:
    times, items = column(clicks, "event_time"), column(clicks, "item_id")
    first, last = items[times < END_MS - 38 * DAY_MS], items[times >= END_MS - 7 * DAY_MS]
    top_first, top_last = ({item for item, _ in Counter(part.tolist()).most_common(50)} for part in (first, last))
    assert 2 <= len(top_first & top_last) <= 30
    assert len(set(last) - set(first)) > 100


def test_items_have_readable_titles_of_their_own_and_every_click_is_of_one(
    world: SimulatedFiles, clicks: pa.Table
) -> None:
    items = pq.read_table(world.items)
    assert len(set(items["title"].to_pylist())) == items.num_rows == 2_000
    assert len(items["category"].unique()) == 16
    assert pc.min(items["price"]).as_py() > 0
    assert set(column(clicks, "item_id")) <= set(column(items, "item_id"))


def test_a_size_that_makes_no_world_is_refused_with_the_limit(tmp_path: Path) -> None:
    for name in ("days", "cards", "merchants", "items"):
        with pytest.raises(ValueError, match=f"{name} 0 is too few; at least"):
            simulate(tmp_path, **SMALL | {name: 0})
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_world_is_written_and_described(tmp_path: Path) -> None:
    files = simulate(tmp_path, days=1, cards=10, merchants=40, sessions_per_day=0, items=200)
    assert figures(files)["clicks"] == {"rows": 0}


def test_the_command_writes_the_files_and_prints_their_figures(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "w"), "--seed", "3", "--days", "6", "--cards", "60", "--merchants", "50",
                 "--sessions-per-day", "20", "--items", "220"]  # fmt: skip
    command = [sys.executable, "-m", "trainer.simulator", *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout)["transactions"]["rows"] > 100
    assert digests(simulate(tmp_path / "same", seed=3, **SMALL)) == digests(
        SimulatedFiles(*(tmp_path / "w" / f"{name}.parquet" for name in ("transactions", "clicks", "items")))
    )


def test_the_command_says_what_is_wrong_without_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--cards", "3"]) == 2
    assert capsys.readouterr().err == "cards 3 is too few; at least 10\n"


def test_choices_follow_their_weights_and_never_take_what_has_none() -> None:
    choices = Choices(np.array([0.0, 3.0, 1.0, 0.0, 2.0, 0.0]), np.array([0, 4, 6]))
    drawn = choices.draw(np.random.default_rng(1), np.repeat([0, 1], 4_000))
    counts = np.bincount(drawn, minlength=6)
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    assert counts[4] == 4_000
    assert counts[1] / 4_000 == pytest.approx(0.75, abs=0.03)
    assert geometric_shares(3, 0.5).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
