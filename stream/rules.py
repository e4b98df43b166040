"""The rules in use beside the model, and the watch on their file that swaps them.

In: the rules' file, what the lists hold; a cycle's columns. Out: hits, and the actions that they make. No state
(:mod:`stream.rule_books` counts hits). On redelivery the same transactions are judged again, perhaps by newer rules;
those that were answered keep what was said (:mod:`stream.deciding`).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from features.catalogue import Catalogue
from features.errors import SettingsError
from features.rule_machine import Columns, Sets
from features.rules import Hits, Lists, Rules
from stream.metrics import Metrics
from stream.watched_file import WatchedFile

log = logging.getLogger("headrace.rules")


@dataclass(frozen=True, eq=False, slots=True)
class RulesInUse:
    """Rules, and the tables of their lists; replaced whole."""

    rules: Rules
    sets: Sets

    def judge(self, columns: Columns) -> Hits:
        """Which rules hit a cycle's transactions."""
        return self.rules.evaluate(columns, self.sets)


class RulesHolder:
    """The current rules; :meth:`watch` replaces them when the file changes, :meth:`use_lists` when a list does.

    Raises
    ------
    SettingsError
        If the file cannot be used at the start. Later, the rules before stay in use.
    """

    def __init__(self, path: Path, catalogue: Catalogue, metrics: Metrics) -> None:
        self._file = WatchedFile(path, "worker.rules")
        self._catalogue = catalogue
        self._metrics = metrics
        self._lists: Lists = {}
        self._lock = asyncio.Lock()
        self._use(Rules.decode(self._file.read(), catalogue, str(path)))

    def _use(self, rules: Rules) -> None:
        self.current = RulesInUse(rules, rules.sets(self._lists))
        self._metrics.set_rules(rules.version)
        self._count_lists(rules)

    async def use_lists(self, lists: Lists) -> None:
        """Have the lists hold these hashes, each until a time (epoch ms of event time)."""
        async with self._lock:
            self._lists, rules = lists, self.current.rules
            self.current = RulesInUse(rules, await asyncio.to_thread(rules.sets, lists))
        self._count_lists(rules)

    def _count_lists(self, rules: Rules) -> None:
        self._metrics.set_lists({name: len(self._lists.get(name, ())) for name in rules.lists})

    async def watch(self, every_s: float) -> None:
        """Look for a change of the file every ``every_s`` seconds, for ever."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        """Use the file if it has changed since; what cannot be used is told once and counted."""
        before = self.current.rules.version
        try:
            data = await asyncio.to_thread(self._file.look)
            if data is None:
                return
            rules = await asyncio.to_thread(Rules.decode, data, self._catalogue, str(self._file.path))
        except SettingsError as error:
            self._metrics.rules_refused.inc()
            log.error("rules: %s\nversion %s stays in use", error, before)
            return
        if rules.version != before:
            async with self._lock:
                self._use(rules)
            log.info("rules: version %s is in use, after %s", rules.version, before)
