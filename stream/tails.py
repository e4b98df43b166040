"""Reads what was emitted beyond the applied state: the tails of output partitions, from recorded positions to the end.

In: positions by topic and partition. Out: the values that follow. No group, nothing is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from features.errors import ServiceUnavailable, StateMissing
from stream.connections import kafka_consumer, kafka_errors
from stream.lane import Target
from stream.offsets import offset_range
from stream.settings import KafkaSettings


class TailReader:
    """A consumer of its own, connected once and used at every takeover."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._consumer = kafka_consumer(kafka, fetch_max_wait_ms=50)

    async def start(self) -> None:
        """Connect."""
        async with kafka_errors(self._kafka):
            await self._consumer.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def ends(self, targets: list[Target]) -> dict[Target, int]:
        """The end position of each partition."""
        ranges = await offset_range(self._kafka, [TopicPartition(*target) for target in targets])
        return {(tp.topic, tp.partition): end for tp, (_, end) in ranges.items()}

    async def read(self, positions: Mapping[Target, int]) -> dict[Target, list[bytes]]:
        """The values from each position to the end that the partition has now.

        Raises
        ------
        StateMissing
            If a partition ends before its recorded position: the broker lost what had been acknowledged.
        """
        ends = await self.ends(list(positions))
        for target, position in positions.items():
            if ends[target] < position:
                raise StateMissing(
                    f"{target[0]} partition {target[1]} ends at {ends[target]}, but answers up to {position} were "
                    "acknowledged: the broker lost data. Restore it, or start over with another redis.namespace "
                    "and worker.group"
                )
        found: dict[Target, list[bytes]] = {target: [] for target in positions}
        open_ = {TopicPartition(*t): ends[t] for t, position in positions.items() if position < ends[t]}
        if not open_:
            return found
        async with kafka_errors(self._kafka):
            await self._read_open(open_, positions, found)
        return found

    async def _read_open(self, open_: dict[TopicPartition, int], positions: Mapping[Target, int],
                         found: dict[Target, list[bytes]]) -> None:  # fmt: skip
        self._consumer.assign(list(open_))
        for tp in open_:
            self._consumer.seek(tp, positions[tp.topic, tp.partition])
        deadline = asyncio.get_running_loop().time() + 30
        while open_:
            if asyncio.get_running_loop().time() > deadline:
                raise ServiceUnavailable(f"the tails of {sorted({tp.topic for tp in open_})} could not be read in 30 s")
            try:
                fetched = await self._consumer.getmany(*open_, timeout_ms=200)
            except KafkaError as error:
                raise ServiceUnavailable(f"the tails of outputs cannot be read: {error!r}") from None
            for tp, records in fetched.items():
                found[tp.topic, tp.partition] += [r.value for r in records if r.value and r.offset < open_[tp]]
            for tp in list(open_):
                if await self._consumer.position(tp) >= open_[tp]:
                    del open_[tp]
        self._consumer.unsubscribe()
