"""What the state can lie in: the twin in memory, both Redis servers, and a Redis Cluster. One suite tests them all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from stream.connections import redis_client
from stream.embedded import RedisServer
from stream.settings import RedisSettings
from stream.store import StateStore
from tests.clusters import RedisClusterServers
from tests.fakes import MemoryStore
from tests.servers import fresh_name

Store = Any  # StateStore or its twin
Story = Callable[[Store], Awaitable[None]]


@dataclass(slots=True)
class Backend:
    """One place for state. Stores of one ``name`` share it, each over a client of its own."""

    server: RedisServer | RedisClusterServers | None = None
    timeout_s: float = 5.0
    name: str = field(default_factory=lambda: fresh_name("store"))
    hashes: dict[int, dict[bytes, bytes]] = field(default_factory=dict)

    @property
    def settings(self) -> RedisSettings:
        """How to reach it."""
        assert self.server is not None
        cluster = isinstance(self.server, RedisClusterServers)
        return RedisSettings(url=self.server.url, namespace=self.name, cluster=cluster, timeout_s=self.timeout_s)

    def open(self, stack: AsyncExitStack) -> Store:
        """A store with a client that closes with ``stack``."""
        if self.server is None:
            return MemoryStore(self.hashes, "fraud")
        client = redis_client(self.settings)
        stack.push_async_callback(client.aclose)
        return StateStore(client, self.settings, "group", "fraud")

    def tell(self, story: Story) -> None:
        """Run a story with one store."""
        self.tell_many(1, lambda stores: story(stores[0]))

    def tell_many(self, count: int, story: Callable[[Sequence[Store]], Awaitable[None]]) -> None:
        """Run a story with several stores of the same state."""

        async def run() -> None:
            async with AsyncExitStack() as stack:
                await story([self.open(stack) for _ in range(count)])

        asyncio.run(run())


async def patiently(attempt: Callable[[], Awaitable[Any]], errors: type[Exception] = RedisError) -> Any:
    """Try again until it succeeds, as a worker does; at most for half a minute."""
    async with asyncio.timeout(30.0):
        while True:
            try:
                return await attempt()
            except errors:
                await asyncio.sleep(0.05)
