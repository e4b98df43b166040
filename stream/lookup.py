"""What is recommended, for people: ``headrace recommend`` and ``headrace similar``.

In: Redis for the list that a session or user was answered with, the published models for what comes after some items
or is similar to one. Out: a table, or JSON. Nothing is changed. Lists from the models are those of the models alone:
what a worker leaves out or fills in since it knows more than they do is in the lists of sessions and users.
"""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from features.errors import ArtifactMissing, HeadraceError, SettingsError, StateMissing
from features.hashing import hash_strings
from features.messages import Recommendation
from features.recommender import Recommender
from features.schema import Schema
from features.similar import similar
from features.sources import CLICKS
from stream.connections import redis_client
from stream.lists import list_key, pulled
from stream.render import moment, printable
from stream.settings import Settings
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


def after_items(model: Recommender, items: list[str], k: int) -> list[dict[str, Any]]:
    """The list after these items, oldest first: as it is served, before any filter."""
    newest = items[-CLICKS:]
    hashes = np.zeros((1, CLICKS), np.uint64)
    hashes[0, : len(newest)] = hash_strings(newest)
    found, scores = model.recommend_many(hashes, np.array([len(newest)], np.int64), k)
    return _named(model, [(int(n), float(s)) for n, s in zip(found[0], scores[0], strict=True) if n >= 0])


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


def _show(head: str, items: list[dict[str, Any]], titles: Mapping[str, str]) -> None:
    """A table of items, best first; ids and titles come from outside and are escaped."""
    console = Console(highlight=False)
    console.print(Text(head))
    table = Table("", "item", *(["title"] if titles else []), "score", box=None)
    for place, item in enumerate(items, 1):
        title = [printable(titles.get(item["item_id"], ""))] if titles else []
        table.add_row(str(place), printable(item["item_id"]), *title, f"{item['score']:.3f}")
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
        _show(head, [{"item_id": item.item_id, "score": item.score} for item in given_list.items[:k]], named)
        return
    items = [item for item in value.split(",") if item]
    version, model = published(settings, schema)
    found = after_items(model, items, k or settings.worker.recommendations_k)
    unknown = [item for item, number in zip(items, model.numbers(items).tolist(), strict=True) if number < 0]
    if as_json:
        print(json.dumps({"after": items, "unknown": unknown, "items": found, "model_version": version}))
        return
    _show(f"after {', '.join(printable(named.get(item, item)) for item in items)}, model {version}", found, named)
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
    if as_json:
        print(json.dumps({"item_id": item, "items": found, "model_version": version}))
        return
    _show(f"similar to {printable(named.get(item, item))}, model {version}", found, named)
