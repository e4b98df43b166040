"""The alert budget: an online controller that sets the review threshold so that N cards a day are alerted.

In: times, card ids and scores of one partition's transactions, in their order. Out: actions and the threshold in force
at each; the state changed in place. No IO, no clock: it moves with the partition's event time alone, and the same
transactions give the same actions however they are cut into batches.

A **case** is a card's first alert of a day (UTC): what is alerted of a card later that day costs nothing more. The
threshold is the score at which as many cases are to be expected in what is left of the day as are left of its budget:

- a histogram of the scores of cards that are no case yet, over log-odds, halved every three days, says how many cases
  a transaction brings at each threshold;
- transactions by hour of the week (before the second week: by hour of the day, before the second day: the rate so far)
  and how the last hours went against them say how many transactions are left.

Cases that come from elsewhere (rules) are expected as they came before. It plans for 3 % of a day more than is left, so
that the last hour does not spend what others saved, or for two cases more if that is longer: with a budget of a few
cases (N is shared by many partitions) a day that has brought one less than usual has no worse frauds, and a threshold
that made up for it by midnight would take what comes. Half of what a day overdrew, at most a tenth of N, is spared on
the days after it; what a day left is not spent on another, since nobody's time comes back and the cards next in line
are seldom frauds. At 1.5 N nothing more passes before midnight but what is decided elsewhere. A new version of the
model shrinks the histogram to an eighth of a day, or two cases' worth, so that the scores of the new one soon prevail.

The clock is the newest event time that is at most six hours after the partition's watermark
(:mod:`features.watermark`): one record from the future does not end a day. Days without any transaction teach nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.int8]

OPEN = -1  # in the place of an action: the controller decides
SKIP = -2  # a repeat: it has the decision of the first, and counts nothing
AT_LEAST = 8  # plus an action: the controller decides, and that is the mildest that comes of it
NOTHING_PASSES = 1.000001  # above every score
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LEVELS = 160  # of log-odds, 0.15 apart
_LOWEST, _WIDTH = -12.0, 0.15
_LEAST = 1e-6  # scores have six decimals
_WEEK_HOURS = 168
_HALF_LIFE_H = 72.0
_MARGIN = 0.03  # of a day, see the module's text
_CASES_TELL = 2.0  # fewer cases are chance and no reason to move the threshold
_SLACK_MS = 6 * HOUR_MS
_UNKNOWN = -1.0
_LEAST_LEFT = 0.02  # of the budget, for what is far above all others when the budget is spent
_OWED, _OWED_ON = 0.5, 0.7
_OWED_MAX = 0.1  # of the budget, or one case
_CAP = 1.5
_SWAPPED_DAYS = 0.125
_LEARNT = 0.5  # weight of the newest hour against those of the weeks (days) before
_RECENT = 0.8  # from hour to hour, of how the last hours went
_TREND_MAX = 4.0

# Whole numbers of a state.
CLOCK, HOUR, CASES, MODEL, BEGAN, SEEN, SIZE, COARSE = range(8)
INTS = 8
# Other numbers of a state, then the histogram. CARRY <= 0: what earlier days overdrew, or on a first day that is not
# whole what the hours before would have spent.
EVENTS, FORCED, IN_HOUR, CARRY, ACTUAL, EXPECTED, NOW, LATER, TOTAL, UNKNOWN, THRESHOLD = range(11)
FLOATS = 11


@njit(cache=True, nogil=True, error_model="numpy")
def _level(score: float) -> float:
    bounded = min(max(score, _LEAST), 1.0 - _LEAST)
    place = (math.log(bounded / (1.0 - bounded)) - _LOWEST) / _WIDTH
    return min(max(place, 0.0), LEVELS - _LEAST)


@njit(cache=True, nogil=True, error_model="numpy")
def _plan(ints: Ints, floats: Floats, hours: Floats) -> None:
    """Write down how many transactions are expected in this hour, in the rest of the day, and in all of it."""
    hour = ints[HOUR]
    first = hour - hour % 24
    later, total, unknown = 0.0, 0.0, 0.0
    floats[NOW] = -1.0
    for k in range(24):
        expected = hours[(first + k) % _WEEK_HOURS]
        if expected < 0.0:
            expected = hours[_WEEK_HOURS + k]
        if first + k == hour:
            floats[NOW] = expected
        if expected < 0.0:
            unknown += 1.0 if first + k > hour else 0.0
        else:
            total += expected
            later += expected if first + k > hour else 0.0
    floats[LATER], floats[TOTAL], floats[UNKNOWN] = later, total, unknown


@njit(cache=True, nogil=True, error_model="numpy")
def _learn(hours: Floats, at: int, count: float) -> None:
    hours[at] = count if hours[at] < 0.0 else hours[at] + _LEARNT * (count - hours[at])


@njit(cache=True, nogil=True, error_model="numpy")
def _new_day(ints: Ints, floats: Floats, places: Ints, budget: float, whole: bool) -> None:
    most = max(_OWED_MAX * budget, 1.0)
    if whole:
        floats[CARRY] = min(max(_OWED_ON * floats[CARRY] + _OWED * (budget - ints[CASES]), -most), 0.0)
    else:
        floats[CARRY] = 0.0
    ints[CASES] = 0
    ints[SIZE] = 0
    places[:] = 0


@njit(cache=True, nogil=True, error_model="numpy")
def _tick(ints: Ints, floats: Floats, hours: Floats, places: Ints, time: int, budget: float) -> None:
    """Let the clock go on to ``time``: hours and days that are over are closed."""
    hour = time // HOUR_MS
    if ints[HOUR] >= 0 and hour - ints[HOUR] <= 24:
        while ints[HOUR] < hour:
            at = ints[HOUR] % _WEEK_HOURS
            if ints[COARSE] == 0:
                if floats[NOW] >= 0.0:
                    floats[ACTUAL] = _RECENT * floats[ACTUAL] + floats[IN_HOUR]
                    floats[EXPECTED] = _RECENT * floats[EXPECTED] + floats[NOW]
                _learn(hours, at, floats[IN_HOUR])
                _learn(hours, _WEEK_HOURS + ints[HOUR] % 24, floats[IN_HOUR])
            fade = 2.0 ** (-1.0 / _HALF_LIFE_H)
            floats[EVENTS] *= fade
            floats[FORCED] *= fade
            floats[FLOATS:] *= fade
            floats[IN_HOUR] = 0.0
            ints[COARSE] = 0
            ints[HOUR] += 1
            if ints[HOUR] % 24 == 0:
                _new_day(ints, floats, places, budget, ints[BEGAN] % DAY_MS == 0)
                ints[BEGAN] = ints[HOUR] * HOUR_MS
                ints[SEEN] = 0
            _plan(ints, floats, hours)
    elif ints[HOUR] < hour:  # the first hour, or the first after days without any transaction: not a whole one
        if ints[HOUR] >= 0:
            _new_day(ints, floats, places, budget, False)
        ints[HOUR], ints[BEGAN], ints[SEEN], ints[COARSE] = hour, time, 0, 1
        floats[CARRY] = -budget * (time % DAY_MS) / DAY_MS
        floats[IN_HOUR] = 0.0
        _plan(ints, floats, hours)
    ints[CLOCK] = time


@njit(cache=True, nogil=True, error_model="numpy")
def _left(ints: Ints, floats: Floats) -> tuple[float, float]:
    """Transactions expected in the rest of the day and in all of it."""
    rate = (ints[SEEN] + 1.0) * HOUR_MS / max(ints[CLOCK] - ints[BEGAN], HOUR_MS // 4)
    later = floats[LATER] + floats[UNKNOWN] * rate
    now = rate if floats[NOW] < 0.0 else floats[NOW]
    total = floats[TOTAL] + (floats[UNKNOWN] + (1.0 if floats[NOW] < 0.0 else 0.0)) * rate
    hour = total / 24.0
    trend = (floats[ACTUAL] + hour) / (floats[EXPECTED] + hour) if hour > 0.0 else 1.0
    trend = min(max(trend, 1.0 / _TREND_MAX), _TREND_MAX)
    rest = 1.0 - (ints[CLOCK] % HOUR_MS) / HOUR_MS
    return trend * (later + now * rest), trend * total


@njit(cache=True, nogil=True, error_model="numpy")
def _threshold(ints: Ints, floats: Floats, budget: float) -> float:
    """The score at which what is left of the budget is spent by the end of the day, if that can be told."""
    if ints[CASES] >= max(1.0, math.floor(_CAP * budget)):
        return NOTHING_PASSES
    if ints[HOUR] < 0 or floats[EVENTS] <= 0.0:
        return _UNKNOWN
    rest, total = _left(ints, floats)
    margin = max(_MARGIN, _CASES_TELL / budget)
    share = floats[EVENTS] / (rest + margin * total)
    cases = budget + floats[CARRY] - ints[CASES] + margin * budget
    wanted = max(cases * share - floats[FORCED], _LEAST_LEFT * budget * share)
    above, place = 0.0, 0.0
    for b in range(LEVELS - 1, -1, -1):
        here = floats[FLOATS + b]
        if above + here >= wanted:
            place = b + 1.0 - (wanted - above) / here
            break
        above += here
    score = 1.0 / (1.0 + math.exp(-(_LOWEST + _WIDTH * place)))
    return math.floor(score * 1e6 + 0.5) / 1e6


@njit(cache=True, nogil=True, error_model="numpy")
def _place(cards: Ints, places: Ints, card: int) -> int:
    """Where in ``places`` a card is, or the free place where it would be."""
    at = card & (len(places) - 1)
    while places[at] > 0 and cards[places[at] - 1] != card:
        at = (at + 1) & (len(places) - 1)
    return at


@njit(cache=True, nogil=True, error_model="numpy")
def index(ints: Ints, cards: Ints, places: Ints) -> None:
    """Make ``places`` anew from the first ``SIZE`` of ``cards``."""
    places[:] = 0
    for i in range(ints[SIZE]):
        places[_place(cards, places, cards[i])] = i + 1


@njit(cache=True, nogil=True, error_model="numpy")
def decide(ints: Ints, floats: Floats, hours: Floats, cards: Ints, places: Ints, budget: float, review: float,
           block: float, time: Ints, marks: Ints, card: Ints, score: Floats, model: Ints, action: Bytes,
           threshold: Floats) -> None:  # fmt: skip
    """Decide the transactions of a partition, in their order.

    Parameters
    ----------
    ints, floats, hours, cards, places :
        The state, see :class:`features.budget.Budget`.
    budget : float
        Cases a day.
    review, block : float
        The model's own thresholds. ``review`` holds for cards that are a case today already, if it is lower, and until
        anything is known; no score below the threshold in force is blocked either.
    time, marks, card, model : int64[n]
        Event time, watermark just before it, hash of the card, hash of the model's version.
    score : float64[n]
        NaN counts as no score: nothing is learnt from it.
    action : int8[n]
        ``OPEN`` where the controller decides, ``AT_LEAST`` plus an action where a rule wants that or more (both are
        replaced by the action), ``SKIP`` for repeats, or an action that was decided elsewhere: by a rule that allows,
        or before a restart. All alerts count.
    threshold : float64[n]
        Result: the threshold in force for each.
    """
    for n in range(len(time)):
        if action[n] == SKIP:
            threshold[n] = floats[THRESHOLD] if floats[THRESHOLD] > 0.0 else review
            continue
        if marks[n] > 0:
            now = max(ints[CLOCK], min(time[n], marks[n] + _SLACK_MS))
            if now > ints[CLOCK]:
                _tick(ints, floats, hours, places, now, budget)
        if model[n] != ints[MODEL]:
            if ints[MODEL] != 0 and floats[EVENTS] > 0.0:
                a_day = floats[TOTAL] if floats[TOTAL] > 0.0 else floats[EVENTS]
                days = max(_SWAPPED_DAYS, _CASES_TELL / budget) * a_day
                kept = min(1.0, days / floats[EVENTS])
                floats[EVENTS] *= kept
                floats[FORCED] *= kept
                floats[FLOATS:] *= kept
            ints[MODEL] = model[n]
        at = _place(cards, places, card[n])
        is_case = places[at] > 0
        least = _threshold(ints, floats, budget)
        known = least >= 0.0  # what the state becomes must not depend on the model that is served
        if known:
            floats[THRESHOLD] = least
        threshold[n] = min(least, review) if is_case and known else (least if known else review)
        if action[n] == OPEN or action[n] >= AT_LEAST:
            mildest = 0 if action[n] == OPEN else action[n] - AT_LEAST
            found = (2 if score[n] >= block else 1) if score[n] >= threshold[n] else 0
            action[n] = max(found, mildest)
        if score[n] == score[n]:
            floats[EVENTS] += 1.0
            if not is_case:
                floats[FLOATS + int(_level(score[n]))] += 1.0
        floats[IN_HOUR] += 1.0
        ints[SEEN] += 1
        if action[n] > 0 and not is_case:
            ints[CASES] += 1
            floats[FORCED] += 1.0 if known and not score[n] >= least else 0.0
            if ints[SIZE] < len(cards):
                cards[ints[SIZE]] = card[n]
                ints[SIZE] += 1
                places[at] = ints[SIZE]
