"""How records come in: Faust's owner of the aiokafka consumer, on the worker's loop, and what it has fetched so far.

In: partitions to fetch. Out: raw records by partition, each partition's fair share. State owned: what was fetched and
not taken. The methods overridden here are private to faust-streaming and aiokafka, see :mod:`stream.consumer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import aiokafka
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.utils.futures import maybe_async

from stream.connections import kafka_client_args
from stream.lane import Target
from stream.pause import Pause
from stream.settings import Settings
from stream.unpacking import bound_unpacking

_POLL_INTERVAL_MS = 3_600_000  # a recovery may take as long as Redis is away; a dead worker misses heartbeats
_PATIENCE = 4  # while the worker has plenty, it asks the partitions that have nothing so many times less often


class _OnTheLoop:
    """In the place of a thread: what it would run is a task of the worker's own loop."""

    def __init__(self, service: LoopConsumer) -> None:
        self._service = service

    def start(self) -> None:
        self._task = self._service.parent_loop.create_task(self._service._serve())

    def stop(self) -> None:
        """The task has ended when the service has."""


class LoopConsumer(driver.AIOKafkaConsumerThread):
    """The owner of the aiokafka consumer, which Faust gives a thread and a loop of its own; here it shares ours.

    Two loops would pass each fetch from one thread to the other, and both need Python's lock: that takes longer than
    the fetch. A cycle that would keep the loop busy for long is computed in a thread instead, see :mod:`stream.cycle`.
    ``lagging``: which partitions held more, as of the last fetch.
    """

    Worker: Any = _OnTheLoop
    lagging: Mapping[Target, bool] = MappingProxyType({})

    async def call_thread(self, fun: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        return await maybe_async(fun(*args, **kwargs))

    async def _gather_remaining_tasks(self) -> None:
        """None is ours alone: the loop has the worker's other tasks too."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        """Our own settings instead of Faust's: it hard-codes a wait of 1,500 ms, and assigns by round robin.

        Partition n of transactions and of labels share state, so one worker must get both. The range assignor gives
        equal partition numbers of topics with equal counts to the same member; round robin does not.
        """
        settings: Settings = cast(Any, self.app).context.settings
        worker = settings.worker
        bound_unpacking(settings.kafka.batch_bytes_max)
        return aiokafka.AIOKafkaConsumer(
            **kafka_client_args(settings.kafka),
            group_id=worker.group,
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=worker.cycle_events_max,
            max_poll_interval_ms=_POLL_INTERVAL_MS,
            fetch_max_wait_ms=worker.fetch_max_wait_ms,
            max_partition_fetch_bytes=worker.fetch_bytes_max,
            session_timeout_ms=int(worker.session_timeout_s * 1000),
            rebalance_timeout_ms=int(worker.session_timeout_s * 1000),
            heartbeat_interval_ms=int(worker.session_timeout_s * 250),
        )

    async def _fetch_records(self, consumer: Any, active_partitions: set[TP], timeout: float | None = None,  # noqa: ASYNC109
                             max_records: int | None = None) -> Any:  # fmt: skip
        """As Faust's, but every partition gives its share: aiokafka would empty one before it turns to the next."""
        fetcher = consumer._fetcher
        if not self.consumer.flow_active or consumer._closed or fetcher._closed:
            return await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        filled = [tp for tp in fetcher._records if tp in active_partitions]
        found: Any = {}
        if filled and max_records is not None:
            limit = cast(Any, self.app).context.pipeline.records_max
            share = min(-(-max_records // len(filled)), limit)
            with fetcher._subscriptions.fetch_context():
                for tp in filled:
                    _as_they_are(fetcher._records[tp])
                    found |= await fetcher.fetched_records([tp], 0, share)
        if not found:
            found = await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        wait_ms = cast(Any, self.app).context.settings.worker.fetch_max_wait_ms
        fetcher._fetch_max_wait_ms = wait_ms * _PATIENCE if fetcher._records else wait_ms
        self.lagging = {(tp.topic, tp.partition): self._lags(consumer, tp) for tp in active_partitions}
        return found

    @staticmethod
    def _lags(consumer: Any, tp: TP) -> bool:
        """Whether a partition is known to hold more than it has given by now, past control records and gaps."""
        place = aiokafka.TopicPartition(tp.topic, tp.partition)
        assignment = consumer._subscription.subscription.assignment
        state = assignment.state_value(place) if assignment else None
        if state is None or not state.has_valid_position:
            return True
        end = consumer.highwater(place)
        return end is None or bool(state.position < end)


def _as_they_are(fetched: Any) -> None:
    """Have a fetched batch give its records as they were parsed, without a ConsumerRecord around each."""
    records = getattr(fetched, "_partition_records", None)
    if records is not None:
        records._consumer_record = _same


def _same(_: TP, record: Any) -> Any:
    return record


class Fetched:
    """What was fetched in one generation of the group and not yet taken."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.taken = asyncio.Event()
        self.count = 0
        self.over = False
        self._records: dict[Target, list[Any]] = {}
        self._lagging: Mapping[Target, bool] = {}
        self._empty = Pause()

    async def wait(self, limit_s: float) -> None:
        """Until there is something, or ``limit_s`` seconds have passed."""
        if not self._records:
            await self._empty.wait(limit_s)

    def add(self, found: Mapping[TP, list[Any]], lagging: Mapping[Target, bool]) -> None:
        """Take in one fetch, and which partitions held more after it."""
        for tp, records in found.items():
            self._records.setdefault((tp.topic, tp.partition), []).extend(records)
            self.count += len(records)
        self._lagging = lagging
        if found:
            self._empty.end()

    def take(self) -> tuple[dict[Target, list[Any]], Mapping[Target, bool]]:
        """Everything, and which partitions held more after it."""
        records, self._records, self.count = self._records, {}, 0
        self.taken.set()
        return records, self._lagging
