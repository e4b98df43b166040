"""``headrace ab``: which of two variants recommends better, if that can be said yet.

In: the topic ``recommendations``, from its first record on. Out: results of each variant and a verdict. No state, no
group. Each message says which click it answers, so the next message of a session says what was clicked next: nothing
else is read, and a message that was written twice counts once.

The unit is what was split: a session, or a user with the first session. What a unit adds is settled
``ab.window_s`` after its first click, by event time, and units are taken in the order of their first clicks; so neither
how long a session lasts nor when somebody looks can favour a variant. Two outcomes of each, in [0, 1]:

- *next click*: the share of the clicks after the first that were on an item of the list just before; 0 without any;
- *session*: whether any click was on an item of any earlier list of the session.

Each is compared by :mod:`features.sequential` with half of ``alpha``, so that both together raise a false alarm in at
most a share ``alpha`` of experiments, whenever and however often one looks.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from aiokafka import TopicPartition

from features.errors import SettingsError
from features.sequential import Compared, compare
from stream.ab_settings import AbSettings
from stream.connections import kafka_consumer, kafka_errors
from stream.offsets import offset_range
from stream.progress import progress_bar
from stream.settings import Settings

OUTCOMES = {"next click": "next-click hit rate", "session": "sessions that clicked a recommended item"}


class _Item(msgspec.Struct):
    item_id: str


class _Shown(msgspec.Struct):
    """What is read of a recommendation."""

    recommendation_id: str
    event_id: str
    session_id: str
    item_id: str
    event_time: int
    items: list[_Item]
    user_id: str | None = None
    experiment: str | None = None
    variant: str | None = None


_DECODER = msgspec.json.Decoder(_Shown)


@dataclass(slots=True)
class _Unit:
    """A session within its window, or the first one of a user; items and events are hashes."""

    b: bool
    session_id: str
    first_ms: int
    last: array[int]
    shown: array[int]
    events: array[int]
    clicks: int = 0
    hits: int = 0
    found: bool = False


@dataclass(slots=True)
class Tallies:
    """Units by id, in the order of the topic, and what was passed over."""

    settings: AbSettings
    units: dict[str, _Unit] = field(default_factory=dict)
    newest_ms: int = 0
    answers: int = 0
    others: int = 0  # of no experiment, or of another one
    _offsets: dict[str, int] = field(default_factory=dict)

    def add_all(self, values: Iterable[bytes]) -> None:
        """Count messages as they are written; what is none is passed over."""
        for value in values:
            try:
                self.add(_DECODER.decode(value))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue

    def add(self, message: _Shown) -> None:
        """Count one message; those of a partition come in the order of their offsets."""
        place, _, digits = message.recommendation_id.rpartition(":")
        if not digits.isdecimal():
            return
        offset = int(digits)
        if offset <= self._offsets.get(place, -1):
            return  # written twice
        self._offsets[place] = offset
        self.newest_ms = max(self.newest_ms, message.event_time)
        if message.experiment != self.settings.name or message.variant is None:
            self.others += 1
            return
        self.answers += 1
        by_user = self.settings.by == "user" and message.user_id is not None
        name = f"u{message.user_id}" if by_user else f"s{message.session_id}"
        items = array("q", [hash(item.item_id) for item in message.items])
        event, clicked = hash(message.event_id), hash(message.item_id)
        unit = self.units.get(name)
        if unit is None:
            self.units[name] = _Unit(message.variant == "B", message.session_id, message.event_time, items,
                                     items[:], array("q", [event]))  # fmt: skip
            return
        late = message.event_time >= unit.first_ms + self.settings.window_s * 1000
        if message.session_id != unit.session_id or late or event in unit.events:
            return
        unit.clicks += 1
        unit.hits += clicked in unit.last
        unit.found |= clicked in unit.shown
        unit.events.append(event)
        unit.last = items
        unit.shown.extend(new for new in items if new not in unit.shown)

    def report(self) -> dict[str, Any]:
        """What each variant has, and the verdicts."""
        end = self.newest_ms - self.settings.window_s * 1000
        done = sorted((u for u in self.units.values() if u.first_ms <= end), key=lambda u: (u.first_ms, u.session_id))
        b = np.array([unit.b for unit in done], bool)
        outcomes = {
            "next click": np.array([unit.hits / unit.clicks if unit.clicks else 0.0 for unit in done]),
            "session": np.array([float(unit.found) for unit in done]),
        }
        compared = {name: compare(found, b, self.settings.share, self.settings.alpha / 2)
                    for name, found in outcomes.items()}  # fmt: skip
        sides: dict[str, dict[str, float | int | None]] = {}
        for name, side in (("A", False), ("B", True)):
            mine = [unit for unit in done if unit.b is side]
            clicks, hits = sum(unit.clicks for unit in mine), sum(unit.hits for unit in mine)
            sides[name] = {
                "units": len(mine), "next_clicks": clicks, "hits": hits, "hit_rate": hits / clicks if clicks else None,
                "units_with_a_hit": sum(unit.found for unit in mine),
            }  # fmt: skip
        return {
            "experiment": self.settings.name, "by": self.settings.by, "share": self.settings.share,
            "alpha": self.settings.alpha, "window_s": self.settings.window_s, "answers": self.answers,
            "other_answers": self.others, "open_units": len(self.units) - len(done), "variants": sides,
            "outcomes": {name: _facts(found) for name, found in compared.items()},
        }  # fmt: skip


def _facts(found: Compared) -> dict[str, Any]:
    a, b = (None if np.isnan(mean) else mean for mean in found.means)
    return {"a": a, "b": b, "difference": None if a is None or b is None else b - a, "lower": found.lower,
            "upper": found.upper, "p_value": found.p_value, "better": found.better,
            "decided_at": found.decided_at}  # fmt: skip


async def _read(settings: Settings, tallies: Tallies) -> None:
    """Count the topic as it is now, in the order of each partition; no message is held."""
    topics = settings.topics
    async with kafka_errors(settings.kafka):
        consumer = kafka_consumer(settings.kafka)
        try:
            await consumer.start()
            places = [TopicPartition(topics.recommendations, p) for p in range(topics.click_partitions)]
            ranges = await offset_range(settings.kafka, places)
            open_ = {place: end for place, (first, end) in ranges.items() if first < end}
            consumer.assign(list(open_))
            for place in open_:
                consumer.seek(place, ranges[place][0])
            total, read = sum(end - ranges[place][0] for place, end in open_.items()), 0
            with progress_bar("reading recommendations", total) as advance:
                while open_:
                    batches = await consumer.getmany(*open_, timeout_ms=1000)
                    for records in batches.values():
                        tallies.add_all(record.value or b"" for record in records)
                        read += len(records)
                    for place in list(open_):
                        if await consumer.position(place) >= open_[place]:
                            del open_[place]
                    advance(min(read, total))
        finally:
            await consumer.stop()


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    head = (
        f"experiment {report['experiment']!r}, by {report['by']}: {report['answers']:,} answers, "
        f"{report['open_units']:,} {report['by']}s still within their {report['window_s']:g} s"
    )
    told = [head]
    for name, side in report["variants"].items():
        rate = "no next click" if side["hit_rate"] is None else f"{100 * side['hit_rate']:.2f} % of next clicks hit"
        told.append(f"  {name}: {side['units']:,} {report['by']}s, {side['next_clicks']:,} next clicks, {rate}, "
                    f"{side['units_with_a_hit']:,} clicked a recommended item")  # fmt: skip
    for name, words in OUTCOMES.items():
        found = report["outcomes"][name]
        if found["difference"] is None:
            told.append(f"{words}: one variant has nothing yet")
            continue
        verdict = "not known yet which is better" if found["better"] is None else f"{found['better']} is better"
        told.append(f"{words}: {verdict}; B - A = {100 * found['difference']:+.2f} points, "
                    f"{100 * found['lower']:+.2f} to {100 * found['upper']:+.2f} at any time, "
                    f"p = {found['p_value']:.4f}")  # fmt: skip
    return told


def run(settings: Settings, *, as_json: bool) -> None:
    """The command.

    Raises
    ------
    SettingsError
        If no experiment is set.
    """
    if not 0.0 < settings.ab.share < 1.0:
        problem = f"ab.share = {settings.ab.share:g}: expected more than 0 and less than 1, to compare two variants"
        raise SettingsError([problem])
    tallies = Tallies(settings.ab)
    asyncio.run(_read(settings, tallies))
    report = tallies.report()
    print(json.dumps(report) if as_json else "\n".join(lines(report)))
