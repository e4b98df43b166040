"""Which rung a cycle's clicks are answered on: the one place where a clock enters a recommendation.

This is about recommendations; the rungs of fraud decisions are in :mod:`stream.fallback`.

In: when the oldest click of a cycle was appended, how many clicks there are, and what each rung has cost of late. Out:
a :class:`~features.rungs.Rung`. State owned: the cost of a click by rung, in memory only. With ``worker.degrade =
false``, and in a backtest, every answer is full.

A cycle takes what was fetched while the one before was computed. Where clicks come faster than full answers are made,
cycles grow; the ladder then takes the best rung on which a cycle still ends within ``worker.answer_deadline_ms`` of its
oldest click. A cycle whose oldest click waited longer already (a backlog after a stop, an old timestamp) still gets an
eighth of that time, so that few clicks are answered in full however old they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from features.rungs import Rung
from stream.settings import WorkerSettings

_FIRST_US = (300.0, 120.0, 50.0, 30.0)  # of a click, until a rung has been tried
_LATE_SHARE = 1 / 8
_NEW_SHARE, _STEADY_CLICKS = 0.3, 32  # of a new figure in the mean, and clicks from which on it has half of that
_JUMP_MAX = 2.0  # one slow cycle says little
_HOPE = 0.998  # by which the cost of better rungs falls with each cycle that does not try them


class Ladder:
    """The rungs of one worker."""

    def __init__(self, worker: WorkerSettings, now_s: Callable[[], float] = time.time) -> None:
        self._now_s = now_s
        self._on = worker.degrade
        self._deadline_s = worker.answer_deadline_ms / 1000
        self._cost_s = [cost / 1e6 for cost in _FIRST_US]

    def choose(self, timestamps: Sequence[int]) -> Rung:
        """The rung for clicks that were appended at these times (epoch ms)."""
        if not self._on or not timestamps:
            return Rung.FULL
        waited_s = self._now_s() - min(timestamps) / 1000
        left_s = max(self._deadline_s - max(waited_s, 0.0), self._deadline_s * _LATE_SHARE)
        fitting = (rung for rung in Rung if len(timestamps) * self._cost_s[rung] <= left_s)
        return next(fitting, Rung.POPULAR)

    def learn(self, rung: Rung, clicks: int, seconds: float) -> None:
        """Take note of what answering so many clicks has taken on a rung."""
        if not self._on or not clicks:
            return
        before = self._cost_s[rung]
        found = min(seconds / clicks, before * _JUMP_MAX)
        self._cost_s[rung] = before + _NEW_SHARE * clicks / (clicks + _STEADY_CLICKS) * (found - before)
        for better in range(rung):
            self._cost_s[better] *= _HOPE
