"""The alert budget again, step by step: what its state must be, and which thresholds were in force.

In: the transactions of one partition in the order in which they were folded, with their decisions; Redis' bytes. Out:
:class:`NaiveBudget`, the same from both. No code of the product is used. The arithmetic is done in the order that
``features/budget_kernel.py`` describes, in plain floats, so what comes out is the same to the bit.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.fold import Taken
from chaos.plain import hash_text

FIELDS = (b"@budget", b"@budget:hours", b"@budget:cards")
_HOUR, _DAY = 3_600_000, 86_400_000
_BLOCK = 64  # operations that move the watermark
_SLACK = 6 * _HOUR
_LEVELS, _LOWEST, _WIDTH = 160, -12.0, 0.15
_MARGIN, _TELL = 0.03, 2.0
_NOTHING = 1.000001
_INTS = ("clock", "hour", "cases", "model", "began", "seen", "size", "coarse")
_FLOATS = ("events", "forced", "in_hour", "carry", "actual", "expected", "now", "later", "total", "unknown",
           "threshold")  # fmt: skip


@dataclass(slots=True)
class NaiveBudget:
    """One partition's controller."""

    budget: float = 0.0
    clock: int = 0
    hour: int = -1
    cases: int = 0
    model: int = 0
    began: int = 0
    seen: int = 0
    coarse: int = 0
    events: float = 0.0
    forced: float = 0.0
    in_hour: float = 0.0
    carry: float = 0.0
    actual: float = 0.0
    expected: float = 0.0
    now: float = -1.0
    later: float = 0.0
    total: float = 0.0
    unknown: float = 0.0
    threshold: float = 0.0
    histogram: list[float] = field(default_factory=lambda: [0.0] * _LEVELS)
    week: list[float] = field(default_factory=lambda: [-1.0] * 168)
    day: list[float] = field(default_factory=lambda: [-1.0] * 24)
    cards: list[int] = field(default_factory=list)

    def decided(self, time: int, mark: int, card: int, score: float, model: int, alerted: bool) -> float | None:
        """Take one transaction with what was decided; the threshold that was in force, None if it was the model's."""
        now = max(self.clock, min(time, mark + _SLACK)) if mark else self.clock
        if now > self.clock:
            self._tick(now)
        if model != self.model:
            if self.model and self.events > 0.0:
                days = max(0.125, _TELL / self.budget) * (self.total if self.total > 0.0 else self.events)
                self._shrink(min(1.0, days / self.events))
            self.model = model
        is_case, least = card in self.cards, self._least()
        if least is not None:
            self.threshold = least
        self.events += 1.0
        if not is_case:
            self.histogram[int(_place(score))] += 1.0
        self.in_hour += 1.0
        self.seen += 1
        if alerted and not is_case:
            self.cases += 1
            self.forced += 1.0 if least is not None and score < least else 0.0
            if len(self.cards) < 2 * math.ceil(self.budget) + 64:
                self.cards.append(card)
        return None if is_case else least

    def _shrink(self, share: float) -> None:
        self.events *= share
        self.forced *= share
        self.histogram = [count * share for count in self.histogram]

    def _tick(self, time: int) -> None:
        hour = time // _HOUR
        if self.hour >= 0 and hour - self.hour <= 24:
            while self.hour < hour:
                self._close_hour()
        elif self.hour < hour:
            if self.hour >= 0:
                self._close_day(whole=False)
            self.hour, self.began, self.seen, self.coarse = hour, time, 0, 1
            self.carry = -self.budget * (time % _DAY) / _DAY
            self.in_hour = 0.0
            self._plan()
        self.clock = time

    def _close_hour(self) -> None:
        if not self.coarse:
            if self.now >= 0.0:
                self.actual = 0.8 * self.actual + self.in_hour
                self.expected = 0.8 * self.expected + self.now
            for known, at in ((self.week, self.hour % 168), (self.day, self.hour % 24)):
                known[at] = self.in_hour if known[at] < 0.0 else known[at] + 0.5 * (self.in_hour - known[at])
        self._shrink(2.0 ** (-1.0 / 72.0))
        self.in_hour, self.coarse = 0.0, 0
        self.hour += 1
        if self.hour % 24 == 0:
            self._close_day(whole=self.began % _DAY == 0)
            self.began, self.seen = self.hour * _HOUR, 0
        self._plan()

    def _close_day(self, *, whole: bool) -> None:
        most = max(0.1 * self.budget, 1.0)
        carried = 0.7 * self.carry + 0.5 * (self.budget - self.cases)
        self.carry = min(max(carried, -most), 0.0) if whole else 0.0
        self.cases, self.cards = 0, []

    def _plan(self) -> None:
        first = self.hour - self.hour % 24
        self.later = self.total = self.unknown = 0.0
        for k in range(24):
            expected = self.week[(first + k) % 168]
            expected = self.day[k] if expected < 0.0 else expected
            if first + k == self.hour:
                self.now = expected
            if expected >= 0.0:
                self.total += expected
                self.later += expected if first + k > self.hour else 0.0
            elif first + k > self.hour:
                self.unknown += 1.0

    def _least(self) -> float | None:
        if self.cases >= max(1.0, math.floor(1.5 * self.budget)):
            return _NOTHING
        if self.hour < 0 or self.events <= 0.0:
            return None
        rate = (self.seen + 1.0) * _HOUR / max(self.clock - self.began, _HOUR // 4)
        later = self.later + self.unknown * rate
        now = rate if self.now < 0.0 else self.now
        total = self.total + (self.unknown + (1.0 if self.now < 0.0 else 0.0)) * rate
        a_day = total / 24.0
        trend = (self.actual + a_day) / (self.expected + a_day) if a_day > 0.0 else 1.0
        trend = min(max(trend, 0.25), 4.0)
        rest = trend * (later + now * (1.0 - (self.clock % _HOUR) / _HOUR))
        margin = max(_MARGIN, _TELL / self.budget)
        share = self.events / (rest + margin * (trend * total))
        wanted = (self.budget + self.carry - self.cases + margin * self.budget) * share - self.forced
        wanted = max(wanted, 0.02 * self.budget * share)
        above, place = 0.0, 0.0
        for level in range(_LEVELS - 1, -1, -1):
            here = self.histogram[level]
            if above + here >= wanted:
                place = level + 1.0 - (wanted - above) / here
                break
            above += here
        return math.floor(1e6 / (1.0 + math.exp(-(_LOWEST + _WIDTH * place))) + 0.5) / 1e6


def _place(score: float) -> float:
    bounded = min(max(score, 1e-6), 1.0 - 1e-6)
    return min(max((math.log(bounded / (1.0 - bounded)) - _LOWEST) / _WIDTH, 0.0), _LEVELS - 1e-6)


@dataclass(slots=True)
class _Watermark:
    """The newest time that a whole block of operations has passed."""

    time: int = 0
    block: list[int] = field(default_factory=list)

    def passed(self, time: int) -> None:
        """Take note of one operation."""
        self.block.append(time)
        if len(self.block) == _BLOCK:
            self.time, self.block = max(self.time, min(self.block)), []


def fold_budget(schema: Any, transactions: Sequence[Taken], labels: Sequence[Taken],
                decisions: Mapping[str, Mapping[str, Any]], budget: float
                ) -> tuple[NaiveBudget, list[str]]:  # fmt: skip
    """The state after all transactions of a partition, and which decisions name another threshold than was in force."""
    state, mark, waiting, wrong = NaiveBudget(budget), _Watermark(), list(labels), list[str]()
    for taken in transactions:
        decision = decisions[taken.source]
        while waiting and waiting[0].offset < decision["label_position"]:
            mark.passed(waiting.pop(0).message[schema.label_time])
        time = taken.message[schema.time]
        if not decision["duplicate"]:
            card = _signed(hash_text(decision["key"]))
            model = _signed(hash_text(decision["model_version"])) or 1
            least = state.decided(time, mark.time, card, decision["score"], model, decision["action"] != "allow")
            if least is not None and decision["review_score"] != least:
                wrong.append(f"{taken.source} names the threshold {decision['review_score']}, in force was {least}")
        mark.passed(time)
    return state, wrong


def read_budget(values: Sequence[bytes | None], budget: float) -> NaiveBudget:
    """The state in a partition's fields, in the order of :data:`FIELDS`."""
    state = NaiveBudget(budget)
    first, hours, cards = values
    if first is not None:
        ints = struct.unpack_from(f"<x{len(_INTS)}q", first)
        floats = struct.unpack_from(f"<{len(_FLOATS) + _LEVELS}d", first, 1 + 8 * len(_INTS))
        for name, value in (*zip(_INTS, ints, strict=True), *zip(_FLOATS, floats, strict=False)):
            if name != "size":
                setattr(state, name, value)
        state.histogram = [*floats[len(_FLOATS) :]]
    if hours is not None:
        known = struct.unpack_from("<x192d", hours)
        state.week, state.day = [*known[:168]], [*known[168:]]
    if cards is not None:
        state.cards = [*struct.unpack_from(f"<{(len(cards) - 1) // 8}q", cards, 1)]
    return state


def unlike(held: NaiveBudget, folded: NaiveBudget) -> list[str]:
    """Where two states differ, in words."""
    return [f"@budget: {name} is {getattr(held, name)}, not {getattr(folded, name)}" for name in held.__slots__
            if getattr(held, name) != getattr(folded, name)]  # fmt: skip


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
