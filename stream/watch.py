"""A readable tail of what the worker writes: ``headrace watch``.

In: an output topic. Out: lines on standard output. No state and no consumer group, so watching changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Literal

import msgspec
from aiokafka import TopicPartition
from rich.console import Console
from rich.text import Text

from features.errors import HistoryError, SettingsError
from features.messages import Alert, DeadLetter, Decision, Recommendation
from stream.connections import kafka_consumer, kafka_errors, kafka_losses
from stream.offsets import offset_range
from stream.render import raw_text, render
from stream.settings import KafkaSettings, Settings, TopicSettings
from stream.topics import check_topics, require_topics

Kind = Literal["decisions", "alerts", "recommendations", "dead-letters"]
Shown = Decision | Alert | Recommendation | DeadLetter

_APPLIES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "decisions": ("key", "action", "min_score", "reason"),
    "alerts": ("key", "action", "min_score", "reason"),
    "recommendations": ("key", "session", "min_score"),
    "dead-letters": ("key", "reason"),
}
_TYPES: Final[Mapping[Kind, type[Shown]]] = {
    "decisions": Decision,
    "alerts": Alert,
    "recommendations": Recommendation,
    "dead-letters": DeadLetter,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What to show; None lets everything through."""

    key: str | None = None
    action: str | None = None
    min_score: float | None = None
    session: str | None = None
    reason: str | None = None

    def check(self, kind: Kind) -> None:
        """Refuses what this kind of message does not have.

        Raises
        ------
        SettingsError
            With every filter that could never match.
        """
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        problems = [
            f"--{name.replace('_', '-')} does not apply to {kind}; "
            f"there are {', '.join('--' + known.replace('_', '-') for known in _APPLIES[kind])}"
            for name in given
            if name not in _APPLIES[kind]
        ]
        if problems:
            raise SettingsError(problems)

    def accepts(self, message: Shown) -> bool:
        """Whether to show ``message``."""
        return (
            (self.key is None or self.key in _keys(message))
            and (self.action is None or getattr(message, "action", None) == self.action)
            and (self.min_score is None or _score(message) >= self.min_score)
            and (self.session is None or getattr(message, "session_id", None) == self.session)
            and (self.reason is None or _gives(message, self.reason))
        )


def _keys(message: Shown) -> tuple[str | None, ...]:
    if isinstance(message, Recommendation):
        return (message.user_id, message.session_id)
    if isinstance(message, Alert):
        return (message.key, *message.entities.values())
    return (raw_text(message.key or ""),) if isinstance(message, DeadLetter) else (message.key,)


def _score(message: Shown) -> float:
    if isinstance(message, Recommendation):
        return max((item.score for item in message.items), default=0.0)
    return 0.0 if isinstance(message, DeadLetter) else message.score


def _gives(message: Shown, reason: str) -> bool:
    """Whether ``reason`` is a dead letter's code, the feature of an alert, or part of a reason's sentence."""
    if isinstance(message, Recommendation):
        return False
    if isinstance(message, DeadLetter):
        return message.reason == reason
    if isinstance(message, Decision):
        return any(reason in sentence for sentence in message.reasons)
    return any(reason == given.feature or reason in given.text for given in message.reasons)


async def tail(
    kafka: KafkaSettings, topic: str, partitions: int, *, from_beginning: bool
) -> AsyncGenerator[bytes, None]:
    """The values of ``topic`` as they come, without end.

    Raises
    ------
    ServiceUnavailable
        If Kafka cannot be reached at the start; later the client itself waits for its return.
    """
    async with kafka_errors(kafka):
        consumer = kafka_consumer(kafka)
        try:
            await consumer.start()
            places = [TopicPartition(topic, number) for number in range(partitions)]
            consumer.assign(places)
            for place, (begin, end) in (await offset_range(kafka, places)).items():
                consumer.seek(place, begin if from_beginning else end)
            while True:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    for record in records:
                        yield record.value or b""
        finally:
            await consumer.stop()


async def watch(
    settings: Settings,
    kind: Kind,
    wanted: Filter,
    show: Callable[[Shown | None, bytes], None],
    *,
    from_beginning: bool = False,
    limit: int | None = None,
) -> None:
    """Calls ``show`` with each message that ``wanted`` accepts and its bytes; None for what is no such message.

    Raises
    ------
    TopicError
        If the topic is missing.
    """
    topic = topic_of(settings.topics, kind)
    (status,) = [found for found in await check_topics(settings.kafka, settings.topics) if found.name == topic]
    if status.state == "missing":
        require_topics([status])
    decode = msgspec.json.Decoder(_TYPES[kind]).decode
    shown = 0
    async with aclosing(tail(settings.kafka, topic, status.partitions, from_beginning=from_beginning)) as values:
        async for value in values:
            message: Shown | None
            try:
                message = decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError):
                message = None
            if message is None or wanted.accepts(message):
                show(message, value)
                shown += 1
                if shown == limit:
                    return


def topic_of(topics: TopicSettings, kind: Kind) -> str:
    """The name of the topic that holds ``kind``."""
    return str(getattr(topics, kind.replace("-", "_")))


def read_titles(path: Path | None) -> dict[str, str]:
    """Titles by item id, from a Parquet file with ``item_id`` and ``title``.

    Raises
    ------
    HistoryError
        If the file cannot be used.
    """
    if path is None:
        return {}
    import pyarrow.parquet as pq  # slow to import, and only for titles

    try:
        table = pq.read_table(path, columns=["item_id", "title"])
    except (OSError, ValueError, KeyError) as error:
        raise HistoryError(f"{path}: expected a Parquet file with item_id and title: {error}") from None
    return {str(item): str(title) for item, title in zip(*(c.to_pylist() for c in table.columns), strict=True)}


def run(
    settings: Settings,
    kind: Kind,
    wanted: Filter,
    *,
    from_beginning: bool,
    limit: int | None,
    items: Path | None,
    as_json: bool,
) -> None:
    """Prints messages until ``limit`` or Ctrl-C."""
    wanted.check(kind)
    titles = read_titles(items)
    console = Console(highlight=False, soft_wrap=True)

    def show(message: Shown | None, value: bytes) -> None:
        if message is None:
            console.print(Text(f"not one of the contract's {kind}: {value[:200]!r}", style="red"))
        elif as_json:
            print(value.decode(), flush=True)
        else:
            console.print(render(message, titles))

    with kafka_losses(settings.kafka):
        asyncio.run(watch(settings, kind, wanted, show, from_beginning=from_beginning, limit=limit))
