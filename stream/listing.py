"""``headrace list``: changes and shows the lists that rules ask.

In: the command line, Redis. Out: the lists in Redis, and lines on standard output.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from features.catalogue import build_catalogue
from features.checks import clean_id, parse_time_ms
from features.errors import BadEvent, SettingsError
from features.expressions import nearest
from features.rule_machine import NEVER
from features.rules import LIST_NAME, Rules
from features.schema import ID_SEPARATOR, load_schema
from stream.connections import redis_client
from stream.rule_lists import Change, RuleLists, check_room
from stream.settings import Settings


def add(settings: Settings, name: str, ids: Sequence[str], file: Path | None, until: str | None,
        valid_s: float | None) -> None:  # fmt: skip
    """Put ids into a list, until an event time or for so many seconds from now on."""
    ends = NEVER
    if until is not None and valid_s is not None:
        raise SettingsError(["--until and --for: expected one of them"])
    if until is not None:
        try:
            ends = parse_time_ms(until)
        except BadEvent as error:
            raise SettingsError([f"--until = {until!r}: {error}"]) from None
    if valid_s is not None:
        ends = int((time.time() + valid_s) * 1000)
    changes = [Change(name, id_, ends) for id_ in _whole(settings, name, _ids(settings, name, ids, file))]

    async def put(lists: RuleLists) -> None:
        check_room((await lists.entries())[1], changes)
        _ = await lists.change(changes)

    _with(settings, put)
    print(f"{name}: {len(changes)} ids put in")


def remove(settings: Settings, name: str, ids: Sequence[str], file: Path | None, *, expired: bool) -> None:
    """Take ids out of a list, and if asked those whose time is over."""
    given = [] if expired and not ids and file is None else _ids(settings, name, ids, file)
    now_ms, gone = time.time() * 1000, [0]

    async def take(lists: RuleLists) -> None:
        held = (await lists.entries())[1].get(name, {})
        wanted = {*given, *(id_ for id_, until in held.items() if expired and until <= now_ms)}
        gone[0] = len(wanted & held.keys())
        _ = await lists.change([Change(name, id_, None) for id_ in sorted(wanted & held.keys())])

    _check_name(settings, name)
    _with(settings, take)
    print(f"{name}: {gone[0]} ids taken out")


def show(settings: Settings, name: str | None) -> None:
    """Print the ids of a list, or the counts of all."""

    async def tell(lists: RuleLists) -> None:
        entries = (await lists.entries())[1]
        if name is None:
            for known in sorted({*entries, *_declared(settings)}):
                print(f"{known}: {len(entries.get(known, {}))} ids")
            return
        for id_, until in sorted(entries.get(name, {}).items()):
            print(id_ if until == NEVER else f"{id_}\tuntil {_text(until)}")

    if name is not None:
        _check_name(settings, name)
    _with(settings, tell)


def _text(time_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ms / 1000))


def _with(settings: Settings, act: Callable[[RuleLists], Awaitable[None]]) -> None:
    async def run() -> None:
        redis = redis_client(settings.redis)
        try:
            await act(RuleLists(redis, settings.redis, settings.worker.group, settings.topics.lists))
        finally:
            await redis.aclose()

    asyncio.run(run())


def _declared(settings: Settings) -> dict[str, str]:
    """What the rules say that each list holds; nothing without rules."""
    file = settings.worker.rules
    if file is None:
        return {}
    return Rules.load(file, build_catalogue(load_schema(settings.schema).transactions)).lists


def _whole(settings: Settings, name: str, ids: list[str]) -> list[str]:
    """Refuse ids that no transaction can have: those of an entity of several fields are of as many parts."""
    of, schema = _declared(settings).get(name), load_schema(settings.schema).transactions
    fields = next((entity.fields for entity in schema.entities if entity.name == of), (of or "",))
    wrong = [id_ for id_ in ids if of is not None and len(id_.split(ID_SEPARATOR)) != len(fields)]
    if wrong:
        said = f"a value of {', '.join(fields)}, joined by U+001F" if len(fields) > 1 else f"one value of {of}"
        raise SettingsError([f"id {id_!r} has {len(id_.split(ID_SEPARATOR))} parts: expected {said}"
                             for id_ in wrong[:20]])  # fmt: skip
    return ids


def _check_name(settings: Settings, name: str) -> None:
    declared = _declared(settings)
    if settings.worker.rules is not None and name not in declared:
        known = nearest(name, declared) or (f"; there are {', '.join(declared)}" if declared else "")
        raise SettingsError([f"no list {name!r} under [lists] of {settings.worker.rules}{known}"])
    if not LIST_NAME.match(name):
        raise SettingsError([f"list {name!r}: expected at most 63 lower-case letters, digits and '_'"])


def _ids(settings: Settings, name: str, ids: Sequence[str], file: Path | None) -> list[str]:
    """The ids of the command line and of the file, each checked."""
    _check_name(settings, name)
    found = list(ids)
    if file is not None:
        try:
            found += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError([f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    if not found:
        raise SettingsError(["no ids; give some, or a file with --file"])
    problems = []
    for id_ in found:
        try:
            for part in id_.split(ID_SEPARATOR):
                _ = clean_id("id", part)
        except BadEvent as error:
            problems.append(str(error))
    if problems:
        raise SettingsError(problems[:20])
    return list(dict.fromkeys(found))
