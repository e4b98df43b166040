"""What a lane is: a set of input topics that share partition numbers and state, and how one cycle passes through it.

A cycle calls, in this order and without another cycle in between: :meth:`Lane.begin` (skip, decode, order),
:meth:`Lane.wanted` (which Redis fields are missing), :meth:`Lane.fill`, :meth:`Lane.compute` (fold, score, decide).
Everything here is synchronous; the cycle does the IO.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.checks import Refused
from features.decode import Bad
from features.messages import DeadLetter
from features.recordbatch import Columns
from features.texts import Texts
from features.watermark import UNMARKED, Watermark

DEAD_LETTER_BYTES = 65_536
_Message = TypeVar("_Message", bound=msgspec.Struct)


class LetterId(msgspec.Struct, frozen=True):
    """Of a dead letter, its source and why."""

    dead_letter_id: str
    reason: str = ""


class Record(Protocol):
    """What is used of a Kafka record."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def timestamp(self) -> int: ...


@dataclass(frozen=True, slots=True)
class StandIn:
    """In the place of records that must not be decoded; ``value`` says why. The rest is what aiokafka asks of one."""

    offset: int
    key: bytes | None
    value: Refused
    timestamp: int
    timestamp_type: int = 0
    checksum: None = None
    headers: tuple[()] = ()


Records = Mapping[str, Sequence[Record]]  # of one partition number: topic to records in offset order


Name = TypeVar("Name")
Target = tuple[str, int]  # a topic and one of its partitions
Message = tuple[bytes, bytes]  # key and value to produce


Fields = Mapping[bytes, bytes]  # state to write, by its field in Redis


@dataclass(slots=True)
class Produced:
    """What one cycle yields for one partition of a lane: messages by topic, offsets, watermark, and state to write.

    ``fields`` may be on its way: answers need not wait for it, and it is written only once they are acknowledged.
    ``lists`` are the newest answers by ``session:<id>`` and ``user:<id>``, for pulling.
    """

    partition: int
    offsets: dict[str, int]
    messages: Mapping[str, Sequence[Message]] = field(default_factory=dict)
    fields: Fields | Future[Fields] = field(default_factory=dict)
    watermark: Watermark = UNMARKED
    lists: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Held:
    """A cache: entries and bytes held, and look-ups so far that found their entry or did not."""

    entries: int
    nbytes: int
    hits: int
    misses: int


@dataclass(slots=True)
class Answers:
    """Messages by topic, collected; what answers a source in ``done`` (``topic source``) was emitted before.

    A topic has either messages that were added one by one, or one :class:`~features.recordbatch.Columns`.
    """

    done: Set[str] = frozenset()
    messages: dict[str, list[Message] | Columns] = field(default_factory=dict)

    def add(self, topic: str, source: str, message: Message) -> None:
        """Add a message unless it was emitted before; ``source`` (``topic:partition:offset``) is what it answers."""
        if not self.done or f"{topic} {source}" not in self.done:
            cast(list[Message], self.messages.setdefault(topic, [])).append(message)


@dataclass(slots=True)
class Tally:
    """Counts of one cycle, for the metrics.

    ``timestamps`` are the Kafka times (int64[n], ms) of what was answered, by kind, one array for each partition.
    ``rules``: by partition what rules have hit so far (:data:`stream.rule_books.Totals`); None if all is as before.
    ``budgets``: of each partition's alert budget, the threshold in force and the cases of the day.
    """

    events: dict[str, int] = field(default_factory=dict)
    actions: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    alerts: int = 0
    unknown_fields: int = 0
    labels_missed: int = 0
    duplicates: int = 0
    degraded: dict[str, int] = field(default_factory=dict)
    rules: Mapping[int, Any] | None = None
    ab: dict[str, int] = field(default_factory=dict)
    timestamps: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)
    budgets: dict[int, tuple[float, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to the seconds of a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def add(self, counts: dict[Name, int], name: Name, count: int = 1) -> None:
        """Add to one of the counters."""
        if count:
            counts[name] = counts.get(name, 0) + count


class Lane(Protocol):
    """One kind of decision. ``name`` is part of the state's key; ``topics`` are its inputs, and the last of ``outputs``
    is for dead letters.

    While a record that makes a cycle raise is looked for, :meth:`narrow` says how many waiting records of a partition
    a cycle may take up (0: as many as ever), and :meth:`sources` tells the topic, partition and offset of each that it
    would have counted. ``own_fields`` are fields of a partition that :meth:`resume` is given as they were applied.
    """

    @property
    def name(self) -> str: ...
    @property
    def topics(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def partitions(self) -> int: ...
    @property
    def records_max(self) -> int: ...
    @property
    def own_fields(self) -> tuple[bytes, ...]: ...

    def begin(self, fetched: Mapping[int, Records], lagging: Mapping[int, bool], tally: Tally) -> Any: ...
    def wanted(self, work: Any, cycle: int, now_s: float) -> dict[int, list[bytes]]: ...
    def fill(self, work: Any, values: Mapping[int, Mapping[bytes, bytes | None]], now_s: float) -> None: ...
    def compute(self, work: Any, models: Any, cycle: int, tally: Tally) -> list[Produced]: ...
    def sources(self, work: Any) -> list[tuple[Target, int]]: ...
    def narrow(self, limit: int) -> None: ...
    def resume(self, partition: int, offsets: Mapping[str, int], watermark: Watermark = ...,
               own: Sequence[bytes | None] = ...) -> None: ...  # fmt: skip
    def drop(self, partition: int) -> None: ...
    def evict(self, settled: int) -> None: ...
    def adopt(self, partition: int, emitted: Mapping[str, Sequence[bytes]]) -> dict[str, int]: ...
    def waiting(self) -> dict[int, int]: ...
    def held(self) -> dict[str, Held]: ...
    def past(self, values: Mapping[bytes, bytes], watermark: int) -> list[bytes]: ...


def misplaced(keys: Texts, rows: Sequence[int], lie: NDArray[np.integer], partitions: int, named: str
              ) -> dict[int, Bad]:  # fmt: skip
    """Position in the batch and reason of each event whose key belongs to another partition.

    ``rows`` are the events' indices in the fetch, ``lie`` (int[n]) the partitions where they are; ``named`` tells
    a key, with ``{!r}`` in its place.
    """
    expected = keys.partitions(partitions)
    return {
        i: Bad(rows[i], "wrong_partition",
               f"{named.format(keys[i])} belongs to partition {expected[i]} of {partitions}, not {lie[i]}: the "
               "producer does not use murmur2 on the key (`headrace repartition`, or set worker.accept_mispartitioned)")
        for i in np.flatnonzero(expected != lie).tolist()
    }  # fmt: skip


def source_id(target: Target, offset: int) -> str:
    """The deterministic id of a record: ``topic:partition:offset``."""
    return f"{target[0]}:{target[1]}:{offset}"


def after_sources(sources: Iterable[str]) -> dict[str, int]:
    """By topic, the offset after the last of the given source ids of one partition.

    >>> after_sources(["clicks:0:7", "clicks:0:3"])
    {'clicks': 8}
    """
    after: dict[str, int] = {}
    for source in sources:
        topic, _, offset = source.rsplit(":", 2)
        after[topic] = max(after.get(topic, 0), int(offset) + 1)
    return after


def emitted_values(values: Iterable[bytes], kind: type[_Message], topics: Iterable[str]
                   ) -> Iterator[tuple[str, _Message, bytes]]:  # fmt: skip
    """Messages of an output's tail that answer one of ``topics``: the source in their first field, message and value.

    What is not of ``kind`` is somebody else's, and so is what answers another lane's input.
    """
    for value in values:
        try:
            message = msgspec.json.decode(value, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        source = getattr(message, kind.__struct_fields__[0])
        if source.count(":") >= 2 and source.rsplit(":", 2)[0] in topics:
            yield source, message, value


def emitted_before(values: Iterable[bytes], kind: type[_Message], topics: Iterable[str]) -> dict[str, _Message]:
    """The messages of :func:`emitted_values` by their source."""
    return {source: message for source, message, _ in emitted_values(values, kind, topics)}


def lagging_after(cut: Mapping[Target, Any], lagging: Callable[[Target], bool]) -> Callable[[Target], bool]:
    """A partition also lags when a cycle was cut and the rest of its records comes with the next."""
    return lambda target: target in cut or lagging(target)


def reached(offsets: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    """Whether every topic of ``wanted`` has come to its offset."""
    return all(offsets.get(topic, 0) >= offset for topic, offset in wanted.items())


def dead_letter(target: Target, record: Record, bad: Bad) -> Message:
    """The dead letter of a record; it always fits the broker's limit, whatever the record's size."""
    refused = record.value if isinstance(record.value, Refused) else None
    value = (record.value if refused is None else refused.given) or b""
    key = record.key
    letter = DeadLetter(
        dead_letter_id=source_id(target, record.offset),
        reason=bad.code,
        sentence=bad.sentence[:500],
        topic=target[0],
        partition=target[1],
        offset=record.offset,
        length=len(value),
        sha256=hashlib.sha256(value).hexdigest(),
        value=base64.b64encode(value[:DEAD_LETTER_BYTES]).decode(),
        key=None if key is None else base64.b64encode(key[:1024]).decode(),
        first_offset=None if refused is None else refused.first,
    )
    return letter.dead_letter_id.encode(), msgspec.json.encode(letter)


def refuse(target: Target, record: Record, bad: Bad, topic: str, answers: Answers, tally: Tally) -> None:
    """Put a record's dead letter among the answers and count it."""
    answers.add(topic, source_id(target, record.offset), dead_letter(target, record, bad))
    tally.add(tally.dead_letters, bad.code)
