"""The open-loop load: ``python -m bench.load ...`` sends it, and :func:`latencies_ms` says when it was answered.

Message i is sent at ``start + i / rate``, whatever became of those before it. Answers stand in the order of their
messages within a partition, so the k-th answer of a partition belongs to its k-th message. A message's latency counts
from the moment at which it should have been sent to the end of the millisecond in which the broker appended its answer,
which is when it acknowledges it. Both are told by the system's clock, which is one for all processes.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiokafka
import msgspec
import numpy as np
import uvloop

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
        start, start_ms, done = time.monotonic() + 0.2, time.time() * 1000 + 200, 0
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
        due_ms = start_ms + np.arange(count) / rate * 1000
        np.savez(arguments.out, due_ms=due_ms, partition=np.array(partitions, np.int64))
    finally:
        await producer.stop()


def latencies_ms(sent: Path, appended_ms: Mapping[int, Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The latency of every message in ms, in the order of sending.

    Parameters
    ----------
    sent : Path
        What the sender wrote.
    appended_ms : mapping
        When the broker appended each answer, by partition in their order, whole ms since the epoch.

    Raises
    ------
    RuntimeError
        If a partition has another number of answers than messages.
    """
    due = np.load(sent)
    found = np.empty(len(due["due_ms"]))
    for partition in np.unique(due["partition"]).tolist():
        mine, answers = due["partition"] == partition, appended_ms.get(partition, ())
        if len(answers) != mine.sum():
            raise RuntimeError(f"partition {partition}: {mine.sum()} messages have {len(answers)} answers")
        found[mine] = np.array(answers) + 1 - due["due_ms"][mine]
    return found


def main() -> None:
    """Send a load."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bootstrap", "topic", "out", "file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rate", type=float, required=True)
    arguments = parser.parse_args()
    uvloop.run(_send(arguments, msgspec.msgpack.decode(Path(arguments.file).read_bytes())))


if __name__ == "__main__":
    main()
