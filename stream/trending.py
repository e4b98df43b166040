"""Online learning between refits: live clicks move the lists at once, and fade.

In: the clicks that the recommendation lane counts. Out: candidate lists with what is wanted now blended in. State
owned: counts of a fixed size (:mod:`features.trends`), in the memory of one worker, from the partitions that it holds.
So they are approximate where several workers share the clicks, and start empty in a new process; nothing of it is in
Redis. A click that is read again after a failure is not counted twice.

What the model says counts as so many visitors, what was seen since as those who came: the blend is the mean of both
(the posterior mean of a Dirichlet prior). Clicks count by their event times, of which none is taken for later than the
partition's watermark, so that one click from the future moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from features.decode import ClickBatch
from features.recommender import Recommender
from features.sources import EXCLUDE_CURRENT
from features.toplist import Floats, Ints
from features.trends import Counts, blend, count_clicks, scale_down
from features.watermark import UNMARKED
from stream.lane import Record
from stream.suspects import Suspects

STEP_VISITORS, POPULAR_VISITORS = 60.0, 500.0  # that the model's shares are worth
_POPULAR, _LIFTED, _LIFT_VISITORS = 1024, 16, 3.0
_LIFT = 0.5  # of what an item is wanted more than the model knows, its gain in every list
# So many clicks change the lists: a share of all that count, within bounds.
_REFRESH_SHARE, _REFRESH_LEAST, _REFRESH_MOST = 0.01, 32, 1024
_SCALE_MAX = 40.0  # half-lives; 2**40 is far from any limit

Hashes = NDArray[np.uint64]
Longs = NDArray[np.int64]


class ClickPart(Protocol):
    """What is used of one partition's share of a cycle."""

    partition: int
    records: list[Record]
    batch: ClickBatch
    marks: Longs
    items: Hashes
    visitors: Hashes
    long_session: list[bool]


def viewed_before(hashes: Hashes, counts: Longs, viewed: Hashes) -> Hashes:
    """The item before each click in its session, 0 for none; uint64[n].

    ``hashes`` and ``counts`` are the sessions' items after it. A click that repeats an earlier one of its session (the
    newest item is another then) follows nothing.
    """
    row = np.arange(len(counts))
    follows = (counts > 1) & (hashes[row, np.maximum(counts - 1, 0)] == viewed)
    return np.where(follows, hashes[row, np.maximum(counts - 2, 0)], np.uint64(0))


class Trends:
    """What one worker's clicks say since its start."""

    def __init__(self, half_life_s: float) -> None:
        self._half_ms = half_life_s * 1000
        self._counts = Counts.empty()
        self._ids: dict[int, str] = {}  # of items that counted, by slot
        self._named = np.zeros(len(self._counts.items), np.uint64)  # their hashes, by slot
        self._from_ms = self._now_ms = 0  # where weights are 1, and the newest time that counted
        self._counted: dict[int, int] = {}  # the next offset, by partition
        self._fresh = 0  # clicks since the lists below were made
        self._model: Recommender | None = None
        self._share = np.zeros(1)  # of all clicks, by the model's number; of an item that it does not know, 0
        self._numbers = np.full(len(self._counts.items), -1, np.int32)  # the model's, by slot,
        self._numbered = np.zeros(len(self._counts.items), np.uint64)  # of the item of this hash
        self._places = np.full(len(self._counts.items), -1, np.int32)
        self._popular: tuple[Ints, Floats] = np.zeros(0, np.int32), np.zeros(0, np.float32)
        self._weights = np.zeros(0, np.float32)  # of what is popular, beside that of the first
        self._lifted: tuple[Ints, Floats] = np.zeros(0, np.int32), np.zeros(0, np.float32)

    @property
    def nbytes(self) -> int:
        """Memory of the counts."""
        by_slot = (self._places, self._named, self._numbers, self._numbered)
        return sum(array.nbytes for array in (*self._counts, *by_slot))

    def item_id(self, model: Recommender, place: int) -> str:
        """The id of a place: the model's number, or beyond them n + slot of an item that it does not know."""
        return model.item_id(place) if place < model.items else self._ids[place - model.items]

    def hashes_of(self, slots: Longs) -> Hashes:
        """The hashes of the items that :meth:`item_id` names for these slots, so that a filter judges what is shown."""
        return self._named[slots]

    def learn(self, work: Sequence[ClickPart], before: Hashes, suspects: Suspects) -> None:
        """Count the clicks of a cycle; ``before`` as of :func:`viewed_before`.

        What a long session clicks does not count: it is not a person's. Nor does what is tied to fraud.
        """
        work = [part for part in work if part.records]
        wanted = [self._first_time(part) & ~np.array(part.long_session, np.bool_) for part in work]
        if suspects:
            for part, free in zip(work, wanted, strict=True):
                batch = part.batch
                who = list(zip(batch.card_id, batch.session_id, batch.user_id, strict=True))
                free &= ~np.array(suspects.among(who, batch.time.tolist()), np.bool_)
        if any(free.any() for free in wanted):
            self._count(work, before, np.concatenate(wanted))

    def _first_time(self, part: ClickPart) -> NDArray[np.bool_]:
        """Which clicks of a part were not counted before a failure; bool[n]. From now on all of them were."""
        first = self._counted.get(part.partition, 0)
        offsets = np.array([record.offset for record in part.records], np.int64)
        self._counted[part.partition] = max(first, int(offsets[-1]) + 1)
        return offsets >= first

    def _count(self, work: Sequence[ClickPart], before: Hashes, wanted: NDArray[np.bool_]) -> None:
        columns = zip(*((part.batch.time, part.marks, part.items, part.visitors) for part in work), strict=True)
        times, marks, items, visitors = map(np.concatenate, columns)
        viewed = [id_ for part in work for id_ in part.batch.item_id]
        time = np.where(marks > UNMARKED.time, np.minimum(times, marks), times)
        self._pass_time(int(time[wanted].max()))
        weight = np.where(wanted, np.exp2(np.where(wanted, time - self._from_ms, 0) / self._half_ms), 0.0)
        slots = np.empty(len(weight), np.int64)
        count_clicks(items, before, visitors, weight, self._counts, slots)
        counted = np.flatnonzero(slots >= 0)
        for i in counted.tolist():
            self._ids[int(slots[i])] = viewed[i]
        self._named[slots[counted]] = items[counted]  # of two items of one slot the later, as above
        self._fresh += int(wanted.sum())

    def _pass_time(self, now_ms: int) -> None:
        if self._from_ms == 0:
            self._from_ms = now_ms
        self._now_ms = max(self._now_ms, now_ms)
        passed = (self._now_ms - self._from_ms) / self._half_ms
        if passed > _SCALE_MAX:
            scale_down(2.0 ** -min(passed, 1000.0), self._counts)
            self._from_ms = self._now_ms

    @property
    def _worth(self) -> float:
        """What a weight is worth now, in visitors."""
        return math.exp2(-(self._now_ms - self._from_ms) / self._half_ms)

    def blend(self, model: Recommender, viewed: Hashes, items: Ints, scores: Floats, sizes: Ints, reasons: Ints
              ) -> None:  # fmt: skip
        """Blend what is wanted now into candidate lists, see :func:`features.trends.blend`."""
        if not self._ids:
            return
        self._renew(model)
        numbers = model.numbers_of(viewed)
        excluded = numbers if model.settings[EXCLUDE_CURRENT] else np.full(len(viewed), -1, np.int32)
        blend(viewed, excluded, self._counts, self._places, self._worth, STEP_VISITORS, *self._lifted, *self._popular,
              items, scores, sizes, reasons)  # fmt: skip

    def popular(self, model: Recommender) -> tuple[Ints, Floats]:
        """What is wanted now, best first, as :class:`features.rungs.Asking` takes it."""
        self._renew(model)
        return self._popular[0], self._weights

    def _renew(self, model: Recommender) -> None:
        if self._ids and (model is not self._model or self._fresh >= self._enough()):
            self._refresh(model)

    def _enough(self) -> int:
        """How many clicks change what is wanted; where hardly anything was counted yet, each tells much of it."""
        share = int(_REFRESH_SHARE * self._counts.total[0] * self._worth)
        return min(max(share, _REFRESH_LEAST), _REFRESH_MOST, len(self._ids))

    def _refresh(self, model: Recommender) -> None:
        """Number the counted items as the model does, and list what is wanted."""
        if model is not self._model:
            share = model.popularity.astype(np.float64) / max(model.popularity.sum(dtype=np.float64), 1e-300)
            self._model, self._share = model, np.append(share, 0.0)
            self._numbered[:] = 0
        self._fresh = 0
        counts, n = self._counts, model.items
        used = np.flatnonzero(counts.items)
        fresh = used[self._numbered[used] != counts.items[used]]
        self._numbers[fresh], self._numbered[fresh] = model.numbers_of(counts.items[fresh]), counts.items[fresh]
        numbers = self._numbers[used]
        # A step from an item counts it without its id: from state in Redis, the item is known by its hash alone.
        told = (numbers >= 0) | (self._named[used] == counts.items[used])
        self._places[used[~told]] = -1
        used, numbers = used[told], numbers[told]
        self._places[used] = np.where(numbers >= 0, numbers, n + used)
        worth, places = self._worth, self._places[used]
        visitors, total = counts.weight[used] * worth, counts.total[0] * worth
        own = self._share[np.where(numbers >= 0, numbers, n)]
        mean = (POPULAR_VISITORS * own + visitors) / (POPULAR_VISITORS + total)
        # Without a model all is wanted more than it knows.
        risen = np.flatnonzero((visitors >= _LIFT_VISITORS) & (mean > own)) if n else used[:0]
        lift = mean[risen] - own[risen]
        best = np.argsort(-lift, kind="stable")[:_LIFTED]
        self._lifted = places[risen[best]], (lift[best] * _LIFT).astype(np.float32)
        uncounted = np.ones(min(n, _POPULAR), np.bool_)
        uncounted[places[places < len(uncounted)]] = False
        known = np.flatnonzero(uncounted).astype(np.int32)
        every = np.concatenate([places, known])
        mean = np.concatenate([mean, self._share[known] * POPULAR_VISITORS / (POPULAR_VISITORS + total)])
        best = _largest(mean, every, _POPULAR)
        self._popular = every[best].astype(np.int32), mean[best].astype(np.float32)
        # All may have faded to nothing where no model says what is popular.
        self._weights = (mean[best] / max(mean.max(initial=0.0), 1e-300)).astype(np.float32)


def _largest(values: NDArray[np.float64], numbers: Ints, count: int) -> Longs:
    """Where the ``count`` largest values stand, largest first, and among equals the lowest number first."""
    among = np.arange(len(values))
    if len(values) > count:
        among = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return among[np.lexsort((numbers[among], -values[among]))][:count]
