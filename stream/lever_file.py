"""The file of business levers, and the watch on it.

In: ``worker.levers`` or ``ab.levers``. Out: the shelf's levers, replaced whole between two cycles. A file that is wrong
at the start is refused; one that becomes wrong is told once and counted, and the levers before it stay in use.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import NoReturn

from features.errors import SettingsError
from features.levers import Levers, parse_levers
from features.shelf import Shelf
from stream.metrics import Metrics
from stream.watched_file import WatchedFile

log = logging.getLogger("headrace.levers")


class LeverFile:
    """The levers of one file on one shelf, as those of the number ``which``; ``setting`` names the file."""

    def __init__(self, path: Path, shelf: Shelf, metrics: Metrics, setting: str = "worker.levers", which: int = 0
                 ) -> None:  # fmt: skip
        self._file = WatchedFile(path, setting)
        self._which = which
        self._shelf = shelf
        self._metrics = metrics

    def load(self) -> None:
        """Use what the file says.

        Raises
        ------
        SettingsError
            With every problem of the file.
        """
        self._use(parse_levers(self._file.read(), str(self._file.path)))

    async def watch(self, every_s: float) -> NoReturn:
        """Look every ``every_s`` seconds whether the file has changed, for ever."""
        while True:
            await asyncio.sleep(every_s)
            try:
                data = await asyncio.to_thread(self._file.look)
                if data is None:
                    continue
                levers = parse_levers(data, str(self._file.path))
            except SettingsError as error:
                self._metrics.levers_refused.inc()
                log.error("levers: %s; those before stay in use", error)
                continue
            await asyncio.to_thread(self._use, levers)
            log.info("levers: %s is in use as it is now", self._file.path)

    def _use(self, levers: Levers) -> None:
        with self._shelf.lock:
            self._shelf.pull(levers, self._which)
