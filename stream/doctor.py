"""``headrace doctor``: asks every part how it is.

In: settings and schema. Out: one :class:`Finding` per question, each ok or with what to do. Nothing is changed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aiokafka import TopicPartition
from rich.console import Console
from rich.text import Text

from features.errors import HeadraceError
from features.schema import Schema
from stream.connections import (
    check_redis,
    kafka_admin,
    kafka_consumer,
    kafka_errors,
    redis_client,
    redis_errors,
    redis_nodes,
)
from stream.offsets import offset_range
from stream.settings import RedisSettings, Settings
from stream.topics import check_topics

_FAUST = "0.15."
_LIBRARIES = (
    "aiokafka",
    "redis",
    "hiredis",
    "msgspec",
    "numpy",
    "numba",
    "pyarrow",
    "lightgbm",
    "scikit-learn",
    "uvloop",
)
_REDIS_MIN = (6, 2)
_SKEW_MS_MAX = 1000.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question; ``text`` says what was found, and what to do unless it is ``ok``."""

    name: str
    ok: bool
    text: str


async def examine(settings: Settings, schema: Schema) -> list[Finding]:
    """Every finding, in the order in which to mend things."""
    findings = [_versions(), _schema(schema)]
    findings += await _guarded("kafka", lambda: _kafka(settings))
    if findings[-1].ok:
        findings += await _guarded("topics", lambda: _topics(settings))
        findings += await _guarded("group", lambda: _group(settings))
    findings += await _guarded("redis", lambda: _redis(settings.redis))
    findings += await _guarded("models", lambda: _models(settings, schema))
    return findings


async def _guarded(name: str, ask: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    try:
        return await ask()
    except HeadraceError as error:
        return [Finding(name, False, str(error))]


def _versions() -> Finding:
    found, missing = [f"python {sys.version.split()[0]}"], []
    for name in ("faust-streaming", *_LIBRARIES):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    problems = [f"{', '.join(missing)} not installed; install the locked requirements"] if missing else []
    if "faust-streaming" not in missing and not version("faust-streaming").startswith(_FAUST):
        problems.append(f"faust-streaming must be {_FAUST}x, whose private names the worker relies on")
    return Finding("versions", not problems, "; ".join([*problems, ", ".join(found)]))


def _schema(schema: Schema) -> Finding:
    transactions = schema.transactions
    entities = ", ".join(entity.name for entity in transactions.entities)
    return Finding(
        "schema", True, f"hash {schema.hash}; entities {entities}; keyed by {' and '.join(transactions.key.fields)}"
    )


async def _kafka(settings: Settings) -> list[Finding]:
    async with kafka_admin(settings.kafka) as admin:
        cluster = await admin.describe_cluster()
    brokers = ", ".join(f"{broker['host']}:{broker['port']}" for broker in cluster["brokers"])
    return [
        Finding("kafka", True, f"cluster {cluster['cluster_id']} with {len(cluster['brokers'])} brokers: {brokers}")
    ]


async def _topics(settings: Settings) -> list[Finding]:
    return [
        Finding(
            f"topic {status.name}",
            status.usable,
            status.advice
            if not status.usable
            else "; ".join(filter(None, (f"{status.partitions} partitions", status.advice))),
        )
        for status in await check_topics(settings.kafka, settings.topics)
    ]


async def _group(settings: Settings) -> list[Finding]:
    """How far the group is behind on each input. Redis is the source of truth; commits are for monitoring."""
    topics, group = settings.topics, settings.worker.group
    present = {s.name: s.partitions for s in await check_topics(settings.kafka, topics) if s.partitions}
    findings = []
    async with kafka_errors(settings.kafka):
        consumer = kafka_consumer(settings.kafka, group_id=group)
        try:
            await consumer.start()
            for topic in (topics.transactions, topics.labels, topics.clicks):
                places = [TopicPartition(topic, number) for number in range(present.get(topic, 0))]
                if not places:
                    continue
                consumer.assign(places)
                ends = {place: end for place, (_, end) in (await offset_range(settings.kafka, places)).items()}
                committed = {place: await consumer.committed(place) for place in places}
                started = [place for place in places if committed[place] is not None]
                behind = sum(max(0, ends[place] - (committed[place] or 0)) for place in places)
                text = f"{behind:,} records behind" if started else "nothing committed yet: no worker has run"
                findings.append(Finding(f"group {group} on {topic}", True, text))
        finally:
            await consumer.stop()
    return findings


async def _redis(settings: RedisSettings) -> list[Finding]:
    """How every server is that state is written to."""
    client = redis_client(settings)
    facts = []
    try:
        await check_redis(client, settings)
        async with redis_errors(settings):
            for name, node in (await redis_nodes(client)).items():
                began = time.time()
                seconds, micros = await client.time(**node)
                local = (began + time.time()) / 2  # the middle of the round trip
                facts.append((name, (int(seconds) + int(micros) / 1e6 - local) * 1000, await client.info(**node)))
    finally:
        await client.aclose()
    findings = [_redis_server(f"redis {name}".strip(), info) for name, _, info in facts]
    return [*findings, _clock(max((skew_ms for _, skew_ms, _ in facts), key=abs))]


def _redis_server(name: str, info: Mapping[str, Any]) -> Finding:
    number = str(info.get("redis_version", "0"))
    text = f"version {number}, maxmemory-policy noeviction, {info.get('used_memory_human', '?')} used"
    recent = tuple(int(part) for part in number.split(".")[:2]) >= _REDIS_MIN
    if not recent:
        text += f"; Redis {'.'.join(map(str, _REDIS_MIN))} or later is needed"
    if not info.get("aof_enabled"):
        text += "; no append-only file, so a restart of Redis loses state (appendonly yes keeps it)"
    return Finding(name, recent, text)


def _clock(skew_ms: float) -> Finding:
    together = abs(skew_ms) <= _SKEW_MS_MAX
    advice = "" if together else "; set both clocks by NTP, or latencies and the check for future times are wrong"
    return Finding("clock", together, f"Redis' clock is {skew_ms:+.0f} ms from this machine's{advice}")


async def _models(settings: Settings, schema: Schema) -> list[Finding]:
    from trainer.artifacts import current_version, load

    root = settings.artifacts
    found = current_version(root)
    if found is None:
        return [Finding("models", False, f"no models in {root}; train some with: headrace train")]
    await asyncio.to_thread(load, root, found, schema.hash)
    return [Finding("models", True, f"version {found} in {root}: hashes verified, fitted for this schema")]


def run(settings: Settings, schema: Schema, *, as_json: bool) -> int:
    """Prints all findings; 0 when all are ok, else 1."""
    findings = asyncio.run(examine(settings, schema))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = Text("ok  ", style="green") if finding.ok else Text("DO  ", style="bold red")
            console.print(mark.append(f"{finding.name:{width}}  {finding.text}", style="default"))
    return 0 if all(finding.ok for finding in findings) else 1
