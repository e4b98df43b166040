"""A long run: a hot key and a million others, metrics scraped throughout."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from chaos.check import Evidence, check
from chaos.crowd import Soak, scan
from chaos.play import Round
from chaos.registry import fault
from stream.processes import Child

_KEYS = 1_000_000
_RATE = 2_000.0
_GROWTH_MAX = 1.10  # memory of the last quarter over that of the second
_P99_RATIO, _P99_SLACK_S = 2.0, 0.02
_BUCKET = re.compile(rb'headrace_end_to_end_seconds_bucket\{kind="decision",le="([^"]+)"\} (\S+)')


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a worker: its memory, and the counts of its latency buckets by upper bound."""

    at_s: float
    rss: int
    buckets: dict[float, float]


def look(worker: Child, where: str) -> Sample | None:
    """Scrape a worker; None where it did not answer."""
    pages = int(Path(f"/proc/{worker.pid}/statm").read_text(encoding="ascii").split()[1])
    with suppress(OSError), urllib.request.urlopen(f"http://{where}/metrics", timeout=5) as page:
        found = {float(bound): float(count) for bound, count in _BUCKET.findall(page.read())}
        return Sample(time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE"), found)
    return None


def p99_s(first: Sample, last: Sample) -> float:
    """The upper bound of the bucket that holds the 99th percentile between two looks, in seconds."""
    counts = {bound: count - first.buckets.get(bound, 0.0) for bound, count in sorted(last.buckets.items())}
    total = counts.get(float("inf"), 0.0)
    return next((bound for bound, count in counts.items() if total and count >= 0.99 * total), float("nan"))


@fault(25, once=True)
def soak(play: Round) -> None:
    """A hot key and 1 M keys for a long time: flat memory, flat p99."""
    seconds = float(os.environ.get("CHAOS_SOAK_S", "600"))
    play.begin(WORKER_REVIEW_SCORE="0.5")
    worker = play.workers[0]
    where = next(match[1] for text in worker.log_tail(50) if (match := re.search(r"http://(\S+)/metrics", text)))
    feeder = Soak(play.kafka.bootstrap, play.deployment.topics.transactions, play.deployment.partitions,
                  play.random.randrange(1 << 30), rate=_RATE, seconds=seconds, keys=_KEYS)  # fmt: skip
    samples: list[Sample] = []
    while feeder.running:
        if (sample := look(worker, where)) is not None:
            samples.append(sample)
        time.sleep(1.0)
    feeder.join()
    play.wait(lambda: play.applied().items() >= {t: o for t, o in play.ends().items() if o}.items(), "all is applied")
    code = worker.stop()
    play.expect(code == 0, f"exit code {code} on SIGTERM")
    _flat(play, samples, seconds)
    _exact(play, feeder)


def _flat(play: Round, samples: list[Sample], seconds: float) -> None:
    play.expect(len(samples) >= 0.7 * seconds, f"{len(samples)} scrapes in {seconds:.0f} s")
    n = len(samples) // 4
    quarters = [samples[n * k : n * (k + 1)] for k in range(4)]
    memory = [statistics.fmean(sample.rss for sample in quarter) / 1e6 for quarter in quarters]
    late = [p99_s(quarter[0], quarter[-1]) for quarter in quarters]
    gaps = max(b.at_s - a.at_s for a, b in pairwise(samples))
    play.notes.append(f"memory by quarters {' '.join(f'{m:.0f}' for m in memory)} MB")
    play.notes.append(f"p99 by quarters at most {' '.join(f'{p * 1000:.0f}' for p in late)} ms")
    play.notes.append(f"longest time between two scrapes {gaps:.1f} s")
    play.expect(memory[3] <= _GROWTH_MAX * memory[1], f"memory grew from {memory[1]:.0f} to {memory[3]:.0f} MB")
    play.expect(late[3] <= _P99_RATIO * late[1] + _P99_SLACK_S, f"p99 grew from {late[1]} to {late[3]} s")


class _Told(msgspec.Struct):
    decision_id: str


def _exact(play: Round, feeder: Soak) -> None:
    """Every input is answered once; a sample of the cards, the hot one among them, has the exact state.

    A fold of all in plain Python would take longer than the soak.
    """
    d, topics, wanted = play.deployment, play.deployment.topics, feeder.sample
    mine: list[Any] = []
    told: list[Any] = []
    times = {p: bytearray(end) for (topic, p), end in play.ends().items() if topic == topics.transactions}
    decode = msgspec.json.Decoder(_Told).decode

    def take_input(record: Any) -> None:
        if record.key.decode() in wanted:
            mine.append(record)

    def take_answer(record: Any) -> None:
        _, partition, offset = decode(record.value).decision_id.rsplit(":", 2)
        times[int(partition)][int(offset)] += 1
        if record.key.decode() in wanted:
            told.append(record)

    asyncio.run(scan(d.kafka, topics.transactions, d.partitions, take_input))
    asyncio.run(scan(d.kafka, topics.decisions, d.partitions, take_answer))
    missing, total = sum(part.count(0) for part in times.values()), sum(len(part) for part in times.values())
    play.verdict.inputs, play.verdict.duplicates = total, sum(map(sum, times.values())) - total + missing
    play.expect(missing == 0, f"{missing} inputs have no decision")
    play.expect(play.verdict.duplicates == 0, f"{play.verdict.duplicates} decisions came twice")
    play.expect(total == feeder.sent, f"{feeder.sent} were sent, the topic holds {total}")
    evidence = Evidence(
        schema=d.schema.transactions,
        topics=topics,
        records={"transactions": mine, "labels": [], "clicks": [], "decisions": told, "alerts": [],
                 "recommendations": [], "dead_letters": []},
        ends=play.ends(),
        applied=play.applied() | {target: 0 for target, end in play.ends().items() if not end},
        fields={"fraud": {p: _of(fields, wanted) for p, fields in d.state().items()}, "recommend": {}},
        spent={card: spent for card, spent in feeder.spent.items() if card in wanted},
        key_only=True,
    )  # fmt: skip
    verdict = check(evidence, play.allowed)
    play.verdict.violations += verdict.violations


def _of(fields: Mapping[bytes, Any], cards: Mapping[str, Any] | set[str]) -> dict[bytes, bytes]:
    return {name: value for name, value in fields.items()
            if name.startswith(b"card:") and name[5:].decode() in cards}  # fmt: skip
