"""A pipeline without servers: Kafka and Redis as lists and dicts in memory, with faults on request."""

from __future__ import annotations

import asyncio
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.catalogue import build_catalogue
from features.errors import ComputeFailed, RedisUnavailable, ServiceUnavailable, StateConflict
from features.hashing import hash_strings, partitions_of
from features.listing import Clicked, Lister, Lists
from features.messages import Reason, RecommendedItem
from features.rungs import PLAIN
from features.schema import load_schema
from features.scoring import Thresholds
from features.shelf import Shelf
from stream.cycle import Pipeline
from stream.fraud import FraudLane
from stream.lane import Lane, Message, Target
from stream.metrics import Metrics
from stream.recommend import RecommendLane
from stream.rules import RulesHolder
from stream.settings import Settings, TopicSettings, WorkerSettings
from stream.station import Bounds, Station
from stream.store import FIELDS_MAX, HEAD, Write, conflict

SCHEMA = load_schema()
START_MS = 1_600_000_000_000


class FakeRecord(NamedTuple):
    """A Kafka record."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int


class Log:
    """The input topics. Each record lies where its key says."""

    def __init__(self, partitions: int = 1) -> None:
        self.partitions = partitions
        self.records: dict[Target, list[FakeRecord]] = defaultdict(list)

    def append(self, topic: str, key: str, message: Any, partition: int | None = None) -> None:
        """Add a message (anything that JSON can hold, or bytes as they are)."""
        number = int(partitions_of([key.encode()], self.partitions)[0]) if partition is None else partition
        value = message if isinstance(message, bytes) else msgspec.json.encode(message)
        found = self.records[topic, number]
        found.append(FakeRecord(topic, number, len(found), key.encode(), value, START_MS + 10**9))

    def pay(self, id_: str, after_ms: int, card: str = "c", merchant: str = "m", amount: float = 10.0) -> None:
        """Add a transaction."""
        self.append("transactions", card, {"event_id": id_, "event_time": START_MS + after_ms, "card_id": card,
                                           "merchant_id": merchant, "amount": amount})  # fmt: skip

    def judge(self, id_: str, after_ms: int, fraud: bool, card: str = "c", merchant: str = "m") -> None:
        """Add a label."""
        self.append("labels", card, {"event_id": id_, "label_time": START_MS + after_ms, "card_id": card,
                                     "merchant_id": merchant, "is_fraud": fraud})  # fmt: skip

    def click(self, id_: str, after_ms: int, session: str, item: str, user: str | None = None, action: str = "view"
              ) -> None:  # fmt: skip
        """Add a click."""
        message = {"event_id": id_, "event_time": START_MS + after_ms, "session_id": session, "user_id": user,
                   "item_id": item, "action": action}  # fmt: skip
        self.append("clicks", user or session, message)


class MemoryStore:
    """What StateStore does, on a dict. ``fault`` names what happens to the next apply; ``pause`` slows every call."""

    def __init__(self, hashes: dict[int, dict[bytes, bytes]], lane: str) -> None:
        self.hashes = hashes
        self.lane = lane
        self.fault = ""
        self.pause = 0

    def key(self, partition: int) -> str:
        """A name for messages."""
        return f"{self.lane}:{partition}"

    async def _wait(self) -> None:
        for _ in range(self.pause):
            await asyncio.sleep(0)

    async def read(self, wanted: Mapping[int, Sequence[bytes]]) -> dict[int, list[bytes | None]]:
        """As StateStore."""
        await self._wait()
        return {p: [self.hashes.get(p, {}).get(name) for name in fields] for p, fields in wanted.items()}

    async def begin_with(self, partition: int, fields: Mapping[bytes, bytes]) -> bool:
        """As StateStore."""
        await self._wait()
        if self.hashes.get(partition):
            return False
        self.hashes[partition] = dict(fields)
        return True

    async def filled(self, partitions: Sequence[int]) -> dict[int, bool]:
        """As StateStore."""
        await self._wait()
        return {p: bool(self.hashes.get(p)) for p in partitions}

    async def clear(self, partition: int) -> None:
        """As StateStore."""
        await self._wait()
        self.hashes.pop(partition, None)

    def draft(self) -> MemoryStore:
        """As StateStore."""
        return MemoryStore({}, self.lane)

    async def replace_by(self, draft: MemoryStore, partition: int, expected: bytes) -> None:
        """As StateStore."""
        await self._wait()
        found = self.hashes.get(partition, {}).get(HEAD, b"")
        if found != expected:
            raise conflict(partition, found)
        self.hashes[partition] = draft.hashes.pop(partition)

    async def scan(self, partition: int, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
        """As StateStore; fields come by their checksum, so that a removal in between hides none of the others."""
        await self._wait()
        held = self.hashes.get(partition, {})
        rest = sorted(place for name in held if (place := zlib.crc32(name)) >= cursor)
        after = rest[count] if len(rest) > count else 0
        part = {name: value for name, value in held.items()
                if cursor <= zlib.crc32(name) < (after or 1 << 32) and name != HEAD}  # fmt: skip
        return after, part

    async def remove(self, partition: int, owner: str, fields: Mapping[bytes, bytes]) -> int:
        """As StateStore."""
        await self._wait()
        held = self.hashes.get(partition, {})
        if b'"writer":"%s:' % owner.encode() not in held.get(HEAD, b""):
            raise StateConflict(f"partition {partition} was written by another worker")
        gone = [name for name, value in fields.items() if held.get(name) == value]
        for name in gone:
            del held[name]
        return len(gone)

    async def apply(self, writes: Sequence[Write]) -> None:
        """As StateStore; what a script of Redis cannot pass on is refused as loudly as there."""
        await self._wait()
        assert all(len(write.fields) <= FIELDS_MAX for write in writes), "too many results to unpack"
        fault, self.fault = (self.fault, "") if any(write.fields for write in writes) else ("", self.fault)
        if fault == "down":
            raise RedisUnavailable("Redis is down")
        lost = []
        for write in writes:
            held = self.hashes.setdefault(write.partition, {})
            found = held.get(HEAD, b"")
            if found == write.expected:
                held |= {HEAD: write.head, **write.fields}
            elif found != write.head:
                lost.append(conflict(write.partition, found))
        if fault == "lost reply":
            raise RedisUnavailable("the reply was lost")
        if lost:
            raise lost[0]


class MemoryPublisher:
    """What Publisher does, on lists. ``fault`` names what happens to the next cycle's answers."""

    def __init__(self, logs: dict[Target, list[Message]]) -> None:
        self.logs = logs
        self.fault = ""

    async def settle(self) -> None:
        """As Publisher."""

    async def send(self, outputs: Mapping[Target, Sequence[Message]]) -> Any:
        """As Publisher."""
        fault, self.fault = self.fault, ""
        for number, (target, messages) in enumerate(outputs.items()):
            if fault != "refused" and (fault != "half written" or number % 2 == 0):
                self.logs[target] += messages
        return {target: len(self.logs[target]) for target in outputs}, fault

    async def acknowledged(self, pending: Any) -> dict[Target, int]:
        """As Publisher."""
        await asyncio.sleep(0)
        positions, fault = pending
        if fault:
            raise ServiceUnavailable("Kafka did not acknowledge")
        return dict(positions)


class MemoryTails:
    """What TailReader does, on the publisher's lists."""

    def __init__(self, logs: dict[Target, list[Message]]) -> None:
        self._logs = logs

    async def ends(self, targets: list[Target]) -> dict[Target, int]:
        """As TailReader."""
        return {target: len(self._logs[target]) for target in targets}

    async def read(self, positions: Mapping[Target, int]) -> dict[Target, list[bytes]]:
        """As TailReader."""
        await asyncio.sleep(0)
        return {target: [value for _, value in self._logs[target][position:]] for target, position in positions.items()}


class FakeFraud:
    """Scores depend on the vector, so that a wrong vector is a wrong decision."""

    thresholds = Thresholds(0.5, 0.8)

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def score_many(
        self, x: NDArray[np.float64], beside: object = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """As FraudModel."""
        score = (np.nan_to_num(x, nan=0.5) @ np.linspace(0.01, 0.02, x.shape[1]) + self.shift) % 1.0
        return score, 1.0 - score

    def reasons_many(self, rows: NDArray[np.float64]) -> list[list[Reason]]:
        """As FraudModel."""
        return [[Reason(feature="event_amount", value=float(row[0]), contribution=1.0, text="amount")] for row in rows]

    def probability_many(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """As FraudModel."""
        return self.score_many(x)[0]

    def anomaly_many(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """As FraudModel."""
        return self.score_many(x)[1]


class FakeRecommender:
    """Answers with the session's own items, newest first."""

    def recommend_many(self, hashes: NDArray[np.uint64], counts: NDArray[np.int64], k: int, how: Any = None) -> Any:
        """As Recommender."""
        items = np.full((len(hashes), k), -1, np.int32)
        for i, count in enumerate(counts):
            items[i, :count] = (hashes[i, :count][::-1] % np.uint64(1 << 31)).astype(np.int32)
        return items, np.ones((len(hashes), k), np.float32)

    def numbers_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """As Recommender; it knows every item but those whose hash is odd."""
        return np.where(hashes % np.uint64(2) == 0, (hashes % np.uint64(1 << 31)).astype(np.int32), np.int32(-2))

    def item_id(self, number: int) -> str:
        """As Recommender."""
        return str(number)


class FakeLister(Lister):
    """Lists of a fake recommender without a filter; those of a real one as ever."""

    def lists(self, model: Any, clicked: Clicked, k: int, how: Any = PLAIN, trends: Any = None) -> Lists:
        """As Lister."""
        if not isinstance(model, FakeRecommender):
            return super().lists(model, clicked, k, how, trends)
        numbers, scores = model.recommend_many(clicked.hashes, clicked.counts, k)
        items = [[RecommendedItem(model.item_id(n), s) for n, s in zip(*row, strict=True) if n >= 0]
                 for row in zip(numbers.tolist(), scores.tolist(), strict=True)]  # fmt: skip
        return Lists(items, [msgspec.UNSET] * len(items))


def item_number(item: str) -> str:
    """What FakeRecommender calls an item."""
    return str(int(hash_strings([item])[0] % np.uint64(1 << 31)))


class World:
    """The servers that outlive a worker, and the input."""

    def __init__(self, partitions: int = 1) -> None:
        self.log = Log(partitions)
        self.hashes: dict[str, dict[int, dict[bytes, bytes]]] = {"fraud": {}, "recommend": {}}
        self.outputs: dict[Target, list[Message]] = defaultdict(list)
        self.recommender: Any = FakeRecommender()
        self.policy: dict[str, Any] = {}  # settings of its workers

    def worker(self, *, in_flight: int = 4, cache: int = 1000, refresh_ms: int = 0, shift: float = 0.0,
               lease_s: float = 60.0, sample: float = 0.0, rules: RulesHolder | None = None,
               **worker: Any) -> FakeWorker:  # fmt: skip
        """A worker that has read nothing yet."""
        return FakeWorker(self, in_flight, cache, refresh_ms, shift, lease_s, sample, rules, **self.policy | worker)

    def answers(self, topic: str) -> list[dict[str, Any]]:
        """All messages of an output topic."""
        return [msgspec.json.decode(value) for (t, _), outputs in sorted(self.outputs.items()) if t == topic
                for _, value in outputs]  # fmt: skip

    def state(self) -> dict[str, dict[int, dict[bytes, bytes]]]:
        """All state but the heads, which hold the writer's name."""
        return {lane: {p: {k: v for k, v in held.items() if k != b"@"} for p, held in hashes.items()}
                for lane, hashes in self.hashes.items()}  # fmt: skip


class FakeWorker:
    """A pipeline and how far it has read."""

    def __init__(self, world: World, in_flight: int, cache: int, refresh_ms: int, shift: float,
                 lease_s: float, sample: float = 0.0, rules: RulesHolder | None = None,
               **worker: Any) -> None:  # fmt: skip
        n = world.log.partitions
        self.world = world
        self.settings = Settings(
            topics=TopicSettings(transaction_partitions=n, click_partitions=n),
            worker=WorkerSettings(
                cache_sessions=cache,
                foreign_refresh_ms=refresh_ms,
                ahead_max_s=86_400.0 * 365,
                vector_sample=sample,
                **{"reasons_share": 1.0, "degrade": False, "online_learning": False} | worker,
            ),
        )
        fraud = FraudLane(self.settings, build_catalogue(SCHEMA.transactions), rules=rules)
        fraud.cache_bytes = cache * fraud.caches[-1].row_bytes
        clicks = RecommendLane(self.settings, FakeLister(Shelf()))
        clicks.suspects = fraud.suspects
        lanes: list[Lane] = [fraud, clicks]
        self.stores = {lane.name: MemoryStore(world.hashes[lane.name], lane.name) for lane in lanes}
        stations = [Station(lane, self.stores[lane.name], {}) for lane in lanes]  # type: ignore[arg-type]
        self.publisher = MemoryPublisher(world.outputs)
        current = SimpleNamespace(version="000001", fraud=FakeFraud(shift), recommender=world.recommender,
                                  b=None)  # fmt: skip
        models = SimpleNamespace(current=current)
        self.metrics = Metrics()
        self.models = current
        self.pipeline = Pipeline(stations, self.publisher, MemoryTails(world.outputs), models,  # type: ignore[arg-type]
                                 self.metrics, SCHEMA.hash, in_flight, lease_s)  # fmt: skip
        self.positions: dict[Target, int] = {}

    async def take_over(self, partitions: Sequence[int] | None = None) -> None:
        """As the consumer does on assignment."""
        log = self.world.log
        numbers = range(log.partitions) if partitions is None else partitions
        await self.pipeline.abandon()
        topics = ("transactions", "labels", "clicks")
        ends = {(t, p): len(log.records[t, p]) for t in topics for p in numbers}
        bounds = Bounds(first=dict.fromkeys(ends, 0), end=ends, committed=dict.fromkeys(ends))
        self.positions = await self.pipeline.assign({"fraud": numbers, "recommend": numbers}, bounds)

    async def fetch(self, counts: int | Mapping[str, int] = 1_000_000) -> bool:
        """Fetch so many records of each partition (or topic) and run the cycles; whether there was anything left."""
        fetched: dict[Target, Sequence[FakeRecord]] = {}
        log = self.world.log.records
        for target, position in self.positions.items():
            count = counts if isinstance(counts, int) else counts.get(target[0], 0)
            fetched[target] = log[target][position : position + count]
            self.positions[target] += len(fetched[target])
        await self.pipeline.process(fetched, lambda target: self.positions[target] < len(log[target]))
        return any(fetched.values()) or bool(self.pipeline.waiting)

    async def settle(self, counts: int | Mapping[str, int] = 0) -> None:
        """Fetch once more, let every cycle be applied, and stay ready for more."""
        if counts:
            _ = await self.fetch(counts)
        await self.pipeline.drain(5.0)
        self.pipeline._accepting = True

    async def finish(self, counts: int = 1_000_000) -> None:
        """Read everything, taking over again whenever something failed, until all is applied."""
        while True:
            try:
                while await self.fetch(counts):
                    await asyncio.sleep(0)
                await self.settle()
            except (ServiceUnavailable, StateConflict, ComputeFailed):
                await self.take_over()
                continue
            return
