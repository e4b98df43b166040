"""The rules in use beside the model, and the watch on their file that swaps them.

In: the rules' file, what the lists hold; a cycle's columns. Out: hits, and the actions that they make. State owned:
which rules hit the newest :data:`REMEMBERED_MAX` transactions that any hit and whose label may still come; it serves a
metric alone and is empty after a start. On redelivery the same transactions are judged again, perhaps by newer rules;
those that were answered keep what was said (:mod:`stream.deciding`).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.catalogue import Catalogue
from features.errors import SettingsError
from features.rule_machine import Columns, Sets
from features.rules import Hits, Lists, Rules
from stream.lane import Tally
from stream.metrics import Metrics

log = logging.getLogger("headrace.rules")
REMEMBERED_MAX = 100_000
RuleKey = tuple[str, bool]  # its name, and whether it is in shadow


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
        self._path = path
        self._catalogue = catalogue
        self._metrics = metrics
        self._lists: Lists = {}
        self._seen = self._stamp()
        self._told = ""
        self._lock = asyncio.Lock()
        self._use(Rules.load(path, catalogue))

    def _stamp(self) -> tuple[int, int, int]:
        """What tells that a file may have changed: also one that was put in the place of another."""
        try:
            stat = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

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
        """Read the file again if it has changed; what cannot be used is told once and counted."""
        stamp = await asyncio.to_thread(self._stamp)
        if stamp == self._seen:
            return
        self._seen = stamp
        before = self.current.rules.version
        try:
            rules = await asyncio.to_thread(Rules.load, self._path, self._catalogue)
        except SettingsError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._metrics.rules_refused.inc()
                log.error("rules: %s\nversion %s stays in use", error, before)
            return
        self._told = ""
        if rules.version != before:
            async with self._lock:
                self._use(rules)
            log.info("rules: version %s is in use, after %s", rules.version, before)


class RuleCounts:
    """Counts hits, and the verdicts on what was hit, by rule."""

    def __init__(self, remembered_max: int = REMEMBERED_MAX) -> None:
        self._remembered: dict[int, tuple[tuple[RuleKey, ...], bytes]] = {}
        self._max = remembered_max
        self._keys: tuple[RuleKey, ...] = ()

    def hits(self, keys: tuple[RuleKey, ...], hits: NDArray[np.bool_], hashes: NDArray[np.int64], tally: Tally
             ) -> None:  # fmt: skip
        """Count the hits of n transactions.

        Parameters
        ----------
        keys : tuple of RuleKey
            Of R rules.
        hits : bool[n, R]
        hashes : int64[n]
            Of the event ids, by which labels find them.
        """
        at = np.flatnonzero(hits)  # few: faster than sums of whole columns
        self._keys = keys = self._keys if keys == self._keys else keys  # one tuple for all that is remembered
        for r, count in enumerate(np.bincount(at % len(keys)).tolist()):
            tally.add(tally.rule_hits, keys[r], count)
        rows = np.unique(at // len(keys))
        for hash_, bits in zip(hashes[rows].tolist(), np.packbits(hits[rows], axis=1), strict=True):
            _ = self._remembered.pop(hash_, None)
            self._remembered[hash_] = (keys, bits.tobytes())
        while len(self._remembered) > self._max:
            del self._remembered[next(iter(self._remembered))]

    def verdicts(self, hashes: NDArray[np.int64], fraud: NDArray[np.int8], tally: Tally) -> None:
        """Count labels (int64[n] hashes of the event ids, int8[n]) of what was hit; the first of each counts."""
        if not self._remembered:
            return
        for hash_, verdict in zip(hashes.tolist(), fraud.tolist(), strict=True):
            found = self._remembered.pop(hash_, None)
            if found is None:
                continue
            keys, bits = found
            for r in np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=len(keys))).tolist():
                tally.add(tally.rule_labels, (keys[r], bool(verdict)))
