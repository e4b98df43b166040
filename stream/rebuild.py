"""``headrace rebuild``: makes the state in Redis anew from the archive and the topics, exactly as the worker left it.

In: inputs and decisions, from the archive first and from the topics where it ends. Out: state in an empty namespace, or
one that it was told to replace. The worker's own lanes decode, order and fold; each transaction gets the decision that
was emitted and comes after the labels that this decision had seen, and no answer is sent.

1. it is refused while a worker of the group runs, where state lies already, and where records or decisions are missing;
2. how far: to the applied offsets in the heads that are replaced, else to what the group has committed, which a worker
   does only with what it has answered and applied;
3. each partition is folded under a key of its own, which no worker reads;
4. it takes the place of what was there, with a head at the offsets of 2 and with the positions of the answers beyond
   them, so that the next worker adopts what was emitted and not applied, and answers the rest.

Killed or refused before 4, it has changed nothing. Step 4 compares the head that it replaces: a worker that has written
meanwhile keeps its state, and one that writes afterwards loses its compare-and-set.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import msgspec
from aiokafka import TopicPartition

from features.catalogue import build_catalogue
from features.errors import StateError, StateMissing
from features.schema import Schema
from features.warm import warm
from stream.ab_settings import AbSettings
from stream.answered import unapplied_answers
from stream.archive import archive_store
from stream.archived import Archive
from stream.connections import check_redis, kafka_consumer, kafka_errors, kafka_losses, redis_client
from stream.cycle import Pipeline
from stream.fraud import FraudLane
from stream.group import committed_offsets, refuse_while_worked
from stream.lane import Lane, Target
from stream.metrics import Metrics
from stream.offsets import offset_range
from stream.progress import progress_bar
from stream.recommend import RecommendLane
from stream.refeed import ClickFeed, Decided, FraudFeed, Reach, Reader, Records
from stream.settings import Settings
from stream.silent import NoLists, Silent, Unscored
from stream.station import Bounds, Station
from stream.store import HEAD, Head, StateStore, Write, encode_head
from stream.topics import require_all_topics

_DRAIN_S = 60.0
Report = Callable[[int, int], None]


@dataclass(slots=True)
class Rebuilt:
    """What was done: records folded by where they came from, partitions by lane, seconds."""

    archived: int = 0
    fetched: int = 0
    partitions: dict[str, int] = field(default_factory=dict)
    left_out: int = 0  # transactions that were dead letters under the schema before
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Goal:
    """How far the partitions of a lane go: applied offsets by input partition, and where their answers begin."""

    offsets: Mapping[Target, int]
    outputs: Mapping[Target, int]
    partitions: tuple[int, ...]


class Rebuild:
    """One rebuilding of all partitions of both lanes."""

    def __init__(self, settings: Settings, schema: Schema, stores: Mapping[str, StateStore], archive: Archive | None,
                 models: Any) -> None:  # fmt: skip
        worker = replace(settings.worker, vector_log=None, vector_sample=0.0, list_ttl_s=0, degrade=False,
                         online_learning=False)  # fmt: skip
        self._settings = settings = replace(settings, worker=worker, ab=AbSettings())  # state knows no variants
        self._schema = schema
        self._archive = archive
        self._models = models
        fraud = FraudLane(settings, build_catalogue(schema.transactions))
        self._fraud = fraud
        self._lanes: tuple[Lane, ...] = (fraud, RecommendLane(settings, NoLists()))
        self._stores = stores
        self._drafts = {name: store.draft() for name, store in stores.items()}
        self._found: dict[Target, bytes] = {}  # by lane and partition, the bytes of the head that is replaced
        self._heads: dict[Target, Head] = {}
        self._other_schema = False  # than that of the state which is replaced
        self._left_out = 0
        self._reaches: dict[Target, Reach] = {}

    async def run(self, *, replace_state: bool, partial: bool, report: Report) -> Rebuilt:
        """The steps of the module's text.

        Raises
        ------
        StateError
            If there is state already, or a worker runs.
        StateMissing
            If records or decisions are missing, and the rebuilding may not be a partial one.
        ServiceUnavailable
            If Kafka, Redis or the archive cannot be reached.
        """
        began_s = time.monotonic()
        await refuse_while_worked(self._settings)
        for lane in self._lanes:
            await self._find_heads(lane, replace_state=replace_state)
        committed = await committed_offsets(self._settings)
        await self._look_around()
        goals = {lane.name: await self._goal(lane, committed) for lane in self._lanes}
        self._check_gaps(goals, partial=partial)
        for lane in self._lanes:
            for partition in goals[lane.name].partitions:
                await self._drafts[lane.name].clear(partition)
        done = await self._fold(goals, partial=partial, report=report)
        done.seconds = time.monotonic() - began_s
        return done

    # -- 1, 2: what is there ------------------------------------------------------------------------------------

    async def _find_heads(self, lane: Lane, *, replace_state: bool) -> None:
        """Read the heads that are replaced, if they may be."""
        store = self._stores[lane.name]
        values = await store.read({p: [HEAD] for p in range(lane.partitions)})
        filled = await store.filled(list(range(lane.partitions)))
        for p, (value,) in values.items():
            if filled[p] and not replace_state:
                raise StateError(
                    f"There is state at {store.key(p)} already; stop the workers and give --replace to have it made "
                    "anew, or another redis.namespace"
                )
            self._found[lane.name, p] = value or b""
            head = _decoded(value) if value else None
            if head is None:
                continue
            if head.partitions != lane.partitions:
                raise StateError(
                    f"the state at {store.key(p)} is of topics with {head.partitions} partitions, there are "
                    f"{lane.partitions} now: its offsets mean nothing here. Use another redis.namespace and "
                    "worker.group, or restore the count"
                )
            self._heads[lane.name, p] = head
            self._other_schema |= head.schema != self._schema.hash

    async def _look_around(self) -> None:
        """Find out what the topics and the archive hold."""
        topics = self._settings.topics
        kinds: dict[str, Any] = {topics.transactions: "transactions", topics.labels: "labels", topics.clicks: "clicks",
                                 topics.decisions: "decisions"}  # fmt: skip
        counts = topics.partitions()
        places = [TopicPartition(topic, p) for topic in kinds for p in range(counts[topic])]
        for place, (first, end) in (await offset_range(self._settings.kafka, places)).items():
            target = (place.topic, place.partition)
            archived = self._archive.ranges(*target) if self._archive is not None else []
            self._reaches[target] = Reach(place, kinds[place.topic], archived, first, end)

    async def _goal(self, lane: Lane, committed: Mapping[Target, int]) -> _Goal:
        """How far a lane goes."""
        offsets: dict[Target, int] = {}
        known: dict[Target, int] = {}
        wanted: dict[Target, dict[str, int]] = {}
        for p in range(lane.partitions):
            head = self._heads.get((lane.name, p))
            for topic in lane.topics:
                at = committed.get((topic, p), self._reaches[topic, p].first)
                offsets[topic, p] = head.offsets.get(topic, at) if head is not None else at
            for topic in lane.outputs:
                if head is not None and topic in head.outputs:
                    known[topic, p] = head.outputs[topic]
                else:
                    wanted[topic, p] = {t: offsets[t, p] for t in lane.topics if _answers(lane, topic, t)}
        found = await unapplied_answers(self._settings.kafka, wanted) if wanted else {}
        places = [TopicPartition(*target) for target in found]
        ends = await offset_range(self._settings.kafka, places) if places else {}
        answered = {t[1] for t, position in found.items() if position < ends[TopicPartition(*t)][1]}
        answered |= {p for (name, p) in self._heads if name == lane.name}
        begun = {p for p in range(lane.partitions) if p in answered or any((t, p) in committed for t in lane.topics)}
        return _Goal(offsets, known | found, tuple(sorted(begun)))

    def _check_gaps(self, goals: Mapping[str, _Goal], *, partial: bool) -> None:
        problems = []
        for lane in self._lanes:
            goal = goals[lane.name]
            for (topic, p), offset in goal.offsets.items():
                if p in goal.partitions:
                    lost = self._reaches[topic, p].gaps(offset)
                    problems += [f"records {a} to {b} of {topic} partition {p}" for a, b in lost]
        if problems and not partial:
            raise StateMissing(
                f"{'; '.join(problems)} are neither in the archive nor in the topic any more; --partial goes on "
                "without them, and state is then what the others give"
            )

    # -- 3, 4: folding ------------------------------------------------------------------------------------------

    async def _fold(self, goals: Mapping[str, _Goal], *, partial: bool, report: Report) -> Rebuilt:
        positions: dict[Target, int] = {}
        for goal in goals.values():
            for target, at in goal.outputs.items():  # dead letters answer both lanes: the earlier position has all
                positions[target] = min(at, positions.get(target, at))
        silent: Any = Silent(positions)
        stations = [Station(lane, self._drafts[lane.name], {}) for lane in self._lanes]
        models = SimpleNamespace(current=SimpleNamespace(version="", fraud=self._models or Unscored(),
                                                         recommender=Unscored()))  # fmt: skip
        pipeline = Pipeline(stations, silent, silent, models, Metrics(), self._schema.hash, 4, math.inf)
        starts = {target: reach.start for target, reach in self._reaches.items()}
        ends = {target: max(reach.end, starts[target]) for target, reach in self._reaches.items()}
        await pipeline.assign({name: goal.partitions for name, goal in goals.items()},
                              Bounds(starts, ends, dict.fromkeys(starts)))  # fmt: skip
        async with kafka_errors(self._settings.kafka):
            consumer = kafka_consumer(self._settings.kafka, fetch_max_wait_ms=50)
            try:
                await consumer.start()
                consumer.assign([reach.place for reach in self._reaches.values()])
                for reach in self._reaches.values():
                    consumer.seek(reach.place, reach.switch)
                readers = await self._feed(pipeline, goals, consumer, partial=partial, report=report)
            finally:
                await consumer.stop()
        await pipeline.drain(_DRAIN_S)
        for station in stations:
            await self._finish(station, goals[station.lane.name])
        return Rebuilt(sum(reader.from_archive for reader in readers), sum(reader.from_topic for reader in readers),
                       {name: len(goal.partitions) for name, goal in goals.items()}, self._left_out)  # fmt: skip

    def _feeds(
        self, goals: Mapping[str, _Goal], consumer: Any
    ) -> tuple[dict[int, FraudFeed | ClickFeed], dict[int, FraudFeed | ClickFeed], list[Reader]]:
        topics, readers = self._settings.topics, list[Reader]()

        def records(topic: str, p: int, end: int) -> Records:
            readers.append(Reader(self._reaches[topic, p], end, self._archive, consumer))
            return Records(readers[-1])

        fraud, clicks = dict[int, FraudFeed | ClickFeed](), dict[int, FraudFeed | ClickFeed]()
        goal = goals[self._fraud.name]
        for p in goal.partitions:
            decisions = self._reaches[topics.decisions, p]
            decided = Decided(Reader(decisions, decisions.end, self._archive, consumer), topics.transactions)
            labels_end = goal.offsets[topics.labels, p]
            fraud[p] = FraudFeed(
                self._fraud.topics, records(topics.transactions, p, goal.offsets[topics.transactions, p]),
                records(topics.labels, p, max(self._reaches[topics.labels, p].end, labels_end)), decided, labels_end,
            )  # fmt: skip
        goal = goals[self._lanes[1].name]
        for p in goal.partitions:
            clicks[p] = ClickFeed(topics.clicks, records(topics.clicks, p, goal.offsets[topics.clicks, p]))
        return fraud, clicks, readers

    async def _feed(self, pipeline: Pipeline, goals: Mapping[str, _Goal], consumer: Any, *, partial: bool,
                    report: Report) -> list[Reader]:  # fmt: skip
        """Give the lanes everything, a cycle at a time."""
        fraud, clicks, readers = self._feeds(goals, consumer)
        total = sum(max(0, offset - self._reaches[target].start)
                    for goal in goals.values() for target, offset in goal.offsets.items())  # fmt: skip
        done, limit = 0, pipeline.records_max
        while fraud or clicks:
            fetched: dict[Target, Any] = {}
            for feeds in (fraud, clicks):
                for p, feed in list(feeds.items()):
                    chunk = await feed.chunk(limit)
                    if chunk is None:
                        del feeds[p]
                        continue
                    if isinstance(feed, FraudFeed):
                        self._adopt(p, chunk, partial=partial)
                    fetched |= {(topic, p): records for topic, records in chunk.records.items()}
            await pipeline.process(fetched, lambda _: False)
            done += sum(map(len, fetched.values()))
            report(done, max(total, done))
        return readers

    def _adopt(self, partition: int, chunk: Any, *, partial: bool) -> None:
        topic = self._fraud.topics[0]
        records = chunk.records[topic]
        known = {
            f"{topic}:{partition}:{r.offset}": chunk.emitted[r.offset] for r in records if r.offset in chunk.emitted
        }
        if not partial:
            undecided = self._fraud.decidable(partition, [r for r in records if r.offset not in chunk.emitted])
            if undecided and self._other_schema:  # dead letters then, though this schema could read them
                self._left_out += len(undecided)
                chunk.records[topic] = [r for r in records if r not in undecided]
            elif undecided:
                raise StateMissing(
                    f"there is no decision about {topic}:{partition}:{undecided[0].offset}, neither in the archive nor "
                    f"in {self._settings.topics.decisions}, though it was applied; --partial scores such transactions "
                    "with the newest models, and state is then not what it was"
                )
        self._fraud.decide_as(partition, known)

    async def _finish(self, station: Station, goal: _Goal) -> None:
        """Step 4 of the module's text."""
        name = station.lane.name
        for p, (head, raw) in station.heads.items():
            offsets = {t: max(head.offsets.get(t, 0), goal.offsets[t, p]) for t in station.lane.topics}
            new = msgspec.structs.replace(head, offsets=offsets)
            await station.store.apply([Write(p, raw, encode_head(new), {})])
            await self._stores[name].replace_by(station.store, p, self._found[name, p])


def _answers(lane: Lane, output: str, topic: str) -> bool:
    """Whether an output may answer an input: labels have no answers but dead letters, the last output of a lane."""
    return output == lane.outputs[-1] or topic == lane.topics[0]


def _decoded(value: bytes) -> Head | None:
    try:
        return msgspec.json.decode(value, type=Head)
    except msgspec.DecodeError:
        return None


def run(settings: Settings, schema: Schema, *, replace_state: bool, partial: bool) -> None:
    """Rebuild from a command line, with a progress bar and a summary.

    Raises
    ------
    HeadraceError
        If it may not or cannot be done.
    """
    from stream.models import ModelHolder

    warm()
    models = None
    if partial:
        names = build_catalogue(schema.transactions).names
        models = ModelHolder(settings.artifacts, schema.hash, names, Metrics(), meanwhile=lambda: None).current.fraud

    async def main() -> Rebuilt:
        archive = await asyncio.to_thread(lambda: Archive(archive_store(settings))) if settings.archive.url else None
        redis = redis_client(settings.redis)
        try:
            await check_redis(redis, settings.redis)
            await require_all_topics(settings)
            stores = {name: StateStore(redis, settings.redis, settings.worker.group, name)
                      for name in (FraudLane.name, RecommendLane.name)}  # fmt: skip
            rebuild = Rebuild(settings, schema, stores, archive, models)
            with progress_bar("rebuilding", 0) as advance:
                return await rebuild.run(replace_state=replace_state, partial=partial, report=advance)
        finally:
            await redis.aclose()

    with kafka_losses(settings.kafka):
        done = asyncio.run(main())
    partitions = " and ".join(f"{count} partitions of {name}" for name, count in done.partitions.items())
    print(
        f"rebuilt {partitions} from {done.archived + done.fetched:,} records ({done.archived:,} of the archive, "
        f"{done.fetched:,} of the topics) in {done.seconds:.1f} s; workers go on where the last ones were"
        + (f"; {done.left_out:,} transactions were no decisions under the schema before" if done.left_out else ""),
        file=sys.stderr,
    )
