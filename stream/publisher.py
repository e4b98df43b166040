"""Produces a cycle's outputs: one batch per output partition, every acknowledgement awaited by the caller.

In: messages by topic and partition. Out: acknowledgements and the positions after them. A batch that fails may have
been written: the caller drops its state and reads the partitions' tails before it goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from features.errors import ServiceUnavailable
from stream.lane import Output

Target = tuple[str, int]
Pending = tuple[Target, int, "asyncio.Future[Any]"]  # partition, messages, acknowledgement


class Publisher:
    """Whole batches to given partitions, in order."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def start(self, outputs: Mapping[Target, Sequence[Output]]) -> list[Pending]:
        """Hand over all messages; returns each batch's target, size and acknowledgement."""
        pending: list[Pending] = []
        try:
            for target, messages in outputs.items():
                topic, partition = target
                batch, size = self._producer.create_batch(), 0
                for message in messages:
                    if batch.append(key=message.key, value=message.value, timestamp=None) is None:
                        pending.append((target, size, await self._send(batch, topic, partition)))
                        batch, size = self._producer.create_batch(), 0
                        if batch.append(key=message.key, value=message.value, timestamp=None) is None:
                            raise ServiceUnavailable(
                                f"an answer of {len(message.value)} bytes for {topic} does not fit a batch"
                            )
                    size += 1
                if size:
                    pending.append((target, size, await self._send(batch, topic, partition)))
        except KafkaError as error:
            raise ServiceUnavailable(f"Kafka refused an answer: {error!r}") from None
        return pending

    async def _send(self, batch: object, topic: str, partition: int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = await self._producer.send_batch(batch, topic, partition=partition)
        return future

    @staticmethod
    async def acknowledged(pending: Sequence[Pending]) -> dict[Target, int]:
        """Wait for every acknowledgement; returns the position after the last message of each partition.

        Raises
        ------
        ServiceUnavailable
            If Kafka did not take one of them.
        """
        results = await asyncio.gather(*(future for _, _, future in pending), return_exceptions=True)
        positions: dict[Target, int] = {}
        for (target, size, _), result in zip(pending, results, strict=True):
            if isinstance(result, KafkaError):
                raise ServiceUnavailable(f"Kafka did not acknowledge answers for {target[0]}: {result!r}")
            if isinstance(result, BaseException):
                raise result
            positions[target] = result.offset + size
        return positions
