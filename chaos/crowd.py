"""The input of the soak: one hot card and very many others, in whole batches, at a rate."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition

from chaos.traffic import START_MS, Sender
from features.hashing import partitions_of
from stream.connections import kafka_consumer
from stream.offsets import offset_range
from stream.outbox import Outbox, Record, by_partition
from stream.settings import KafkaSettings

_HOT = "hot"
_HOT_SHARE = 0.05
_STEP_S = 0.1
_SAMPLE = 1500


async def scan(kafka: KafkaSettings, topic: str, partitions: int, take: Callable[[Any], None]) -> None:
    """Give every record that a topic holds to ``take``, partition by partition, and keep none."""
    consumer = kafka_consumer(kafka)
    await consumer.start()
    try:
        for place in (TopicPartition(topic, p) for p in range(partitions)):
            (_, end), *_ = (await offset_range(kafka, [place])).values()
            consumer.assign([place])
            consumer.seek(place, 0)
            at = 0
            while at < end:
                for record in (await consumer.getmany(place, timeout_ms=500)).get(place, ()):
                    take(record)
                    at = record.offset + 1
    finally:
        await consumer.stop()


class Soak(Sender):
    """Sends in an open loop.

    ``sent`` counts; ``sample`` are the cards whose state is checked in full, ``spent`` their ledger.
    """

    def __init__(self, bootstrap: str, topic: str, partitions: int, seed: int, *, rate: float, seconds: float,
                 keys: int) -> None:  # fmt: skip
        self._bootstrap, self._topic, self._partitions = bootstrap, topic, partitions
        self._random, self._rate, self._seconds, self._keys = Random(seed), rate, seconds, keys
        self.sample = {_HOT} | {f"card-{self._random.randrange(keys)}" for _ in range(_SAMPLE)}
        self.spent: dict[str, tuple[int, float]] = {}
        super().__init__()

    def _draw(self) -> Record:
        """Cards in turn, each as often as the others, and between them the hot one."""
        number, random = self.sent, self._random
        card = _HOT if random.random() < _HOT_SHARE else f"card-{number % self._keys}"
        amount = random.randrange(1, 800) / 4
        self.sent += 1
        if card in self.sample:
            count, total = self.spent.get(card, (0, 0.0))
            self.spent[card] = count + 1, total + amount
        event = {"event_id": f"t{number}", "event_time": START_MS + number * 40, "card_id": card,
                 "merchant_id": f"shop-{random.randrange(2000)}", "amount": amount}  # fmt: skip
        return Record(card.encode(), json.dumps(event).encode())

    async def _send(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, enable_idempotence=True, acks="all",
                                    max_batch_size=524_288)  # fmt: skip
        await producer.start()
        try:
            outbox, start = Outbox(producer), time.monotonic()
            while (due := time.monotonic() - start) < self._seconds:
                records = [self._draw() for _ in range(max(int(due * self._rate) - self.sent, 0))]
                places = partitions_of([record.key or b"" for record in records], self._partitions).tolist()
                for partition, part in by_partition(records, places).items():
                    await outbox.send(self._topic, partition, part)
                await asyncio.sleep(_STEP_S)
            await outbox.settle()
        finally:
            await producer.stop()
