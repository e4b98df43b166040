"""Rows 5 and 6: how long an answer takes, at a given rate, beside the same of the passthrough.

A latency counts from the moment at which the message should have been sent to the moment at which another consumer
has its answer in hand. So it holds the way to the broker, the worker, the way back, and the reader's fetch; the
passthrough's holds the same without the work, and the difference is what Headrace adds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.load import latencies_ms
from bench.stage import Load, Stage, median
from stream.processes import Child

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True, slots=True)
class Line:
    """One contender at work: the topics that it reads and writes, and its processes."""

    topic: str
    out: str
    children: tuple[Child, ...]


@contextmanager
def passing(stage: Stage) -> Iterator[Line]:
    """The passthrough, reading a topic of its own."""
    topic, out = stage.fresh("live"), stage.fresh("passed")
    asyncio.run(stage.create(topic, out))
    arguments = ["-m", "bench.contenders", "passthrough", "--bootstrap", stage.kafka.bootstrap, "--topic", topic,
                 "--group", stage.fresh("passthrough"), "--out", out]  # fmt: skip
    child = stage.child("passthrough", arguments + (["--idempotence"] if stage.kafka.idempotence else []))
    with _running(child, "ready"):
        yield Line(topic, out, (child,))


@contextmanager
def deciding(stage: Stage, *, clicks: bool = False) -> Iterator[Line]:
    """A worker with the state of the history, reading topics of its own."""
    live = stage.fresh("live")
    topics = stage.topics(live)
    asyncio.run(stage.create(live))
    asyncio.run(stage.create_around(topics))
    namespace = stage.fresh("bench")
    asyncio.run(stage.begin_state(namespace, namespace))
    child = stage.worker(topics, namespace)
    with _running(child, " reading "):
        yield (
            Line(topics.clicks, topics.recommendations, (child,)) if clicks else Line(live, topics.decisions, (child,))
        )


@contextmanager
def answering(stage: Stage) -> Iterator[Line]:
    """A worker that only recommends, with an empty state, reading topics of its own."""
    topics = stage.topics(stage.fresh("unused"))
    asyncio.run(stage.create(topics.transactions))
    asyncio.run(stage.create_around(topics))
    child = stage.worker(topics, stage.fresh("clicks"))
    with _running(child, " reading "):
        yield Line(topics.clicks, topics.recommendations, (child,))


@contextmanager
def _running(child: Child, ready: str) -> Iterator[None]:
    child.start()
    try:
        child.wait_until(lambda: any(ready in line for line in child.log_tail(50)), timeout_s=60.0)
        yield
    finally:
        child.stop()


def run(stage: Stage, line: Line, load: Load, rate: float) -> dict[str, float]:
    """Send a load at a rate; quantiles of the latencies in ms."""
    name = stage.fresh("run")
    file, sent, read = (stage.directory / f"{name}.{end}" for end in ("load", "sent.npz", "read.npz"))
    file.write_bytes(msgspec.msgpack.encode((load.partitions, load.keys, load.values)))
    common = ["--bootstrap", stage.kafka.bootstrap, "--partitions", str(stage.partitions), "--count", str(len(load))]
    reader = stage.child("reader", ["-m", "bench.load", "read", "--topic", line.out, "--out", str(read), *common])
    with _running(reader, "ready"):
        sender = stage.child("sender", ["-m", "bench.load", "send", "--topic", line.topic, "--out", str(sent),
                                        "--file", str(file), "--rate", str(rate), *common])  # fmt: skip
        sender.start()
        try:
            _wait(reader, read, (sender, *line.children))
        finally:
            sender.stop()
    found = latencies_ms(sent, read)
    warm = found[len(found) // 10 :]  # the first tenth warms up whoever has just started
    return {name: float(np.quantile(warm, q)) for name, q in QUANTILES.items()}


def _wait(reader: Child, out: Path, others: tuple[Child, ...]) -> None:
    deadline = time.monotonic() + 300
    while not out.exists():
        for child in (reader, *others):
            if child.exit_code() not in (None, 0):
                raise RuntimeError(f"{child.name} ended: {child.log_tail(20)}")
        if time.monotonic() > deadline:
            raise RuntimeError("no answers within 300 s")
        time.sleep(0.1)
    time.sleep(0.3)  # until it is written


def slices(load: Load, start: int, count: int) -> Load:
    """``count`` messages from ``start`` on."""
    part = slice(start, start + count)
    return Load(load.keys[part], load.values[part], load.partitions[part])


def measure(stage: Stage, rates: tuple[int, ...], seconds: float, rounds: int, say: Callable[[str], object],
            *, clicks: bool = False) -> dict[str, Any]:  # fmt: skip
    """Latencies of passthrough and worker at each rate, in alternating rounds; medians of the quantiles."""
    load = stage.clicks if clicks else stage.load
    warm, pace = (20_000, 5_000) if clicks else (150_000, 30_000)
    warm = min(warm, len(load) - int(sum(rates) * seconds))  # so that caches hold what they hold after some hours
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for n in range(rounds):
        for name, start in (("passthrough", passing), ("headrace", lambda s: deciding(s, clicks=clicks))):
            with start(stage) as line:
                at = warm
                run(stage, line, slices(load, 0, warm), pace)
                for rate in rates:
                    part = slices(load, at, int(rate * seconds))
                    at += len(part)
                    quantiles = run(stage, line, part, rate)
                    found.setdefault(str(rate), {}).setdefault(name, []).append(quantiles)
                    told = "  ".join(f"{q} {ms:7.2f}" for q, ms in quantiles.items())
                    say(f"round {n + 1}  {name:12s} {rate:6d}/s  {told} ms")
    rows: dict[str, Any] = {}
    for rate_name, by_name in found.items():
        row: dict[str, Any] = {
            name: {q: median([each[q] for each in each_round]) for q in QUANTILES} | {"rounds": each_round}
            for name, each_round in by_name.items()
        }
        row["added_ms"] = {q: row["headrace"][q] - row["passthrough"][q] for q in QUANTILES}
        rows[rate_name] = row
    return rows
