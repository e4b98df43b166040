"""What the screen of ``headrace up`` shows, and where its figures come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

from features.messages import Alert, Reason, Recommendation, RecommendedItem
from stream.answers import AnswerCounter, Marks
from stream.lane import Tally
from stream.metrics import Metrics
from stream.replay import Sent
from stream.scrape import Page, parse_page
from stream.settings import Settings
from stream.view import Glance, View


def _page(*latencies_ms: float) -> Page:
    metrics, tally = Metrics(), Tally(actions={"allow": len(latencies_ms)}, seconds={"model": 0.004})
    tally.timestamps["decision"] = [np.array([round(1_000_000 - ms) for ms in latencies_ms], np.int64)]
    metrics.set_model("000007")
    metrics.set_lag({("transactions", 0): 3, ("clicks", 1): 4})
    metrics.settled(tally, 1_000_000)
    return parse_page(generate_latest(metrics.registry).decode())


def _glance() -> Glance:
    settings = Settings()
    counter = AnswerCounter(settings.kafka, settings.topics, lambda: 0.0)
    return Glance(settings, Path("state"), 200.0, 1000, Sent(), counter)


def _alert(number: int, id_: str = "card-1") -> Alert:
    reasons = [
        Reason(feature="card_count_1h", value=9.0, contribution=1.0, text="9 transactions of this card in 1 hour")
    ]
    return Alert(
        decision_id=f"transactions:0:{number}", event_id=f"e{number}", key=id_, event_time=1_700_000_000_000, score=0.9,
        anomaly=0.9, action="block", reasons=reasons, entities={"card": id_}, values={"event_amount": 12.5},
        model_version="000007", label_position=0,
    )  # fmt: skip


def test_a_page_is_read_as_the_worker_writes_it() -> None:
    page = _page(4.0, 4.0, 4.0, 40.0)
    assert page.value("headrace_decisions_total") == 4
    assert page.value("headrace_consumer_lag_records") == 7
    assert page.by("headrace_model_info", "version") == {"000007": 1.0}


def test_a_quantile_lies_in_the_bucket_of_its_observation() -> None:
    page = _page(*[4.0] * 98, 40.0, 40.0)
    median = page.quantile("headrace_end_to_end_seconds", 0.5, kind="decision")
    high = page.quantile("headrace_end_to_end_seconds", 0.99, kind="decision")
    assert median is not None and 0.003 <= median <= 0.005
    assert high is not None and 0.03 <= high <= 0.05
    assert page.quantile("headrace_end_to_end_seconds", 0.5, kind="recommendation") is None
    assert page.since(page).quantile("headrace_end_to_end_seconds", 0.5, kind="decision") is None


def test_an_answer_counts_once_and_only_for_records_since_the_start() -> None:
    marks = Marks()
    marks.begin("transactions", 0, 10)
    assert marks.add("transactions:0:9") is None
    assert marks.add("transactions:0:5000") is True
    assert marks.add("transactions:0:10") is True
    assert marks.add("transactions:0:10") is False
    assert marks.add("transactions:1:10") is True


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 24), (132, 50)])
def test_the_screen_fits_and_shows_what_matters(width: int, height: int) -> None:
    glance = _glance()
    glance.counter.alerts.extend(_alert(number) for number in range(30))
    glance.counter.recommended.append(
        Recommendation(
            recommendation_id="clicks:0:1", event_id="c1", session_id="s1", user_id=None, item_id="i1", event_time=1,
            items=[RecommendedItem(item_id="i2", score=1.0)], model_version="000007",
        )
    )  # fmt: skip
    view = View(glance, {"i1": "Blue lamp", "i2": "Red lamp"}, 0.0)
    view.update(_page(4.0), 1.0)
    view.update(_page(4.0, 8.0), 2.0)
    lines = view.screen(width, height)
    assert len(lines) <= height and max(line.cell_len for line in lines) <= width
    text = "\n".join(line.plain for line in lines)
    for words in ("lag 7", "000007", "block  0.900", "amount 12.50", "9 transactions of this card", "/metrics"):
        assert words in text
    assert "s1 saw Blue lamp: Red lamp" in text
    assert "000007" in view.line()


def test_an_id_cannot_drive_the_terminal() -> None:
    glance = _glance()
    glance.counter.alerts.append(_alert(1, "card\x1b[2J"))
    assert all("\x1b" not in line.plain for line in View(glance, {}, 0.0).screen(80, 24))


def test_before_the_worker_answers_the_screen_is_there_already() -> None:
    view = View(_glance(), {}, 0.0)
    view.update(None, 1.0)
    assert len(view.screen(80, 24)) == 24


def test_an_alert_is_told_with_its_reasons_in_words_also_without_a_screen() -> None:
    glance = _glance()
    view = View(glance, {}, 0.0)
    assert view.latest() == ""
    glance.counter.alerts.extend([_alert(1), _alert(2, "card-9")])
    first, reasons = view.latest().splitlines()
    assert "card card-9" in first and reasons.strip() == "9 transactions of this card in 1 hour"
    silent = _alert(3)
    silent.reasons, silent.reasons_partial, silent.degraded = [], True, "without_reasons:deadline"
    glance.counter.alerts.append(silent)
    first, reasons = view.latest().splitlines()
    assert first.endswith("without_reasons:deadline") and reasons.strip() == "there was no time for reasons"
