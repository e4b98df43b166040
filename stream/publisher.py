"""Produces a cycle's outputs: one batch per output partition, every acknowledgement awaited by the caller.

In: messages by topic and partition. Out: acknowledgements and the positions after them. A batch that fails may have
been written: the caller drops its state and reads the partitions' tails before it goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.record.util import calc_crc32c

from features.errors import HeadraceError, ServiceUnavailable, TopicError
from features.recordbatch import CRC_AT, CRC_FROM, Columns, record_batch, set_producer
from stream.connections import PRODUCE_BATCH_BYTES
from stream.lane import Message, Target

_STOP_S = 10.0
_FINAL = (MessageSizeTooLargeError, RecordListTooLargeError, TopicAuthorizationFailedError)
Pending = tuple[Target, int, "asyncio.Future[Any]"]  # partition, messages, acknowledgement


class Publisher:
    """Whole batches to given partitions, in order, through a producer that :meth:`settle` replaces once it failed."""

    def __init__(self, connect: Callable[[], Awaitable[AIOKafkaProducer]]) -> None:
        self._connect = connect
        self._producer: AIOKafkaProducer | None = None
        self._open: set[asyncio.Future[Any]] = set()
        self._spoilt = False

    async def start(self) -> None:
        """Connect."""
        self._producer = await self._connect()
        self._spoilt = False

    async def stop(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            with suppress(TimeoutError, KafkaError):
                await asyncio.wait_for(producer.stop(), _STOP_S)

    async def settle(self) -> None:
        """Wait until no batch is on its way any more, so that nothing of a cycle that was given up arrives later.

        A producer with a failed batch is replaced: an idempotent one has a gap in its sequence and stays refused.

        Raises
        ------
        ServiceUnavailable
            If Kafka cannot be reached.
        """
        if self._open:
            await asyncio.wait(set(self._open), timeout=_STOP_S)
        if self._open or self._spoilt or self._producer is None:
            await self.stop()
            self._open.clear()
            await self.start()

    async def send(self, outputs: Mapping[Target, Sequence[Message]]) -> list[Pending]:
        """Hand over all messages; returns each batch's target, size and acknowledgement."""
        pending: list[Pending] = []
        for (topic, partition), messages in outputs.items():
            if isinstance(messages, Columns):
                for packed in _packed(messages):
                    sent = await self._send(packed, topic, partition)
                    pending.append(((topic, partition), packed.record_count(), sent))
                continue
            batch, size = self._connected().create_batch(), 0
            for message in messages:
                if not _append(batch, message):
                    pending.append(((topic, partition), size, await self._send(batch, topic, partition)))
                    batch, size = self._connected().create_batch(), 0
                    if not _append(batch, message):
                        raise TopicError(f"an answer of {len(message[1])} bytes for {topic} does not fit a batch")
                size += 1
            if size:
                pending.append(((topic, partition), size, await self._send(batch, topic, partition)))
        return pending

    def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise ServiceUnavailable("the connection to Kafka is being replaced")
        return self._producer

    async def _send(self, batch: Any, topic: str, partition: int) -> asyncio.Future[Any]:
        try:
            future: asyncio.Future[Any] = await self._connected().send_batch(batch, topic, partition=partition)
        except KafkaError as error:
            self._spoilt = True
            raise _refusal(topic, error) from None
        self._open.add(future)
        future.add_done_callback(self._landed)
        return future

    def _landed(self, future: asyncio.Future[Any]) -> None:
        self._open.discard(future)
        # Looking at the exception also keeps asyncio from complaining about those of abandoned cycles.
        self._spoilt = self._spoilt or future.cancelled() or future.exception() is not None

    @staticmethod
    async def acknowledged(pending: Sequence[Pending]) -> dict[Target, int]:
        """Wait for every acknowledgement; returns the position after the last message of each partition.

        Raises
        ------
        ServiceUnavailable
            If Kafka did not take one of them.
        TopicError
            If it never will: the answer is too large, or writing is not allowed.
        """
        results = await asyncio.gather(*(asyncio.shield(future) for _, _, future in pending), return_exceptions=True)
        positions: dict[Target, int] = {}
        for (target, size, _), result in zip(pending, results, strict=True):
            if isinstance(result, KafkaError):
                raise _refusal(target[0], result)
            if isinstance(result, BaseException):
                raise result
            positions[target] = result.offset + size
        return positions


class _PackedBatch:
    """A whole batch in the place of the builder to which aiokafka would append messages one by one."""

    def __init__(self, batch: bytearray, count: int) -> None:
        self._batch = batch
        self._count = count

    def record_count(self) -> int:
        return self._count

    def size(self) -> int:
        return len(self._batch)

    def closed(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        set_producer(self._batch, producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytearray:
        checksum = calc_crc32c(memoryview(self._batch)[CRC_FROM:])
        self._batch[CRC_AT:CRC_FROM] = checksum.to_bytes(4, "big")
        return self._batch


def _packed(messages: Columns) -> Iterator[_PackedBatch]:
    first, now_ms = 0, int(time.time() * 1000)
    while first < len(messages):
        batch, count = record_batch(messages, first, now_ms, PRODUCE_BATCH_BYTES)
        first += count
        yield _PackedBatch(batch, count)


def _append(batch: Any, message: Message) -> bool:
    return batch.append(key=message[0], value=message[1], timestamp=None) is not None


def _refusal(topic: str, error: KafkaError) -> HeadraceError:
    if isinstance(error, _FINAL):
        return TopicError(f"Kafka refuses answers for {topic}, and a retry does not mend it: {error!r}")
    return ServiceUnavailable(f"Kafka did not take answers for {topic}: {error!r}")
