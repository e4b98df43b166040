"""The benchmark: ``python -m bench [--quick] [--embedded] [--rows 1,2,...] [--out FILE]``; ``make bench`` runs it.

Prints a table and writes JSON with every row and a summary. ``docs/benchmarks.md`` explains the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import clicks, growth, guard, latency, memory, policy, replay, throughput
from bench.stage import Stage, stage

RATES = (500, 1000, 2000, 5000, 10_000)
SUMMARY = (
    "ratio_vs_faust_empty", "ratio_vs_faust_empty_uvloop", "ratio_vs_usual_way", "ratio_vs_passthrough",
    "events_per_s", "p50_added_ms_at_1000", "p99_added_ms_at_1000", "p99_ms_at_5000",
    "recommend_p99_added_ms_at_1000", "recommend_clicks_per_s",
    "recommend_p90_ms_at_1000", "recommend_p99_ms_at_1000", "recommend_p99_ms_at_3x", "recommend_degraded_at_3x",
    "recommend_serenade_clicks_per_s", "replay_events_per_s", "replay_ratio_vs_pandas",
    "replay_ratio_vs_pandas_windows", "redis_bytes_per_entity", "worker_rss_mb", "ready_s",
    "ratio_with_rules_and_budget",
)  # fmt: skip


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def run(play: Stage, rows: set[int], *, quick: bool) -> dict[str, Any]:
    """The rows that are wanted."""
    found: dict[str, Any] = {}
    if rows & {1, 2, 3, 4}:
        found["throughput"] = throughput.measure(play, 3, say)
    if 5 in rows:
        rates = (1000, 5000) if quick else RATES
        found["latency"] = latency.measure(play, rates, 4.0 if quick else 6.0, 3, say)
    if 6 in rows:
        found["recommendations"] = latency.measure(play, (1000,), 6.0, 3, say, clicks=True)
        found["clicks"] = clicks.measure(play, 3, say)
    if 7 in rows:
        found["replay"] = replay.measure_apart(quick=quick)
        say(f"replay {found['replay']}")
    if 8 in rows:
        stored = memory.measure(play.redis.url)
        history = next(world for world in stored.values() if isinstance(world, dict))
        found["memory"] = stored | {"bytes_per_shard": history["total"]["bytes_per_field"]} | _worker_memory(play)
        say(f"memory {found['memory']}")
    if 9 in rows:
        found["partitions"] = growth.by_partitions(play, 3, say)
        found["entities"] = growth.by_entities(play, 200_000, say)
    if 10 in rows:
        found["policy"] = policy.measure(play, 3 if quick else 5, say)
    return found


def _worker_memory(play: Stage) -> dict[str, Any]:
    import asyncio

    topic = play.fresh("transactions")
    asyncio.run(play.create(topic))
    asyncio.run(play.fill(topic, play.load, play.partitions))
    return growth.drain(play, topic, play.load, play.partitions, warm=True) | {"imports_mb": growth.imports_mb(play)}


def summarize(found: dict[str, Any]) -> dict[str, float | None]:
    """The figures that count; None where their row did not run."""

    def pick(*path: str) -> float | None:
        value: Any = found
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return None if value is None else float(value)

    def ratio(other: str) -> float | None:
        ours, theirs = (pick("throughput", name, "events_per_s") for name in ("headrace", other))
        return ours / theirs if ours and theirs else None

    values = (
        ratio("faust_empty"), ratio("faust_empty_uvloop"), ratio("usual_way"), ratio("passthrough"),
        pick("throughput", "headrace", "events_per_s"),
        pick("latency", "1000", "added_ms", "p50"), pick("latency", "1000", "added_ms", "p99"),
        pick("latency", "5000", "headrace", "p99"), pick("recommendations", "1000", "added_ms", "p99"),
        pick("clicks", "yoochoose", "clicks_per_s"), pick("clicks", "yoochoose", "1000", "p90"),
        pick("clicks", "yoochoose", "1000", "p99"), pick("clicks", "yoochoose", "3x", "p99"),
        pick("clicks", "yoochoose", "3x", "degraded_share"), pick("clicks", "serenade", "clicks_per_s"),
        pick("replay", "events_per_s"), pick("replay", "ratio"), pick("replay", "ratio_windows"),
        pick("memory", "bytes_per_shard"), pick("memory", "worker_rss_mb"), pick("memory", "ready_s"),
        pick("policy", "ratio"),
    )  # fmt: skip
    return {name: None if value is None else float(f"{value:.4g}") for name, value in zip(SUMMARY, values, strict=True)}


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())  # fmt: skip
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print, write, and compare with the baseline."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="rows 1 to 5 in under 5 minutes")
    parser.add_argument("--embedded", action="store_true", help="on the servers from wheels; no benchmark of Kafka")
    parser.add_argument("--rows", default="", help="only these, with commas between them")
    parser.add_argument("--events", type=int, default=0, help="transactions in the backlog")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    rows = {int(row) for row in arguments.rows.split(",") if row} or set(range(1, 6 if arguments.quick else 11))
    events = arguments.events or (200_000 if arguments.quick else 400_000)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        say("starting servers, fitting models")
        with stage(Path(directory), rows=events, embedded=arguments.embedded) as play:
            source = play.source
            found = run(play, rows, quick=arguments.quick)
    result = {"machine": machine(), "transactions": source, "embedded": arguments.embedded, "quick": arguments.quick,
              "seconds": round(time.monotonic() - began), "rows": found, "summary": summarize(found)}  # fmt: skip
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, value in result["summary"].items():
        if value is not None:
            print(f"{name:34s} {value:>12,}")
    for line in guard.compare(result["summary"], guard.baseline()):
        print(line)


if __name__ == "__main__":
    main()
