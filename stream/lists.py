"""The latest list of each session and user, for whoever would rather pull than consume: one GET, no code of ours.

Keys, each in the slot of its own name, with a time to live of ``worker.list_ttl_s``::

    <namespace>:list:session:<session_id>    string, the newest message of ``recommendations`` for the session
    <namespace>:list:user:<user_id>          string, the newest one for the user over all sessions

In: the answers of cycles that are applied. Out: Redis strings, written together a few times in a hundredth of a second,
so that a cycle waits for nothing. State owned: what is not written yet. On redelivery nothing gets older: a list never
replaces one that answers a later click of the same partition, so a worker that slept through its session changes
nothing. Lists are no state: what could not be written is counted and comes with the next click.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from features.errors import HeadraceError
from stream.connections import RedisClient, redis_errors
from stream.metrics import Metrics
from stream.roundtrip import Command, round_trip
from stream.settings import RedisSettings

log = logging.getLogger("headrace.worker")
_COLLECT_S = 0.02  # a round trip for each cycle would cost a third of the cycle
_SET = """
local id = '^{"recommendation_id":"(.-):(%d+)"'
local place, offset = string.match(redis.call('GETRANGE', KEYS[1], 0, 511), id)
local mine, later = string.match(ARGV[1], id)
if place == mine and tonumber(offset) > tonumber(later) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


def list_key(redis: RedisSettings, kind: str, id_: str) -> str:
    """Where the list of a ``session`` or ``user`` lies.

    >>> list_key(RedisSettings(), "session", "s-3")
    'headrace:list:session:s-3'
    """
    return f"{redis.namespace}:list:{kind}:{id_}"


class ListWriter:
    """Writes the newest lists; see the module's text."""

    def __init__(self, redis: RedisClient, settings: RedisSettings, ttl_s: int, metrics: Metrics) -> None:
        self._redis = redis
        self._settings = settings
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._prefix = f"{settings.namespace}:list:"
        self._waiting: dict[str, bytes] = {}
        self._task: asyncio.Task[None] | None = None
        self._told = False

    def put(self, lists: Mapping[str, bytes]) -> None:
        """Have lists written soon; they are by ``session:<id>`` and ``user:<id>``."""
        self._waiting.update(lists)
        if self._waiting and self._task is None:
            self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(_COLLECT_S)
                await self.flush()
        finally:
            self._task = None

    async def flush(self) -> None:
        """Write what waits, now."""
        lists, self._waiting = self._waiting, {}
        commands = []
        for name, value in lists.items():
            key = self._prefix + name
            commands.append(Command(key, ("EVAL", _SET, 1, key, value, self._ttl_s)))
        try:
            async with redis_errors(self._settings):
                _ = await round_trip(self._redis, self._settings, commands)
            self._told = False
        except HeadraceError as error:
            self._metrics.lists_lost.inc(len(lists))
            if not self._told:
                log.warning("lists could not be written for pulling: %s", error)
            self._told = True

    async def close(self) -> None:
        """Write what waits, and end."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.flush()


async def pulled(client: RedisClient, redis: RedisSettings, kind: str, id_: str) -> bytes | None:
    """The list of a ``session`` or ``user`` as it lies in Redis; None where there is none, or no more."""
    key = list_key(redis, kind, id_)
    async with redis_errors(redis):
        (value,) = await round_trip(client, redis, [Command(key, ("GET", key))])
    found: bytes | None = value
    return found
