"""The open-loop load and its reader: ``python -m bench.load send|read ...``.

The sender sends message i at ``start + i / rate``, whatever became of those before it. The reader notes when it has
each answer in hand. Both use the system's monotonic clock, which is one for all processes. Answers stand in the order
of their messages within a partition, so the k-th answer of a partition belongs to its k-th message, and a message's
latency counts from the moment at which it should have been sent.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import aiokafka
import msgspec
import numpy as np
import uvloop
from aiokafka import TopicPartition

_TICK_S = 0.001
_BATCH_BYTES = 900_000


async def _send(arguments: argparse.Namespace, load: tuple[list[int], list[bytes], list[bytes]]) -> None:
    """Send a load; writes when each message was due, and its partition."""
    partitions, keys, values = load
    count, rate = len(keys), arguments.rate
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=arguments.bootstrap, acks=1, linger_ms=0, max_batch_size=_BATCH_BYTES
    )
    await producer.start()
    pending: set[Any] = set()
    try:
        start, done = time.monotonic() + 0.2, 0
        start_ms = time.time() * 1000 + 200
        while done < count:
            due = min(count, int((time.monotonic() - start) * rate) + 1)
            if due <= done:
                await asyncio.sleep(min(_TICK_S, max(0.0, start + done / rate - time.monotonic())))
                continue
            batches: dict[int, Any] = {}
            for i in range(done, due):
                partition = partitions[i]
                if partition not in batches:
                    batches[partition] = producer.create_batch()
                stamp = int(start_ms + i / rate * 1000)
                if batches[partition].append(key=keys[i], value=values[i], timestamp=stamp) is None:
                    raise RuntimeError(f"the sender lags so far behind {rate:.0f}/s that a batch is full")
            for partition, batch in batches.items():
                pending.add(await producer.send_batch(batch, arguments.topic, partition=partition))
            pending = {future for future in pending if not future.done()}
            done = due
        if pending:
            await asyncio.wait(pending)
        np.savez(arguments.out, due=start + np.arange(count) / rate, partition=np.array(partitions, np.int64))
    finally:
        await producer.stop()


async def _read(arguments: argparse.Namespace) -> None:
    """Read ``--count`` records from the ends of the topic's partitions on; writes when each came, and its partition."""
    consumer = aiokafka.AIOKafkaConsumer(
        bootstrap_servers=arguments.bootstrap, enable_auto_commit=False, fetch_max_wait_ms=5, auto_offset_reset="latest"
    )
    await consumer.start()
    places = [TopicPartition(arguments.topic, p) for p in range(arguments.partitions)]
    consumer.assign(places)
    await consumer.seek_to_end(*places)
    for place in places:
        await consumer.position(place)
    print("ready", flush=True)
    came: list[float] = []
    partition: list[int] = []
    try:
        quiet_until = time.monotonic() + 60
        while len(came) < arguments.count and time.monotonic() < quiet_until:
            for place, records in (await consumer.getmany(timeout_ms=200)).items():
                now = time.monotonic()
                came += [now] * len(records)
                partition += [place.partition] * len(records)
                quiet_until = now + 10
        np.savez(arguments.out, came=np.array(came), partition=np.array(partition, np.int64))
    finally:
        await consumer.stop()


def latencies_ms(sent: Path, read: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The latency of every message in ms, in the order of sending.

    Raises
    ------
    RuntimeError
        If a partition has another number of answers than messages.
    """
    due, came = np.load(sent), np.load(read)
    found = np.empty(len(due["due"]))
    for partition in np.unique(due["partition"]):
        mine, answers = due["partition"] == partition, came["came"][came["partition"] == partition]
        if len(answers) != mine.sum():
            raise RuntimeError(f"partition {partition}: {mine.sum()} messages have {len(answers)} answers")
        found[mine] = (answers - due["due"][mine]) * 1000
    return found


def main() -> None:
    """Send or read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["send", "read"])
    for name in ("bootstrap", "topic", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--file", default="")
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--partitions", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.what == "send":
        uvloop.run(_send(arguments, msgspec.msgpack.decode(Path(arguments.file).read_bytes())))
    else:
        uvloop.run(_read(arguments))


if __name__ == "__main__":
    main()
