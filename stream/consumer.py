"""Faust's consumer, cut open at one place: it hands whole fetches to the pipeline instead of single events to agents.

In: Faust's group membership, rebalancing and lifecycle. Out: calls of :class:`~stream.cycle.Pipeline`. The methods
overridden here are private to faust-streaming, which is why its version is pinned; ``tests/test_faust_pins.py`` keeps
their signatures. On every (re)assignment Faust calls :meth:`FetchConsumer.perform_seek`; the fetching loop then takes
the partitions over and seeks them to the offsets in Redis, and so it does after every failure.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import aiokafka
import faust
from aiokafka.errors import KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from features.errors import ComputeFailed, HeadraceError, RedisUnavailable, ServiceUnavailable, StateConflict
from stream.cycle import Pipeline
from stream.deadline import Deadline
from stream.fetching import Fetched, LoopConsumer
from stream.metrics import Metrics
from stream.offsets import offset_range
from stream.settings import Settings
from stream.station import Bounds

log = logging.getLogger("headrace.worker")
_POLL_S = 0.25  # longest wait of one fetch, so that a failed cycle or a stop is noticed
_BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)
_ASSIGNED = ServiceUnavailable("partitions were assigned")  # no failure: the usual reason to take over
_RETRIED = (ServiceUnavailable, StateConflict, ComputeFailed, KafkaError)
_GRACE_S = 1.0  # for what a stop does before it waits for the cycles in flight
_LABELS_WAITING_MAX = 20_000  # per partition; above it the partition is paused


class WorkerContext:
    """What the consumer needs and Faust does not carry. One per worker."""

    def __init__(self, settings: Settings, pipeline: Pipeline, metrics: Metrics) -> None:
        self.settings = settings
        self.deadline = Deadline(settings.worker.drain_deadline_s + _GRACE_S)
        self.pipeline = pipeline
        self.metrics = metrics
        self.fatal: HeadraceError | None = None


class HeadraceApp(faust.App):
    """Faust's app, which carries the worker's own parts to the consumer that Faust builds."""

    context: WorkerContext

    def _create_directories(self) -> None:
        """No directories: Faust would keep tables there, and there are none."""


class FetchConsumer(driver.Consumer):
    """Hands fetches to the pipeline, and commits what it has applied."""

    _thread: LoopConsumer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lost: BaseException | None = _ASSIGNED  # why the partitions must be taken over
        self._noted = ""  # the last failure that was told
        self._fetching: asyncio.Task[None] | None = None
        self._fetched = Fetched(0)

    @property
    def context(self) -> WorkerContext:
        """The worker's own parts."""
        return cast(HeadraceApp, self.app).context

    def _new_consumer_thread(self) -> LoopConsumer:
        return LoopConsumer(self, loop=self.loop, thread_loop=self.loop, beacon=self.beacon)

    # -- assignment ---------------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Leave the takeover to the fetching loop: Faust gives up for good on a seek that takes longer than 30 s."""
        self._lost = _ASSIGNED

    async def _take_over(self) -> None:
        """Take over the assigned partitions and seek them to what Redis says is applied."""
        generation = self.app.consumer_generation_id
        await self._forget_fetched()
        await self._take_over_all(sorted(self.assignment()))
        if generation == self.app.consumer_generation_id:
            self._lost = None  # else a rebalance came in between, and all begins again

    async def _take_over_all(self, assignment: Sequence[TP]) -> None:
        pipeline = self.context.pipeline
        await pipeline.abandon()
        if not assignment:
            self.context.metrics.ready.set(1)  # it stands by, and could begin at once
            return
        committed = await self.seek_to_committed()
        places = [aiokafka.TopicPartition(tp.topic, tp.partition) for tp in assignment]
        ranges = await offset_range(self.context.settings.kafka, places)
        bounds = Bounds(
            first={(tp.topic, tp.partition): first for tp, (first, _) in ranges.items()},
            end={(tp.topic, tp.partition): end for tp, (_, end) in ranges.items()},
            committed={(tp.topic, tp.partition): offset for tp, offset in committed.items()},
        )
        wanted: dict[str, set[int]] = {}
        for station in pipeline.stations:
            topics = station.lane.topics
            wanted[station.lane.name] = {tp.partition for tp in assignment if tp.topic in topics}
        seeks = await pipeline.assign({name: sorted(found) for name, found in wanted.items()}, bounds)
        mine = set(assignment)
        await self.seek_wait({tp: offset for t, offset in seeks.items() if (tp := TP(*t)) in mine})
        self.context.metrics.ready.set(1)
        log.info("reading %s", ", ".join(f"{tp.topic}-{tp.partition}@{seeks[tp.topic, tp.partition]}"
                                         for tp in assignment))  # fmt: skip

    async def _regain(self, cause: BaseException | None) -> None:
        """Let go of everything and take it over again, for as long as it takes; says so once, and when it is done."""
        tries = 0
        while self.flow_active and not self.should_stop:
            if cause is not None:
                self._note(cause, first=tries == 0)
            tries += 1
            try:
                await self._take_over()
            except (*_RETRIED, TimeoutError) as error:
                await asyncio.sleep(_BACKOFF_S[min(tries, len(_BACKOFF_S)) - 1])
                cause = error
                continue
            if tries > 1:
                log.warning("back again after %d tries", tries)
            self._noted = ""
            return

    def _note(self, cause: BaseException, *, first: bool) -> None:
        metrics = self.context.metrics
        metrics.ready.set(0)
        if isinstance(cause, RedisUnavailable):
            metrics.redis_errors.inc()
        if first or self._noted != str(cause):
            self._noted = str(cause)
            metrics.recoveries.labels(failure_cause(cause)).inc()
            log.warning("%s; retrying, nothing is lost", cause)

    def _stop_for(self, error: HeadraceError) -> None:
        """Stop the worker for an error that a retry cannot mend; the entry point prints it."""
        self.context.fatal = error
        os.kill(os.getpid(), signal.SIGTERM)  # the way that Faust stops in order

    # -- fetching -----------------------------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            await self._drain_until_stopped(fetcher)
        finally:
            if self._fetching is not None:
                self._fetching.cancel()

    async def _drain_until_stopped(self, fetcher: Any) -> None:
        while not (self.should_stop or fetcher.should_stop):
            if not self.flow_active:
                await self.can_resume_flow.wait()
            elif self.context.fatal is not None:
                await asyncio.sleep(_POLL_S)
            else:
                try:
                    if self._lost is not None:
                        await self._regain(None if self._lost is _ASSIGNED else self._lost)
                        continue
                    await self._one_fetch(self.context.pipeline)
                except _RETRIED as error:
                    self._lost = error
                except HeadraceError as error:
                    self._stop_for(error)
                except self.consumer_stopped_errors:
                    return
                except asyncio.CancelledError:
                    if not fetcher.should_stop:
                        raise
                    return  # Faust takes a fetcher that is stopped while the group rebalances for a crashed one

    async def _one_fetch(self, pipeline: Pipeline) -> None:
        """Run the cycles of what has been fetched since the last one; fetching goes on meanwhile."""
        if self._fetching is None:
            self._fetched = Fetched(self.app.consumer_generation_id)
            self._fetching = asyncio.create_task(self._fetch())
        fetched = self._fetched
        await fetched.wait(_POLL_S)
        if self._fetching.done():
            self._fetching.result()
        if self._lost is not None or not self.flow_active or fetched.generation != self.app.consumer_generation_id:
            await asyncio.sleep(0.02)
            return  # a rebalance began; perform_seek reads these again
        records, lagging = fetched.take()
        await pipeline.process(records, lambda target: lagging.get(target, True))
        self._pause_or_resume_labels(pipeline)

    async def _fetch(self) -> None:
        """Fetch for ever: while a cycle is computed, what arrives is collected for the next one.

        aiokafka asks for more of a partition only when it was given what it had, so what lies there is taken at once.
        """
        fetched = self._fetched
        while not fetched.over:
            active = set(self._get_active_partitions())
            if not active or not self.flow_active:
                await asyncio.sleep(0.02)
                continue
            await asyncio.sleep(0)  # what lies ready is given without a pause, and others need the loop
            found = await self._getmany(active_partitions=active, timeout=_POLL_S)
            fetched.add(found, self._thread.lagging)
            partitions = sum(tp.topic == self.context.settings.topics.transactions for tp in active)
            limit = self.context.settings.worker.cycle_events(partitions)
            while fetched.count >= limit and not fetched.over:
                fetched.taken.clear()
                await fetched.taken.wait()

    async def _forget_fetched(self) -> None:
        """Drop what was fetched, once the fetch on its way has ended: it would take records away from after a seek."""
        task, self._fetching = self._fetching, None
        if task is not None:
            self._fetched.over = True
            self._fetched.taken.set()
            await asyncio.gather(task, return_exceptions=True)

    def _end(self, tp: TP) -> int:
        """The end that the newest fetch told; -1 before the first one."""
        try:
            end = cast("int | None", self.highwater(tp))
        except AssertionError:  # aiokafka's, of a partition that a rebalance took away a moment ago
            end = None
        return -1 if end is None else end

    def _pause_or_resume_labels(self, pipeline: Pipeline) -> None:
        waiting = pipeline.waiting
        full = {TP(*target) for target, count in waiting.items() if count > _LABELS_WAITING_MAX}
        if full - self._paused_partitions:
            self.pause_partitions(full)
        drained = {tp for tp in self._paused_partitions
                   if waiting.get((tp.topic, tp.partition), 0) < _LABELS_WAITING_MAX // 2}  # fmt: skip
        if drained:
            self.resume_partitions(drained)

    # -- letting go ---------------------------------------------------------------------------------------------

    async def wait_empty(self) -> None:
        """Let the cycles in flight finish before partitions are given up; past the deadline they are read again."""
        pipeline, worker = self.context.pipeline, self.context.settings.worker
        # In a rebalance the group waits for this member only as long as a session; at the end nobody does.
        limit_s = worker.drain_deadline_s if self.should_stop else min(worker.drain_deadline_s,
                                                                       worker.session_timeout_s / 2)  # fmt: skip
        try:
            await pipeline.drain(limit_s)
        except (HeadraceError, TimeoutError) as error:
            log.warning("cycles in flight were given up (%r); they are read again", error)
            await pipeline.abandon()
        if self.should_stop:
            self.context.deadline.met()
        await self.commit_and_end_transactions()

    # -- committing ---------------------------------------------------------------------------------------------

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (TP(*target) for target in list(self.context.pipeline.applied))

    def _new_offset(self, tp: TP) -> int | None:
        return self.context.pipeline.applied.get((tp.topic, tp.partition))

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Faust's commit, every second; the gauges are set also when there is nothing to commit."""
        metrics, pipeline = self.context.metrics, self.context.pipeline
        metrics.set_lag(
            {target: max(self._end(TP(*target)) - offset, 0) for target, offset in pipeline.applied.items()}
        )
        metrics.set_caches(await pipeline.held())
        return bool(await super().force_commit(topics, start_new_transaction))

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's livelock detector watches agents; there are none."""


class FetchTransport(driver.Transport):
    """Faust's Kafka transport with our consumer."""

    Consumer = FetchConsumer


def failure_cause(error: BaseException) -> str:
    """A short name for the metrics of what made a pipeline fail."""
    if isinstance(error, StateConflict):
        return "conflict"
    if isinstance(error, ComputeFailed):
        return "internal"
    return "redis" if isinstance(error, RedisUnavailable) else "kafka"


def overridden() -> Iterable[tuple[type, str]]:
    """The private methods of faust-streaming that this module relies on, for the test that pins them."""
    for name in ("perform_seek", "_drain_messages", "wait_empty", "_filter_tps_with_pending_acks", "_new_offset",
                 "force_commit", "_getmany", "_get_active_partitions", "_new_consumer_thread"):  # fmt: skip
        yield driver.Consumer, name
    for name in ("_create_worker_consumer", "_ensure_consumer", "_fetch_records", "call_thread",
                 "_gather_remaining_tasks"):  # fmt: skip
        yield driver.AIOKafkaConsumerThread, name
