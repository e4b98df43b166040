"""Ends a process that was told to stop and cannot: a cycle hangs in a model, perhaps on the event loop itself.

In: the signals that stop a worker. Out: exit code 1 at the deadline, unless :meth:`Deadline.met` was called. A thread
hears the signals, since a loop that hangs hears none: the interpreter writes each one's number to a file descriptor the
moment it comes, and what uvloop would read there is handed on to it. Nothing runs before a signal comes.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress

log = logging.getLogger("headrace.worker")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Deadline:
    """The time between a wish to stop and the end of the process, whatever hangs.

    Parameters
    ----------
    limit_s : float
        Seconds from the first signal to the end.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._met = threading.Event()

    def listen(self) -> None:
        """Hear signals from now on; in the main thread, after the loop has its handlers."""
        heard, told = os.pipe()
        os.set_blocking(told, False)
        onward = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(heard, onward), name="headrace-deadline", daemon=True).start()

    def met(self) -> None:
        """The cycles in flight are applied or given up: what is left of the stop ends by itself."""
        self._met.set()

    def _hear(self, heard: int, onward: int) -> None:
        waiting = False
        while numbers := os.read(heard, 64):
            if onward >= 0:
                with suppress(OSError):
                    os.write(onward, numbers)
            if not waiting and any(number in numbers for number in _SIGNALS):
                waiting = True
                threading.Thread(target=self._wait, name="headrace-end", daemon=True).start()

    def _wait(self) -> None:
        if not self._met.wait(self._limit_s):
            log.error("a cycle did not end within %g s of the signal to stop: the process ends without it, and the "
                      "next owner reads its records again", self._limit_s)  # fmt: skip
            os._exit(1)
