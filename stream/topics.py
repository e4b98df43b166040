"""Creates and checks the topics.

In: settings. Out: one :class:`TopicStatus` per topic. No state. Repeating a call is harmless: a topic that is there is
never changed, because entity state is sharded by partition number and a new count would cut each history in two.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from features.errors import TopicError
from stream.connections import kafka_admin
from stream.settings import KafkaSettings, Settings, TopicSettings

_READY_S = 15.0
_POLL_S = 0.05
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """One topic as it is beside how it should be. ``advice`` says what to do, or what to know when it is usable."""

    name: str
    state: Literal["ok", "created", "missing", "wrong"]
    partitions: int
    expected: int
    advice: str = ""

    @property
    def usable(self) -> bool:
        """Whether a worker can run on it."""
        return self.state in ("ok", "created")


async def check_topics(kafka: KafkaSettings, topics: TopicSettings) -> list[TopicStatus]:
    """The state of every topic of the contract; nothing is changed.

    Raises
    ------
    ServiceUnavailable
        If Kafka cannot be reached.
    """
    async with kafka_admin(kafka) as admin:
        return await _inspect(admin, topics)


async def create_topics(kafka: KafkaSettings, topics: TopicSettings) -> list[TopicStatus]:
    """Creates what is missing, waits until every partition has a leader, and says how all topics are.

    Raises
    ------
    ServiceUnavailable
        If Kafka cannot be reached.
    TopicError
        If the broker refuses a topic.
    """
    async with kafka_admin(kafka) as admin:
        found = await _inspect(admin, topics)
        missing = {status.name: status.expected for status in found if status.state == "missing"}
        if missing:
            await make_topics(admin, missing, topics)
            found = [
                replace(status, state="created") if status.name in missing and status.state == "ok" else status
                for status in await _inspect(admin, topics)
            ]
        return found


def require_topics(statuses: Iterable[TopicStatus]) -> None:
    """Refuses topics that a worker cannot run on.

    Raises
    ------
    TopicError
        With one line per topic: what is wrong and the way out.
    """
    problems = [f"topic {status.name}: {status.advice}" for status in statuses if not status.usable]
    if problems:
        raise TopicError("\n".join(problems))


async def require_all_topics(settings: Settings) -> None:
    """Refuse topics that are missing or wrong.

    Raises
    ------
    TopicError
        If there are any.
    ServiceUnavailable
        If Kafka cannot be reached.
    """
    require_topics(await check_topics(settings.kafka, settings.topics))


async def make_topics(admin: AIOKafkaAdminClient, wanted: Mapping[str, int], topics: TopicSettings) -> None:
    """Creates topics (name to partitions) with the replication and retention of ``topics``.

    Raises
    ------
    TopicError
        If the broker refuses one, or does not lead all partitions within 15 s.
    """
    kept = {"retention.ms": str(topics.retention_hours * _HOUR_MS), "cleanup.policy": "delete"}
    new = [NewTopic(name, count, topics.replication,
                    topic_configs={"cleanup.policy": "compact"} if name == topics.items else kept)
           for name, count in wanted.items()]  # fmt: skip
    problems = []
    for name, code, *message in (await admin.create_topics(new)).topic_errors:
        error = for_code(code)
        if code != 0 and error is not TopicAlreadyExistsError:  # another process was faster: checked like any other
            said = message[0] if message and message[0] else error.__name__
            problems.append(f"topic {name}: the broker refuses to create it: {said}")
    if problems:
        raise TopicError("\n".join(problems))
    deadline = asyncio.get_running_loop().time() + _READY_S
    while not await _led(admin, set(wanted)):
        if asyncio.get_running_loop().time() > deadline:
            raise TopicError(
                f"topics {', '.join(wanted)}: created, but not all partitions have a leader; ask again later"
            )
        await asyncio.sleep(_POLL_S)


async def describe_topics(admin: AIOKafkaAdminClient) -> dict[str, dict[str, Any]]:
    """All topics by name. Asking for one by name would create it on a broker that auto-creates."""
    return {topic["topic"]: topic for topic in await admin.describe_topics() if topic["error_code"] == 0}


async def _led(admin: AIOKafkaAdminClient, names: set[str]) -> bool:
    found = await describe_topics(admin)
    return names <= found.keys() and all(
        partition["leader"] >= 0 and partition["error_code"] == 0
        for name in names
        for partition in found[name]["partitions"]
    )


async def _inspect(admin: AIOKafkaAdminClient, topics: TopicSettings) -> list[TopicStatus]:
    found = await describe_topics(admin)
    expected = topics.partitions()
    configs = await _configs(admin, [name for name in expected if name in found])
    return [_status(name, count, found.get(name), configs.get(name, {}), topics) for name, count in expected.items()]


def _status(
    name: str, expected: int, found: Mapping[str, Any] | None, config: Mapping[str, str], topics: TopicSettings
) -> TopicStatus:
    if found is None:
        return TopicStatus(name, "missing", 0, expected, "is missing; create it with: headrace topics --create")
    count = len(found["partitions"])
    if count != expected:
        if name == topics.lists:
            return TopicStatus(
                name, "wrong", count, expected, f"has {count} partitions; its changes need one order, in 1"
            )
        setting = f"topics.{_count_setting(name, topics)}"
        copy = (
            f" and copy this one to it with: headrace repartition {name} NEW-TOPIC" if _is_input(name, topics) else ""
        )
        advice = (
            f"has {count} partitions, {setting} asks for {expected}; the count is fixed at creation because state is "
            f"sharded by partition. Set {setting} = {count}, or name a new topic{copy}"
        )
        return TopicStatus(name, "wrong", count, expected, advice)
    if name == topics.items:
        return _items_status(count, config, topics)
    if "compact" in config.get("cleanup.policy", ""):  # of an output it would drop decisions the same way
        advice = "has cleanup.policy compact, which drops all but the newest record of a key; set it to delete"
        return TopicStatus(name, "wrong", count, expected, advice)
    return TopicStatus(name, "ok", count, expected, "; ".join(_notes(found, config, topics)))


def _items_status(count: int, config: Mapping[str, str], topics: TopicSettings) -> TopicStatus:
    """The topic of items is the one that must keep the newest record of every key for ever."""
    if config.get("cleanup.policy", "compact") != "compact":
        advice = (
            f"has cleanup.policy {config['cleanup.policy']}, which drops items that did not change for long; set it to "
            "compact"
        )
        return TopicStatus(topics.items, "wrong", count, count, advice)
    return TopicStatus(topics.items, "ok", count, count)


def _is_input(name: str, topics: TopicSettings) -> bool:
    return name in (topics.transactions, topics.labels, topics.clicks)


def _count_setting(name: str, topics: TopicSettings) -> str:
    if name == topics.items:
        return "item_partitions"
    if name == topics.dead_letters and topics.click_partitions > topics.transaction_partitions:
        return "click_partitions"
    return "click_partitions" if name in (topics.clicks, topics.recommendations) else "transaction_partitions"


def _notes(found: Mapping[str, Any], config: Mapping[str, str], topics: TopicSettings) -> Iterable[str]:
    copies = min(len(partition["replicas"]) for partition in found["partitions"])
    if copies < topics.replication:
        yield f"has {copies} of {topics.replication} copies (topics.replication)"
    retention = config.get("retention.ms")
    if retention is not None and 0 <= int(retention) < topics.retention_hours * _HOUR_MS:
        kept_h = int(retention) / _HOUR_MS
        yield f"keeps records for {kept_h:g} h, topics.retention_hours asks for {topics.retention_hours}"


async def _configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    """Retention and clean-up by topic; nothing where the user may not read configurations."""
    if not names:
        return {}
    wanted = dict.fromkeys(("retention.ms", "cleanup.policy"))
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in names]
    try:
        answers = await admin.describe_configs(resources)
    except KafkaError:
        return {}
    return {
        resource[3]: {entry[0]: entry[1] for entry in resource[4]}
        for answer in answers
        for resource in answer.resources
        if resource[0] == 0
    }


def run(settings: Settings, *, create: bool, as_json: bool) -> int:
    """Prints the state of the topics; 0 when a worker can run on all of them, else 1."""
    act = create_topics if create else check_topics
    statuses = asyncio.run(act(settings.kafka, settings.topics))
    if as_json:
        print(json.dumps([asdict(status) for status in statuses]))
    else:
        width = max(len(status.name) for status in statuses)
        for status in statuses:
            print(
                f"{status.name:{width}}  {status.state:7}  {status.partitions:4} partitions  {status.advice}".rstrip()
            )
    return 0 if all(status.usable for status in statuses) else 1
