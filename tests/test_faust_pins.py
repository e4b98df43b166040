"""What we rely on inside faust-streaming and aiokafka is still there, as it was read."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from faust.tables import TableManager
from faust.tables.recovery import Recovery
from faust.transport import consumer as base
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import threads

from features.errors import ServiceUnavailable, SettingsError
from features.schema import load_schema
from stream import worker
from stream.consumer import FetchConsumer, FetchTransport, overridden
from stream.fetching import LoopConsumer
from stream.settings import Settings

SIGNATURES = {
    "perform_seek": ["self"],
    "_drain_messages": ["self", "fetcher"],
    "wait_empty": ["self"],
    "_filter_tps_with_pending_acks": ["self", "topics"],
    "_new_offset": ["self", "tp"],
    "force_commit": ["self", "topics", "start_new_transaction"],
    "_getmany": ["self", "active_partitions", "timeout"],
    "_get_active_partitions": ["self"],
    "_new_consumer_thread": ["self"],
    "_create_worker_consumer": ["self", "transport"],
    "_ensure_consumer": ["self"],
    "call_thread": ["self", "fun", "args", "kwargs"],
    "_gather_remaining_tasks": ["self"],
    "_fetch_records": ["self", "consumer", "active_partitions", "timeout", "max_records"],
}
AWAITED = {
    "_fetch_records",
    "call_thread",
    "_gather_remaining_tasks",
    "perform_seek",
    "_drain_messages",
    "wait_empty",
    "force_commit",
    "_getmany",
}


def test_the_version_installed_is_the_one_that_was_read() -> None:
    assert version("faust-streaming").startswith(worker.FAUST_VERSION)


def test_another_version_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "installed_version", lambda name: "0.16.0")
    with pytest.raises(SettingsError, match=r"faust-streaming 0\.16\.0 is installed, but 0\.15\.x is needed"):
        worker.run(Settings(), load_schema())


@pytest.mark.parametrize(("owner", "name"), [pytest.param(o, n, id=n) for o, n in overridden()])
def test_each_private_method_has_the_signature_relied_on(owner: type, name: str) -> None:
    method = getattr(owner, name)
    assert list(inspect.signature(method).parameters) == SIGNATURES[name]
    assert inspect.iscoroutinefunction(method) == (name in AWAITED)


def test_every_method_of_ours_that_faust_calls_is_named_among_the_pins() -> None:
    pinned = {name for _, name in overridden()}
    public = {"verify_event_path", "_thread", "Worker"}
    for ours, theirs in ((FetchConsumer, driver.Consumer), (LoopConsumer, driver.AIOKafkaConsumerThread)):
        shared = {name for name in vars(ours) if not name.startswith("__") and hasattr(theirs, name)}
        assert shared - public - {"_abc_impl", "logger", "mundane_level"} <= pinned


@pytest.mark.parametrize(
    "name",
    ["flow_active", "can_resume_flow", "_paused_partitions", "pause_partitions", "resume_partitions", "seek_wait",
     "seek_to_committed", "highwater", "consumer_stopped_errors", "commit_and_end_transactions", "assignment"],
)  # fmt: skip
def test_each_attribute_that_the_consumer_uses_is_there(name: str) -> None:
    assert hasattr(driver.Consumer, name) or f"self.{name}" in inspect.getsource(base.Consumer)


def test_the_consumer_runs_on_the_loop_where_a_thread_is_looked_for() -> None:
    """What a thread would be asked for, and that nothing blocks until it has ended."""
    start, stop = inspect.getsource(threads.ServiceThread.start), inspect.getsource(threads.ServiceThread.stop)
    assert "self._thread = self.Worker(self)" in start and "self._thread.start()" in start
    assert "self._thread.stop()" in stop
    assert "run_until_complete(self._serve())" in inspect.getsource(threads.ServiceThread._start_thread)
    assert LoopConsumer.Worker.__name__ == "_OnTheLoop"


def test_a_commit_asks_for_the_applied_offsets_only() -> None:
    source = inspect.getsource(base.Consumer.force_commit) + inspect.getsource(base.Consumer._commit_tps)
    assert "_filter_tps_with_pending_acks" in source
    assert "_new_offset" in inspect.getsource(base.Consumer._filter_committable_offsets)


def test_tables_are_started_as_faust_does_but_for_its_second_of_waiting() -> None:
    steps = inspect.getsource(TableManager.on_start)
    assert [line.strip() for line in steps.splitlines() if "await" in line] == [
        "await self.sleep(1.0)",
        "await self._update_channels()",
        "await self.recovery.start()",
    ]
    assert worker.NoTables.on_start is not TableManager.on_start


def test_faust_drains_before_a_rebalance_and_seeks_after_it() -> None:
    import faust.app.base as app

    assert "wait_empty" in inspect.getsource(app.App._stop_consumer) + inspect.getsource(app.App._consumer_wait_empty)
    assert "perform_seek" in inspect.getsource(base) + inspect.getsource(app)
    assert FetchTransport.Consumer is FetchConsumer


@pytest.mark.parametrize("members", range(1, 6))
@pytest.mark.parametrize("partitions", [1, 4, 7])
def test_one_member_gets_the_same_partitions_of_transactions_and_labels(members: int, partitions: int) -> None:
    topics = ["transactions", "labels", "clicks"]
    cluster = SimpleNamespace(partitions_for_topic=lambda topic: set(range(partitions)))
    metadata = {
        f"member-{m}": ConsumerProtocolMemberMetadata(RangePartitionAssignor.version, topics, b"")
        for m in range(members)
    }
    given: dict[str, Any] = RangePartitionAssignor.assign(cluster, metadata)
    owners: dict[str, dict[int, str]] = {topic: {} for topic in topics}
    for member, assignment in given.items():
        for topic, numbers in assignment.assignment:
            owners[topic] |= dict.fromkeys(numbers, member)
    assert owners["transactions"] == owners["labels"]
    assert set(owners["transactions"]) == set(range(partitions))


def test_the_position_of_a_fetch_is_where_it_is_looked_for() -> None:
    from aiokafka.consumer.subscription_state import Assignment, SubscriptionState, TopicPartitionState

    assert hasattr(Assignment, "state_value")
    assert hasattr(SubscriptionState, "subscription")
    assert isinstance(inspect.getattr_static(TopicPartitionState, "has_valid_position"), property)
    assert isinstance(inspect.getattr_static(TopicPartitionState, "position"), property)


def test_what_is_fetched_lies_where_it_is_looked_for() -> None:
    from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords

    source = inspect.getsource(Fetcher)
    assert "self._records = collections.OrderedDict()" in source
    assert "self._closed = False" in source
    assert "FetchRequest(\n                self._fetch_max_wait_ms," in source, "each request takes it anew"
    assert "FetchResult(" in source and "_partition_records" in inspect.getsource(FetchResult)
    theirs = next(owner for owner in PartitionRecords.__mro__ if owner.__module__.startswith("aiokafka"))
    assert "self._consumer_record(tp, record)" in inspect.getsource(theirs)
    assert list(inspect.signature(Fetcher.fetched_records).parameters) == [
        "self",
        "partitions",
        "timeout",
        "max_records",
    ]


async def _never() -> None:
    await asyncio.Event().wait()


def test_a_takeover_that_faust_cuts_off_is_made_up_for_before_anything_is_fetched() -> None:
    """Faust waits for perform_seek for a limited time, then cancels it and resumes fetching all the same."""
    assert "timeout=self.app.conf.broker_request_timeout" in inspect.getsource(Recovery._resume_streams)

    async def run() -> None:
        consumer = object.__new__(FetchConsumer)
        consumer._lost = None
        consumer._take_over = _never  # type: ignore[method-assign]
        task = asyncio.create_task(consumer.perform_seek())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert isinstance(consumer._lost, ServiceUnavailable)

    asyncio.run(run())


def test_a_worker_that_stops_while_the_group_rebalances_has_not_crashed() -> None:
    class Waiting(FetchConsumer):
        should_stop = False
        context: Any = SimpleNamespace(fatal=None, pipeline=None)

        async def _one_fetch(self, pipeline: Any) -> None:
            await _never()

    async def run() -> None:
        consumer = object.__new__(Waiting)
        consumer.flow_active, consumer._lost, consumer._fetching = True, None, None
        app: Any = SimpleNamespace(consumer=consumer, rebalancing=True)
        fetcher = base.Fetcher(app)
        await fetcher.start()
        await asyncio.sleep(0.01)
        await fetcher.stop()
        assert not fetcher.crashed

    asyncio.run(run())


def test_the_end_of_a_partition_that_a_rebalance_has_just_taken_away_is_unknown_and_no_crash() -> None:
    def assigned_no_more(tp: Any) -> int:
        raise AssertionError("Partition is not assigned")  # as aiokafka says it

    consumer = object.__new__(FetchConsumer)
    consumer._thread = cast(Any, SimpleNamespace(highwater=assigned_no_more))
    assert consumer._end(TP("transactions", 3)) == -1


def test_a_worker_that_stands_by_for_a_partition_is_ready() -> None:
    told: list[int] = []

    async def abandon() -> None:
        assert not told

    class Idle(FetchConsumer):
        context: Any = SimpleNamespace(
            pipeline=SimpleNamespace(abandon=abandon), metrics=SimpleNamespace(ready=SimpleNamespace(set=told.append))
        )

    asyncio.run(object.__new__(Idle)._take_over_all([]))
    assert told == [1]
