"""What is recommended, for people: ``headrace recommend`` and ``headrace similar``.

In: Redis for the list that a session or user was answered with; the published models, the items topic and the levers
for what comes after some items; the models for what is similar to one. Out: a table, or JSON. Nothing is changed. What
comes after some items passes the last filter of a worker (:mod:`features.last_filter`) as of now; what live clicks have
moved, or what somebody has bought, only a worker knows: it is in the lists of sessions and users.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from features.errors import (
    ArtifactMissing,
    HeadraceError,
    ServiceUnavailable,
    SettingsError,
    StateMissing,
    TopicError,
)
from features.hashing import hash_strings
from features.listing import Clicked, Lister
from features.messages import Recommendation
from features.recommender import Recommender
from features.schema import Schema
from features.shelf import Shelf
from features.similar import similar
from features.sources import CLICKS
from stream.connections import redis_client
from stream.lists import list_key, pulled
from stream.metrics import Metrics
from stream.render import moment, printable
from stream.settings import Settings
from stream.shelving import Shelving
from stream.watch import read_titles
from trainer import artifacts


def latest(settings: Settings, kind: str, id_: str) -> bytes:
    """The newest list of a ``session`` or ``user``, as it was published.

    Raises
    ------
    StateMissing
        If there is none.
    ServiceUnavailable
        If Redis cannot be reached.
    """

    async def get() -> bytes | None:
        client = redis_client(settings.redis)
        try:
            return await pulled(client, settings.redis, kind, id_)
        finally:
            await client.aclose()

    value = asyncio.run(get())
    if value is None:
        key = list_key(settings.redis, kind, id_)
        raise StateMissing(
            f"Redis has no list at {key!r}: the {kind} had no answered click within worker.list_ttl_s = "
            f"{settings.worker.list_ttl_s} s (0 writes none), or its worker has another redis.namespace"
        )
    return value


def published(settings: Settings, schema: Schema) -> tuple[str, Recommender]:
    """The version in use and its recommender.

    Raises
    ------
    ArtifactError
        If there is none, or it is damaged.
    """
    version = artifacts.current_version(settings.artifacts)
    if version is None:
        raise ArtifactMissing(f"no model is published in {settings.artifacts}; run `headrace train` first")
    model = artifacts.load(settings.artifacts, version, schema.hash).recommender
    if model is None:
        raise ArtifactMissing(f"version {version} in {settings.artifacts} was trained without clicks")
    return version, model


def shelved(settings: Settings) -> tuple[Lister, bool]:
    """Who makes lists as a worker does, with what the items topic says now, and whether that could be read.

    Raises
    ------
    SettingsError
        If the levers are wrong.
    """
    shelving = Shelving(settings, Metrics())
    try:
        asyncio.run(shelving.look())
    except (ServiceUnavailable, TopicError) as error:
        print(f"headrace: {error} What the items topic says is left out of account here.", file=sys.stderr)
        shelf, read = Shelf(hide_unlisted=False), shelving.lister.shelf
        with read.lock, shelf.lock:
            shelf.pull(read.levers())
        return Lister(shelf, settings.worker.viewed_item), False
    return shelving.lister, True


def after_items(model: Recommender, items: list[str], k: int, lister: Lister, now_ms: int) -> list[dict[str, Any]]:
    """The list after these items, oldest first, as a worker without online learning makes it."""
    newest = items[-CLICKS:]
    hashes = np.zeros((1, CLICKS), np.uint64)
    hashes[0, : len(newest)] = hash_strings(newest)
    times, counts = np.array([now_ms], np.int64), np.array([len(newest)], np.int64)
    (found,) = lister.lists(model, Clicked(hashes, counts, times, hash_strings(newest[-1:])), k).items
    return [msgspec.to_builtins(item) for item in found]


def similar_items(model: Recommender, version: str, item: str, k: int) -> list[dict[str, Any]]:
    """The items most similar to one.

    Raises
    ------
    HeadraceError
        If the model does not know it.
    """
    number = int(model.numbers([item])[0])
    if number < 0:
        close = difflib.get_close_matches(item, [model.item_id(n) for n in range(model.items)], n=1)
        hint = f"; did you mean {printable(close[0])!r}?" if close else ""
        raise HeadraceError(f"version {version} does not know item {printable(item)!r} ({model.items:,} items){hint}")
    found, scores = similar(model, number, k)
    return _named(model, list(zip(found.tolist(), scores.tolist(), strict=True)))


def _named(model: Recommender, found: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"item_id": model.item_id(number), "score": round(score, 6)} for number, score in found]


def _titled(items: list[dict[str, Any]], titles: Mapping[str, str], shelf: Shelf | None = None) -> list[dict[str, Any]]:
    """Items with the title of the file, else the one that they have, else that of the shelf."""
    for item in items:
        id_ = item["item_id"]
        title = titles.get(id_) or item.get("title") or (shelf.title(id_) if shelf is not None else None)
        if title:
            item["title"] = title
    return items


def _show(head: str, items: list[dict[str, Any]]) -> None:
    """A table of items, best first; ids and titles come from outside and are escaped."""
    console = Console(highlight=False)
    console.print(Text(head))
    names = [name for name in ("title", "text") if any(item.get(name) for item in items)]
    table = Table("", "item", *("why" if name == "text" else name for name in names), "score", box=None)
    for place, item in enumerate(items, 1):
        told = [Text(printable(item.get(name) or "")) for name in names]
        table.add_row(str(place), Text(printable(item["item_id"])), *told, f"{item['score']:.3f}")
    console.print(table)


def run_recommend(settings: Settings, schema: Schema, given: Mapping[str, str | None], *, k: int | None,
                  titles: Path | None, as_json: bool) -> None:  # fmt: skip
    """The command ``recommend``.

    Raises
    ------
    HeadraceError
        If not exactly one of session, user and items is given, or there is nothing to show.
    """
    asked = [(name, value) for name, value in given.items() if value]
    if len(asked) != 1:
        raise SettingsError(["give one of --session ID, --user ID or --items A,B,C"])
    ((name, value),) = asked
    named = read_titles(titles)
    if name != "items":
        message = latest(settings, name, value)
        if as_json:
            print(message.decode())
            return
        given_list = msgspec.json.decode(message, type=Recommendation)
        clicked = named.get(given_list.item_id, given_list.item_id)
        head = (
            f"{name} {printable(value)} after {printable(clicked)}, {moment(given_list.event_time)}, "
            f"model {printable(given_list.model_version)}"
        )
        _show(head, _titled([msgspec.to_builtins(item) for item in given_list.items[:k]], named))
        return
    items = [item for item in value.split(",") if item]
    if not items:
        raise SettingsError([f"--items = {value!r}: expected ids with commas between them"])
    version, model = published(settings, schema)
    lister, filtered = shelved(settings)
    found = after_items(model, items, k or settings.worker.recommendations_k, lister, int(time.time() * 1000))
    found = _titled(found, named)
    unknown = [item for item, number in zip(items, model.numbers(items).tolist(), strict=True) if number < 0]
    if as_json:
        print(json.dumps({"after": items, "unknown": unknown, "items": found, "model_version": version,
                          "filtered": filtered}))  # fmt: skip
        return
    shown = [printable(named.get(item) or lister.shelf.title(item) or item) for item in items]
    _show(f"after {', '.join(shown)}, model {version}", found)
    if unknown:
        print(f"the model does not know {', '.join(map(printable, unknown))}; the list is from the others")


def run_similar(settings: Settings, schema: Schema, item: str, *, k: int | None, titles: Path | None, as_json: bool
                ) -> None:  # fmt: skip
    """The command ``similar``.

    Raises
    ------
    HeadraceError
        If there is no model, or it does not know the item.
    """
    named = read_titles(titles)
    version, model = published(settings, schema)
    found = similar_items(model, version, item, k or settings.worker.recommendations_k)
    shelf = shelved(settings)[0].shelf
    found = _titled(found, named, shelf)
    if as_json:
        print(json.dumps({"item_id": item, "items": found, "model_version": version}))
        return
    _show(f"similar to {printable(named.get(item) or shelf.title(item) or item)}, model {version}", found)
