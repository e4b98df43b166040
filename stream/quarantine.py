"""A record that makes our own code raise is found, set aside as a dead letter ``internal``, and the stream goes on.

In: what a failed cycle held, and what later ones did. Out: how many records the next cycles may take, and stand-ins for
the records that must not be computed. State owned: the search, in memory. A cycle that raises is forgotten like any
other that fails, and its records are read again, half as many at once, until one is alone. Nothing is blamed for what
passes in smaller cycles. After a crash in the middle the next owner searches again; if the dead letter was written
before, it is found in the tail of the output and stands: the record is not tried again.

While nothing raises, all of this is two attributes that are looked at once in a cycle.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from features.checks import Refused
from features.errors import ComputeFailed, HeadraceError
from stream.lane import LetterId, Record, StandIn, Target, emitted_before

log = logging.getLogger("headrace.worker")
_REASON = "internal"
_IN_A_ROW_MAX = 20  # records set aside without a good one between them: then it is not the records
_FAILURES_MAX = 200  # of one search; it takes about log2(cycle) + 2

Source = tuple[Target, int]  # a record: topic and partition, offset


class Quarantine:
    """The search for one record at a time; see the module's text.

    ``limit`` is how many records the next cycle may take, 0 for all; ``blamed`` the records not to be computed, with
    the sentence of each one's dead letter. Of ``topics`` the first are taken first: labels, which then wait for their
    time, so that a search hardly changes what a decision knows (of several labels between two transactions some may
    come later, as when a worker catches up).
    """

    def __init__(self, records_max: int, topics: Sequence[str]) -> None:
        self.limit = 0
        self.blamed: dict[Target, dict[int, str]] = {}
        self._records_max = records_max
        self._topics = topics
        self._until: dict[Target, int] = {}  # where the records end among which the failing one is
        self._guesses: list[tuple[Source, ...]] = []  # whom to set aside next, if the present guess is wrong
        self._guess: tuple[Source, ...] = ()
        self._error: Exception | None = None
        self._growing = False
        self._in_a_row = 0
        self._failures = 0

    # -- what the next cycle takes ------------------------------------------------------------------------------

    def share(self, rest: Mapping[Target, Sequence[Record]]
              ) -> tuple[dict[Target, Sequence[Record]], dict[Target, Sequence[Record]]]:  # fmt: skip
        """The first ``limit`` records of all that were fetched, and the others."""
        now: dict[Target, Sequence[Record]] = {}
        later: dict[Target, Sequence[Record]] = {}
        left = self.limit
        for target in sorted(rest, key=lambda target: self._topics.index(target[0])):
            records = rest[target]
            now[target] = records[:left]
            if len(records) > left:
                later[target] = records[left:]
            left -= len(now[target])
        return now, later

    def veiled(self, fetched: Mapping[Target, Sequence[Record]]) -> dict[Target, Sequence[Record]]:
        """What was fetched, with a stand-in for each record that is blamed."""
        veiled = dict(fetched)
        for target in self.blamed.keys() & fetched.keys():
            blamed = self.blamed[target]
            veiled[target] = [_stand_in(r, blamed[r.offset]) if r.offset in blamed else r for r in fetched[target]]
        return veiled

    def adopt(self, letters: Iterable[bytes], topics: Iterable[str]) -> None:
        """Take note of the dead letters in a tail: a record that was set aside before is not tried again."""
        for source, letter in emitted_before(letters, LetterId, topics).items():
            if letter.reason == _REASON:
                topic, partition, offset = source.rsplit(":", 2)
                self._blame(((topic, int(partition)), int(offset)), "set aside before")

    def resume(self, applied: Mapping[Target, int]) -> None:
        """Forget what is applied by now, and partitions that this worker holds no more."""
        self.blamed = {
            target: kept
            for target, found in self.blamed.items()
            if (kept := {offset: text for offset, text in found.items() if offset >= applied.get(target, 0)})
        }
        self._until = {target: end for target, end in self._until.items() if end > applied.get(target, end)}
        if any(target not in applied or offset < applied[target] for target, offset in self._guess):
            self._withdraw()

    # -- what became of a cycle ---------------------------------------------------------------------------------

    def failed(self, error: Exception, suspects: Sequence[Source]) -> HeadraceError:
        """Narrow the search after a cycle with these records raised; returns what to raise, worth a retry or not."""
        said = f"{type(error).__name__}: {error}"
        self._withdraw()
        self._failures += 1
        suspects = [source for source in suspects if source[1] not in self.blamed.get(source[0], ())]
        if not suspects or self._failures > _FAILURES_MAX:
            return _stop(f"computing raised {said}, whatever records are left out")
        self._error = error
        self._growing = False
        if len(suspects) > 1 and self.limit != 1:
            if not self._until:
                log.error("computing %d records raised, a bug of Headrace", len(suspects), exc_info=error)
            self.limit = max(min(self.limit or len(suspects), len(suspects)) // 2, 1)
            self._until, self._guesses = _ends(suspects), []
        else:
            self.limit = 1
            self._until = _ends(suspects)
            self._guesses = self._guesses or _guesses(suspects)
            self._guess, *self._guesses = self._guesses
            for source in self._guess:
                self._blame(source, f"a bug of Headrace, not of the record: computing it raised {said}")
        return ComputeFailed(f"computing {len(suspects)} records raised {said}; looking for the one that does it")

    def passed(self, good: int, reached: Mapping[Target, int]) -> None:
        """Widen the search after a cycle of so many ``good`` records that ended at these offsets.

        Raises
        ------
        HeadraceError
            If one record after the other had to be set aside: dead letters would not mend what is wrong then.
        """
        if self._guess:
            if all(reached.get(target, 0) > offset for target, offset in self._guess):
                self._isolated()
            return
        if good:
            self._in_a_row = 0
        if self._growing:
            self.limit = 2 * self.limit if self.limit < self._records_max else 0
        else:
            self._until = {target: end for target, end in self._until.items() if reached.get(target, 0) < end}
            if not self._until:
                self.limit = 0
        if not self.limit:
            self._growing, self._failures, self._guesses = False, 0, []

    def _isolated(self) -> None:
        self._in_a_row += len(self._guess)
        names = ", ".join(f"{topic}:{partition}:{offset}" for (topic, partition), offset in self._guess)
        if self._in_a_row > _IN_A_ROW_MAX:
            raise _stop(f"more than {_IN_A_ROW_MAX} records in a row raise, the last one {names}: {self._error!r}")
        log.error(
            "a bug of Headrace: computing %s raises, so it becomes a dead letter with the reason internal",
            names, exc_info=self._error,
        )  # fmt: skip
        self._guess, self._guesses, self._until = (), [], {}
        self._growing, self._failures, self.limit = True, 0, 2

    def _blame(self, source: Source, sentence: str) -> None:
        self.blamed.setdefault(source[0], {})[source[1]] = sentence

    def _withdraw(self) -> None:
        """The guess was wrong: the cycle raised without them, too."""
        for target, offset in self._guess:
            self.blamed.get(target, {}).pop(offset, None)
        self.blamed = {target: blamed for target, blamed in self.blamed.items() if blamed}
        self._guess = ()


def _stand_in(record: Record, sentence: str) -> Record:
    return StandIn(record.offset, record.key, Refused.of("internal", sentence, record.value), record.timestamp)


def _ends(sources: Iterable[Source]) -> dict[Target, int]:
    ends: dict[Target, int] = {}
    for target, offset in sources:
        ends[target] = max(ends.get(target, 0), offset + 1)
    return ends


def _guesses(suspects: Sequence[Source]) -> list[tuple[Source, ...]]:
    """Each alone, then all together."""
    alone: list[tuple[Source, ...]] = [(source,) for source in suspects]
    return [*alone, tuple(suspects)] if len(suspects) > 1 else alone


def _stop(what: str) -> HeadraceError:
    return HeadraceError(
        f"{what}. That is a bug of Headrace or damage to its models, not of the records; nothing is lost. Publish "
        "models that work, or start another version of Headrace: it goes on where this one stopped"
    )
