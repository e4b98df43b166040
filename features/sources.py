"""Where candidates come from, compiled: what six sources say about every item after a session's last clicks.

In: item hashes and the arrays of a fitted model. Out: scores of items, written in place. No IO, no clock.

Three of the sources are session nearest neighbours that share one search and differ in what they favour: a variant of
VMIS-kNN (Kersbergen, Sprangers, Schelter: Serenade, SIGMOD 2022) that looks forward, so that what came after the
shared item counts far more than what came before it. The others are a linear model of items on items, the longest
matching ends of sessions, and transitions. Everything is bounded per query: the last :data:`CLICKS` clicks, the newest
occurrences of an item as they were kept when the model was fitted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.toplist import Floats, Ints, offer
from features.uncounted import counting_nothing

Longs = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Doubles = NDArray[np.float64]

CLICKS = 20  # of a session, the newest, are looked at
VARIANTS = 3  # of nearest neighbours
SOURCES = ("neighbours", "history", "lately", "linear", "endings", "transitions")
LINEAR, ENDINGS, TRANSITIONS = range(VARIANTS, VARIANTS + 3)
# Further columns beside the sources' scores; in NOW and BEFORE only the last or the last but one item speaks. LISTED
# counts the session's items that an item came after, LINEAR_MOST is the largest weight by which one speaks for it.
DIRECT, BIGRAM, VOTERS, LINEAR_NOW, LINEAR_BEFORE, NOW, BEFORE, LINEAR_MOST, LISTED = range(
    len(SOURCES), len(SOURCES) + 9
)
COLUMNS = len(SOURCES) + 9
TASTE = 32  # numbers that say where an item lies among those that are alike
TASTE_DECAY = 0.5  # per click of age, of what a session's items say about where it is
REACH = 60  # clicks of a neighbour on either side of the shared item that have a weight of their own
NEAREST, QUERY_DECAY = range(2)  # columns of ``Index.variants``
LINEAR_DECAY, TRANSITION_DECAY, MATCH_MAX, MATCH_BASE, LIST, CUT, EXCLUDE_CURRENT = range(7)  # of ``Index.settings``
NOTHING, UNKNOWN = -1, -2  # what stands between sessions; what the catalogue does not hold
_TINY = np.float32(1e-30)  # a weight that underflowed to 0 would look like an entry never touched


class Index(NamedTuple):
    """The model's arrays, see :class:`features.recommender.Recommender`; ``items`` is sorted by ``hashes``.

    ``posting_at`` int32[p] is where in ``sequence`` an item lies in each session that holds it, ``posting_ends`` and
    ``next_ends`` int64[n] how far an item's sessions and occurrences are looked at.
    """

    hashes: Hashes
    items: Ints
    rarity: Floats
    popularity: Floats
    facts: Floats
    posting_offsets: Longs
    posting_ends: Longs
    posting_sessions: Ints
    posting_at: Ints
    next_offsets: Longs
    next_ends: Longs
    next_places: Ints
    session_offsets: Longs
    sequence: Ints
    recency: Floats
    place_weights: Floats
    linear_offsets: Longs
    linear_items: Ints
    linear_weights: Floats
    transition_offsets: Longs
    transition_items: Ints
    transition_weights: Floats
    tastes: Floats
    variants: Doubles
    settings: Doubles


class Scratch(NamedTuple):
    """Work space. Between queries ``overlap``, ``scores`` are zero and ``slots`` -1.

    ``weights`` is by variant, ``tops`` and ``sums`` by source, ``taste`` the session's.
    """

    raw: Ints
    query: Ints
    ages: Longs
    overlap: Floats
    found: Floats
    places: Ints
    sessions: Ints
    votes: Floats
    voters: Ints
    scores: Floats
    slots: Ints
    touched: Ints
    list_scores: Floats
    list_items: Ints
    ranks: Ints
    named: Floats
    counts: Doubles
    weights: Floats
    tops: Floats
    sums: Floats
    taste: Floats


@counting_nothing
def find(hashes: Hashes, wanted: int) -> int:
    """Where ``wanted`` stands among the sorted hashes; -1 if nowhere."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high) // 2
        if hashes[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < len(hashes) and hashes[low] == wanted else -1


@counting_nothing
def known_items(hashes: Hashes, index: Index, scratch: Scratch) -> tuple[int, int]:
    """The newest clicks as item numbers, newest first, and the known ones each once with their age in clicks.

    Returns how many clicks are looked at, and how many different known items there are.
    """
    length, found = min(len(hashes), CLICKS), 0
    for age in range(length):
        at = find(index.hashes, hashes[len(hashes) - 1 - age])
        scratch.raw[age] = UNKNOWN
        if at < 0:
            continue
        item = index.items[at]
        scratch.raw[age] = item
        seen = False
        for j in range(found):
            seen = seen or scratch.query[j] == item
        if not seen:
            scratch.query[found] = item
            scratch.ages[found] = age
            found += 1
    return length, found


@counting_nothing
def _match(found: int, index: Index, scratch: Scratch) -> int:
    """Add up, by variant, the overlap of every session that shares an item with the query; how many there are.

    Writes ``found``, by such a session its overlap times its recency, and ``places``, where it has the shared item.
    """
    # Arrays are taken out of their tuples before the loops: numba would count references to them in each round.
    posting_sessions, posting_at, recency = index.posting_sessions, index.posting_at, index.recency
    overlap, sessions, places, votes = scratch.overlap, scratch.sessions, scratch.places, scratch.found
    count, weights = 0, scratch.weights
    for j in range(found):
        item = scratch.query[j]
        for v in range(VARIANTS):
            decay = np.exp(-index.variants[v, QUERY_DECAY] * scratch.ages[j])
            weights[v] = max(np.float32(decay) * index.rarity[item], _TINY)
        for p in range(index.posting_offsets[item], index.posting_ends[item]):
            session = posting_sessions[p]
            if overlap[session, 0] == 0.0:
                # The newest shared item comes first: what followed it in that session is what may come next here.
                sessions[count], places[count] = session, posting_at[p]
                count += 1
            for v in range(VARIANTS):
                overlap[session, v] += weights[v]
    for t in range(count):
        session = sessions[t]
        for v in range(VARIANTS):
            votes[t, v] = overlap[session, v] * recency[session, v]
            overlap[session, v] = 0.0
    return count


@counting_nothing
def _nearest(variant: int, matched: int, index: Index, scratch: Scratch) -> int:
    """The places of a variant's nearest sessions in ``voters`` with their ``votes``; how many there are.

    Sessions lie one after the other, the newest first, so among equal votes the lower place is that of the newer one.
    """
    found, places, votes, voters = scratch.found, scratch.places, scratch.votes, scratch.voters
    limit, near = int(index.variants[variant, NEAREST]), 0
    if matched <= limit:
        for t in range(matched):
            voters[t], votes[t] = places[t], found[t, variant]
        return matched
    for t in range(matched):
        vote = found[t, variant]
        if near < limit or vote >= votes[0]:
            near = offer(votes, voters, limit, near, vote, places[t])
    return near


@counting_nothing
def _vote(variant: int, near: int, count: int, index: Index, scratch: Scratch) -> int:
    """Let a variant's nearest sessions add their items to the scores; how many items are touched in all."""
    sequence, weights, voters, votes = index.sequence, index.place_weights, scratch.voters, scratch.votes
    scores, slots, touched, rarity = scratch.scores, scratch.slots, scratch.touched, index.rarity
    one = np.float32(1.0 / index.variants[variant, NEAREST])
    for t in range(near):
        shared, vote = voters[t], votes[t]
        start = shared
        while shared - start < REACH and sequence[start - 1] >= 0:
            start -= 1
        for p in range(start, shared + REACH + 1):
            item = sequence[p]
            if item < 0:
                break  # the session's end
            if slots[item] < 0:
                slots[item] = count
                touched[count] = item
                count += 1
            scores[item, variant] += max(weights[variant, p - shared + REACH] * vote * rarity[item], _TINY)
            if variant == 0 and p > shared:
                scores[item, VOTERS] += one
    return count


@counting_nothing
def _lists(found: int, column: int, alone: int, decay: float, offsets: Longs, items: Ints, weights: Floats, count: int,
           scratch: Scratch) -> int:  # fmt: skip
    """Add what stands in the lists of the query's items, decayed by age; how many items are touched in all.

    What the two newest items say goes undecayed into columns ``alone`` and ``alone + 1`` as well.
    """
    scores, slots, touched = scratch.scores, scratch.slots, scratch.touched
    for j in range(found):
        item = scratch.query[j]
        factor = np.float32(np.exp(-decay * scratch.ages[j]))
        for p in range(offsets[item], offsets[item + 1]):
            other = items[p]
            if slots[other] < 0:
                slots[other] = count
                touched[count] = other
                count += 1
            scores[other, column] += factor * weights[p]
            if j < 2:
                scores[other, alone + j] = weights[p]
            if column == TRANSITIONS:
                scores[other, LISTED] += np.float32(1.0)
            else:
                scores[other, LINEAR_MOST] = max(scores[other, LINEAR_MOST], weights[p])
    return count


@counting_nothing
def _endings(length: int, count: int, index: Index, scratch: Scratch) -> int:
    """Follow every occurrence of the item now viewed by what came next, for more the longer the two pasts agree.

    Writes ``counts``: occurrences, and those with the same item before. Returns how many items are touched in all.
    """
    sequence, places, raw = index.sequence, index.next_places, scratch.raw
    scores, slots, touched = scratch.scores, scratch.slots, scratch.touched
    scratch.counts[:2] = 0.0
    item = raw[0]
    if length == 0 or item < 0:
        return count
    reach, base = min(length, int(index.settings[MATCH_MAX])), np.float32(index.settings[MATCH_BASE])
    one, twice = np.float32(1.0), 0
    for p in range(index.next_offsets[item], index.next_ends[item]):
        at = places[p]
        match, score = 1, one
        while match < reach and sequence[at - match] == raw[match]:
            match += 1
            score *= base
        following = sequence[at + 1]
        if slots[following] < 0:
            slots[following] = count
            touched[count] = following
            count += 1
        scores[following, ENDINGS] += score
        scores[following, DIRECT] += one
        if match > 1:
            scores[following, BIGRAM] += one
            twice += 1
    scratch.counts[0] = index.next_ends[item] - index.next_offsets[item]
    scratch.counts[1] = twice
    return count


@counting_nothing
def ask_lists(found: int, count: int, index: Index, scratch: Scratch) -> int:
    """Have the sources score their items that hold a list for each item; how many items have a score."""
    count = _lists(found, LINEAR, LINEAR_NOW, index.settings[LINEAR_DECAY], index.linear_offsets, index.linear_items,
                   index.linear_weights, count, scratch)  # fmt: skip
    return _lists(found, TRANSITIONS, NOW, index.settings[TRANSITION_DECAY], index.transition_offsets,
                  index.transition_items, index.transition_weights, count, scratch)  # fmt: skip


@counting_nothing
def ask(length: int, found: int, index: Index, scratch: Scratch) -> int:
    """Have every source score its items; how many items have a score. Writes ``counts``: of sessions that match."""
    matched = _match(found, index, scratch)
    count, scratch.counts[2] = 0, matched
    for variant in range(VARIANTS):
        count = _vote(variant, _nearest(variant, matched, index, scratch), count, index, scratch)
    count = ask_lists(found, count, index, scratch)
    return _endings(length, count, index, scratch)
