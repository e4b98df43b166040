"""The lists that rules ask, in Redis: who changes them, and how a worker learns of it.

They lie in one hash as the state of partitions does (:mod:`stream.store`, lane ``rule-lists``, partition 0): a field
``<list>:<id>`` for each entry, whose value is the epoch ms of event time from which on it no longer holds, or empty,
and the head, which every change replaces in the same command as a compare-and-set.

In: commands, and the records of ``topics.lists``. Out: entries. On redelivery nothing is applied twice: the head holds
the next offset of that topic. Every worker reads it, the first to apply a record wins, and the others find that in the
head. A change through a command and one through the topic count in the order in which Redis gets them.
"""

from __future__ import annotations

import uuid
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from features.checks import clean_id, parse_time_ms
from features.errors import BadEvent, SettingsError, StateConflict
from features.hashing import hash_strings
from features.messages import ListChange
from features.rule_machine import NEVER
from features.rules import LIST_NAME, Lists
from features.schema import ID_SEPARATOR
from stream.connections import RedisClient
from stream.settings import RedisSettings
from stream.store import FIELDS_MAX, HEAD, REMOVED_MAX, Head, StateStore, Write, encode_head

LANE = "rule-lists"
ENTRIES_MAX = 100_000  # in all lists together
UNNAMED_MAX = 10_000  # of these, in lists that the rules do not name: a mistyped name crowds no other out
_GONE = b"-"  # the value of an entry from its removal until its field is deleted
_SCANNED = 1000
_TRIES = 20

Entries = dict[str, dict[str, int]]  # ids by list, each with the epoch ms of event time until which it holds


@dataclass(frozen=True, slots=True)
class Change:
    """An entry to put in (``until``: epoch ms, ``NEVER`` for no end) or, with None, to take out."""

    list: str
    id: str
    until: int | None

    @property
    def field(self) -> bytes:
        """Its field in Redis."""
        return f"{self.list}:{self.id}".encode()

    @property
    def value(self) -> bytes:
        """Its value in Redis."""
        return _GONE if self.until is None else b"" if self.until == NEVER else str(self.until).encode()


def change_of(message: ListChange) -> Change:
    """A checked change.

    Raises
    ------
    BadEvent
        If the list's name, the id or the time cannot be used.
    """
    if not LIST_NAME.match(message.name):
        raise BadEvent("invalid_id", f"list {message.name[:80]!r}: expected lower-case letters, digits and '_'")
    parts = message.id if isinstance(message.id, list) else [message.id]
    id_ = ID_SEPARATOR.join(clean_id("id", part) for part in parts)
    if message.action == "remove":
        return Change(message.name, id_, None)
    return Change(message.name, id_, NEVER if message.expires_at is None else parse_time_ms(message.expires_at))


def hashed(entries: Mapping[str, Mapping[str, int]]) -> Lists:
    """What rules take: ids as hashes."""
    return {
        name: dict(zip(hash_strings(list(held)).view(np.int64).tolist(), held.values(), strict=True))
        for name, held in entries.items()
    }


class RuleLists:
    """All lists of one deployment."""

    def __init__(self, redis: RedisClient, settings: RedisSettings, group: str, topic: str | None = None) -> None:
        self.topic = topic or ""
        self._store = StateStore(redis, settings, group, LANE)
        self._writer = uuid.uuid4().hex
        self._writes = 0

    async def head(self) -> bytes:
        """What changes with every change; empty before the first."""
        return (await self._store.read({0: [HEAD]}))[0][0] or b""

    async def next_offset(self) -> int:
        """The offset of the topic's first record that is not applied."""
        head = await self.head()
        return msgspec.json.decode(head, type=Head).offsets.get(self.topic, 0) if head else 0

    async def entries(self) -> tuple[bytes, Entries]:
        """The head, and all entries as they were at one moment between two changes.

        Raises
        ------
        StateConflict
            If they were changed again and again meanwhile.
        """
        head = await self.head()
        for _ in range(_TRIES):
            fields: dict[bytes, bytes] = {}
            cursor, ended = 0, not head
            while not ended:
                cursor, found = await self._store.scan(0, cursor, _SCANNED)
                fields |= found
                ended = cursor == 0
            before, head = head, await self.head()
            if head == before:
                return head, _parsed(fields)
        raise StateConflict("the rules' lists changed each time that they were read; try again")

    async def change(self, changes: Iterable[Change], records: range | None = None) -> bool:
        """Make all changes, and of the same entry the last; whether it was done.

        ``records`` are the offsets that they come from: nothing is done if one of them is applied already.

        Raises
        ------
        StateConflict
            If others were always faster.
        ValueError
            If ``records`` bring more changes than one write takes.
        """
        fields = {change.field: change.value for change in changes}
        names = list(fields)
        if records is not None and len(names) > FIELDS_MAX:
            raise ValueError(f"{len(names)} changes; at most {FIELDS_MAX} with the offsets of their records")
        for start in range(0, max(len(names), 1), FIELDS_MAX):
            part = {name: fields[name] for name in names[start : start + FIELDS_MAX]}
            if not await self._write(part, records):
                return False
        return True

    async def _write(self, fields: Mapping[bytes, bytes], records: range | None) -> bool:
        for _ in range(_TRIES):
            before = await self.head()
            head = msgspec.json.decode(before, type=Head) if before else Head({}, {}, "", 1)
            if records is not None and head.offsets.get(self.topic, 0) > records.start:
                return False
            self._writes += 1
            offsets = head.offsets if records is None else {self.topic: records.stop}
            new = msgspec.structs.replace(head, offsets=offsets, writer=f"{self._writer}:{self._writes}")
            try:
                await self._store.apply([Write(0, before, encode_head(new), fields)])
            except StateConflict:
                continue
            await self._delete([name for name, value in fields.items() if value == _GONE])
            return True
        raise StateConflict("the rules' lists were changed by others each time; try again")

    async def _delete(self, names: list[bytes]) -> None:
        """Delete the fields of what was removed; what another writer keeps from it reads as removed all the same."""
        try:
            for start in range(0, len(names), REMOVED_MAX):
                gone = dict.fromkeys(names[start : start + REMOVED_MAX], _GONE)
                _ = await self._store.remove(0, self._writer, gone)
        except StateConflict:
            return


def check_room(entries: Entries, changes: Iterable[Change]) -> None:
    """Refuse what would make the lists too long.

    Raises
    ------
    SettingsError
        If there would be more than :data:`ENTRIES_MAX` entries.
    """
    added = {(c.list, c.id) for c in changes if c.until is not None and c.id not in entries.get(c.list, {})}
    count = len(added) + sum(map(len, entries.values()))
    if added and count > ENTRIES_MAX:
        over = (
            f"the lists would hold {count:,} ids; at most {ENTRIES_MAX:,} in all. Remove some, or those whose time is "
        )
        raise SettingsError([over + "over with: headrace list remove NAME --expired"])


def unnamed_room(entries: Entries, named: Container[str]) -> int:
    """How many ids may still come into lists that the rules do not name."""
    return UNNAMED_MAX - sum(len(held) for name, held in entries.items() if name not in named)


def _parsed(fields: Mapping[bytes, bytes]) -> Entries:
    found: Entries = {}
    for field, value in fields.items():
        if value != _GONE:
            name, _, id_ = field.decode().partition(":")
            found.setdefault(name, {})[id_] = int(value) if value else NEVER
    return found
