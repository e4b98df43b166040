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

log = logging.getLogger("headrace.levers")


class LeverFile:
    """The levers of one file on one shelf, as those of the number ``which``; ``setting`` names the file."""

    def __init__(self, path: Path, shelf: Shelf, metrics: Metrics, setting: str = "worker.levers", which: int = 0
                 ) -> None:  # fmt: skip
        self._path = path
        self._setting, self._which = setting, which
        self._shelf = shelf
        self._metrics = metrics
        self._data = b""
        self._told = ""

    def load(self) -> None:
        """Use what the file says.

        Raises
        ------
        SettingsError
            With every problem of the file.
        """
        self._data = self._read()
        self._use(parse_levers(self._data, str(self._path)))

    async def watch(self, every_s: float) -> NoReturn:
        """Look every ``every_s`` seconds whether the file has changed, for ever."""
        while True:
            await asyncio.sleep(every_s)
            try:
                data = await asyncio.to_thread(self._read)
                if data == self._data:
                    self._told = ""
                    continue
                levers = parse_levers(data, str(self._path))
            except SettingsError as error:
                if str(error) != self._told:
                    self._told = str(error)
                    self._metrics.levers_refused.inc()
                    log.error("levers: %s; those before stay in use", error)
                continue
            self._data, self._told = data, ""
            await asyncio.to_thread(self._use, levers)
            log.info("levers: %s is in use as it is now", self._path)

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise SettingsError([f"{self._setting} = '{self._path}': cannot be read: {error.strerror}"]) from None

    def _use(self, levers: Levers) -> None:
        with self._shelf.lock:
            self._shelf.pull(levers, self._which)
