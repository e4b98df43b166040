"""How often each rule hit, and what became of it: a book for each partition, part of its state.

In: a cycle's hits and labels, what was emitted before a restart, and the fields of a partition that was taken over.
Out: the fields to apply with the cycle, and totals for the metrics. State owned: the books, forgotten with their
partitions. On redelivery they are read again, and what was emitted counts with the rules that it names, so that the
totals come to the same: a transaction and a label count once, whatever crashes.

A book has the totals by rule, and remembers which rules hit the newest :data:`REMEMBERED_MAX` transactions of the
partition whose label may still come; the first label of each counts. Its fields change at different times::

    @rules          MessagePack: version, number of the next hit, [name, shadow, hits, frauds, good ones] of each rule
    @rules:<n>      MessagePack: version, the sets of rules that hit, and of each hit place, event hash and its set
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.errors import StateMismatch
from stream.deciding import Decided
from stream.intake import Emitted, Part
from stream.lane import source_id

CHUNKS, CHUNK = 128, 256
REMEMBERED_MAX = CHUNKS * CHUNK
RULES_MAX = 1024  # of which there are totals; those that hit longest ago are forgotten
FIELDS = (b"@rules", *(b"@rules:%d" % n for n in range(CHUNKS)))
_VERSION = 1

RuleKey = tuple[str, bool]  # its name, and whether it is in shadow


class Total(NamedTuple):
    """Of one rule: transactions that it hit, and first labels of these by what they say."""

    hits: int
    frauds: int
    good: int


Totals = Mapping[RuleKey, Total]
_NONE = Total(0, 0, 0)


class RuleBook:
    """The book of one partition.

    Parameters
    ----------
    values : sequence of bytes or None
        What was read of :data:`FIELDS`; all None for a new one.

    Raises
    ------
    StateMismatch
        If the bytes are of an unknown version, or damaged.
    """

    def __init__(self, values: Sequence[bytes | None] = ()) -> None:
        self._next = 0
        self._totals: dict[RuleKey, Total] = {}
        self._hits: list[tuple[int, tuple[RuleKey, ...]] | None] = [None] * REMEMBERED_MAX
        self._places: dict[int, int] = {}
        self._changed: set[int] = set()
        if values and values[0] is not None:
            self._next, self._totals = _read_totals(values[0])
            for chunk, value in enumerate(values[1:]):
                if value is not None:
                    self._read_chunk(chunk, value)

    @property
    def totals(self) -> Totals:
        """By rule, as they are now."""
        return dict(self._totals)

    @property
    def remembers(self) -> bool:
        """Whether there is anything that a label could judge."""
        return bool(self._places)

    def hit(self, event: int, rules: tuple[RuleKey, ...]) -> None:
        """Count one transaction, by the hash of its id, that rules have hit."""
        self._forget(event)
        place = self._next % REMEMBERED_MAX
        before = self._hits[place]
        if before is not None:
            self._forget(before[0])
        self._hits[place] = event, rules
        self._places[event] = place
        self._changed.add(place // CHUNK)
        self._next += 1
        for rule in rules:
            hits, frauds, good = self._totals.pop(rule, _NONE)
            self._totals[rule] = Total(hits + 1, frauds, good)
        while len(self._totals) > RULES_MAX:
            del self._totals[next(iter(self._totals))]

    def judge(self, event: int, *, fraud: bool) -> bool:
        """Count the label of a transaction, if any rule hit it and it is the first; whether it did."""
        place = self._places.get(event)
        found = None if place is None else self._hits[place]
        if found is None:
            return False
        self._forget(event)
        for rule in found[1]:
            if rule in self._totals:
                hits, frauds, good = self._totals[rule]
                self._totals[rule] = Total(hits, frauds + fraud, good + (not fraud))
        return True

    def _forget(self, event: int) -> None:
        place = self._places.pop(event, None)
        if place is not None:
            self._hits[place] = None
            self._changed.add(place // CHUNK)

    def fields(self) -> dict[bytes, bytes]:
        """What has changed since the last call or since it was read, as bytes by field."""
        if not self._changed:
            return {}
        totals = [(name, shadow, *total) for (name, shadow), total in self._totals.items()]
        found = {FIELDS[0]: msgspec.msgpack.encode((_VERSION, self._next, totals))}
        found |= {FIELDS[1 + chunk]: self._chunk(chunk) for chunk in sorted(self._changed)}
        self._changed = set()
        return found

    def _chunk(self, chunk: int) -> bytes:
        sets: dict[tuple[RuleKey, ...], int] = {}
        places, events, kinds = [], [], []
        for place, hit in enumerate(self._hits[chunk * CHUNK : (chunk + 1) * CHUNK]):
            if hit is not None:
                places.append(place)
                events.append(hit[0])
                kinds.append(sets.setdefault(hit[1], len(sets)))
        return msgspec.msgpack.encode((_VERSION, list(sets), places, events, kinds))

    def _read_chunk(self, chunk: int, value: bytes) -> None:
        sets, places, events, kinds = _decoded(value, _Chunk, FIELDS[1 + chunk])[1:]
        for place, event, kind in zip(places, events, kinds, strict=True):
            at = chunk * CHUNK + place
            self._hits[at] = event, sets[kind]
            self._places[event] = at


_Sets = list[tuple[RuleKey, ...]]
_Chunk = tuple[int, _Sets, list[int], list[int], list[int]]
_Head = tuple[int, int, list[tuple[str, bool, int, int, int]]]


def _decoded(value: bytes, kind: Any, name: bytes) -> Any:
    try:
        found = msgspec.msgpack.decode(value, type=kind)
    except msgspec.DecodeError as error:
        raise _unreadable(name, str(error)) from None
    if (version := found[0]) != _VERSION:
        raise _unreadable(name, f"it is of version {version}, this one reads {_VERSION}")
    return found


def _unreadable(name: bytes, why: str) -> StateMismatch:
    return StateMismatch(
        f"the rules' counts ({name.decode()}) cannot be read: {why}; make them anew with `headrace rebuild --replace`, "
        "or use another redis.namespace and worker.group"
    )


def _read_totals(value: bytes) -> tuple[int, dict[RuleKey, Total]]:
    _, number, rows = _decoded(value, _Head, FIELDS[0])
    return number, {(name, shadow): Total(hits, frauds, good) for name, shadow, hits, frauds, good in rows}


def read_totals(value: bytes | None) -> Totals:
    """The totals in a partition's field ``@rules``; none where it is absent.

    Raises
    ------
    StateMismatch
        If it is of an unknown version, or damaged.
    """
    return {} if value is None else _read_totals(value)[1]


def summed(books: Iterable[Totals]) -> dict[RuleKey, Total]:
    """The totals of several partitions together."""
    found: dict[RuleKey, Total] = {}
    for totals in books:
        for rule, total in totals.items():
            found[rule] = Total(*(a + b for a, b in zip(found.get(rule, _NONE), total, strict=True)))
    return found


class RuleBooks:
    """Books by partition, see the module's text."""

    fields = FIELDS

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._held: dict[int, RuleBook] = {}
        self._totals: dict[int, Totals] = {}
        self._told = True

    def resume(self, partition: int, values: Sequence[bytes | None]) -> None:
        """Go on from what was read of :attr:`fields`; from nothing where there is nothing."""
        self._held[partition] = RuleBook(values)
        self._totals, self._told = self._totals | {partition: self._held[partition].totals}, False

    def drop(self, partition: int) -> None:
        """Forget a partition."""
        if self._held.pop(partition, None) is not None:
            self._totals, self._told = {p: t for p, t in self._totals.items() if p != partition}, False

    def count(self, parts: Sequence[Part], decided: Decided, repeat: NDArray[np.int8],
              emitted: Sequence[Mapping[str, Emitted]]) -> None:  # fmt: skip
        """Count a cycle: each partition in its order, ``repeat`` int8[n] marks transactions that were decided before.

        ``emitted`` are each part's decisions of before a restart.
        """
        keys: list[RuleKey] = []
        if decided.hits is not None and decided.watching is not None:
            keys = list(zip(decided.rules, decided.watching.tolist(), strict=True))
        start = 0
        for part, before in zip(parts, emitted, strict=True):
            rows = slice(start, start + len(part.records))
            start = rows.stop
            book = self._held[part.partition]
            hits = self._hits(part, before, None if decided.hits is None else decided.hits[rows], keys)
            hits = {i: rules for i, rules in hits.items() if not repeat[rows][i]}
            changed = False
            if len(part.labels) and (hits or book.remembers):
                changed = _in_order(book, part, hits)
            elif hits:
                for event, rules in zip(_events(part, hits), hits.values(), strict=True):
                    book.hit(event, rules)
            if hits or changed:
                self._totals, self._told = self._totals | {part.partition: book.totals}, False

    def _hits(self, part: Part, before: Mapping[str, Emitted], matrix: NDArray[np.bool_] | None, keys: list[RuleKey]
              ) -> dict[int, tuple[RuleKey, ...]]:  # fmt: skip
        """The rules that hit, by transaction of the part, in order; of what was emitted, those that it names."""
        found: dict[int, tuple[RuleKey, ...]] = {}
        if matrix is not None:
            for i in np.flatnonzero(matrix.any(axis=1)).tolist():
                found[i] = tuple(sorted(keys[r] for r in np.flatnonzero(matrix[i]).tolist()))
        if not before:
            return found
        for i, record in enumerate(part.records):
            told = before.get(source_id((self._topic, part.partition), record.offset))
            if told is not None:
                found.pop(i, None)
                named = [(name, False) for name in told.rules] + [(name, True) for name in told.shadow_rules]
                if named:
                    found[i] = tuple(sorted(named))
        return dict(sorted(found.items()))

    def changed(self, partition: int) -> Mapping[bytes, bytes]:
        """The fields of a partition to apply with this cycle."""
        return self._held[partition].fields()

    def standing(self) -> Mapping[int, Totals] | None:
        """The totals of every partition, if they are not as they were at the last call."""
        if self._told:
            return None
        self._told = True
        return self._totals


def _events(part: Part, rows: Iterable[int]) -> list[int]:
    found: list[int] = part.batch.event_id.take(list(rows)).hashes().tolist()
    return found


def _in_order(book: RuleBook, part: Part, hits: Mapping[int, tuple[RuleKey, ...]]) -> bool:
    """Count hits and labels in the order in which they were folded; whether any label counted."""
    n, counted = len(part.records), False
    events = dict(zip(hits, _events(part, hits), strict=True))
    labels, frauds = part.labels.event_id.hashes().tolist(), part.labels.fraud.tolist()
    for at in part.order.tolist():
        if at >= n:
            counted |= book.judge(labels[at - n], fraud=frauds[at - n] == 1)
        elif at in events:
            book.hit(events[at], hits[at])
    return counted
