"""What a worker that recommends needs besides models: the shelf, who keeps it, and who makes lists by it.

In: settings. Out: a :class:`~features.listing.Lister` for the lane, and what has to run beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from features.listing import Lister
from features.shelf import Shelf
from stream.connections import patiently
from stream.items import ItemReader
from stream.lever_file import LeverFile
from stream.metrics import Metrics
from stream.models import ModelHolder, Served, answering
from stream.settings import Settings
from stream.topics import check_topics, require_topics
from stream.variants import LEVERS_OF_B, VariantModels

log = logging.getLogger("headrace.items")


class Shelving:
    """The shelf of one worker."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        worker, self._settings = settings.worker, settings
        shelf = Shelf(hide_unlisted=worker.unlisted_items == "hide")
        self.lister = Lister(shelf, worker.viewed_item)
        self._reader = ItemReader(settings, shelf, metrics)
        self._levers = [LeverFile(worker.levers, shelf, metrics)] if worker.levers else []
        if settings.ab.share and settings.ab.levers is not None:
            self._levers.append(LeverFile(settings.ab.levers, shelf, metrics, "ab.levers", LEVERS_OF_B))
        self._poll_s = worker.model_poll_s

    async def start(self, models: ModelHolder | VariantModels) -> None:
        """Read levers and items; from then on the shelf is ready for each model before that is in use.

        Raises
        ------
        SettingsError
            If the levers are wrong.
        """
        for levers in self._levers:
            levers.load()
        await patiently(self._reader.load, log, back="Kafka can be reached now")
        self._prepare(models.current)
        models.prepare = self._prepare

    async def look(self) -> None:
        """Read levers and items once, for whoever only looks; nothing is waited for.

        Raises
        ------
        SettingsError
            If the levers are wrong.
        ServiceUnavailable, TopicError
            If the items cannot be read; the levers hold then.
        """
        for levers in self._levers:
            levers.load()
        statuses = await check_topics(self._settings.kafka, self._settings.topics)
        require_topics([status for status in statuses if status.name == self._settings.topics.items])
        try:
            await self._reader.load()
        finally:
            await self._reader.stop()

    def _prepare(self, served: Served) -> None:
        recommender = answering(served).recommender
        assert recommender is not None
        self.lister.shelf.prepare(recommender)

    def watches(self) -> list[Coroutine[Any, Any, None]]:
        """What runs as long as the worker."""
        watches: list[Coroutine[Any, Any, None]] = [self._reader.follow()]
        return watches + [levers.watch(self._poll_s) for levers in self._levers]

    async def stop(self) -> None:
        """Disconnect."""
        await self._reader.stop()
