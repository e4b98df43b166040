"""Row 6: recommendations by the models of the quality table, at full quality, at a rate, and above capacity.

The clicks and the models are those of docs/quality-recommend.md where ``../shared/data`` is there. A model is fitted
once for a run, on the training file alone; the test file's clicks are sent, over and over where they are few, as
sessions of other names. Capacity is a backlog answered with ``worker.degrade = false`` (closed loop), between the
broker's append of the first answer and of the last. Everything else is open-loop, as row 5, with what the worker's
metrics say of rungs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from bench import latency
from bench.growth import metrics
from bench.latency import Line
from bench.stage import DATA, ROOT, Load, Stage, loads, median
from bench.throughput import append_times_ms, wait_for
from features.schema import load_schema
from trainer.fit import FitSettings, fit
from trainer.history import read_clicks

MODELS = {
    "yoochoose": ("yoochoose1_64/train.parquet", "yoochoose1_64/test.parquet", "sessions.toml"),
    "serenade": ("serenade/train.txt", "serenade/test.txt", "serenade.toml"),
}
BACKLOG, RATE, OVER = 30_000, 1000, 3.0
_DEGRADED = "headrace_degraded_recommendations_total"
Say = Callable[[str], object]


def _again(clicks: pa.Table, count: int) -> pa.Table:
    """So many clicks: the table again and again, with other sessions each time."""
    rounds = -(-count // clicks.num_rows)
    parts = []
    for n in range(rounds):
        part = clicks
        for name in ("event_id", "session_id"):
            names = [f"{value}-{n}" for value in part[name].to_pylist()]
            part = part.set_column(part.column_names.index(name), name, pa.array(names, pa.string()))
        parts.append(part)
    return pa.concat_tables(parts).slice(0, count)


def dressed(play: Stage, name: str, count: int) -> Stage:
    """The stage with one of the models, fitted, and so many clicks."""
    train, test, schema_file = MODELS[name]
    files = (ROOT / "examples" / schema_file,)
    schema = load_schema(files)
    history = read_clicks(DATA / train, schema.clicks)
    artifacts = play.directory / f"artifacts-{name}"
    if not artifacts.exists():
        end_ms = int(history["event_time"][-1].as_py())
        fit(None, history, schema, artifacts, as_of_ms=end_ms, created_ms=end_ms, settings=FitSettings(threads=2))
    load = loads(schema, None, _again(read_clicks(DATA / test, schema.clicks), count), play.partitions)
    return replace(play, schema=schema, schema_files=files, artifacts=artifacts, clicks=load, states=[])


def _backlog(play: Stage, load: Load) -> float:
    """Answered clicks a second of one worker, every answer full."""
    topics = play.topics(play.fresh("unused"))
    asyncio.run(play.create(topics.transactions))
    asyncio.run(play.create_around(topics))
    asyncio.run(play.fill(topics.clicks, load, play.partitions))
    worker = play.worker(topics, play.fresh("clicks"), {"WORKER_DEGRADE": "false"})
    worker.start()
    try:
        asyncio.run(wait_for(play, topics.recommendations, len(load), [worker], play.partitions))
        first, last = asyncio.run(append_times_ms(play, topics.recommendations, play.partitions))
        return len(load) / max((last - first) / 1000, 0.001)
    finally:
        worker.stop()


def _degraded(line: Line) -> dict[str, float]:
    """Answers by rung that the worker's metrics count, and all of them."""
    found = {"all": 0.0}
    for name, value in metrics(line.children[0]).items():
        if name.startswith(_DEGRADED + "{"):
            found[name.split('"')[1]] = value
        elif name == "headrace_recommendations_total":
            found["all"] = value
    return found


def _at_rate(play: Stage, rate: float, seconds: float) -> dict[str, Any]:
    """Quantiles of the latency in ms at a rate after as long a warm-up, and the shares of the rungs."""
    count = int(rate * seconds)
    with latency.answering(play) as line:
        latency.run(play, line, latency.slices(play.clicks, 0, int(RATE * seconds)), RATE)
        before = _degraded(line)
        part = latency.slices(play.clicks, int(RATE * seconds), count)
        found: dict[str, Any] = dict(latency.run(play, line, part, rate))
        after = _degraded(line)
    answered = max(after["all"] - before["all"], 1.0)
    rungs = {name: (value - before.get(name, 0.0)) / answered for name, value in after.items() if name != "all"}
    return found | {"degraded": {name: share for name, share in rungs.items() if share > 0}}


def measure(play: Stage, rounds: int, say: Say, *, seconds: float = 6.0, names: tuple[str, ...] = tuple(MODELS)
            ) -> dict[str, Any]:  # fmt: skip
    """What each model reaches; empty where its data is not there."""
    found: dict[str, Any] = {}
    for name in names:
        if not (DATA / MODELS[name][0]).exists():
            say(f"row 6: {DATA / MODELS[name][0]} is not there")
            continue
        stage = dressed(play, name, BACKLOG)
        capacity = [_backlog(stage, stage.clicks) for _ in range(rounds)]
        say(f"{name:10s} {median(capacity):10,.0f} clicks/s from a backlog, full answers")
        found[name] = {"clicks_per_s": median(capacity), "rounds": [round(rate) for rate in capacity]}
        over = OVER * median(capacity)
        stage = dressed(play, name, int((RATE + max(over, RATE)) * seconds) + 1)
        for label, rate in (("1000", float(RATE)), ("3x", over)):
            runs = [_at_rate(stage, rate, seconds) for _ in range(rounds)]
            row = {q: median([run[q] for run in runs]) for q in latency.QUANTILES}
            share = median([sum(run["degraded"].values()) for run in runs])
            found[name][label] = row | {"rate": rate, "degraded_share": share, "rounds": runs}
            told = "  ".join(f"{q} {ms:7.2f}" for q, ms in row.items())
            say(f"{name:10s} {rate:10,.0f} clicks/s  {told} ms  degraded {share:.1%}")
    return found
