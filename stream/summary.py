"""How a demonstration went: what was sent, what was answered, what is missing.

In: counts of the replay and of the answers, and the worker's metrics. Out: :class:`Summary`. Pure.

Latency is the worker's own measurement: from the Kafka timestamp of the record, set when the producer appends it, to
the moment when the broker has acknowledged the answer, over every decision. Its histogram is interpolated within
buckets (:mod:`stream.scrape`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stream.answers import AnswerCounter
from stream.replay import Sent
from stream.scrape import Page
from stream.settings import TopicSettings

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Summary:
    """``facts`` are plain values, fit for JSON; ``complete``: every valid event was answered and no bad one lost."""

    facts: dict[str, Any]
    complete: bool
    lines: tuple[str, ...]


def latency_ms(page: Page, kind: str) -> dict[str, float | None]:
    """Quantiles of append to acknowledged answer, in ms; None where there was no answer."""
    found = {name: page.quantile("headrace_end_to_end_seconds", q, kind=kind) for name, q in _QUANTILES.items()}
    return {name: None if seconds is None else round(seconds * 1000, 2) for name, seconds in found.items()}


def summarize(topics: TopicSettings, sent: Sent, counter: AnswerCounter, page: Page, seconds: float) -> Summary:
    """Hold what was answered against what was sent in ``seconds``."""
    transactions, clicks = sent.good[topics.transactions], sent.good[topics.clicks]
    malformed = sent.malformed.total()
    counts = counter.counts
    lost = {
        "decisions": transactions - counts["decisions"],
        "recommendations": clicks - counts["recommendations"],
        "dead_letters": malformed - counts["dead_letters"],
    }
    events = transactions + clicks + sent.malformed[topics.transactions] + sent.malformed[topics.clicks]
    first = {kind: None if at is None else round(at, 2) for kind, at in
             ((kind, counter.first_s.get(kind)) for kind in ("decisions", "recommendations"))}  # fmt: skip
    facts = {
        "events": events,
        "decisions": counts["decisions"],
        "alerts": counts["alerts"],
        "recommendations": counts["recommendations"],
        "dead_letters": counts["dead_letters"],
        "latency_ms": latency_ms(page, "decision"),
        "recommendation_latency_ms": latency_ms(page, "recommendation"),
        "seconds_to_first_decision": first["decisions"],
        "seconds_to_first_recommendation": first["recommendations"],
        "seconds": round(seconds, 2),
        "sent": {
            "transactions": transactions,
            "labels": sent.good[topics.labels],
            "clicks": clicks,
            "malformed": malformed,
        },
        "actions": dict(counter.actions),
        "dead_letters_by_reason": dict(counter.reasons),
        "model_versions": counter.versions,
        "repeated_answers": counter.repeated,
        "lost": lost,
    }
    complete = not any(lost.values())
    return Summary(facts, complete, tuple(_lines(facts, lost, complete)))


def _lines(facts: dict[str, Any], lost: dict[str, int], complete: bool) -> list[str]:
    sent, versions = facts["sent"], ", ".join(facts["model_versions"]) or "none"
    given = [f"{sent[what]:,} {what}" for what in ("transactions", "labels", "clicks", "malformed")]
    taken = [f"{facts[what]:,} {what.replace('_', ' ')}"
             for what in ("decisions", "alerts", "recommendations", "dead_letters")]  # fmt: skip
    lines = [f"sent {', '.join(given)}", f"got {', '.join(taken)}", f"model versions {versions}"]
    if not complete:
        lines.append("missing: " + ", ".join(f"{count:,} {kind}" for kind, count in lost.items() if count))
    return lines
