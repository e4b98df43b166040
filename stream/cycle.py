"""The cycle: what one fetch returned, for all partitions together, from bytes to applied state.

The steps, and what a crash means at each:

1. **read** what the caches lack from Redis, one round trip. *Nothing happened yet.*
2. **skip** records below the applied offset: they were answered and applied.
3. **decode**; what cannot be decoded becomes a dead letter.
4. **fold and score** in event order. *The state in memory now runs ahead of Redis; a crash forgets it.*
5. **produce** all answers and wait for every acknowledgement. *Crash: nothing applied, the records are read again; the
   tails of the output partitions tell what was answered.*
6. **apply**: per partition one compare-and-set of offsets and state, small cycles several at once
   (:mod:`stream.applying`). *Crash: the next owner seeks to Redis' offset.*
7. **commit** to Kafka, for lag monitoring only. *Crash: Redis' offset counts.*

(2 and 3 come before 1 in time, since they say what to read.) Steps 5 to 7 of a cycle run while the next one computes;
applies stay in order and a bounded number is in flight. Any failure drops the state of every partition that this
worker holds and goes back to what Redis holds: :meth:`Pipeline.assign` is the one way in, first or again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from features.errors import HeadraceError
from features.watermark import Watermark
from stream.applying import Applier
from stream.lane import Held, Lane, Message, Produced, Record, Tally, Target, lagging_after
from stream.metrics import Metrics
from stream.publisher import Pending, Publisher
from stream.quarantine import Quarantine, Source
from stream.station import Bounds, Station, heads_of
from stream.store import HEAD, Head, Write, conflict, encode_head
from stream.tails import TailReader

log = logging.getLogger("headrace.worker")
_WARN_EVERY_S = 60.0
_THREAD_FROM = 256  # records of a cycle from which on a change of threads costs less than it gives
_T = TypeVar("_T")

Fetched = Mapping[Target, Sequence[Record]]


class Pipeline:
    """Runs cycles over all lanes; see the module's text for the steps."""

    def __init__(self, stations: Sequence[Station], publisher: Publisher, tails: TailReader, models: Any,
                 metrics: Metrics, schema_hash: str, in_flight: int, lease_s: float) -> None:  # fmt: skip
        self.stations = tuple(stations)
        self.models = models
        self.applied: dict[Target, int] = {}
        self._publisher = publisher
        self._tails = tails
        self._metrics = metrics
        self._schema_hash = schema_hash
        self._in_flight = in_flight
        self._lease_s = lease_s
        self._applier = Applier(self.stations, self.applied, self._signed)
        self._awake_s = time.monotonic()  # when the last cycle began
        self._slots = asyncio.Semaphore(in_flight)
        self._worker = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)
        self._cycle = 0
        self._epoch = 0  # counts takeovers, so that records fetched before one are not taken after it
        self._tasks: list[asyncio.Task[None]] = []
        self._computing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "headrace-compute")
        topics = [topic for station in self.stations for topic in reversed(station.lane.topics)]
        self._quarantine = Quarantine(sum(station.lane.records_max for station in self.stations), topics)
        self._misplaced = 0
        self._warn_after_s = 0.0
        self._accepting = False

    # -- taking partitions over ---------------------------------------------------------------------------------

    async def assign(self, wanted: Mapping[str, Sequence[int]], bounds: Bounds) -> dict[Target, int]:
        """Take partitions over, by lane: fence the earlier owner, load offsets, read the tails of the outputs.

        Comes after :meth:`abandon`, which lets go of all that was held. Returns the offset to seek each input partition
        to.
        """
        seeks: dict[Target, int] = {}
        for station in self.stations:
            partitions = list(wanted.get(station.lane.name, ()))
            if partitions:
                seeks |= await self._take_over(station, partitions, bounds)
        self._quarantine.resume(self.applied)
        self._accepting = True
        return seeks

    async def _take_over(self, station: Station, partitions: list[int], bounds: Bounds) -> dict[Target, int]:
        lane, store = station.lane, station.store
        values = await store.read({p: [HEAD, *lane.own_fields] for p in partitions})
        found = {p: values[p][0] or b"" for p in partitions}
        heads = await heads_of(station, found, bounds, self._tails, self._schema_hash)
        # A new writer in the head fences the earlier owner before its tails are read: it can no longer apply.
        fenced = {p: self._signed(head.offsets, head.outputs, head.watermark, lane) for p, head in heads.items()}
        await store.apply([Write(p, found[p], encode_head(fenced[p]), {}) for p in partitions])
        positions = {(t, p): o for p in partitions for t, o in fenced[p].outputs.items()}
        await self._publisher.settle()
        tails = await self._tails.read(positions)
        seeks = {}
        for p in partitions:
            station.heads[p] = fenced[p], encode_head(fenced[p])
            lane.resume(p, fenced[p].offsets, fenced[p].watermark, values[p][1:])
            station.answered[p] = lane.adopt(p, {t: tails[t, p] for t in lane.outputs})
            self._quarantine.adopt(tails[lane.outputs[-1], p], lane.topics)
            station.ends[p] = {t: positions[t, p] + len(tails[t, p]) for t in lane.outputs}
            for topic in lane.topics:
                seeks[topic, p] = self.applied[topic, p] = fenced[p].offsets.get(topic, bounds.first.get((topic, p), 0))
        return seeks

    def _signed(self, offsets: dict[str, int], outputs: dict[str, int], watermark: Watermark, lane: Lane) -> Head:
        writer = f"{self._worker}:{next(self._numbers)}"
        return Head(offsets, outputs, self._schema_hash, lane.partitions, writer, watermark)

    @property
    def records_max(self) -> int:
        """How many records of one partition every lane takes in one cycle."""
        return min(station.lane.records_max for station in self.stations)

    # -- running cycles -----------------------------------------------------------------------------------------

    async def process(self, fetched: Fetched, lagging: Callable[[Target], bool]) -> None:
        """Run the cycles that a fetch is worth; returns when the last one is computed, not when it is applied.

        Raises
        ------
        HeadraceError
            If this or an earlier cycle failed; :meth:`abandon` and :meth:`assign` are the way on.
        """
        rest: dict[Target, Sequence[Record]] = {target: records for target, records in fetched.items() if records}
        epoch = self._epoch
        while True:
            now, later = self._quarantine.share(rest) if self._quarantine.limit else self._share(rest)
            slots = self._slots
            if slots.locked():
                self._applier.hurry()
            await slots.acquire()
            started = False
            try:
                await self._confirm(epoch)
                async with self._computing:
                    started = await self._compute(now, lagging_after(later, lagging), slots, epoch)
            finally:
                if not started:
                    slots.release()
            if not later:
                return
            rest = later

    def _share(self, rest: Fetched) -> tuple[dict[Target, Sequence[Record]], dict[Target, Sequence[Record]]]:
        """What one cycle takes of the records, and the others."""
        now: dict[Target, Sequence[Record]] = {}
        later: dict[Target, Sequence[Record]] = {}
        for station in self.stations:
            limit = station.lane.records_max
            for target, records in rest.items():
                if target[0] in station.lane.topics:
                    now[target] = records[:limit]
                    if len(records) > limit:
                        later[target] = records[limit:]
        return now, later

    async def _confirm(self, epoch: int) -> None:
        """Ask whether the partitions are still this worker's, if the last cycle began longer ago than the lease.

        Cycles begin several times a second, also without records. A process that slept through its session would
        otherwise answer what the next owner has answered already.
        """
        slept_s = time.monotonic() - self._awake_s
        if slept_s > self._lease_s:
            if self._tasks:
                await asyncio.wait(self._tasks)  # they change the heads
            for station in self.stations:
                heads = {p: head for p, (_, head) in station.heads.items()}
                found = await station.store.read({p: [HEAD] for p in heads}) if heads else {}
                for p, (head,) in found.items():
                    if head != heads[p] and epoch == self._epoch:
                        raise conflict(p, head or b"")
        self._awake_s = time.monotonic()

    async def _compute(self, fetched: Fetched, lagging: Callable[[Target], bool], slots: asyncio.Semaphore,
                       epoch: int) -> bool:  # fmt: skip
        """Steps 1 to 4 of one cycle; whether there was anything to do, and so a task that will free the slot."""
        self._raise_failure()
        if not self._accepting or epoch != self._epoch:
            return False  # given up while the fetch waited for its turn; whoever takes over reads it again
        if self._quarantine.blamed:
            fetched = self._quarantine.veiled(fetched)
        tally, now_s = Tally(), time.monotonic()
        self._cycle += 1
        cycle, settled, models = self._cycle, self._applier.settled, self.models.current
        taken = []
        for station in self.stations:
            topics = station.lane.topics
            records = {p: {t: fetched.get((t, p), ()) for t in topics} for p in station.heads}
            taken.append((records, {p: lagging((topics[0], p)) for p in records}))
        threaded = sum(map(len, fetched.values())) >= _THREAD_FROM

        def begin() -> list[tuple[Any, dict[int, list[bytes]]]]:
            with tally.stage("decode"):
                # Here and nowhere else: between what is wanted and what is filled in, no cached row may go.
                for station in self.stations:
                    station.lane.evict(settled)
                pairs = zip(self.stations, taken, strict=True)
                work = [station.lane.begin(*mine, tally) for station, mine in pairs]
                return [(part, station.lane.wanted(part, cycle, now_s))
                        for station, part in zip(self.stations, work, strict=True)]  # fmt: skip

        def compute() -> list[tuple[Station, Produced]]:
            produced: list[tuple[Station, Produced]] = []
            for station, (part, _), values in zip(self.stations, work, found, strict=True):
                with tally.stage("read"):
                    station.lane.fill(part, values, now_s)
                produced += [(station, p) for p in station.lane.compute(part, models, cycle, tally)]
            return produced

        work: list[tuple[Any, dict[int, list[bytes]]]] = []
        try:
            work = await self._apart(begin, threaded=threaded)
            if not any(part for part, _ in work):
                return False
            with tally.stage("read"):
                wanted = zip(self.stations, work, strict=True)
                found = await asyncio.gather(*(station.read(fields) for station, (_, fields) in wanted))
            produced = await self._apart(compute, threaded=threaded)
        except HeadraceError:
            raise
        except Exception as error:
            raise await self._suspect(error, fetched, [part for part, _ in work]) from error
        if self._quarantine.limit:
            self._passed([part for part, _ in work], [part for _, part in produced])
        outputs: dict[Target, Sequence[Message]] = {}
        for _, part in produced:
            for topic, messages in part.messages.items():
                target = topic, part.partition
                outputs[target] = [*outputs[target], *messages] if target in outputs else messages
        start = time.perf_counter()
        self._applier.begun(cycle)
        pending = await self._publisher.send(outputs)
        previous = self._tasks[-1] if self._tasks else None
        task = asyncio.create_task(self._finish(cycle, previous, pending, produced, tally, start))
        task.add_done_callback(lambda _: slots.release())
        self._tasks.append(task)
        self._metrics.in_flight.set(len(self._tasks))
        return True

    async def _suspect(self, error: Exception, fetched: Fetched, work: Sequence[Any]) -> HeadraceError:
        """Our own code raised: see to it that the next try begins at this cycle, with fewer records."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        suspects = [(target, record.offset) for target, records in fetched.items() for record in records]
        if work:
            suspects = [source for s, part in zip(self.stations, work, strict=True) for source in s.lane.sources(part)]
        return self._failed(error, suspects)

    def _failed(self, error: Exception, suspects: Sequence[Source]) -> HeadraceError:
        failure = self._quarantine.failed(error, suspects)
        self._narrow()
        return failure

    def _unapplied(self, produced: Sequence[Produced]) -> list[Source]:
        ends = {(topic, part.partition): end for part in produced for topic, end in part.offsets.items()}
        return [(target, offset) for target, end in ends.items() for offset in range(self.applied[target], end)]

    def _passed(self, work: Sequence[Any], produced: Sequence[Produced]) -> None:
        good = sum(len(s.lane.sources(part)) for s, part in zip(self.stations, work, strict=True))
        reached_ = {(topic, p.partition): offset for p in produced for topic, offset in p.offsets.items()}
        self._quarantine.passed(good, reached_)
        self._narrow()

    def _narrow(self) -> None:
        for station in self.stations:
            station.lane.narrow(self._quarantine.limit)

    async def _apart(self, work: Callable[[], _T], *, threaded: bool) -> _T:
        """Do a step of a large cycle in a thread; acknowledgements and writes of earlier cycles go on meanwhile."""
        if not threaded:
            return work()
        done = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])  # nobody may touch the lanes before it is over
            raise

    async def held(self) -> dict[str, Held]:
        """What the lanes' caches hold, looked at between two cycles."""
        async with self._computing:
            return {name: held for station in self.stations for name, held in station.lane.held().items()}

    async def _finish(self, cycle: int, previous: asyncio.Task[None] | None,
                      pending: Sequence[Pending], produced: list[tuple[Station, Produced]],
                      tally: Tally, start: float) -> None:  # fmt: skip
        """Steps 5 to 7, in order of the cycles. A task that failed stays in the list, for the next cycle to find."""
        positions = await self._publisher.acknowledged(pending)
        tally.seconds["produce"] = time.perf_counter() - start
        answered_ms = time.time() * 1000
        self._applier.answered(cycle, produced, positions)
        if previous is not None:
            await previous
        start = time.perf_counter()
        try:
            if cycle > self._applier.settled:  # else one before has taken it along
                await self._applier.apply(cycle, crowded=self._slots.locked)
        except HeadraceError:
            raise
        except Exception as error:  # of the state's encoding, which may have gone on until now
            raise self._failed(error, self._unapplied([part for _, part in produced])) from error
        tally.seconds["apply"] = time.perf_counter() - start
        self._metrics.settled(tally, answered_ms)
        self._warn_wrong_partition(tally.dead_letters.get("wrong_partition", 0))
        self._tasks.remove(asyncio.current_task())  # type: ignore[arg-type]

    def _warn_wrong_partition(self, count: int) -> None:
        """A producer with another partitioner would split the state of its keys; that must not go unseen."""
        self._misplaced += count
        if count and time.monotonic() >= self._warn_after_s:
            log.error(
                "%d records lie in another partition than murmur2 of their key gives and became dead letters: a "
                "producer uses another partitioner. See `headrace watch dead-letters --reason wrong_partition`; "
                "`headrace repartition` copies a topic as it must be", self._misplaced,
            )  # fmt: skip
            self._warn_after_s = time.monotonic() + _WARN_EVERY_S

    # -- stopping and failing -----------------------------------------------------------------------------------

    def _raise_failure(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    @property
    def waiting(self) -> dict[Target, int]:
        """Records that are decoded and wait for their time, by the partition they came from."""
        return {(s.lane.topics[-1], p): n for s in self.stations for p, n in s.lane.waiting().items()}

    async def drain(self, deadline_s: float) -> None:
        """Take no more records, and wait until every cycle in flight is applied.

        Raises
        ------
        TimeoutError
            If the deadline passes first.
        HeadraceError
            If one of them failed.
        """
        async with asyncio.timeout(deadline_s):
            async with self._computing:
                self._accepting = False
            for task in list(self._tasks):
                await asyncio.shield(task)

    async def abandon(self) -> None:
        """Give up the cycles in flight and forget all partitions; what they did not apply is read again."""
        async with self._computing:
            self._accepting = False
            self._epoch += 1
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for station in self.stations:
                for partition in station.heads:
                    station.lane.drop(partition)
                station.heads.clear()
            self.applied.clear()
            self._applier.forget()
            self._slots = asyncio.Semaphore(self._in_flight)
