"""The programs that Headrace is measured against, each a process: ``python -m bench.contenders NAME ...``.

``passthrough`` consumes whole fetches and produces them back with the same client and settings as the worker, without
any work. ``faust-empty`` is Faust's own agent with an empty body. ``usual`` is what Faust's documentation teaches for
a job like this: an agent per event, a Redis hash per entity read and written in pipelines, one prediction, one send.
Each prints one JSON object when it has seen ``--count`` records; only ``passthrough`` may run without an end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import Any

import aiokafka
import uvloop

from stream.settings import WorkerSettings


async def _passthrough(arguments: argparse.Namespace) -> None:
    worker = WorkerSettings()
    consumer = aiokafka.AIOKafkaConsumer(
        arguments.topic, bootstrap_servers=arguments.bootstrap, group_id=arguments.group, enable_auto_commit=False,
        auto_offset_reset=arguments.reset, fetch_max_wait_ms=worker.fetch_max_wait_ms,
        max_partition_fetch_bytes=worker.fetch_bytes_max, max_poll_records=worker.cycle_events_max,
    )  # fmt: skip
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=arguments.bootstrap, acks="all", enable_idempotence=arguments.idempotence, linger_ms=0,
        max_batch_size=512 * 1024,
    )  # fmt: skip
    await producer.start()
    await consumer.start()
    seen, first, pending = 0, 0.0, set[Any]()
    print("ready", flush=True)
    try:
        while seen < arguments.count:
            fetched = await consumer.getmany(timeout_ms=250)
            first = first or (time.perf_counter() if fetched else 0.0)
            for place, records in fetched.items():
                batch = producer.create_batch()
                for record in records:
                    if batch.append(key=record.key, value=record.value, timestamp=None) is None:
                        pending.add(await producer.send_batch(batch, arguments.out, partition=place.partition))
                        batch = producer.create_batch()
                        batch.append(key=record.key, value=record.value, timestamp=None)
                pending.add(await producer.send_batch(batch, arguments.out, partition=place.partition))
                seen += len(records)
            if len(pending) > 16:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*pending)
        print(json.dumps({"events": seen, "seconds": time.perf_counter() - first}), flush=True)
    finally:
        await consumer.stop()
        await producer.stop()


def _faust_app(arguments: argparse.Namespace) -> Any:
    import faust

    return faust.App(
        arguments.group, broker=f"kafka://{arguments.bootstrap}", store="memory://", autodiscover=False,
        topic_disable_leader=True, consumer_auto_offset_reset="earliest", web_enabled=False,
        consumer_max_fetch_size=WorkerSettings().fetch_bytes_max,
    )  # fmt: skip


class _Count:
    """Counts events and ends the process, with what was measured, after the last one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = 0
        self.first = 0.0

    def add(self) -> None:
        if self.seen == 0:
            self.first = time.perf_counter()
        self.seen += 1
        if self.seen == self.count:
            print(json.dumps({"events": self.seen, "seconds": time.perf_counter() - self.first}), flush=True)
            os._exit(0)  # the measurement is over; Faust takes seconds to stop


def _faust_empty(arguments: argparse.Namespace) -> Any:
    app = _faust_app(arguments)
    counted = _Count(arguments.count)

    async def empty(stream: Any) -> None:
        async for _ in stream:
            counted.add()

    app.agent(app.topic(arguments.topic, value_type=bytes, value_serializer="raw", key_serializer="raw"))(empty)
    return app


def _usual(arguments: argparse.Namespace) -> Any:
    """One event after the other, each with its own round trips; state is a count and a sum for card and merchant."""
    import lightgbm as lgb
    import numpy as np
    from redis.asyncio import Redis

    app = _faust_app(arguments)
    counted = _Count(arguments.count)
    redis = Redis.from_url(arguments.redis)
    booster = lgb.Booster(model_file=arguments.model)
    row = np.zeros((1, booster.num_feature()))
    decisions = app.topic(arguments.out, value_serializer="raw", key_serializer="raw")

    async def decide(stream: Any) -> None:
        async for event in stream:
            names = [f"{arguments.group}:card:{event['card_id']}", f"{arguments.group}:merchant:{event['merchant_id']}"]
            async with redis.pipeline(transaction=False) as pipe:
                for name in names:
                    _ = pipe.hgetall(name)
                held = await pipe.execute()
            for at, state in enumerate(held):
                row[0, 2 * at] = float(state.get(b"count", 0))
                row[0, 2 * at + 1] = float(state.get(b"sum", 0.0))
            score = float(booster.predict(row, num_threads=1)[0])
            async with redis.pipeline(transaction=False) as pipe:
                for name in names:
                    _ = pipe.hincrby(name, "count", 1)
                    _ = pipe.hincrbyfloat(name, "sum", event["amount"])
                await pipe.execute()
            answer = json.dumps({"event_id": event["event_id"], "score": score}).encode()
            await decisions.send(key=event["card_id"].encode(), value=answer)
            counted.add()

    app.agent(app.topic(arguments.topic, value_serializer="json", key_serializer="raw"))(decide)
    return app


def main() -> None:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["passthrough", "faust-empty", "usual"])
    for name in ("bootstrap", "topic", "group"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", default="")
    parser.add_argument("--count", type=int, default=1 << 62)
    parser.add_argument("--reset", default="earliest")
    parser.add_argument("--redis", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--idempotence", action="store_true")
    arguments = parser.parse_args()
    if arguments.name == "passthrough":
        uvloop.run(_passthrough(arguments))
        return
    if arguments.uvloop:
        asyncio.set_event_loop(uvloop.new_event_loop())
    app = _faust_empty(arguments) if arguments.name == "faust-empty" else _usual(arguments)
    app.finalize()
    import faust

    faust.Worker(app, loglevel="WARN", quiet=True, redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main()
