"""A small simulated history with fitted models, made once for all tests of workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from features.schema import Schema
from stream.settings import TopicSettings
from stream.timeline import Timeline, build_timeline
from trainer.fit import FitSettings, fit
from trainer.fraud import FraudSettings
from trainer.history import read_clicks, read_transactions, split_by_time
from trainer.simulator import simulate

QUICK = FitSettings(threads=1, fraud=FraudSettings(trees=10, leaves=8, threads=1))


@dataclass(frozen=True, slots=True)
class World:
    """``artifacts`` holds models fitted on what lies before ``later``; ``payments`` and ``clicks`` are everything."""

    schema: Schema
    artifacts: Path
    payments: pa.Table
    clicks: pa.Table
    later_payments: pa.Table
    later_clicks: pa.Table

    def timeline(self, topics: TopicSettings, payments: int = 10**9, clicks: int = 10**9) -> Timeline:
        """The first of the later events with their labels, in order of time."""
        table = self.later_payments.slice(0, payments)
        clicked = self.later_clicks.slice(0, clicks) if clicks else None
        return build_timeline(self.schema, topics, transactions=table, labels=table, clicks=clicked)


def make_world(directory: Path, schema: Schema) -> World:
    """Simulate and fit."""
    files = simulate(directory, days=30, cards=300, merchants=60, sessions_per_day=60.0, items=300)
    payments = read_transactions(files.transactions, schema.transactions, 0)
    clicks = read_clicks(files.clicks, schema.clicks)
    early, later = split_by_time(payments, schema.transactions.time, fraction=0.6)
    as_of_ms = int(later[schema.transactions.time][0].as_py())
    _, later_clicks = split_by_time(clicks, "event_time", at_ms=as_of_ms)
    root = directory / "artifacts"
    fit(early, clicks, schema, root, as_of_ms=as_of_ms, created_ms=as_of_ms, settings=QUICK)
    return World(schema, root, payments, clicks, later, later_clicks)
