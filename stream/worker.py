"""``headrace worker``: builds the parts, checks the world, and lets Faust run the consumer group.

In: settings and schema. Out: a running process that ends with exit code 0 on SIGTERM, or raises what a user must
know. Brokers that cannot be reached are waited for, with one line; what a retry cannot mend is refused.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import sys
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import Any

import faust
import uvloop
from aiokafka import AIOKafkaProducer
from faust.tables import TableManager
from faust.transport.utils import DefaultSchedulingStrategy
from mode import Service
from yarl import URL

from features.catalogue import build_catalogue
from features.errors import HeadraceError, SettingsError
from features.schema import Schema
from features.warm import warm
from stream.connections import (
    RedisClient,
    check_redis,
    kafka_errors,
    kafka_losses,
    kafka_producer,
    patiently,
    redis_client,
)
from stream.consumer import FetchTransport, HeadraceApp, WorkerContext
from stream.cycle import Pipeline
from stream.deadline import Deadline
from stream.fraud import FraudLane
from stream.lane import Lane
from stream.lean_code import load_lean
from stream.list_keeper import ListKeeper
from stream.lists import ListWriter
from stream.metrics import Metrics
from stream.models import NO_VERSION, ModelHolder
from stream.publisher import Publisher
from stream.recommend import RecommendLane
from stream.rule_lists import RuleLists
from stream.rules import RulesHolder
from stream.settings import KafkaSettings, Settings
from stream.shelving import Shelving
from stream.station import Station
from stream.store import StateStore
from stream.sweep import Sweeper
from stream.tails import TailReader
from stream.topics import require_all_topics
from stream.variants import VariantModels
from stream.vectors import VectorLog

log = logging.getLogger("headrace.worker")
FAUST_VERSION = "0.15."
_SWITCH_S = 0.0003  # fetching, computing and writing are three threads: none shall wait 5 ms for its turn
_KAFKA_BACK = "Kafka can be reached now"
_CALM_EVERY_S = 0.5
_BURST, _CALM = 2500, 500  # records applied in that time


@dataclass(slots=True)
class Parts:
    """Everything with a connection, to be closed at the end."""

    redis: RedisClient
    publisher: Publisher
    tails: TailReader
    models: ModelHolder | VariantModels
    rules: RulesHolder | None
    keeper: ListKeeper | None
    lists: ListWriter | None
    shelving: Shelving

    async def close(self) -> None:
        """Write the lists that wait, and close all connections."""
        if self.lists is not None:
            await self.lists.close()
        await self.shelving.stop()
        await self.publisher.stop()
        await self.tails.stop()
        await self.redis.aclose()


class _Companion(Service):
    """Lives as long as Faust's app: watches the models, sweeps, and closes the connections after the consumer."""

    def __init__(self, parts: Parts, pipeline: Pipeline, sweeper: Sweeper, poll_s: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._parts = parts
        self._pipeline = pipeline
        self._sweeper = sweeper
        self._poll_s = poll_s

    async def on_start(self) -> None:
        _ = self.add_future(self._parts.models.watch(self._poll_s))
        if self._parts.rules is not None:
            _ = self.add_future(self._parts.rules.watch(self._poll_s))
        if self._parts.keeper is not None:
            _ = self.add_future(self._parts.keeper.run())
            _ = self.add_future(self._parts.keeper.follow())
        _ = self.add_future(self._sweeper.run())
        for watch in self._parts.shelving.watches():
            _ = self.add_future(watch)
        _ = self.add_future(_give_back_after_bursts(self._pipeline))

    async def on_shutdown(self) -> None:
        await self._parts.close()


async def _give_back_after_bursts(pipeline: Pipeline) -> None:
    """Give what glibc keeps for the next burst, some 17 MB, back to the system when one is over, and not in between."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    applied, burst = 0, False
    while trim is not None:
        await asyncio.sleep(_CALM_EVERY_S)
        before, applied = applied, sum(pipeline.applied.values())
        if applied - before > _BURST:
            burst = True
        elif burst and applied - before < _CALM:
            burst = False
            await asyncio.to_thread(trim, 0)


class NoTables(TableManager):
    """Faust's tables, of which there are none, without the second that it waits for them to be declared."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class _Worker(faust.Worker):
    """Faust's worker without its banner, its spinner, its second of waiting at the end, and its process title."""

    def __init__(self, *args: Any, deadline: Deadline, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spinner = None
        self._deadline = deadline

    def install_signal_handlers(self) -> None:
        super().install_signal_handlers()
        self._deadline.listen()

    async def _sentinel_task(self) -> None:
        await asyncio.sleep(0)

    def _setproctitle(self, info: str, *, ident: str = "") -> None:
        pass


async def _connect(settings: Settings, metrics: Metrics, schema: Schema) -> Parts:
    catalogue, file = build_catalogue(schema.transactions), settings.worker.rules
    rules = None if file is None else RulesHolder(file, catalogue, metrics)
    models: ModelHolder | VariantModels
    models = ModelHolder(settings.artifacts, schema.hash, catalogue.names, metrics, meanwhile=warm,
                         required=settings.worker.without_model == "wait",
                         shared=settings.worker.map_models)  # fmt: skip
    if settings.ab.share:
        models = VariantModels(models, settings, schema.hash, catalogue.names)
    redis = redis_client(settings.redis)
    await patiently(lambda: check_redis(redis, settings.redis), log, back="Redis can be reached now")
    await patiently(lambda: require_all_topics(settings), log, back=_KAFKA_BACK)
    publisher = Publisher(lambda: _started_producer(settings.kafka))
    await patiently(publisher.start, log, back=_KAFKA_BACK)
    tails = TailReader(settings.kafka)
    await patiently(tails.start, log, back=_KAFKA_BACK)
    ttl_s = settings.worker.list_ttl_s
    lists = ListWriter(redis, settings.redis, ttl_s, metrics) if ttl_s else None
    keeper = None
    if rules is not None:
        held = RuleLists(redis, settings.redis, settings.worker.group, settings.topics.lists)
        keeper = ListKeeper(held, rules, settings.kafka, metrics)
        await patiently(keeper.refresh, log)
    shelving = Shelving(settings, metrics)
    await shelving.start(models)
    return Parts(redis, publisher, tails, models, rules, keeper, lists, shelving)


async def _started_producer(kafka: KafkaSettings) -> AIOKafkaProducer:
    producer = kafka_producer(kafka, linger_ms=0)
    async with kafka_errors(kafka):
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
    return producer


def _lanes(settings: Settings, schema: Schema, parts: Parts) -> list[Lane]:
    """Clicks are answered by whatever there is, transactions where their models are published or waited for."""
    lanes: list[Lane] = []
    models = parts.models
    if models.current.fraud is not None or models.current.version == NO_VERSION:
        directory = settings.worker.vector_log
        catalogue = build_catalogue(schema.transactions)
        lanes.append(FraudLane(settings, catalogue, VectorLog(directory) if directory else None, parts.rules))
    clicks = RecommendLane(settings, parts.shelving.lister)
    for lane in lanes:
        if isinstance(lane, FraudLane):
            clicks.suspects = lane.suspects
    return [*lanes, clicks]


def _app(settings: Settings, loop: asyncio.AbstractEventLoop) -> HeadraceApp:
    """Faust's app: the group's lifecycle. The consumer takes its own settings, see :mod:`stream.consumer`."""
    kafka, worker = settings.kafka, settings.worker
    return HeadraceApp(
        worker.group,
        broker=[URL(f"kafka://{host.strip()}") for host in kafka.bootstrap.split(",")],
        broker_session_timeout=worker.session_timeout_s,
        broker_request_timeout=max(kafka.request_timeout_s, worker.session_timeout_s),
        broker_commit_interval=1.0,
        stream_wait_empty=True,
        topic_disable_leader=True,
        web_enabled=False,
        store="memory://",
        autodiscover=False,
        loop=loop,
        ConsumerScheduler=DefaultSchedulingStrategy,
        TableManager=NoTables,
    )


def run(settings: Settings, schema: Schema) -> None:
    """Run one worker until SIGTERM or SIGINT.

    Raises
    ------
    HeadraceError
        If the models, the topics, Redis or the state must not be used.
    """
    faust_version = installed_version("faust-streaming")
    if not faust_version.startswith(FAUST_VERSION):
        problem = (
            f"faust-streaming {faust_version} is installed, but {FAUST_VERSION}x is needed, whose internals are used"
        )
        raise SettingsError([problem])
    load_lean()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    metrics = Metrics()
    port = metrics.serve(settings.worker.metrics_host, settings.worker.metrics_port)
    log.info("metrics on http://%s:%d/metrics", settings.worker.metrics_host, port)
    parts = loop.run_until_complete(_connect(settings, metrics, schema))
    lanes = _lanes(settings, schema, parts)
    stations = [Station(lane, StateStore(parts.redis, settings.redis, settings.worker.group, lane.name), {},
                        lists=parts.lists if lane.name == RecommendLane.name else None) for lane in lanes]  # fmt: skip
    pipeline = Pipeline(stations, parts.publisher, parts.tails, parts.models, metrics, schema.hash,
                        settings.worker.cycles_in_flight, settings.worker.session_timeout_s / 2)  # fmt: skip
    app = _app(settings, loop)
    app.transport = FetchTransport(app.conf.broker_consumer, app)
    app.boot_strategy.enable_kafka_producer = False
    context = WorkerContext(settings, pipeline, metrics)
    app.context = context
    for topic in (topic for lane in lanes for topic in lane.topics):
        app.topics.add(app.topic(topic))
    # What lives by now lives for ever: later collections need not look at it, and none runs in the middle of a burst
    # more often than the garbage is worth.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    sys.setswitchinterval(_SWITCH_S)
    companion = _Companion(parts, pipeline, Sweeper(stations, metrics, settings.worker.sweep_every_s),
                           settings.worker.model_poll_s)  # fmt: skip
    worker = _Worker(app, companion, deadline=context.deadline, loop=loop, loglevel="WARN", quiet=True,
                     redirect_stdouts=False, override_logging=False)  # fmt: skip
    try:
        with kafka_losses(settings.kafka, log.warning):
            worker.execute_from_commandline()
    except SystemExit as exit_:
        if context.fatal is not None:
            raise context.fatal from None
        if exit_.code:
            raise HeadraceError("the worker stopped on an error that no setting mends; see the log above") from None
    log.info("stopped")


def log_to_stderr(level: int = logging.INFO) -> None:
    """One line per event on stderr; Faust and aiokafka only from warnings up."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("headrace").setLevel(level)
    # A lost broker is told in one line by kafka_losses; aiokafka would tell it ten times a second.
    logging.getLogger("aiokafka").propagate = False
