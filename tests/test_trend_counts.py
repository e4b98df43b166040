"""What live clicks count is what a few dictionaries count, with nothing of a bot or of what is tied to fraud."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from features.hashing import hash_strings
from features.recommender import Recommender
from features.ties import TIE_MS
from features.watermark import BLOCK, UNMARKED
from stream.lane import Tally
from stream.recommend import RecommendLane
from stream.settings import Settings
from stream.trending import Trends
from tests.test_lane import Sent

NOON_MS, HALF_MS, LONG = 1_700_000_400_000, 7_200_000, 12
ITEMS = [f"i{n}" for n in range(9)]
EMPTY = Recommender.empty()


@dataclass(frozen=True)
class Click:
    """A click, or with ``fraud`` first the news that this card, session and user are tied to one at its time."""

    event: str
    session: str
    user: str | None
    card: str | None
    item: str
    time: int
    fraud: bool = False


def random_story(seed: int) -> list[Click]:
    """Some hundred clicks of few sessions, so that they repeat, return, run long, and are tied to fraud."""
    rng = np.random.default_rng(seed)

    def one(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    now = NOON_MS
    story = []
    for _ in range(int(rng.integers(1, 300))):
        now += int(rng.integers(0, HALF_MS // 20)) if rng.random() < 0.995 else one(TIE_MS, TIE_MS // 2)
        time = now + int(rng.normal(0, HALF_MS / 4)) if rng.random() < 0.3 else now
        story.append(Click(f"e{rng.integers(80)}", f"s{rng.integers(12)}", one(None, None, "u0", "u1"),
                           one(None, None, None, "c0", "c1"), one(*ITEMS), time, rng.random() < 0.01))  # fmt: skip
    return story


@dataclass
class Naive:
    """The same counts in plain words."""

    visitors: list[tuple[str, float]] = field(default_factory=list)  # item, time; each visitor's item once
    steps: list[tuple[str, str, float]] = field(default_factory=list)
    seen: set[tuple[str, ...]] = field(default_factory=set)
    sessions: dict[str, list[tuple[str, str, int]]] = field(default_factory=dict)
    lengths: Counter[str] = field(default_factory=Counter)
    frauds: dict[tuple[str, str], int] = field(default_factory=dict)
    times: list[int] = field(default_factory=list)
    blocked: int = 0

    def tie(self, click: Click, time: int, *, card: bool) -> None:
        for kind, id_ in (("card", click.card if card else None), ("session", click.session), ("user", click.user)):
            if id_ is not None:
                self.frauds[kind, id_] = max(time, self.frauds.get((kind, id_), time))

    def tied(self, click: Click) -> bool:
        ids = (("card", click.card), ("session", click.session), ("user", click.user))
        found = [self.frauds[kind, id_] for kind, id_ in ids if id_ is not None and (kind, id_) in self.frauds]
        near = [time for time in found if click.time - time <= TIE_MS]
        if near:
            self.tie(click, max(near), card=False)
        return bool(near)

    def watermark(self) -> int:
        """The newest time that all of some 64 clicks in a row have passed."""
        whole = len(self.times) // BLOCK * BLOCK
        return max((min(self.times[at : at + BLOCK]) for at in range(0, whole, BLOCK)), default=0)

    def add(self, click: Click) -> None:
        """Count a click."""
        time = min(click.time, self.watermark() or click.time)
        self.times.append(click.time)
        walked = self.sessions.setdefault(click.session, [])
        fresh = click.event not in [event for event, _, _ in walked[-20:]]
        if fresh:
            walked.append((click.event, click.item, click.time))
            self.lengths[click.session] += 1
        if self.tied(click) or self.lengths[click.session] > LONG:
            self.blocked += 1
            return
        visitor = click.user or click.session
        if (visitor, click.item) not in self.seen:
            self.seen.add((visitor, click.item))
            self.visitors.append((click.item, time))
        before = walked[-2][1] if len(walked) > 1 and walked[-1][1] == click.item else click.item
        if before != click.item and (visitor, before, click.item) not in self.seen:
            self.seen.add((visitor, before, click.item))
            self.steps.append((before, click.item, time))

    def weights(self, now_ms: int) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
        """By item and by step what they are worth at a time."""
        items: dict[str, float] = {}
        steps: dict[tuple[str, str], float] = {}
        for item, time in self.visitors:
            items[item] = items.get(item, 0.0) + 2.0 ** ((time - now_ms) / HALF_MS)
        for before, after, time in self.steps:
            steps[before, after] = steps.get((before, after), 0.0) + 2.0 ** ((time - now_ms) / HALF_MS)
        return items, steps


def played(story: Sequence[Click], cycle: int) -> tuple[RecommendLane, Naive]:
    """A lane that was sent these clicks, some of them twice as after a failure, and what should be counted."""
    plain = Settings()
    worker = replace(plain.worker, ahead_max_s=1e9, degrade=False, session_clicks_max=LONG, session_days=1e6,
                     online_half_life_s=HALF_MS / 1000)  # fmt: skip
    lane = RecommendLane(replace(plain, topics=replace(plain.topics, click_partitions=1), worker=worker))
    naive, state, watermark = Naive(), dict[bytes, bytes](), UNMARKED
    for start in range(0, len(story), cycle):
        part = story[start : start + cycle]
        for click in part:
            if click.fraud:  # known before the cycle that holds it
                lane.suspects.add([(click.card, click.session, click.user)], [click.time])
                naive.tie(click, click.time, card=True)
        records = [Sent("clicks", 0, start + i, (click.user or click.session).encode(), msgspec.json.encode(
            {"event_id": click.event, "event_time": click.time, "session_id": click.session, "user_id": click.user,
             "card_id": click.card, "item_id": click.item})) for i, click in enumerate(part)]  # fmt: skip
        for _ in range(2 if cycle == 1 else 1):  # the second time as after a failure: nothing of it was applied
            lane.resume(0, {"clicks": start}, watermark)
            (work,) = lane.begin({0: {"clicks": records}}, {0: False}, Tally())
            (names,) = lane.wanted([work], 1, 0.0).values()
            lane.fill([work], {0: {name: state.get(name) for name in names}}, 0.0)
            (made,) = lane.compute([work], SimpleNamespace(version="1", recommender=EMPTY), 1, Tally())
        assert isinstance(made.fields, Mapping)
        state, watermark = state | dict(made.fields), made.watermark
        for click in part:
            naive.add(click)
    return lane, naive


def counted(trends: Trends) -> tuple[dict[str, float], dict[tuple[str, str], float], float]:
    """What the tables hold, as :meth:`Naive.weights` gives it, and the weight of all visitors."""
    names = dict(zip(hash_strings(ITEMS).tolist(), ITEMS, strict=True))
    counts, worth = trends._counts, trends._worth
    slots = [int(slot) for slot in np.flatnonzero(counts.items)]
    items = {names[int(counts.items[slot])]: float(counts.weight[slot]) * worth for slot in slots}
    steps = {(names[int(counts.items[slot])], names[int(after)]): float(weight) * worth
             for slot in slots for after, weight in zip(counts.after[slot], counts.after_weight[slot], strict=True)
             if after}  # fmt: skip
    for slot in slots:
        assert counts.steps[slot] == pytest.approx(counts.after_weight[slot].sum())
    return items, steps, float(counts.total[0]) * worth


@pytest.mark.parametrize("seed", range(60))
def test_what_is_counted_is_what_dictionaries_count(seed: int) -> None:
    story = random_story(seed)
    lane, naive = played(story, (1, 7, 200)[seed % 3])
    trends = lane._way.trends
    assert trends is not None
    items, steps, total = counted(trends)
    wanted_items, wanted_steps = naive.weights(trends._now_ms)
    assert {item: weight for item, weight in items.items() if weight} == pytest.approx(
        {item: weight for item, weight in wanted_items.items() if items.get(item)}
    )
    assert all(weight < 1e-100 for item, weight in wanted_items.items() if not items.get(item))
    assert steps == pytest.approx(wanted_steps) and total == pytest.approx(sum(wanted_items.values()))
    trends._refresh(EMPTY)
    places, _ = trends.popular(EMPTY)
    listed = [trends.item_id(EMPTY, place) for place in places.tolist()]
    assert set(listed) == set(wanted_items) and len(listed) == len(wanted_items)
    worths = [wanted_items[item] for item in listed]
    assert worths == pytest.approx(sorted(worths, reverse=True))


def test_the_stories_hold_what_must_not_count() -> None:
    """A farm of tied cards, sessions and users, and a bot: none of it is counted, what others clicked is."""
    farm = [Click(f"f{n}", f"s{n % 3}", None, "c0", "i1", NOON_MS + n) for n in range(60)]
    farm[0] = replace(farm[0], fraud=True)
    bot = [Click(f"b{n}", "s4", None, None, f"i{2 + n // 20}", NOON_MS + n) for n in range(40)]
    lane, naive = played([*farm, *bot, Click("x", "s5", None, None, "i8", NOON_MS)], 7)
    trends = lane._way.trends
    assert trends is not None and naive.blocked == 60 + 40 - LONG
    assert set(counted(trends)[0]) == {"i2", "i8"}
