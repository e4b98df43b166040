"""A wait that ends early when somebody says so: an event with a limit, without a task around it.

``asyncio.wait_for`` makes a task of what it waits for, which a cycle of three records feels.
"""

from __future__ import annotations

import asyncio


class Pause:
    """For one waiter at a time."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, limit_s: float) -> None:
        """Until :meth:`end` is called, or ``limit_s`` seconds have passed."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(limit_s, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def end(self) -> None:
        """Wake who waits; nobody does, and nothing happens."""
        if self._waiter is not None:
            _wake(self._waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
