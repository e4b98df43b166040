"""Entity state in Redis: one hash per lane and partition, written with its offsets in one command.

Keys (``{}`` is Redis Cluster's hash tag, so a partition's state lies in one slot)::

    <namespace>:{<group>:<lane>:<partition>}    hash
        @               the head (JSON, :class:`Head`): applied offsets, output positions, schema hash, partition count,
                        writer, watermark
        <entity>:<id>   state of one entity shard (features/codec.py), ``session:<id>`` and ``user:<id>`` of
                        clicks (stream/sessions.py)
        @budget...      the alert budget's controller (features/budget.py), where there is one
    <namespace>:list:<kind>:<id>    no state, see stream/lists.py
    <namespace>:{<group>:rule-lists:0}    the lists of the rules, in the same form (:mod:`stream.rule_lists`)
    <namespace>:draft:{<group>:<lane>:<partition>}    the same while ``headrace rebuild`` makes it

In: partitions, field names, encoded state. Out: bytes. On redelivery nothing counts twice: :meth:`apply` is a
compare-and-set on the head, and a repeat of a write whose reply was lost finds its own head and succeeds.
A write is one HSET inside the script, a removal one HDEL: Redis logs a script with two writes as MULTI..EXEC, and 7.0
corrupts state when the tail of such a log is torn. What reads as empty is removed by its partition's owner
(:mod:`stream/sweep.py`): :meth:`remove` deletes nothing where another worker wrote last, nor a value that has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from features.errors import StateConflict, StateMismatch
from features.watermark import UNMARKED, Watermark
from stream.connections import RedisClient, redis_errors
from stream.resp import Wired
from stream.roundtrip import Command, round_trip
from stream.settings import RedisSettings

FIELDS_MAX = 3500  # Lua's unpack takes 3,990 and fails at 4,100
REMOVED_MAX = 1000  # fields of one removal, whose values are its arguments too
HEAD = b"@"
_APPLY = """
local head = redis.call('HGET', KEYS[1], '@') or ''
if head == ARGV[1] then
  redis.call('HSET', KEYS[1], unpack(ARGV, 2))
  return ''
end
if head == ARGV[3] then return '' end
if head == '' then return '-' end
return head
"""
_NO_HEAD = b"-"  # what the script says of a partition that is gone
_REPLACE = """
local head = redis.call('HGET', KEYS[1], '@') or ''
if head == ARGV[1] then
  redis.call('RENAME', KEYS[2], KEYS[1])
  return ''
end
return head == '' and '-' or head
"""
_REMOVE = """
local head = redis.call('HGET', KEYS[1], '@') or ''
if not string.find(head, ARGV[1], 1, true) then return -1 end
local gone = {}
for i = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then gone[#gone + 1] = ARGV[i] end
end
if #gone == 0 then return 0 end
return redis.call('HDEL', KEYS[1], unpack(gone))
"""


class Head(msgspec.Struct, frozen=True):
    """What a partition's state includes.

    ``offsets``: next offset to apply of each input topic. ``outputs``: next position of each output topic's partition
    of the same number, when the write was made. ``writer``: the worker's id, a colon, and the number of the write.
    ``watermark``: how far the event times have come for good, see :mod:`features.watermark`.
    """

    offsets: dict[str, int]
    outputs: dict[str, int]
    schema: str
    partitions: int
    writer: str = ""
    watermark: Watermark = UNMARKED


@dataclass(frozen=True, slots=True)
class Write:
    """New state of one partition: the head it replaces (empty: none), the new head, and the fields that changed."""

    partition: int
    expected: bytes
    head: bytes
    fields: Mapping[bytes, bytes]


class StateStore:
    """The state of one lane (a set of inputs that share state) in Redis."""

    def __init__(self, redis: RedisClient, settings: RedisSettings, group: str, lane: str) -> None:
        self._redis = redis
        self._settings = settings
        self._group = group
        self._lane = lane
        self._prefix = f"{settings.namespace}:{{{group}:{lane}:"

    def key(self, partition: int) -> str:
        """The key of a partition's hash."""
        return f"{self._prefix}{partition}}}"

    async def read(self, wanted: Mapping[int, Sequence[bytes]]) -> dict[int, list[bytes | None]]:
        """The values of fields of several partitions in one round trip; ``HEAD`` is a field like any other."""
        replies = await self._trip([Command(self.key(p), ("HMGET", self.key(p), *f)) for p, f in wanted.items()])
        return dict(zip(wanted, replies, strict=True))

    async def begin_with(self, partition: int, fields: Mapping[bytes, bytes]) -> bool:
        """Give a partition that has no state yet the state of its history; whether it was done.

        There is no head yet, so whoever takes the partition over first makes one; a partition with state is left alone.
        """
        key, names = self.key(partition), list(fields)
        (exists,) = await self._trip([Command(key, ("EXISTS", key))])
        if exists:
            return False
        commands = []
        for start in range(0, len(names), FIELDS_MAX):
            pairs = [word for name in names[start : start + FIELDS_MAX] for word in (name, fields[name])]
            commands.append(Command(key, ("HSET", key, *pairs)))
        _ = await self._trip(commands)
        return True

    async def filled(self, partitions: Sequence[int]) -> dict[int, bool]:
        """Which partitions have anything, with a head or without."""
        replies = await self._trip([Command(self.key(p), ("EXISTS", self.key(p))) for p in partitions])
        return {p: bool(reply) for p, reply in zip(partitions, replies, strict=True)}

    async def clear(self, partition: int) -> None:
        """Remove everything of a partition; whoever worked on it loses its next compare-and-set."""
        _ = await self._trip([Command(self.key(partition), ("UNLINK", self.key(partition)))])

    def draft(self) -> StateStore:
        """A store beside this one, in whose partitions state is made that :meth:`replace_by` puts in its place."""
        return StateStore(self._redis, replace(self._settings, namespace=f"{self._settings.namespace}:draft"),
                          self._group, self._lane)  # fmt: skip

    async def replace_by(self, draft: StateStore, partition: int, expected: bytes) -> None:
        """Put the state of a draft's partition in the place of this one's, whose head is still ``expected``.

        Raises
        ------
        StateConflict
            If a worker has written meanwhile; nothing is changed.
        """
        key, other = self.key(partition), draft.key(partition)
        (found,) = await self._trip([Command(key, ("EVAL", _REPLACE, 2, key, other, expected))])
        if found:
            raise conflict(partition, found)

    async def apply(self, writes: Sequence[Write]) -> None:
        """Write every partition's fields and head, if its head is still the expected one.

        Raises
        ------
        StateConflict
            If another worker wrote a partition; the partitions before it are written, which repeats can tell.
        ServiceUnavailable
            If Redis cannot be reached; any part of the writes may have been made.
        """
        commands = []
        for write in writes:
            key = self.key(write.partition)
            head = ("EVAL", _APPLY, 1, key, write.expected, HEAD, write.head)
            if isinstance(write.fields, Wired) and not self._settings.cluster:
                commands.append(Command(key, (*head, write.fields)))
            else:
                commands.append(Command(key, (*head, *[word for pair in write.fields.items() for word in pair])))
        replies = await self._trip(commands)
        for write, found in zip(writes, replies, strict=True):
            if found:
                raise conflict(write.partition, found)

    async def scan(self, partition: int, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
        """About ``count`` fields of a partition, and the cursor of the next ones, 0 at the end; 0 begins.

        What is there from the first call to the last comes at least once, unless the partition's slot moves meanwhile.
        """
        key = self.key(partition)
        ((after, flat),) = await self._trip([Command(key, ("HSCAN", key, cursor, "COUNT", count))])
        found = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
        return int(after), {name: value for name, value in found.items() if name != HEAD}

    async def remove(self, partition: int, owner: str, fields: Mapping[bytes, bytes]) -> int:
        """Remove at most ``REMOVED_MAX`` fields that still have these values; how many had them.

        Raises
        ------
        StateConflict
            If ``owner`` (the worker's part of a head's writer) did not write the partition last; nothing is removed.
        """
        key, pairs = self.key(partition), [word for pair in fields.items() for word in pair]
        mark = b'"writer":"' + owner.encode() + b":"
        (removed,) = await self._trip([Command(key, ("EVAL", _REMOVE, 1, key, mark, *pairs))])
        if removed < 0:
            raise StateConflict(f"partition {partition} was written by another worker; nothing is removed from it")
        return int(removed)

    async def _trip(self, commands: Sequence[Command]) -> list[Any]:
        async with redis_errors(self._settings):
            return await round_trip(self._redis, self._settings, commands)


def conflict(partition: int, found: bytes) -> StateConflict:
    """The error of a worker that finds another's head where it expected its own."""
    if found in (b"", _NO_HEAD):
        return StateConflict(f"the state of partition {partition} is gone; this worker lets go and looks again")
    return StateConflict(
        f"partition {partition} was written by another worker (its head is {found[:200]!r}); "
        "this worker lets go and reads it again"
    )


def encode_head(head: Head) -> bytes:
    """The head's bytes, as they are compared."""
    return msgspec.json.encode(head)


class _Facts(msgspec.Struct, frozen=True):
    """Of a head, what may be asked of another worker's too."""

    writer: str = ""
    watermark: Watermark = UNMARKED


def _facts(value: bytes | None) -> _Facts:
    """What a head says; nothing where there is none, or it cannot be read."""
    try:
        return msgspec.json.decode(value or b"{}", type=_Facts)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Facts()


def written_since(value: bytes | None, writer: str) -> bool:
    """Whether a partition's head is of the write ``writer`` (as in :class:`Head`) or a later one of the same worker."""
    worker, _, number = writer.rpartition(":")
    other, _, count = _facts(value).writer.rpartition(":")
    return other == worker and int(count or 0) >= int(number or 0)


def head_watermark(value: bytes | None) -> int:
    """The watermark in the head of a partition, which may be another worker's; 0 where there is none."""
    return _facts(value).watermark.time


def decode_head(value: bytes, *, schema: str, partitions: int, where: str) -> Head:
    """The head of a partition.

    Raises
    ------
    StateMismatch
        If it was written for another schema or partition count, or by a version that wrote heads in another way.
    """
    try:
        head = msgspec.json.decode(value, type=Head)
    except msgspec.DecodeError as error:
        raise StateMismatch(
            f"the state at {where} has an unreadable head ({error}); make it anew with `headrace rebuild --replace`, "
            "or start over with another redis.namespace and worker.group"
        ) from None
    if head.schema != schema:
        raise StateMismatch(
            f"the state at {where} is of feature schema {head.schema}, this worker's is {schema}; make it anew with "
            "`headrace rebuild --replace`, use the schema it was made with, or another redis.namespace and worker.group"
        )
    if head.partitions != partitions:
        raise StateMismatch(
            f"the state at {where} is of a topic with {head.partitions} partitions, there are {partitions} now; state "
            "is sharded by partition: restore the count, or use another redis.namespace and worker.group"
        )
    return head
