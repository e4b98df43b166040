"""Ctrl-C and SIGTERM for a program that waits for many things: a wish to stop that ends every wait.

In: signals, work to wait for. Out: its result, or :class:`Stopped`. A second signal kills the children at once.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from stream.processes import Child

_T = TypeVar("_T")


class Stopped(Exception):
    """The wish to stop came while something was waited for."""


class Stop:
    """The wish to stop, and what to do about ``children`` when it comes a second time.

    ``busy``: a thread may still run what cannot be interrupted, so the process must end without waiting for it.
    """

    def __init__(self, children: Sequence[Child]) -> None:
        self.wanted = asyncio.Event()
        self.busy = False
        self._children = children

    def listen(self) -> None:
        """Hear SIGINT and SIGTERM from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self.wanted.is_set():
            for child in self._children:
                child.kill()
        self.wanted.set()

    async def pause(self, seconds: float) -> None:
        """Sleep, but not on when a stop is wanted."""
        try:
            await asyncio.wait_for(self.wanted.wait(), seconds)
        except TimeoutError:
            return

    async def unless_wanted(self, work: Coroutine[Any, Any, _T] | asyncio.Future[_T]) -> _T:
        """The result of ``work``, which is cancelled when a stop is wanted first.

        Raises
        ------
        Stopped
            If a stop is wanted first.
        """
        task, wish = asyncio.ensure_future(work), asyncio.create_task(self.wanted.wait())
        try:
            await asyncio.wait([task, wish], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Stopped
            return task.result()
        finally:
            for pending in (task, wish):
                pending.cancel()
            await asyncio.gather(task, wish, return_exceptions=True)

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """The result of ``work``, done in a thread that a stop does not wait for: a fit cannot be interrupted."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def settle(deliver: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                deliver(value)

        def body() -> None:
            deliver: Callable[[Any], None] = future.set_result
            value: Any
            try:
                value = work()
            except BaseException as error:  # every failure belongs to the one who waits
                deliver, value = future.set_exception, error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, deliver, value)

        self.busy = True
        threading.Thread(target=body, daemon=True).start()
        try:
            return await self.unless_wanted(future)
        finally:
            self.busy = not future.done() or future.cancelled()
