"""``headrace up``: everything at once, on real servers, in this order and to be read from top to bottom.

1. the state directory is locked, and what a killed run left behind is ended;
2. Redis and the broker start on free loopback ports (or the ones that the settings name are used), topics are made;
3. history is simulated or read, and split by time (:mod:`stream.past`);
4. the first part trains models, which are published;
5. a worker starts, then the periodic trainer, each a process of its own;
6. the rest of history is replayed at ``rate``, answers are counted, the view shows how it goes;
7. at the end sending stops, every answer is waited for, and all is stopped in order: worker, trainer, broker, Redis.

In: settings and options. Out: an exit code, and with ``--json`` one object on standard output. State owned: the state
directory. Children are on a leash (:mod:`stream.processes`): they die with this process, however it dies.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from features.errors import SettingsError
from features.schema import Schema
from stream.answers import AnswerCounter
from stream.crew import require_running, trainer_child, worker_child, worker_ready
from stream.embedded import Broker, RedisServer, free_port
from stream.past import Past, make_past, write_history
from stream.processes import Child
from stream.progress import stage_bars
from stream.replay import Sent, replay_timeline
from stream.scrape import Page, scrape
from stream.settings import KafkaSettings, RedisSettings, Settings
from stream.statedir import StateDirectory
from stream.summary import Summary, summarize
from stream.topics import create_topics, require_topics
from stream.training import fit_history
from stream.view import Glance, make_view

log = logging.getLogger("headrace.up")
_T = TypeVar("_T")
_TICK_S = 0.1
_SHOW_S = 0.5
_SETTLE_S = 20.0  # how long to wait for the next answer when some are missing
_METRICS_S = 3.0
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


class _Stopped(Exception):
    """Ctrl-C or SIGTERM before anything was replayed."""


class _Up:
    def __init__(
        self, settings: Settings, schema: Schema, options: Options, place: StateDirectory, environment: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._schema = schema
        self._options = options
        self._place = place
        self._environment = environment
        self._stop = asyncio.Event()
        self._children: list[Child] = []
        self.busy = False  # a thread still runs code that cannot be interrupted

    async def run(self) -> int:
        """The steps of the module's text, from 2 on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        async with AsyncExitStack() as stack:
            try:
                settings = await self._servers(stack)
                past, settings = await self._models(settings)
                counter, settings = await self._crew(stack, settings, past)
                summary = await self._live(settings, past, counter)
            except _Stopped:
                log.info("stopped before the replay began")
                return 130
            self._stop.set()
            log.info("stopping")
        if self._options.as_json:
            print(json.dumps(summary.facts), flush=True)
        for line in summary.lines:
            log.info("%s", line)
        return 0 if summary.complete else 1

    def _on_signal(self) -> None:
        if self._stop.is_set():
            for child in self._children:
                child.kill()
        self._stop.set()

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
            log.info("Redis and the broker run on 127.0.0.1:%d and %s", redis.port, broker.bootstrap)
        require_topics(await self._unless_stopped(create_topics(settings.kafka, settings.topics)))
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
        past = await self._in_thread(
            lambda: make_past(settings, self._schema, directory, rows_max=rows, now_ms=now_ms)
        )
        for line in past.told:
            log.info("%s", line)
        with stage_bars() as progress:
            version = await self._in_thread(
                lambda: fit_history(settings, self._schema, past.history, threads=os.cpu_count() or 1, progress=progress)
            )
        log.info("models: version %s is published", version)
        return past, settings

    # -- 5: worker and trainer --------------------------------------------------------------------------------

    async def _crew(self, stack: AsyncExitStack, settings: Settings, past: Past) -> tuple[AnswerCounter, Settings]:
        counter = AnswerCounter(settings.kafka, settings.topics, seconds_since_start)
        stack.push_async_callback(counter.stop)
        directory, environment = self._place.path, self._environment
        worker = worker_child(settings, directory, environment)
        worker.start()
        try:
            written = await self._in_thread(lambda: write_history(past.history, self._schema, self._place.history))
        finally:
            self._adopt(stack, worker)
        trainer_settings = replace(
            settings.trainer, transactions=written[0], clicks=written[1], rows_max=self._options.history_rows
        )
        settings = replace(settings, trainer=trainer_settings)
        await self._unless_stopped(worker_ready(worker, settings.worker.metrics_port))
        await self._unless_stopped(counter.start())
        trainer = trainer_child(settings, directory, environment)
        trainer.start()
        self._adopt(stack, trainer)
        return counter, settings

    # -- 6: live ----------------------------------------------------------------------------------------------

    async def _live(self, settings: Settings, past: Past, counter: AnswerCounter) -> Summary:
        options, sent, enough = self._options, Sent(), asyncio.Event()
        port = settings.worker.metrics_port
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
                while not self._stop.is_set() and not self._over(replay, began_s):
                    require_running(self._children)
                    counter.check()
                    began_s = began_s or (time.monotonic() if sent.messages else None)
                    if not options.as_json and time.monotonic() >= shown_s + _SHOW_S:
                        shown_s = time.monotonic()
                        show(await asyncio.to_thread(scrape, port))
                    await self._pause()
            finally:
                enough.set()
                await asyncio.wait([replay])
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

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), _TICK_S)
        except TimeoutError:
            return

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

    # -- interruptions ----------------------------------------------------------------------------------------

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T] | asyncio.Future[_T]) -> _T:
        task, stop = asyncio.ensure_future(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _Stopped
            return task.result()
        finally:
            for pending in (task, stop):
                pending.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """``work`` in a thread that a stop does not wait for: a fit cannot be interrupted."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def body() -> None:
            try:
                result = work()
            except BaseException as error:  # every failure belongs to the one who waits
                self._deliver(loop, future.set_exception, error, future)
            else:
                self._deliver(loop, future.set_result, result, future)

        self.busy = True
        threading.Thread(target=body, daemon=True).start()
        result = await self._unless_stopped(future)
        self.busy = False
        return result

    @staticmethod
    def _deliver(
        loop: asyncio.AbstractEventLoop, deliver: Callable[[Any], None], value: Any, future: asyncio.Future[Any]
    ) -> None:
        def set_it() -> None:
            if not future.done():
                deliver(value)

        try:
            loop.call_soon_threadsafe(set_it)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return


_IMPORTED_S = time.monotonic()


def seconds_since_start() -> float:
    """Seconds since this process was started, or where the system does not tell, since this module was imported."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED_S


def run(settings: Settings, schema: Schema, options: Options, state: StateDirectory, environment: Mapping[str, str]
        ) -> int:  # fmt: skip
    """Run a demonstration; returns the exit code: 0 if nothing was lost, 1 if something was, 130 if stopped early.

    Raises
    ------
    HeadraceError
        If it cannot begin, or a child dies.
    """
    with state as place:
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
    return await up.run(), up.busy


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
        raise SettingsError([f"{named}: expected {missing} too; without either, `headrace up` starts servers of its own"])
    return not kafka
