"""Removes from Redis what reads as empty, so that its memory is bounded by who was active lately.

In: the partitions that this worker holds and the watermarks in their applied heads. Out: fewer fields in Redis. State
owned: up to which watermark each partition has been swept. On redelivery: a removal can be repeated or lost, nothing
depends on it.

No vector, decision or recommendation shows when a sweep ran: the kernel reads a row as empty by a rule on the row and
the watermark (:mod:`features.watermark`), and the sweep removes only what that rule has emptied as of an applied head.
The row that a cycle in flight has written anew has another value by then, and stays. A worker that has lost the
partition without knowing removes nothing, see :meth:`~stream.store.StateStore.remove`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from features.errors import HeadraceError
from stream.metrics import Metrics
from stream.station import Station
from stream.store import REMOVED_MAX

log = logging.getLogger("headrace.worker")
_STEP_FIELDS = 100  # about a millisecond of the loop
_PAUSE_S = 0.05


class Sweeper:
    """Goes through the partitions of all lanes, a few fields at a time."""

    def __init__(
        self, stations: Sequence[Station], metrics: Metrics, every_s: float, pause_s: float = _PAUSE_S
    ) -> None:
        self._stations = tuple(stations)
        self._metrics = metrics
        self._every_s = every_s
        self._pause_s = pause_s
        self._swept: dict[tuple[str, int], int] = {}

    async def run(self) -> None:
        """Sweep for ever; what fails is told and tried again in the next round."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                if removed := await self.sweep():
                    log.info("removed %d rows from Redis that read as empty", removed)
            except HeadraceError as error:
                log.warning("the removal of what reads as empty stopped: %s; the next one is in %g s", error,
                            self._every_s)  # fmt: skip

    async def sweep(self) -> int:
        """Go once through every partition held whose watermark has risen; the number of rows removed.

        Raises
        ------
        HeadraceError
            If Redis cannot be used, or another worker has a partition.
        """
        removed = 0
        for station in self._stations:
            for partition in list(station.heads):
                removed += await self._sweep(station, partition)
        return removed

    async def _sweep(self, station: Station, partition: int) -> int:
        removed, cursor, place = 0, 0, (station.lane.name, partition)
        begun = station.heads.get(partition)
        if begun is None or begun[0].watermark.time <= self._swept.get(place, 0):
            return 0
        # Of every step the applied head: what follows it in Redis' log may rely on it.
        while (held := station.heads.get(partition)) is not None:
            head, watermark = held[0], held[0].watermark.time
            cursor, found = await station.store.scan(partition, cursor, _STEP_FIELDS)
            past = station.lane.past(found, watermark)
            owner = head.writer.rpartition(":")[0]
            for start in range(0, len(past), REMOVED_MAX):
                chunk = {name: found[name] for name in past[start : start + REMOVED_MAX]}
                count = await station.store.remove(partition, owner, chunk)
                self._metrics.swept.inc(count)
                removed += count
            if cursor == 0:
                self._swept[place] = begun[0].watermark.time
                break
            await asyncio.sleep(self._pause_s)
        return removed
