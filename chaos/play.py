"""A round: topics, group, Redis and workers of its own, the traffic through them, and what it left behind.

An :class:`Arena` is what rounds share: the broker, its proxy, fitted models. A :class:`Round` is what a fault's
function is given.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from aiokafka import TopicPartition
from redis import Redis
from redis.exceptions import RedisError

from chaos.check import Allowed, Evidence, Verdict, check
from chaos.naive_budget import FIELDS
from chaos.proxy import Judge, Mood, Proxy
from chaos.servers import LoggedRedis, ProxiedKafka
from chaos.traffic import Feeder, Input, Source
from features.schema import Schema
from stream.embedded import LOOPBACK, free_port
from stream.offsets import offset_range
from stream.processes import Child
from tests.servers import RunningBroker, kafka_libs
from tests.workers import Deployment

WAIT_S = 120.0
_POLL_S = 0.05
_STOP_S = 30.0  # a machine with much to do takes its time; the deadline of faults 4 and 5 is measured
ROLES = ("transactions", "labels", "clicks", "decisions", "alerts", "recommendations", "dead_letters")


class Broken(Exception):
    """A round that did not come to its end; the text says where it stood."""


@dataclass(slots=True)
class Arena:
    """What rounds share."""

    directory: Path
    kafka: ProxiedKafka
    proxy: Proxy
    redis_binary: Path
    schema: Schema
    schema_file: Path
    artifacts: Path
    review_score: float
    _rounds: int = 0

    def round(self, number: int, seed: int, turn: int) -> Round:
        """A new round of a fault."""
        self._rounds += 1
        folder = self.directory / f"fault-{number}-{turn}-{self._rounds}"
        return Round(self, folder, Random(f"{seed}:{number}:{turn}"), turn)


@dataclass(frozen=True, slots=True)
class Injury:
    """When a fault struck, and the offsets that were applied then."""

    at_s: float
    applied: dict[tuple[str, int], int]


class ChaosDeployment(Deployment):
    """Workers that reach Kafka and Redis by the proxies, with fail points where they are given."""

    def worker(self, number: int = 1, point: str = "", **more: str) -> Child:
        """A worker process, not started yet. ``more`` are settings, as ``WORKER_CACHE_MB="1"``."""
        folder = self.directory / f"worker-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        module = "chaos.points" if point else "stream.cli"
        environment = self.environment() | {f"HEADRACE_{name}": value for name, value in more.items()}
        once = self.directory / f"once-{point.replace(':', '-')}"  # of the workers with the same points one acts
        chaos = {"CHAOS_POINT": point, "CHAOS_ONCE": str(once)}
        return Child("worker", [sys.executable, "-m", module, "worker"], folder, environment | chaos)


class Round:
    """One round of one fault."""

    def __init__(self, arena: Arena, directory: Path, random: Random, turn: int) -> None:
        self.arena, self.directory, self.random, self.turn = arena, directory, random, turn
        self.kafka, self.kafka_proxy = arena.kafka, arena.proxy
        self.allowed = Allowed()
        self.source = Source(random)
        self.workers: list[Child] = []
        self.recoveries: list[float] = []
        self.notes: list[str] = []  # what was measured beside the invariants
        self.verdict = Verdict()
        self._feeders: list[Feeder] = []
        self._started = 0
        self.cases_per_day = 0  # of all partitions; 0 for none
        self.redis = LoggedRedis(directory / "redis", arena.redis_binary)
        self.redis.start()
        self.redis_proxy = Proxy(free_port(), self.redis.port, framed=False)
        self.deployment = self._deployment()

    def _deployment(self, partitions: int = 4) -> ChaosDeployment:
        broker = RunningBroker("kafka", self.kafka.bootstrap, idempotence=True)
        extra = {
            "KAFKA_BOOTSTRAP": f"{LOOPBACK}:{self.kafka.advertised}",
            "REDIS_URL": f"redis://{LOOPBACK}:{self.redis_proxy.port}/0",
            "REDIS_TIMEOUT_S": "2",
            "WORKER_REVIEW_SCORE": str(self.arena.review_score),
            "WORKER_REASONS_SHARE": "1",  # a zombie and the owner would not have the same time for them
            "WORKER_BLOCK_SCORE": "1",
        }
        if self.cases_per_day:
            extra |= {"WORKER_REVIEW_SCORE": "", "WORKER_CASES_PER_DAY": str(self.cases_per_day)}
        return ChaosDeployment(broker, self.redis.url, self.arena.schema, self.arena.artifacts, self.directory,
                               partitions=partitions, schema_files=(self.arena.schema_file,), extra=extra)  # fmt: skip

    # -- what a fault does with it --------------------------------------------------------------------------------

    def budget(self, cases_per_day: int) -> None:
        """Have the workers keep to an alert budget, and check its state; comes before :meth:`begin`."""
        self.cases_per_day = cases_per_day
        self.deployment = self._deployment()

    def begin(self, workers: int = 1, *, partitions: int = 4, point: str = "", **settings: str) -> None:
        """Create the topics and start workers, with a fail point if one is given; the first to reach it acts."""
        if partitions != self.deployment.partitions:
            self.deployment = self._deployment(partitions)
        self.deployment.create()
        for number in range(workers):
            self.start(point, wait=number == 0, **settings)

    def start(self, point: str = "", *, wait: bool = True, **settings: str) -> Child:
        """Start a worker, and wait until it reads."""
        self._started += 1
        worker = self.deployment.worker(self._started, point, **settings)
        worker.start()
        self.workers.append(worker)
        if wait:
            self.wait_reading(worker)
        return worker

    def wait_reading(self, worker: Child) -> None:
        """Wait until a worker has taken partitions over."""
        self.wait(lambda: self.says(worker, " reading ") or not worker.running(), "the worker reads")
        if not worker.running():
            raise Broken(f"a worker ended at its start with {worker.exit_code()}: {worker.log_tail(5)}")

    def feed(self, transactions: int = 2000, clicks: int = 300, *, rate: float | None = 600.0, labels: bool = True
             ) -> Feeder:  # fmt: skip
        """Begin to send traffic; a rate of None is as fast as it goes."""
        return self.send(self.source.draw(transactions, clicks, labels=labels), rate)

    def send(self, inputs: Sequence[Input], rate: float | None = 600.0) -> Feeder:
        """Begin to send these."""
        feeder = Feeder(self.kafka.bootstrap, self.deployment.topics, inputs, rate)
        self._feeders.append(feeder)
        return feeder

    def own_broker(self) -> None:
        """Have a broker and a proxy of this round alone, to be stopped and emptied; comes before :meth:`begin`."""
        self.kafka = ProxiedKafka(self.directory / "kafka", kafka_libs())
        self.kafka.start()
        self.kafka_proxy = Proxy(self.kafka.advertised, self.kafka.behind, framed=True)
        self.deployment = self._deployment()

    def empty_broker(self) -> None:
        """Have the round's own broker come back without its data, with the same topics."""
        self.kafka.kill()
        self.kafka.forget()
        self.kafka.start()
        self.deployment.create()

    def lose_once(self, judge: Judge, proxy: Proxy | None = None) -> None:
        """Lose one request, or the reply to one, as ``judge`` says; to Kafka unless another proxy is given."""
        proxy = proxy or self.kafka_proxy
        lost = proxy.muted
        proxy.mood = Mood(judge=judge)
        self.wait(lambda: proxy.muted > lost, "a request or its reply is lost")
        proxy.mood = Mood()

    @staticmethod
    def ready(worker: Child) -> bool:
        """Whether a worker's metrics say that it is ready."""
        found = [re.search(r"metrics on http://(\S+)/metrics", text) for text in worker.log_tail(400)]
        where = next((match[1] for match in found if match), None)
        if where is None:
            return False
        with suppress(OSError), urllib.request.urlopen(f"http://{where}/metrics", timeout=5) as page:
            return re.search(rb"^headrace_ready 1", page.read(), re.MULTILINE) is not None
        return False

    def reads(self, worker: Child) -> bool:
        """Whether the last that a worker has taken over is at least one partition."""
        return worker.running() and self.says(worker, " reading ")

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait for a condition.

        Raises
        ------
        Broken
            If it does not come true in time.
        """
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                ends = [f"worker {n}: {w.log_tail(2)}" for n, w in enumerate(self.workers, 1)]
                raise Broken(f"not within {timeout_s:.0f} s: {what}; {'; '.join(ends)}")
            time.sleep(_POLL_S)

    @staticmethod
    def says(worker: Child, *texts: str) -> bool:
        """Whether a worker's log holds all the texts."""
        lines = worker.log_tail(400)
        return all(any(text in line for line in lines) for text in texts)

    def wait_for_end(self, worker: Child, what: str, timeout_s: float = WAIT_S) -> int:
        """Wait until a worker has ended; its exit code."""
        self.wait(lambda: not worker.running(), what, timeout_s)
        code = worker.exit_code()
        assert code is not None
        return code

    def expect(self, ok: bool, what: str) -> None:
        """Note a violation of what the fault must do."""
        if not ok:
            self.verdict.violations.append(f"fault: {what}")

    def applied(self) -> dict[tuple[str, int], int]:
        """The applied offsets that Redis holds now, asked by no proxy; empty while it cannot be asked."""
        with suppress(RedisError, OSError, AssertionError):
            found: dict[tuple[str, int], int] = {}
            for lane in ("fraud", "recommend"):
                for partition, offsets in self.deployment.applied(lane).items():
                    found |= {(topic, partition): offset for topic, offset in offsets.items()}
            return found
        return {}

    def progress(self) -> int:
        """How many records are applied."""
        return sum(self.applied().values())

    def pace(self, records: int) -> None:
        """Wait until so many records are applied."""
        self.wait(lambda: self.progress() >= records, f"{records} records are applied, {self.progress()} are")

    @property
    def is_fed(self) -> bool:
        """Whether everything is sent."""
        return not any(feeder.running for feeder in self._feeders)

    def injury(self) -> Injury:
        """Note the moment of a fault, or of its end where the suite itself must end it."""
        return Injury(time.monotonic(), self.applied())

    def recovered(self, injury: Injury, timeout_s: float = WAIT_S) -> float:
        """Wait until transactions of every partition go on to be applied; the seconds that it took.

        A partition that has come to its end has nothing to go on with.
        """

        def goes_on() -> bool:
            now, topic = self.applied(), self.deployment.topics.transactions
            still = {t for t, o in now.items() if t[0] == topic and o <= injury.applied.get(t, -1)}
            return bool(now) and (not still or (self.is_fed and all(self.ends()[t] == now[t] for t in still)))

        self.wait(goes_on, f"every partition goes on from {injury.applied}", timeout_s)
        self.recoveries.append(time.monotonic() - injury.at_s)
        return self.recoveries[-1]

    def kill(self, worker: Child, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a worker."""
        os.kill(worker.pid, number)
        if number is signal.SIGKILL:
            worker.kill()

    # -- the end --------------------------------------------------------------------------------------------------

    def ends(self) -> dict[tuple[str, int], int]:
        """Where the input partitions end."""
        topics, d = self.deployment.topics, self.deployment
        names = (topics.transactions, topics.labels, topics.clicks)
        places = [TopicPartition(name, p) for name in names for p in range(d.partitions)]
        found = asyncio.run(offset_range(d.kafka, places))
        return {(tp.topic, tp.partition): end for tp, (_, end) in found.items()}

    def settle(self) -> None:
        """Let everything be sent and applied."""
        for feeder in self._feeders:
            feeder.join()
        ends = {target: end for target, end in self.ends().items() if end}
        self.wait(lambda: ends.items() <= self.applied().items(), "all input is applied")

    def finish(self, *, exit_code: int = 0) -> None:
        """Let everything be answered and applied, stop the workers, and check the invariants."""
        try:
            self.settle()
        except Broken as late:
            self.verdict.violations.append(f"I2: {late}")
        for worker in self.workers:
            if worker.running():
                code = worker.stop(timeout_s=_STOP_S)
                young = code == -signal.SIGTERM and not self.says(worker, " reading ")  # it was still starting
                self.expect(code == exit_code or young, f"a worker ended with {code} on SIGTERM: {worker.log_tail(3)}")
        self.check()

    def check(self) -> None:
        """Check the invariants."""
        verdict = check(self.evidence(), self.allowed)
        self.verdict.violations += verdict.violations
        self.verdict.inputs, self.verdict.duplicates = verdict.inputs, verdict.duplicates
        self.verdict.differing = verdict.differing

    def evidence(self) -> Evidence:
        """Everything that the topics and Redis hold."""
        d = self.deployment
        records = {role: d.read(getattr(d.topics, role)) for role in ROLES}
        applied = self.applied()
        fields = {lane: d.state(lane) for lane in ("fraud", "recommend")}
        found = Evidence(d.schema.transactions, d.topics, records, self.ends(), applied, fields, self.source.spent)
        if self.cases_per_day:
            found.cases_per_day = self.cases_per_day / d.partitions
            with redis_of(self) as redis:
                keys = {p: f"{d.name}:{{{d.name}:fraud:{p}}}" for p in range(d.partitions)}
                found.budgets = {p: redis.hmget(key, FIELDS) for p, key in keys.items()}
        return found

    def close(self) -> None:
        """End everything that the round has started."""
        for worker in self.workers:
            worker.kill()
        self.kafka_proxy.mood = Mood()
        if self.kafka is not self.arena.kafka:
            self.kafka_proxy.stop()
            self.kafka.kill()
        self.redis_proxy.stop()
        self.redis.kill()


def redis_of(round_: Round) -> Redis:
    """A client of a round's Redis, by no proxy."""
    return Redis.from_url(round_.redis.url)


def state_of(worker: Child) -> str:
    """One letter for what the kernel says of a process: T is stopped."""
    return Path(f"/proc/{worker.pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
