"""What the state of entities takes in Redis: ``python -m bench.memory [FILE] [--redis URL] [--cards N]``.

Folds a whole history (see :mod:`bench.history`) and many synthetic cards, and gives them to Redis as a worker's first
state, four partitions each, in hashes of its own that it removes again: one for each kind of entity and partition.
*Bytes per field* is all that Redis takes for one, by ``MEMORY USAGE`` of the whole hashes: name, value, table and the
allocator's rounding. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.history import HANDBOOK, LABEL_DELAY_MS, read_history
from features.schema import TransactionSchema
from stream.connections import RedisClient, redis_client
from stream.settings import RedisSettings
from stream.store import StateStore
from trainer.state import partition_states

PARTITIONS = 4
EVENTS_PER_CARD = 4
_CHUNK = 50_000  # cards whose rows are held at once
_START_MS, _SPAN_MS = 1_600_000_000_000, 30 * 86_400_000

Fields = dict[str, list[dict[bytes, bytes]]]  # by entity, per partition: field and value


def history_fields(table: pa.Table, schema: TransactionSchema) -> Fields:
    """The state that a history leaves behind."""
    found: Fields = {entity.name: [{} for _ in range(PARTITIONS)] for entity in schema.entities}
    for partition, states in partition_states(table, schema, PARTITIONS):
        for name, values in states.items():
            found[name][partition] |= {f"{name}:{id_}".encode(): value for id_, value in values.items()}
    return found


def _synthetic(first: int, count: int, schema: TransactionSchema, rng: np.random.Generator) -> pa.Table:
    """A few transactions of each of ``count`` cards within 30 days, one in a hundred a fraud."""
    n = count * EVENTS_PER_CARD
    times = np.sort(_START_MS + rng.integers(0, _SPAN_MS // 1000, n) * 1000)
    columns: dict[str, Any] = {
        schema.id: [f"{first}-{i}" for i in range(n)],
        schema.time: times,
        schema.label: (rng.random(n) < 0.01).astype(np.int8),
        schema.label_time: times + LABEL_DELAY_MS,
    }
    cards = rng.permutation(np.repeat(np.arange(first, first + count), EVENTS_PER_CARD))
    for entity in schema.entities:
        number = cards if entity is schema.key else rng.integers(0, 50_000, n)
        columns |= {name: [f"{value:07d}" for value in number.tolist()] for name in entity.fields}
    columns |= {numeric.name: np.round(rng.gamma(1.5, 40.0, n), 2) for numeric in schema.numeric}
    return pa.table(columns)


def synthetic_fields(cards: int, schema: TransactionSchema) -> Fields:
    """The state of many cards with little history each."""
    rng, name = np.random.default_rng(1), schema.key.name
    found: Fields = {name: [{} for _ in range(PARTITIONS)]}
    for first in range(0, cards, _CHUNK):
        table = _synthetic(first, min(_CHUNK, cards - first), schema, rng)
        for partition, states in partition_states(table, schema, PARTITIONS):
            found[name][partition] |= {f"{name}:{id_}".encode(): value for id_, value in states[name].items()}
    return found


async def _stored(redis: RedisClient, settings: RedisSettings, fields: Fields) -> dict[str, Any]:
    """Write into fresh hashes, one per kind of entity and partition, and what Redis says of them."""
    answer: dict[str, Any] = {}
    group = f"bench-memory-{secrets.token_hex(4)}"
    total = count = 0
    before = int((await redis.info("memory"))["used_memory_dataset"])
    keys = []
    try:
        for name, parts in fields.items():
            store = StateStore(redis, settings, group, name)
            used = held = value_bytes = 0
            for partition, part in enumerate(parts):
                keys.append(store.key(partition))
                assert await store.begin_with(partition, part)
                held += int(await redis.hlen(store.key(partition)))
                used += int(await redis.memory_usage(store.key(partition), samples=0) or 0)
                value_bytes += sum(map(len, part.values()))
            assert held == sum(map(len, parts))
            answer[name] = {
                "fields": held,
                "bytes": used,
                "bytes_per_field": round(used / held, 1),
                "value_bytes_per_field": round(value_bytes / held, 1),
            }
            total, count = total + used, count + held
        after = int((await redis.info("memory"))["used_memory_dataset"])
    finally:
        for key in keys:
            await redis.unlink(key)
    return answer | {"total": {"fields": count, "bytes": total, "bytes_per_field": round(total / count, 1),
                               "used_memory_dataset": after - before}}  # fmt: skip


async def _measure(url: str, worlds: Iterator[tuple[str, Fields]]) -> dict[str, Any]:
    settings = RedisSettings(url=url, namespace="bench", timeout_s=120.0)
    redis = redis_client(settings)
    try:
        answer: dict[str, Any] = {"redis": (await redis.info("server"))["redis_version"], "partitions": PARTITIONS}
        for name, fields in worlds:
            answer[name] = await _stored(redis, settings, fields)
        return answer
    finally:
        await redis.aclose()


def measure(redis_url: str, *, file: Path = HANDBOOK, cards: int = 1_000_000) -> dict[str, Any]:
    """Fields, bytes per field by kind of entity, and totals: of the history in ``file`` and of many cards."""
    table, schema, source = read_history(file)

    def worlds() -> Iterator[tuple[str, Fields]]:
        yield source, history_fields(table, schema)
        yield f"{cards:,} cards with {EVENTS_PER_CARD} transactions each", synthetic_fields(cards, schema)

    return asyncio.run(_measure(redis_url, worlds()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=HANDBOOK)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--cards", type=int, default=1_000_000)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.redis, file=arguments.file, cards=arguments.cards)))


if __name__ == "__main__":
    main()
