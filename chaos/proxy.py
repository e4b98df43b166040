"""A TCP proxy on loopback that can be slow, swallow, cut, and lose the reply to a chosen request.

In: bytes of workers. Out: the same bytes to the server, unless :attr:`Proxy.mood` says otherwise. It runs in a thread
of its own. A rule that looks into requests is given the first bytes of each Kafka frame or chunk to Redis.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from stream.embedded import LOOPBACK

Judge = Callable[
    [bytes], str
]  # a request's bytes to "pass", "lose" (drop it, cut) or "mute" (pass it, cut at its reply)


@dataclass(slots=True)
class Mood:
    """How the proxy treats traffic. ``delay_s`` comes before each chunk; ``swallow``: nothing passes or is closed."""

    delay_s: float = 0.0
    swallow: bool = False
    refuse: bool = False
    judge: Judge | None = None
    change: Callable[[bytes], bytes] | None = None  # of a whole reply


class Proxy:
    """Listens on ``port`` and forwards to ``target``; both on loopback.

    ``framed``: the traffic is Kafka's, each message begins with its size, and is handled whole.
    """

    def __init__(self, port: int, target: int, *, framed: bool) -> None:
        self.port, self.target, self._framed = port, target, framed
        self.mood = Mood()
        self.muted = 0  # requests and replies lost by a rule
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._up.wait(10):
            raise RuntimeError(f"the proxy on port {port} did not start")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, LOOPBACK, self.port))
        self._up.set()
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._server.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def stop(self) -> None:
        """Close everything."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Close all connections at once, both sides."""
        done = threading.Event()

        def close() -> None:
            for writer in list(self._writers):
                writer.transport.abort()
            done.set()

        self._loop.call_soon_threadsafe(close)
        done.wait(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.mood.refuse:
                return
            with suppress(OSError):
                there, onward = await asyncio.open_connection(LOOPBACK, self.target)
                self._writers.add(onward)
                line = _Line(self)
                tasks = [asyncio.ensure_future(line.requests(reader, onward)),
                         asyncio.ensure_future(line.replies(there, writer))]  # fmt: skip
                self._tasks |= set(tasks)
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    self._tasks -= set(tasks)
                    self._writers.discard(onward)
                    onward.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


class _Line:
    """One connection."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._mute = False

    async def requests(self, reader: asyncio.StreamReader, onward: asyncio.StreamWriter) -> None:
        while chunk := await self._next(reader):
            mood = await self._patience()
            verdict = mood.judge(chunk) if mood.judge is not None else "pass"
            if verdict == "lose":
                self._proxy.muted += 1
                return
            self._mute = self._mute or verdict == "mute"
            onward.write(chunk)
            await onward.drain()

    async def replies(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await self._next(there):
            mood = await self._patience()
            if self._mute:
                self._proxy.muted += 1
                return
            writer.write(mood.change(chunk) if mood.change is not None else chunk)
            await writer.drain()

    async def _next(self, reader: asyncio.StreamReader) -> bytes:
        if not self._proxy._framed:
            return await reader.read(65_536)
        with suppress(asyncio.IncompleteReadError):
            head = await reader.readexactly(4)
            return head + await reader.readexactly(int.from_bytes(head, "big"))
        return b""

    async def _patience(self) -> Mood:
        """Wait as the mood of the moment says; a black hole holds what it got until it is closed."""
        if self._proxy.mood.delay_s:
            await asyncio.sleep(self._proxy.mood.delay_s)
        while self._proxy.mood.swallow:
            await asyncio.sleep(0.02)
        return self._proxy.mood
