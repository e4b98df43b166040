"""``headrace up``: everything at once, on real servers, in this order and to be read from top to bottom.

1. the state directory is locked, and what a killed run left behind is ended;
2. Redis and the broker start on free loopback ports (or the ones that the settings name are used), topics are made;
3. history is simulated or read, and split by time (:mod:`stream.past`);
4. the first part trains models, which are published;
5. a worker starts, then the periodic trainer and the archive, each a process of its own;
6. the rest of history is replayed at ``rate``, answers are counted, the view shows how it goes;
7. at the end sending stops, every answer is waited for, and all is stopped in order: archive, trainer, worker, broker,
   Redis.

In: settings and options. Out: an exit code, and with ``--json`` one object on standard output. State owned: the state
directory. Children are on a leash (:mod:`stream.processes`): they die with this process, however it dies.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from features.errors import SettingsError
from features.schema import Schema
from stream.answers import AnswerCounter
from stream.connections import redis_client
from stream.crew import archive_child, require_running, trainer_child, worker_child, worker_ready
from stream.embedded import Broker, RedisServer, free_port
from stream.fraud import FraudLane
from stream.past import Past, make_past, write_history
from stream.processes import Child, seconds_since_start
from stream.progress import stage_bars
from stream.replay import Sent, replay_timeline
from stream.scrape import Page, scrape
from stream.settings import KafkaSettings, RedisSettings, Settings
from stream.statedir import StateDirectory
from stream.stopping import Stop, Stopped
from stream.store import StateStore
from stream.summary import Summary, summarize
from stream.topics import create_topics, require_topics
from stream.training import fit_history
from stream.view import Glance, make_view
from trainer.state import partition_states

log = logging.getLogger("headrace.up")
_TICK_S = 0.1
_SHOW_S = 0.5
_SETTLE_S = 20.0  # how long to wait for the next answer when some are missing
_ENOUGH_S = 10.0
_METRICS_S = 3.0
_EMBEDDED_ARCHIVE_S = 5.0
_EMBEDDED_SESSION_S = 3.0  # the embedded broker lets the first join wait for this long


@dataclass(frozen=True, slots=True)
class Options:
    """How a demonstration runs. ``embedded``: on servers of its own. ``duration_s`` None: until Ctrl-C."""

    embedded: bool
    rate: float
    duration_s: float | None
    malformed: float
    history_rows: int
    as_json: bool


class _Up:
    def __init__(
        self,
        settings: Settings,
        schema: Schema,
        options: Options,
        place: StateDirectory,
        environment: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._schema = schema
        self._options = options
        self._place = place
        self._environment = environment
        self._children: list[Child] = []
        self.stop = Stop(self._children)

    async def run(self) -> int:
        """The steps of the module's text, from 2 on."""
        self.stop.listen()
        async with AsyncExitStack() as stack:
            try:
                settings = await self._servers(stack)
                past, settings = await self._models(settings)
                counter, settings = await self._crew(stack, settings, past)
                summary = await self._live(settings, past, counter)
            except Stopped:
                log.info("stopped before the replay began")
                return 130
            self.stop.wanted.set()
            log.info("stopping")
        if self._options.as_json:
            print(json.dumps(summary.facts), flush=True)
        for line in summary.lines:
            log.info("%s", line)
        return 0 if summary.complete else 1

    # -- 2: servers -------------------------------------------------------------------------------------------

    async def _servers(self, stack: AsyncExitStack) -> Settings:
        settings = self._settings
        if self._options.embedded:
            redis, broker = RedisServer(self._place.path), Broker(self._place.path)
            for server in (redis, broker):
                server.start()
                self._adopt(stack, server)
            # The embedded broker forgets, so no state of an earlier run may be found under its offsets.
            run = uuid.uuid4().hex[:8]
            settings = replace(
                settings,
                kafka=KafkaSettings(bootstrap=broker.bootstrap, idempotence=False),
                redis=RedisSettings(url=redis.url, namespace=f"up-{run}"),
                worker=replace(settings.worker, group=f"up-{run}", session_timeout_s=_EMBEDDED_SESSION_S),
            )
            # An archive belongs to its topics, and these are new.
            shutil.rmtree(self._place.archive, ignore_errors=True)
            archive = replace(settings.archive, url=str(self._place.archive.absolute()), metrics_port=0,
                              every_s=min(settings.archive.every_s, _EMBEDDED_ARCHIVE_S))  # fmt: skip
            settings = replace(settings, archive=archive)
            log.info("Redis and the broker run on 127.0.0.1:%d and %s", redis.port, broker.bootstrap)
        require_topics(await self.stop.unless_wanted(create_topics(settings.kafka, settings.topics)))
        port = settings.worker.metrics_port or free_port()
        return replace(settings, worker=replace(settings.worker, metrics_port=port), artifacts=self._place.artifacts)

    def _adopt(self, stack: AsyncExitStack, child: Child) -> None:
        """Have a child stopped when the stack unwinds."""
        self._children.append(child)

        async def stop() -> None:
            await asyncio.to_thread(child.stop)

        stack.push_async_callback(stop)

    # -- 3, 4: history and models -----------------------------------------------------------------------------

    async def _models(self, settings: Settings) -> tuple[Past, Settings]:
        rows, directory = self._options.history_rows, self._place.history
        now_ms = int(time.time() * 1000)
        past = await self.stop.in_thread(
            lambda: make_past(settings, self._schema, directory, rows_max=rows, now_ms=now_ms)
        )
        for line in past.told:
            log.info("%s", line)
        with stage_bars() as progress:
            version, _ = await asyncio.gather(
                self.stop.in_thread(
                    lambda: fit_history(settings, self._schema, past.history, threads=1, progress=progress)
                ),
                self._begin_state(settings, past),
            )
        log.info("models: version %s is published", version)
        return past, settings

    async def _begin_state(self, settings: Settings, past: Past) -> None:
        """Let the worker's state begin with the history, so that live features continue those of the training."""
        schema, partitions = self._schema.transactions, settings.topics.transaction_partitions
        table = past.history.transactions
        if not table.num_rows:
            return
        states = await self.stop.in_thread(lambda: list(partition_states(table, schema, partitions)))
        redis = redis_client(settings.redis)
        try:
            store = StateStore(redis, settings.redis, settings.worker.group, FraudLane.name)
            begun = [
                await store.begin_with(partition, {f"{name}:{id_}".encode(): value
                                                   for name, ids in entities.items() for id_, value in ids.items()})
                for partition, entities in states
            ]  # fmt: skip
        finally:
            await redis.aclose()
        if not all(begun):
            log.info("state of an earlier run lies in this Redis namespace; it is gone on with")

    # -- 5: worker and trainer --------------------------------------------------------------------------------

    async def _crew(self, stack: AsyncExitStack, settings: Settings, past: Past) -> tuple[AnswerCounter, Settings]:
        counter = AnswerCounter(settings.kafka, settings.topics, seconds_since_start)
        stack.push_async_callback(counter.stop)
        directory, environment = self._place.path, self._environment
        worker = worker_child(settings, directory, environment)
        worker.start()
        try:
            written = await self.stop.in_thread(lambda: write_history(past.history, self._schema, self._place.history))
        finally:
            self._adopt(stack, worker)
        trainer_settings = replace(
            settings.trainer, transactions=written[0], clicks=written[1], rows_max=self._options.history_rows
        )
        settings = replace(settings, trainer=trainer_settings)
        await self.stop.unless_wanted(worker_ready(worker, settings.worker.metrics_port))
        await self.stop.unless_wanted(counter.start())
        trainer = trainer_child(settings, directory, environment)
        trainer.start()
        self._adopt(stack, trainer)
        if settings.archive.url is not None:
            archive = archive_child(settings, directory, environment)
            archive.start()
            self._adopt(stack, archive)
        return counter, settings

    # -- 6: live ----------------------------------------------------------------------------------------------

    async def _live(self, settings: Settings, past: Past, counter: AnswerCounter) -> Summary:
        options, sent, enough = self._options, Sent(), asyncio.Event()
        port = settings.worker.metrics_port
        log.info(
            "replaying %d messages at %g per second; metrics on http://127.0.0.1:%d/metrics, logs in %s",
            len(past.live), options.rate, port, self._place.path,
        )  # fmt: skip
        glance = Glance(settings, self._place.path, options.rate, len(past.live), sent, counter)
        replay = asyncio.create_task(
            replay_timeline(
                settings.kafka, past.live, rate=options.rate, malformed=options.malformed,
                seed=settings.trainer.seed, sent=sent, stop=enough,
            )
        )  # fmt: skip
        began_s: float | None = None
        shown_s = 0.0
        with make_view(glance, past.items, as_json=options.as_json) as show:
            try:
                while not self.stop.wanted.is_set() and not self._over(replay, began_s):
                    require_running(self._children)
                    counter.check()
                    began_s = began_s or (time.monotonic() if sent.messages else None)
                    if not options.as_json and time.monotonic() >= shown_s + _SHOW_S:
                        shown_s = time.monotonic()
                        show(await asyncio.to_thread(scrape, port))
                    await self.stop.pause(_TICK_S)
            finally:
                enough.set()
                await asyncio.wait([replay], timeout=_ENOUGH_S)
                replay.cancel()  # nothing, unless the broker is gone
            replay.result()
            seconds = time.monotonic() - (began_s or time.monotonic())
            await self._settle(sent, counter)
            show(page := await self._last_page(port, counter))
        return summarize(settings.topics, sent, counter, page, seconds)

    def _over(self, replay: asyncio.Task[Sent], began_s: float | None) -> bool:
        """Whether time is up, or everything was sent and nobody wants to keep looking."""
        if self._options.duration_s is None or began_s is None:
            return replay.done() and replay.exception() is not None
        return replay.done() or time.monotonic() - began_s >= self._options.duration_s

    async def _settle(self, sent: Sent, counter: AnswerCounter) -> None:
        """Wait for the answers that are missing, for as long as they keep coming."""
        began_s = time.monotonic()
        topics = self._settings.topics
        while not summarize(topics, sent, counter, Page(), 0.0).complete:
            require_running(self._children)
            counter.check()
            if time.monotonic() - max(began_s, counter.changed_s) > _SETTLE_S:
                log.error("no answer came for %.0f s, and some are missing", _SETTLE_S)
                return
            await asyncio.sleep(_TICK_S / 2)

    @staticmethod
    async def _last_page(port: int, counter: AnswerCounter) -> Page:
        """The worker's metrics, which count a cycle only once it is applied: a moment after its answers are seen."""
        deadline = time.monotonic() + _METRICS_S
        while True:
            page = await asyncio.to_thread(scrape, port) or Page()
            behind = page.value("headrace_decisions_total") < counter.counts["decisions"]
            if not behind or time.monotonic() > deadline:
                return page
            await asyncio.sleep(_TICK_S / 2)


def run(settings: Settings, schema: Schema, options: Options, state_dir: Path, environment: Mapping[str, str]) -> int:
    """Run a demonstration; returns the exit code: 0 if nothing was lost, 1 if something was, 130 if stopped early.

    Raises
    ------
    HeadraceError
        If it cannot begin, or a child dies.
    """
    with StateDirectory(state_dir) as place:
        _log_to(place)
        for name in place.ended:
            log.warning("ended what an earlier run left behind: %s", name)
        code, busy = asyncio.run(_main(settings, schema, options, place, environment))
        if busy:  # a fit in C code would keep the interpreter from ending
            logging.shutdown()
            sys.stdout.flush()
            os._exit(code)
        return code


async def _main(
    settings: Settings, schema: Schema, options: Options, place: StateDirectory, environment: Mapping[str, str]
) -> tuple[int, bool]:
    up = _Up(settings, schema, options, place, environment)
    return await up.run(), up.stop.busy


def _log_to(place: StateDirectory) -> None:
    """Everything to ``up.log``; our own lines to standard error, too."""
    file = logging.FileHandler(place.path / "up.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    screen = logging.StreamHandler(sys.stderr)
    screen.setFormatter(logging.Formatter("headrace: %(message)s"))
    screen.addFilter(logging.Filter("headrace"))
    logging.basicConfig(level=logging.WARNING, handlers=[file, screen], force=True)
    logging.getLogger("headrace").setLevel(logging.INFO)


def both_or_neither(kafka: bool, redis: bool) -> bool:
    """Whether the servers are embedded, where ``kafka`` and ``redis`` say which ones were named.

    Raises
    ------
    SettingsError
        If only one of them was: state in one and offsets in the other must belong together.
    """
    if kafka != redis:
        named, missing = ("--kafka", "--redis URL") if kafka else ("--redis", "--kafka HOST:PORT")
        raise SettingsError(
            [f"{named}: expected {missing} too; without either, `headrace up` starts servers of its own"]
        )
    return not kafka
