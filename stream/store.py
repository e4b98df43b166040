"""Entity state in Redis: one hash per lane and partition, written with its offsets in one command.

Keys (``{}`` is Redis Cluster's hash tag, so a partition's state lies in one slot)::

    <namespace>:{<group>:<lane>:<partition>}    hash
        @               the head (JSON, :class:`Head`): applied offsets, output positions, schema hash, writer
        <entity>:<id>   state of one entity shard (features/codec.py), ``session:<id>`` for clicks

In: partitions, field names, encoded state. Out: bytes. On redelivery nothing counts twice: :meth:`apply` is a
compare-and-set on the head, and a repeat of a write whose reply was lost finds its own head and succeeds.
A write is one HSET inside the script: Redis logs a script with two writes as MULTI..EXEC, and 7.0 corrupts state when
the tail of such a log is torn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from features.errors import StateConflict, StateMismatch
from stream.connections import RedisClient, redis_errors
from stream.roundtrip import Command, round_trip
from stream.settings import RedisSettings

FIELDS_MAX = 3500  # Lua's unpack takes 3,990 and fails at 4,100
HEAD = b"@"
_APPLY = """
local head = redis.call('HGET', KEYS[1], '@') or ''
if head == ARGV[1] then
  redis.call('HSET', KEYS[1], unpack(ARGV, 2))
  return ''
end
if head == ARGV[3] then return '' end
return head
"""


class Head(msgspec.Struct, frozen=True):
    """What a partition's state includes.

    ``offsets``: next offset to apply of each input topic. ``outputs``: next position of each output topic's partition
    of the same number, when the write was made. ``writer``: unique to one write of one worker.
    """

    offsets: dict[str, int]
    outputs: dict[str, int]
    schema: str
    partitions: int
    writer: str = ""


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
            pairs = [word for pair in write.fields.items() for word in pair]
            commands.append(Command(key, ("EVAL", _APPLY, 1, key, write.expected, HEAD, write.head, *pairs)))
        replies = await self._trip(commands)
        for write, found in zip(writes, replies, strict=True):
            if found:
                raise conflict(write.partition, found)

    async def _trip(self, commands: Sequence[Command]) -> list[Any]:
        async with redis_errors(self._settings):
            return await round_trip(self._redis, self._settings, commands)


def conflict(partition: int, found: bytes) -> StateConflict:
    """The error of a worker that finds another's head where it expected its own."""
    return StateConflict(
        f"partition {partition} was written by another worker (its head is {found[:200]!r}); "
        "this worker lets go and reads it again"
    )


def encode_head(head: Head) -> bytes:
    """The head's bytes, as they are compared."""
    return msgspec.json.encode(head)


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
            f"the state at {where} has an unreadable head ({error}); start over with another redis.namespace and "
            "worker.group"
        ) from None
    if head.schema != schema:
        raise StateMismatch(
            f"the state at {where} is of feature schema {head.schema}, this worker's is {schema}; use the schema "
            "it was made with, or another redis.namespace and worker.group"
        )
    if head.partitions != partitions:
        raise StateMismatch(
            f"the state at {where} is of a topic with {head.partitions} partitions, there are {partitions} now; state "
            "is sharded by partition: restore the count, or use another redis.namespace and worker.group"
        )
    return head
