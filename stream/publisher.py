"""Produces cycles' outputs: a batch per output partition at a time, every acknowledgement awaited by the caller.

In: messages by topic and partition. Out: acknowledgements and the positions after them. A batch that fails may have
been written: the caller drops its state and reads the partitions' tails before it goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.record.util import calc_crc32c

from features.errors import HeadraceError, ServiceUnavailable, TopicError
from features.recordbatch import CRC_AT, CRC_FROM, HEAD_BYTES, Columns, record_batch, set_producer
from stream.connections import PRODUCE_BATCH_BYTES
from stream.lane import Message, Target
from stream.pause import Pause

log = logging.getLogger("headrace.worker")
_STOP_S, _PACE_S = 10.0, 0.1
_FINAL = (MessageSizeTooLargeError, RecordListTooLargeError, TopicAuthorizationFailedError)
# Partition, how many messages of the batch there are up to the last one handed over, and the batch's acknowledgement.
Pending = tuple[Target, int, "asyncio.Future[Any]"]


class Publisher:
    """Whole batches to given partitions, in order, through a producer that :meth:`settle` replaces once it failed."""

    def __init__(self, connect: Callable[[], Awaitable[AIOKafkaProducer]]) -> None:
        self._connect = connect
        self._producer: AIOKafkaProducer | None = None
        self._open: set[asyncio.Future[Any]] = set()
        self._waiting: dict[Target, _Waiting] = {}
        self._spoilt = False

    async def start(self) -> None:
        """Connect."""
        self._producer = await self._connect()
        self._spoilt = False

    async def stop(self) -> None:
        """Disconnect; what is not on its way to Kafka by now never will be."""
        self._waiting.clear()
        if self._producer is not None:
            producer, self._producer = self._producer, None
            try:
                await asyncio.wait_for(producer.stop(), _STOP_S)
            except TimeoutError:
                # It was waiting for its batches: it would send them once the broker is back, after the tails were read.
                producer._sender._sender_task.cancel()
                await producer.client.close()
            except KafkaError as error:
                log.debug("a producer that is replaced: %r", error)

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
        """Hand over all messages; returns what to wait for.

        Where messages joined what waits for the broker, this waits a moment until that is on its way: a cycle that
        began now would find fewer records, and its answers would go out no sooner.
        """
        pending: list[Pending] = []
        joined: list[_Batch] = []
        for target, messages in outputs.items():
            if not messages:
                continue
            columns = messages if isinstance(messages, Columns) else Columns.of(messages)
            for part in _cut(columns):
                waiting = self._waiting.get(target)
                if waiting is not None and waiting.batch.join(part):
                    joined.append(waiting.batch)
                else:
                    batch = _Batch(part)
                    waiting = self._waiting[target] = _Waiting(batch, await self._send(batch, *target))
                    waiting.acknowledged.add_done_callback(partial(self._forget, target, batch))
                pending.append((target, waiting.batch.record_count(), waiting.acknowledged))
        for batch in joined:
            await batch.under_way(_PACE_S)
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

    def _forget(self, target: Target, batch: _Batch, _: asyncio.Future[Any]) -> None:
        batch.take()
        if target in self._waiting and self._waiting[target].batch is batch:
            del self._waiting[target]

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
        for (target, count, _), result in zip(pending, results, strict=True):
            if isinstance(result, KafkaError):
                raise _refusal(target[0], result)
            if isinstance(result, BaseException):
                raise result
            if result.offset < 0:  # a repeated request of which the broker remembers no more than that it had it
                raise ServiceUnavailable(f"Kafka has answers for {target[0]} and does not say where")
            positions[target] = result.offset + count
        return positions


class _Batch:
    """In the place of the builder to which aiokafka would append messages one by one.

    aiokafka has one request to a broker on its way at a time. What later cycles send meanwhile joins the batch that
    waits, else each would wait for all before it.
    """

    def __init__(self, messages: Columns) -> None:
        self._parts, self._count, self._bytes = [messages], len(messages), messages.record_bytes
        self._producer: tuple[int, int, int] | None = None
        self._taken = False  # by the sender: the messages are counted, or the bytes are made
        self._pause = Pause()
        self._built = bytearray()

    def join(self, messages: Columns) -> bool:
        """Take in more messages; False where it is too late or there is no room."""
        if self._taken or self._bytes + messages.record_bytes > PRODUCE_BATCH_BYTES:
            return False
        self._parts.append(messages)
        self._count += len(messages)
        self._bytes += messages.record_bytes
        return True

    def take(self) -> None:
        """From now on it stays as it is."""
        self._taken = True
        self._pause.end()

    async def under_way(self, limit_s: float) -> None:
        """Until it is taken, or ``limit_s`` seconds have passed; for one waiter at a time."""
        if not self._taken:
            await self._pause.wait(limit_s)

    def record_count(self) -> int:
        return self._count

    def size(self) -> int:
        return len(self._built) or self._bytes

    def closed(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._producer = producer_id, producer_epoch, base_sequence
        self.take()

    def _build(self) -> bytearray:
        if not self._built:
            self.take()
            self._built = record_batch(self._parts, int(time.time() * 1000))
            self._parts.clear()
            if self._producer is not None:
                set_producer(self._built, *self._producer)
            checksum = calc_crc32c(memoryview(self._built)[CRC_FROM:])
            self._built[CRC_AT:CRC_FROM] = checksum.to_bytes(4, "big")
        return self._built


class _Waiting(NamedTuple):
    """The newest batch of a partition, and its acknowledgement."""

    batch: _Batch
    acknowledged: asyncio.Future[Any]


def _cut(messages: Columns) -> Iterator[Columns]:
    """Parts that fit a batch; one message at least, however long it is."""
    if messages.record_bytes <= PRODUCE_BATCH_BYTES:
        yield messages
        return
    ends, first = messages.record_ends(), 0
    while first < len(messages):
        before = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, before + PRODUCE_BATCH_BYTES - HEAD_BYTES, "right")), first + 1)
        yield messages.part(slice(first, last))
        first = last


def _refusal(topic: str, error: KafkaError) -> HeadraceError:
    if isinstance(error, _FINAL):
        return TopicError(f"Kafka refuses answers for {topic}, and a retry does not mend it: {error!r}")
    return ServiceUnavailable(f"Kafka did not take answers for {topic}: {error!r}")
