"""Rows 8 and 9: a worker's memory and start, and how throughput changes with partitions and with entities."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from redis import Redis

from bench.stage import Load, Stage, loads, median
from bench.throughput import append_times_ms, wait_for
from bench.together import fill_before
from stream.processes import Child

PARTITIONS = (1, 4, 16, 64)
ENTITIES = (10_000, 100_000, 1_000_000)
MERCHANTS = 10_000
_MEMORY_ROW = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


def rss_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    found = _MEMORY_ROW.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def metrics(worker: Child) -> dict[str, float]:
    """The samples of a worker's metrics page."""
    address = next(m[1] for line in worker.log_tail(100) if (m := re.search(r"metrics on (http://\S+)", line)))
    with urllib.request.urlopen(address, timeout=5) as page:  # noqa: S310 - loopback, from the worker's own log
        lines = page.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] not in ("#", ""))
    }


def imports_mb(stage: Stage) -> float:
    """Resident memory of a process that has only imported what a worker imports."""
    child = stage.child("imports", ["-c", "import stream.worker, time; print('ready', flush=True); time.sleep(30)"])
    child.start()
    try:
        child.wait_until(lambda: "ready" in child.log_tail(5), timeout_s=30.0)
        return rss_mb(child.pid)
    finally:
        child.kill()


def drain(stage: Stage, topic: str, load: Load, partitions: int, workers: int = 1, namespace: str = "",
          *, warm: bool = False, filled: bool = True) -> dict[str, float]:  # fmt: skip
    """Decide everything in a topic; events/s, seconds from start to ready, memory, cache hits.

    One that is not ``filled`` is filled once the workers share its partitions.
    """
    topics, name = stage.topics(topic, partitions), namespace or stage.fresh("growth")
    asyncio.run(stage.create_around(topics))
    if warm:
        asyncio.run(stage.begin_state(name, name))
    children = [stage.worker(topics, name) for _ in range(workers)]
    try:
        start = time.monotonic()
        for child in children:
            child.start()
        for child in children:
            child.wait_until(lambda c=child: any(" reading " in line for line in c.log_tail(50)), 60.0)  # type: ignore[misc]
        ready_s = time.monotonic() - start
        if not filled:
            fill_before(stage, children, topic, load, partitions)
        asyncio.run(wait_for(stage, topics.decisions, len(load), children, partitions))
        first, last = asyncio.run(append_times_ms(stage, topics.decisions, partitions))
        time.sleep(1.5)  # gauges are set every second
        samples = metrics(children[0])
        looked = {found: sum(v for k, v in samples.items() if "cache_lookups_total" in k and f'found="{found}"' in k)
                  for found in ("yes", "no")}  # fmt: skip
        return {
            "events_per_s": len(load) / max((last - first) / 1000, 0.001),
            "ready_s": ready_s,
            "worker_rss_mb": rss_mb(children[0].pid),
            "cache_hit_rate": looked["yes"] / max(sum(looked.values()), 1),
        }
    finally:
        for child in children:
            child.stop()


def synthetic(stage: Stage, cards: int, events: int, seed: int = 1) -> pa.Table:
    """Transactions of so many cards, each as likely as any other, a tenth of a second apart."""
    rng = np.random.default_rng(seed)
    start_ms = int(stage.history[stage.schema.transactions.time][-1].as_py())
    return pa.table({
        "event_id": pa.array([f"s{i}" for i in range(events)]),
        "event_time": pa.array(start_ms + np.arange(events) * 100, pa.int64()),
        "card_id": pa.array([f"c{i}" for i in rng.integers(0, cards, events)]),
        "merchant_id": pa.array([f"m{i}" for i in rng.integers(0, MERCHANTS, events)]),
        "amount": pa.array(np.round(rng.gamma(2.0, 25.0, events), 2)),
        "is_fraud": pa.nulls(events, pa.int8()),
        "label_time": pa.nulls(events, pa.int64()),
    })  # fmt: skip


def _filled(stage: Stage, load: Load, partitions: int) -> str:
    topic = stage.fresh("transactions")
    asyncio.run(stage.create(topic, partitions=partitions))
    asyncio.run(stage.fill(topic, load, partitions))
    return topic


def by_partitions(stage: Stage, rounds: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Events/s at each partition count, and at 4 and 64 over two workers, in alternating rounds."""
    plans = [(n, 1) for n in PARTITIONS] + [(4, 2), (64, 2)]
    found: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for partitions, workers in plans:
            name = f"{partitions} partitions, {workers} worker{'s' if workers > 1 else ''}"
            topic = stage.fresh("transactions")
            asyncio.run(stage.create(topic, partitions=partitions))
            result = drain(stage, topic, stage.load, partitions, workers, filled=False)
            found.setdefault(name, []).append(result["events_per_s"])
            say(f"{name:28s} {result['events_per_s']:10,.0f} events/s   {result['worker_rss_mb']:.0f} MB")
            memory[name] = max(memory.get(name, 0.0), result["worker_rss_mb"])
    return {name: {"events_per_s": median(rates), "rounds": [round(r) for r in rates], "worker_rss_mb": memory[name]}
            for name, rates in found.items()}  # fmt: skip


def by_entities(stage: Stage, events: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Events/s, worker and Redis memory with so many cards, each known to Redis before."""
    rows: dict[str, Any] = {}
    for cards in ENTITIES:
        history = synthetic(stage, cards, cards, seed=2)
        # Every card once, so that each has state.
        history = history.set_column(2, "card_id", pa.array([f"c{i}" for i in range(cards)]))
        load = loads(stage.schema, synthetic(stage, cards, events), None, stage.partitions)
        topic, namespace = _filled(stage, load, stage.partitions), stage.fresh("growth")
        with Redis.from_url(stage.redis.url) as redis:
            before = int(redis.info("memory")["used_memory"])
            asyncio.run(stage.begin_state(namespace, namespace, history))
            result = drain(stage, topic, load, stage.partitions, namespace=namespace)
            used = int(redis.info("memory")["used_memory"]) - before
        rows[f"{cards:,} cards"] = result | {"redis_mb": used / 1e6}
        say(f"{cards:>9,} cards  {result['events_per_s']:10,.0f} events/s  worker {result['worker_rss_mb']:.0f} MB  "
            f"Redis {used / 1e6:.0f} MB  cache hits {result['cache_hit_rate']:.0%}")  # fmt: skip
    return rows
