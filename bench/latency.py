"""Rows 5 and 6: how long an answer takes, at a given rate, beside the same of the passthrough.

A latency counts from the moment at which the message should have been sent to the broker's append of its answer, see
:mod:`bench.load`. So it holds the way to the broker, the worker, and the way back; the passthrough's holds the same
without the work, and the difference is what Headrace adds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from aiokafka import TopicPartition

from bench.load import latencies_ms
from bench.stage import Load, Stage, median
from bench.throughput import wait_for
from stream.connections import kafka_consumer
from stream.offsets import offset_range
from stream.processes import Child

_LIMIT_S = 60.0  # for what is to be sent, beyond its time, and for reading what was answered
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
    """Send a load at a rate; quantiles of the latencies in ms. Nobody reads the answers until all are there."""
    name = stage.fresh("run")
    file, sent = stage.directory / f"{name}.load", stage.directory / f"{name}.npz"
    file.write_bytes(msgspec.msgpack.encode((load.partitions, load.keys, load.values)))
    held = asyncio.run(_ends(stage, line.out))
    sender = stage.child("sender", ["-m", "bench.load", "--bootstrap", stage.kafka.bootstrap, "--topic", line.topic,
                                    "--file", str(file), "--out", str(sent), "--rate", str(rate)])  # fmt: skip
    sender.start()
    try:
        _wait_until_sent(sender, len(load) / rate + _LIMIT_S)
        children = list(line.children)
        asyncio.run(wait_for(stage, line.out, sum(held.values()) + len(load), children, stage.partitions, 1.0))
    finally:
        sender.stop()
    found = latencies_ms(sent, asyncio.run(_appended_ms(stage, line.out, held)))
    warm = found[len(found) // 10 :]  # the first tenth warms up whoever has just started
    return {name: float(np.quantile(warm, q)) for name, q in QUANTILES.items()}


def _wait_until_sent(sender: Child, limit_s: float) -> None:
    """Without asking the broker anything, which would take part in what is measured."""
    deadline = time.monotonic() + limit_s
    while (code := sender.exit_code()) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the load was not sent within {limit_s:.0f} s")
        time.sleep(0.1)
    if code:
        raise RuntimeError(f"the sender ended: {sender.log_tail(20)}")


async def _ends(stage: Stage, topic: str) -> dict[int, int]:
    """The next offset of each partition."""
    places = [TopicPartition(topic, p) for p in range(stage.partitions)]
    return {place.partition: end for place, (_, end) in (await offset_range(stage.kafka, places)).items()}


async def _appended_ms(stage: Stage, topic: str, first: Mapping[int, int]) -> dict[int, list[int]]:
    """When the broker appended each record, by partition from its first offset to its end, epoch ms.

    The embedded broker does not stamp records: of its answers it is when their batch was made.
    """
    last = await _ends(stage, topic)
    consumer = kafka_consumer(stage.kafka)
    await consumer.start()
    try:
        places = {TopicPartition(topic, p): offset for p, offset in first.items()}
        consumer.assign(list(places))
        for place, offset in places.items():
            consumer.seek(place, offset)
        found: dict[int, list[int]] = {p: [] for p in first}
        async with asyncio.timeout(_LIMIT_S):
            while any(len(found[p]) < last[p] - offset for p, offset in first.items()):
                for place, records in (await consumer.getmany(timeout_ms=200)).items():
                    found[place.partition] += [record.timestamp for record in records]
        return found
    finally:
        await consumer.stop()


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
