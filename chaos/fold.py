"""The naive fold: what the state must be, from the plain list of what happened, entity by entity.

In: the records of one partition in the order that the decisions recorded, and the decisions. Out: by field name a
:class:`~chaos.plain.Plain`. No code of the product is used: no kernel, no codec, no decoder. Lists and dicts only.
"""

from __future__ import annotations

import json
import math
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.plain import TILES_KEPT, Clicked, Plain, Remembered, Shape, Tile, hash_text

ACTIONS = ("allow", "review", "block")
_AGGREGATES = {"sum", "mean", "max", "std", "ratio", "zscore"}
_HOPS = 12
SESSION_CLICKS, BOUGHT = 20, 100
_LATEST = 8  # labels kept one by one


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of entity, as the schema declares it."""

    name: str
    fields: tuple[str, ...]
    shape: Shape


def kinds_of(schema: Any) -> list[Kind]:
    """The entities of a transaction schema; the first is the key."""
    found = []
    for number, entity in enumerate(schema.entities):
        wanted = set(entity.aggregates)
        shape = Shape(
            hops_ms=tuple(-(-w // _HOPS) for w in entity.windows_ms),
            label_hops_ms=tuple(-(-w // _HOPS) for w in entity.label_windows_ms),
            fields=len(schema.numeric) if wanted & _AGGREGATES else 0,
            squares=bool(wanted & {"std", "zscore"}),
            largest="max" in wanted,
            others=len(schema.entities) - 1 if number == 0 else 0,
            usual=len(schema.numeric) if number == 0 else 0,
        )
        found.append(Kind(entity.name, entity.fields, shape))
    return found


@dataclass(slots=True)
class _Entity:
    events: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)
    labels: list[tuple[int, int, int]] = field(default_factory=list)  # time, labels, frauds
    latest: list[tuple[int, int, int]] = field(default_factory=list)
    memory: list[Remembered] = field(default_factory=list)
    usual: list[tuple[int, float, float, int]] = field(default_factory=list)


@dataclass(slots=True)
class Folded:
    """The state by field name, and by source how many transactions of its card counted before it, and their sum."""

    state: dict[str, Plain] = field(default_factory=dict)
    before: dict[str, tuple[int, float]] = field(default_factory=dict)
    spent: dict[str, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Taken:
    """A good record: its source (``topic:partition:offset``), its offset, and its message."""

    source: str
    offset: int
    message: Mapping[str, Any]


def parsed(value: bytes | None, required: Sequence[str]) -> dict[str, Any] | None:
    """The message, or None where the record is one of those that the suite spoils on purpose."""
    try:
        message = json.loads(value or b"")
    except ValueError:
        return None
    return message if isinstance(message, dict) and all(name in message for name in required) else None


class NaiveFold:
    """Folds the transactions and labels of one partition."""

    def __init__(self, schema: Any) -> None:
        self._kinds, self._memory = kinds_of(schema), schema.memory
        self._numeric = [numeric.name for numeric in schema.numeric]
        self._id, self._time, self._label_time, self._label = (schema.id, schema.time, schema.label_time, schema.label)
        self._entities: dict[tuple[int, str], _Entity] = {}

    def __call__(self, transactions: Iterable[Taken], labels: Sequence[Taken],
                 decisions: Mapping[str, Mapping[str, Any]]) -> Folded:  # fmt: skip
        """Fold; each transaction after the labels below the ``label_position`` that its decision recorded."""
        out, waiting = Folded(), list(labels)
        for taken in transactions:
            decision = decisions[taken.source]
            while waiting and waiting[0].offset < decision["label_position"]:
                self._judge(waiting.pop(0).message)
            self._pay(taken, decision, out)
        for taken in waiting:
            self._judge(taken.message)
        for (e, id_), entity in self._entities.items():
            out.state[f"{self._kinds[e].name}:{id_}"] = self._plain(entity, self._kinds[e].shape)
        return out

    def _of(self, message: Mapping[str, Any]) -> list[tuple[str, _Entity]]:
        found = []
        for e, kind in enumerate(self._kinds):
            id_ = "\x1f".join(str(message[name]) for name in kind.fields)
            found.append((id_, self._entities.setdefault((e, id_), _Entity())))
        return found

    def _pay(self, taken: Taken, decision: Mapping[str, Any], out: Folded) -> None:
        message, entities = taken.message, self._of(taken.message)
        key_id, key = entities[0]
        count, total = out.spent.get(key_id, (0, 0.0))
        out.before[taken.source] = count, total
        event, values = hash_text(str(message[self._id])), tuple(float(message[name]) for name in self._numeric)
        if any(known.event == event for known in key.memory):
            return
        out.spent[key_id] = count + 1, total + (values[0] if values else 0.0)
        for _, entity in entities:
            entity.events.append((message[self._time], values))
        key.usual = key.usual or [(0, 0.0, 0.0, 0)] * len(values)
        level = max((_level(value, *known) for value, known in zip(values, key.usual, strict=True)), default=0)
        key.usual = [_usual(value, message[self._time], *known) for value, known in zip(values, key.usual, strict=True)]
        key.memory = [*key.memory, Remembered(
            event, message[self._time], -1, 0, ACTIONS.index(decision["action"]), level,
            tuple(hash_text(id_) for id_, _ in entities[1:]), decision["score"], decision["anomaly"],
        )][-self._memory :]  # fmt: skip

    def _judge(self, message: Mapping[str, Any]) -> None:
        entities, time, fraud = self._of(message), message[self._label_time], int(message[self._label])
        event = hash_text(str(message[self._id]))
        known = next((known for known in entities[0][1].memory if known.event == event), None)
        if known is not None and known.label == fraud:
            return
        for _, entity in entities:
            if known is not None and known.label >= 0:
                entity.labels.append((known.label_time, -1, -known.label))
                entity.latest = _without(entity.latest, (known.label_time, known.label, known.label * known.level))
            entity.labels.append((time, 1, fraud))
            entity.latest = _with(entity.latest, (time, fraud, fraud * known.level if known is not None else 0))
        if known is not None:
            known.label, known.label_time = fraud, time

    def _plain(self, entity: _Entity, shape: Shape) -> Plain:
        plain = Plain(memory=entity.memory, usual=entity.usual)
        if entity.events:
            times = [time for time, _ in entity.events]
            plain.newest, plain.first = max(times), min(times)
            for w, hop in enumerate(shape.hops_ms):
                plain.tiles |= _tiles(entity.events, w, hop, plain.newest, shape)
        if entity.labels:
            plain.label_newest = max(time for time, _, _ in entity.labels)
            plain.latest = entity.latest if shape.label_hops_ms else []
            for w, hop in enumerate(shape.label_hops_ms):
                plain.labels |= _verdicts(entity.labels, w, hop, plain.label_newest)
        return plain


def _tiles(events: list[tuple[int, tuple[float, ...]]], w: int, hop: int, newest: int, shape: Shape
           ) -> dict[tuple[int, int], Tile]:  # fmt: skip
    by_tile: dict[int, list[tuple[float, ...]]] = {}
    for time, values in events:
        if newest // hop - time // hop < TILES_KEPT:
            by_tile.setdefault(time // hop, []).append(values)
    return {
        (w, number): Tile(len(rows), [
            (len(column), sum(column), sum(v * v for v in column) * shape.squares, max(column) * shape.largest)
            for column in list(zip(*rows, strict=True))[: shape.fields]
        ])
        for number, rows in by_tile.items()
    }  # fmt: skip


def _verdicts(labels: list[tuple[int, int, int]], w: int, hop: int, newest: int
              ) -> dict[tuple[int, int], tuple[int, int]]:  # fmt: skip
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for time, count, frauds in labels:
        if newest // hop - time // hop < TILES_KEPT:
            n, bad = found.get((w, time // hop), (0, 0))
            found[w, time // hop] = n + count, bad + frauds
    return {tile: counts for tile, counts in found.items() if counts != (0, 0)}


def _with(latest: list[tuple[int, int, int]], label: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The newest labels after one more: at most eight, and none older than the second-newest good one.

    Of a run of frauds that fills the place, the good label before it and its first fraud stay.
    """
    latest = list(latest)
    if len(latest) == _LATEST:
        if label <= latest[0]:
            return latest
        goods = [k for k, (_, fraud, _) in enumerate(latest) if not fraud]
        del latest[2 if goods == [0] else 0 if goods else 1]
    insort(latest, label)
    goods = [k for k, (_, fraud, _) in enumerate(latest) if not fraud]
    return latest[goods[-2] :] if len(goods) > 1 else latest


def _without(latest: list[tuple[int, int, int]], label: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    latest = list(latest)
    if label in latest:
        latest.remove(label)
    return latest


def _level(value: float, weight: int, mean: float, variance: float, unusual: int) -> int:
    """How unusual a value is: 1 + its ratio to the mean in 1/32, at most 255; 0 where there is no mean."""
    return 1 + min(int(max(value / mean, 0.0) * 32), 254) if weight and mean else 0


def _usual(value: float, time: int, weight: int, mean: float, variance: float, unusual: int
           ) -> tuple[int, float, float, int]:  # fmt: skip
    """What is usual after one more value: weight, mean, variance, time of the last unusual one."""
    deviation = math.sqrt(variance)
    room = 1.75 * abs(mean) if abs(mean) >= deviation else 3.0 * deviation
    if weight >= 3 and room > 0.0:
        if abs(value - mean) > room:
            unusual = max(unusual, time)
        value = min(max(value, mean - room), mean + room)
    weight = min(weight + 1, 100)
    off = value - mean
    return weight, mean + off / weight, (1.0 - 1.0 / weight) * (variance + off * off / weight), unusual


def fold_clicks(clicks: Iterable[Taken]) -> dict[str, Clicked]:
    """By field name what is known of sessions and users; a click that its session knows does not count again."""
    found: dict[str, Clicked] = {}
    for message in (taken.message for taken in clicks):
        event, item = hash_text(str(message["event_id"])), hash_text(str(message["item_id"]))
        user, time = message.get("user_id"), message["event_time"]
        session = found.setdefault(f"session:{message['session_id']}", Clicked())
        if any(event == other for other, _, _ in session.clicks):
            continue
        session.clicks = [*session.clicks, (event, item, time)][-SESSION_CLICKS:]
        session.count += 1
        owner, most = session, SESSION_CLICKS
        if user is not None:
            owner, most = found.setdefault(f"user:{user}", Clicked()), BOUGHT
            owner.items, owner.time = [*owner.items, item][-SESSION_CLICKS:], max(owner.time, time)
        if message.get("action") == "buy":
            owner.bought = [*(other for other in owner.bought if other != item), item][-most:]
    return found
