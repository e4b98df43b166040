"""Two variants side by side: who sees which, what is counted, and how often the test is wrong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from typer.testing import CliRunner

from features.messages import Recommendation, RecommendedItem, Variant
from features.sequential import compare
from stream.ab import Tallies, lines
from stream.ab_settings import AbSettings
from stream.cli import app
from stream.connections import kafka_admin
from stream.settings import KafkaSettings, Settings
from stream.topics import make_topics
from stream.variants import of_b, units
from tests.servers import RunningBroker, fresh_name

HALF = AbSettings(share=0.5)
WINDOW_MS = 1_800_000
LONG_AFTER_MS = 10 * WINDOW_MS


def simulated(rng: np.random.Generator, a: float, b: float, sessions: int, share: float = 0.5) -> Any:
    """An experiment of sessions of which this share clicks a recommended item."""
    shown_b = rng.random(sessions) < share
    return compare((rng.random(sessions) < np.where(shown_b, b, a)).astype(np.float64), shown_b, share)


@pytest.mark.parametrize(("rate", "share"), [(0.3, 0.5), (0.05, 0.5), (0.3, 0.1)])
def test_of_equal_variants_at_most_the_stated_share_is_ever_decided_however_often_one_looks(
    rate: float, share: float
) -> None:
    rng, runs = np.random.default_rng(7), 300
    decided = sum(simulated(rng, rate, rate, 500, share).decided_at is not None for _ in range(runs))
    # alpha = 5 %: with 300 runs more than 28 come by chance once in a thousand times.
    assert decided <= 28


def test_a_test_that_is_made_for_one_look_is_wrong_more_often_when_it_is_looked_at_each_time() -> None:
    """What the always-valid test is for: the same data, and the usual z-test after each session."""
    rng, runs = np.random.default_rng(7), 300
    wrong = 0
    for _ in range(runs):
        of_b_, y = rng.random(500) < 0.5, (rng.random(500) < 0.3).astype(float)
        n_b, n_a = np.cumsum(of_b_), np.cumsum(~of_b_)
        with np.errstate(divide="ignore", invalid="ignore"):
            p_b, p_a = np.cumsum(y * of_b_) / n_b, np.cumsum(y * ~of_b_) / n_a
            z = (p_b - p_a) / np.sqrt(p_a * (1 - p_a) / n_a + p_b * (1 - p_b) / n_b)
        wrong += bool((np.abs(z[50:]) > 1.96).any())
    assert wrong > 0.15 * runs


@pytest.mark.parametrize(("a", "b", "better"), [(0.3, 0.45, "B"), (0.45, 0.3, "A")])
def test_a_difference_is_found_and_the_better_one_is_named(a: float, b: float, better: str) -> None:
    rng = np.random.default_rng(11)
    found = [simulated(rng, a, b, 2000) for _ in range(60)]
    assert sum(f.better == better for f in found) >= 54
    assert not any(f.better not in (better, None) for f in found)
    assert all(f.p_value <= 0.05 for f in found if f.better) and all(f.p_value > 0.05 for f in found if not f.better)


def test_the_interval_holds_the_difference_as_often_as_it_says_and_narrows() -> None:
    rng = np.random.default_rng(3)
    found = [simulated(rng, 0.3, 0.4, 800) for _ in range(100)]
    assert sum(f.lower <= 0.1 <= f.upper for f in found) >= 90
    widths = [np.mean([(f := simulated(rng, 0.3, 0.4, n)).upper - f.lower for _ in range(10)]) for n in (200, 2000)]
    assert widths[1] < widths[0] / 2


def test_outcomes_may_be_shares_and_nothing_yet_decides_nothing() -> None:
    rng = np.random.default_rng(5)
    shown_b = rng.random(3000) < 0.5
    found = compare(np.where(shown_b, rng.beta(4, 2, 3000), rng.beta(2, 4, 3000)), shown_b, 0.5)
    assert found.better == "B" and found.lower <= 1 / 3 <= found.upper
    empty = compare(np.zeros(0), np.zeros(0, bool), 0.5)
    assert (empty.better, empty.p_value, empty.lower, empty.upper) == (None, 1.0, -1.0, 1.0)
    for outcomes, share in ((np.array([1.1]), 0.5), (np.array([1.0]), 1.0)):
        with pytest.raises(ValueError, match=r"0\.\.1|between 0 and 1"):
            compare(outcomes, np.array([True]), share)


def test_who_sees_b_follows_from_the_name_and_the_id_alone_at_the_share_that_is_set() -> None:
    ids = [f"s{n}" for n in range(20_000)]
    for share in (0.0, 0.1, 0.5, 1.0):
        chosen = of_b(AbSettings(share=share), ids)
        assert abs(chosen.mean() - share) < 0.012
    half, other = of_b(HALF, ids), of_b(AbSettings(share=0.5, name="another"), ids)
    assert np.array_equal(half, of_b(AbSettings(share=0.5, window_s=1.0), ids))
    assert abs(np.mean(half == other) - 0.5) < 0.02
    assert np.array_equal(of_b(HALF, ids[:50]), half[:50])
    assert np.all(of_b(AbSettings(share=0.1), ids) <= half)  # who is in a small share is in a larger one


def test_users_are_split_where_they_are_known_and_sessions_where_not() -> None:
    by_user = AbSettings(share=0.5, by="user")
    assert units(by_user, ["s1", "s2", "s3"], ["u", None, "u"]) == ["u", "s2", "u"]
    assert units(HALF, ["s1", "s2"], ["u", None]) == ["s1", "s2"]


class Topic:
    """Messages as a worker of an experiment writes them."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def show(self, session: str, item: str, shown: str, after_ms: int = 0, variant: Variant = "A",
             **more: Any) -> None:  # fmt: skip
        """Answer a click on ``item`` with the items ``shown`` (one letter each)."""
        number = len(self.values)
        self.values.append(msgspec.json.encode(Recommendation(
            recommendation_id=f"clicks:0:{number}", event_id=more.get("event", f"e{number}"), session_id=session,
            user_id=more.get("user"), item_id=item, event_time=after_ms,
            items=[RecommendedItem(item_id=i, score=1.0) for i in shown], model_version="1",
            experiment=more.get("experiment", "ab"), variant=variant,
        )))  # fmt: skip

    def report(self, settings: AbSettings = HALF) -> dict[str, Any]:
        """The report of what lies in the topic, with a last click long after."""
        self.show("last", "z", "", LONG_AFTER_MS)
        tallies = Tallies(settings)
        tallies.add_all(self.values)
        return tallies.report()


def test_a_next_click_is_a_hit_on_the_list_just_before_and_a_session_has_one_on_any_list_before() -> None:
    topic = Topic()
    topic.show("s", "a", "bc")
    topic.show("s", "b", "de")  # a hit
    topic.show("s", "c", "fg")  # of the list before the last
    topic.show("t", "a", "bc", variant="B")
    topic.show("t", "x", "bc", variant="B")
    topic.show("v", "a", "a", variant="B")
    a, b = (topic.report()["variants"][name] for name in ("A", "B"))
    assert (a["units"], a["next_clicks"], a["hits"], a["hit_rate"], a["units_with_a_hit"]) == (1, 2, 1, 0.5, 1)
    assert (b["units"], b["next_clicks"], b["hits"], b["hit_rate"], b["units_with_a_hit"]) == (2, 1, 0, 0.0, 0)


def test_what_is_written_twice_clicked_twice_too_late_or_of_another_experiment_does_not_count() -> None:
    topic = Topic()
    topic.show("s", "a", "b", event="e")
    topic.show("s", "b", "c", event="e")
    topic.values.append(topic.values[0])
    topic.show("s", "b", "c", WINDOW_MS)
    topic.show("other", "a", "b", experiment="before")
    report = topic.report()
    assert (report["variants"]["A"]["next_clicks"], report["variants"]["A"]["units"]) == (0, 1)
    assert (report["answers"], report["other_answers"]) == (4, 1)


def test_what_is_no_message_of_a_worker_is_passed_over() -> None:
    topic = Topic()
    topic.show("s", "a", "b")
    topic.values += [b"", b"{", b"[]", b"\xff", topic.values[0].replace(b'"clicks:0:0"', b'"somebody else"')]
    topic.show("s", "b", "c")
    assert topic.report()["variants"]["A"]["hits"] == 1


def test_the_command_compares_what_the_topic_holds(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, topic = fresh_name("ab"), Topic()
    Path("headrace.toml").write_text(f'[topics]\nrecommendations = "{name}"\nclick_partitions = 1\n[ab]\nshare = 0.5\n')
    for n in range(40):
        variant: Variant = "B" if n % 2 else "A"
        topic.show(f"s{n}", "a", "bc", n, variant)
        topic.show(f"s{n}", "b" if n % 4 else "z", "de", n, variant)
    topic.report()  # ends with a click long after

    async def send() -> None:
        settings = Settings(kafka=KafkaSettings(bootstrap=broker.bootstrap))
        async with kafka_admin(settings.kafka) as admin:
            await make_topics(admin, {name: 1}, settings.topics)
        producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, enable_idempotence=False)
        await producer.start()
        for value in topic.values:
            await producer.send_and_wait(name, value)
        await producer.stop()

    asyncio.run(send())
    asked = ["ab", "--kafka", broker.bootstrap]
    told = CliRunner().invoke(app, [*asked, "--json"])
    assert told.exit_code == 0, told.output
    sides = json.loads(told.stdout)["variants"]
    assert [(sides[v]["units"], sides[v]["hits"]) for v in "AB"] == [(20, 10), (20, 20)]
    shown = CliRunner().invoke(app, asked).stdout
    assert "A: 20 sessions, 20 next clicks, 50.00 % of next clicks hit" in shown


def test_of_a_user_the_first_session_counts_when_users_are_split() -> None:
    by_user, topic = AbSettings(share=0.5, by="user"), Topic()
    topic.show("s", "a", "b", user="u")
    topic.show("t", "b", "b", user="u")
    topic.show("s", "b", "b", user="u")
    side = topic.report(by_user)["variants"]["A"]
    assert (side["units"], side["next_clicks"], side["hits"]) == (1, 1, 1)


def test_a_session_within_its_window_is_open_and_the_report_can_be_read() -> None:
    topic = Topic()
    topic.show("s", "a", "b")
    report = topic.report()
    assert report["open_units"] == 1  # the last click itself
    assert lines(report)[-1].endswith("one variant has nothing yet")
    rng, topic = np.random.default_rng(2), Topic()
    for n in range(600):
        variant: Variant = "B" if rng.random() < 0.5 else "A"
        topic.show(f"x{n}", "a", "b", n, variant)
        topic.show(f"x{n}", "b" if rng.random() < (0.8 if variant == "B" else 0.2) else "q", "b", n, variant)
    text = "\n".join(lines(topic.report()))
    assert "next-click hit rate: B is better; B - A = +" in text
