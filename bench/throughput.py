"""Rows 1 to 4: how many events a second, from a backlog that lies in the topic before anyone starts.

All contenders read the same records, each with a group of its own, in alternating rounds. A rate is the number of
events over the seconds between the first and the last one: where there are answers, by the broker's append times of
the first and the last answer, else by the contender's own clock.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from aiokafka import TopicPartition

from bench.stage import Stage, median
from bench.together import fill_before
from stream.connections import kafka_consumer
from stream.offsets import offset_range_by
from stream.processes import Child

FAUST_EVENTS = 60_000
USUAL_EVENTS = 4_000
_LIMIT_S = 240.0


async def append_times_ms(stage: Stage, topic: str, partitions: int) -> tuple[int, int]:
    """When the broker appended the first and the last record of a topic."""
    consumer = kafka_consumer(stage.kafka)
    await consumer.start()
    try:
        ranges = await offset_range_by(consumer, [TopicPartition(topic, p) for p in range(partitions)])
        times: list[int] = []
        for place, (first, end) in ranges.items():
            for offset in {first, end - 1} if end > first else set[int]():
                consumer.assign([place])
                consumer.seek(place, offset)
                times.append((await consumer.getone(place)).timestamp)
        return min(times), max(times)
    finally:
        await consumer.stop()


async def wait_for(stage: Stage, topic: str, count: int, children: list[Child], partitions: int | None = None,
                   every_s: float = 0.2) -> None:  # fmt: skip
    """Wait until a topic holds so many records, as long as those who fill it are alive."""
    deadline = time.monotonic() + _LIMIT_S
    while (held := await stage.count(topic, partitions)) < count:
        for child in children:
            if not child.running():
                raise RuntimeError(f"{child.name} ended: {child.log_tail(20)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{topic} holds {held} of {count} after {_LIMIT_S:.0f} s: {children[0].log_tail(20)}")
        await asyncio.sleep(every_s)


def _result(child: Child) -> dict[str, Any]:
    """The JSON object that a contender printed last."""
    deadline = time.monotonic() + _LIMIT_S
    while child.running() and time.monotonic() < deadline:
        time.sleep(0.1)
    child.kill()
    for line in reversed(child.log_tail(50)):
        if '{"' in line:  # Faust plays with the cursor before it
            return dict(json.loads(line[line.index("{") :]))
    raise RuntimeError(f"{child.name} printed no result: {child.log_tail(30)}")


def _contender(stage: Stage, name: str, topic: str, count: int, *extra: str) -> float:
    arguments = ["-m", "bench.contenders", name, "--bootstrap", stage.kafka.bootstrap, "--topic", topic,
                 "--group", stage.fresh(name), "--count", str(count), *extra]  # fmt: skip
    child = stage.child(name, arguments)
    child.start()
    found = _result(child)
    return float(found["events"] / found["seconds"])


def passthrough(stage: Stage, topic: str) -> float:
    """Row 1, events/s."""
    out = stage.fresh("passed")
    asyncio.run(stage.create(out))
    extra = ["--idempotence"] if stage.kafka.idempotence else []
    return _contender(stage, "passthrough", topic, len(stage.load), "--out", out, *extra)


def faust_empty(stage: Stage, topic: str, *, uvloop: bool) -> float:
    """Row 2, events/s."""
    count = min(FAUST_EVENTS, len(stage.load))
    return _contender(stage, "faust-empty", topic, count, *(["--uvloop"] if uvloop else []))


def usual_way(stage: Stage, topic: str) -> float:
    """Row 3, events/s."""
    out = stage.fresh("usual")
    asyncio.run(stage.create(out))
    model = next(stage.artifacts.glob("*/fraud.txt"))
    return _contender(stage, "usual", topic, min(USUAL_EVENTS, len(stage.load)), "--out", out, "--redis",
                      stage.redis.url, "--model", str(model))  # fmt: skip


def headrace(stage: Stage, topic: str, *, workers: int = 1) -> float:
    """Row 4, events/s: every step, from the records to applied state."""
    if workers > 1:
        topic = stage.fresh("transactions")
        asyncio.run(stage.create(topic))
    topics = stage.topics(topic)
    namespace = stage.fresh("bench")
    asyncio.run(stage.create_around(topics))
    asyncio.run(stage.begin_state(namespace, namespace))
    children = [stage.worker(topics, namespace) for _ in range(workers)]
    try:
        for child in children:
            child.start()
        if workers > 1:
            fill_before(stage, children, topic, stage.load, stage.partitions)
        total = len(stage.load)
        asyncio.run(wait_for(stage, topics.decisions, total, children))
        first, last = asyncio.run(append_times_ms(stage, topics.decisions, stage.partitions))
        return total / max((last - first) / 1000, 0.001)
    finally:
        for child in children:
            child.stop()


def measure(stage: Stage, rounds: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Rows 1 to 4 in alternating rounds; medians and all rounds."""
    topic = stage.fresh("transactions")
    asyncio.run(stage.create(topic))
    asyncio.run(stage.fill(topic, stage.load, stage.partitions))
    contenders: dict[str, Callable[[], float]] = {
        "passthrough": lambda: passthrough(stage, topic),
        "faust_empty": lambda: faust_empty(stage, topic, uvloop=False),
        "faust_empty_uvloop": lambda: faust_empty(stage, topic, uvloop=True),
        "usual_way": lambda: usual_way(stage, topic),
        "headrace": lambda: headrace(stage, topic),
        "headrace_two_workers": lambda: headrace(stage, topic, workers=2),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for n in range(rounds):
        for name, run in contenders.items():
            found[name].append(run())
            say(f"round {n + 1}  {name:24s} {found[name][-1]:12,.0f} events/s")
    return {name: {"events_per_s": median(rates), "rounds": [round(r) for r in rates]} for name, rates in found.items()}
