"""The watermark, and state that reads as empty from it on: no vector shows whether it was removed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.codec import decode_rows, encode_rows
from features.watermark import BLOCK, UNMARKED, Watermark, advance, kept_ms, past_fields
from tests.streams import CATALOGUE, START_MS, Op, Run, streams

SHORTEST_MS = min(int(layout.dims[5]) // 2 for layout in CATALOGUE.layouts)  # the shortest of the longest windows
TIMES = st.lists(st.integers(1, 10_000), max_size=5 * BLOCK)


def in_batches(times: Sequence[int], cuts: Sequence[int]) -> tuple[list[int], Watermark]:
    marks, watermark = [], UNMARKED
    for a, b in itertools.pairwise(sorted({0, len(times), *(cut % (len(times) + 1) for cut in cuts)})):
        part, watermark = advance(watermark, np.array(times[a:b], np.int64))
        marks += part.tolist()
    return marks, watermark


@settings(max_examples=200, deadline=None)
@given(TIMES, st.lists(st.integers(0, 5 * BLOCK)))
def test_the_watermark_is_the_newest_time_that_a_whole_block_has_passed_however_it_is_cut(
    times: list[int], cuts: list[int]
) -> None:
    marks, after = in_batches(times, cuts)
    lows = [0, *(min(times[a : a + BLOCK]) for a in range(0, len(times) - BLOCK + 1, BLOCK))]
    assert marks == [max(lows[: i // BLOCK + 1]) for i in range(len(times))]
    assert after.time == max(lows)
    assert marks == in_batches(times, ())[0] and after == in_batches(times, ())[1]


def test_events_from_the_future_do_not_move_it_unless_they_fill_a_block() -> None:
    times = np.arange(10 * BLOCK) + START_MS
    calm, _ = advance(UNMARKED, times)
    times[::2] += 10**12
    marks, _ = advance(UNMARKED, times)
    assert (marks <= calm + 1).all()


def test_a_late_event_holds_it_back_and_it_never_falls() -> None:
    times = np.arange(4 * BLOCK) + START_MS
    times[3 * BLOCK - 1] = 5
    marks, after = advance(UNMARKED, times)
    assert marks[3 * BLOCK] == START_MS + BLOCK and after.time == START_MS + 3 * BLOCK
    assert (np.diff(marks) >= 0).all()


class Swept(Run):
    """A run whose rows lie in bytes between batches, and lose what reads as empty when ``sweep`` says so."""

    def rest(self, watermark: int, *, sweep: bool) -> list[dict[Any, bytes]]:
        """Put all rows into bytes and read them back; what is left."""
        kept = []
        for table, ids in zip(self.tables, self.rows, strict=True):
            rows = np.array(list(ids.values()), np.int64)
            values = {str(id_).encode(): value for id_, value in
                      zip(ids, encode_rows(table.layout, rows, table.ints, table.floats), strict=True)}  # fmt: skip
            past = past_fields(table.layout, values, watermark) if values else []
            gone = set(past) if sweep else set()
            for row in rows.tolist():
                table.give_back(np.array([row], np.int64))
            left = [b"" if name in gone else value for name, value in values.items()]
            decode_rows(table.layout, left, rows, table.ints, table.floats)
            kept.append({name: value for name, value in values.items() if name not in past})
        return kept


@st.composite
def marked(draw: st.DrawFn, lateness_ms: int = 10**12) -> list[tuple[Op, int]]:
    """Operations, late ones too, and for each a watermark that never falls and runs before it at most so far."""
    found, mark = [], 0
    for op in draw(streams()):
        wanted = op.time + draw(st.sampled_from((-(10**9), 0, 1, 3_600_000, 10**8, 4 * 10**8)))
        mark = max(mark, min(wanted, op.time + lateness_ms))
        if mark <= op.time + lateness_ms:
            found.append((op, mark))
    return found


@settings(max_examples=300, deadline=None)
@given(marked(), st.lists(st.booleans(), min_size=40, max_size=40), st.integers(1, 4))
def test_no_vector_decision_or_state_shows_when_a_sweep_ran(
    ops: list[tuple[Op, int]], sweeps: list[bool], size: int
) -> None:
    swept, whole, batched = Swept(), Swept(), Run()
    for number, a in enumerate(range(0, len(ops), size)):
        part, marks = [op for op, _ in ops[a : a + size]], [mark for _, mark in ops[a : a + size]]
        told = [run.feed(part, marks) for run in (swept, whole, batched)]
        for one, other in ((told[0], told[1]), (told[1], told[2])):
            assert one[0].tobytes() == other[0].tobytes()
            assert one[1].tobytes() == other[1].tobytes() and one[2] == other[2]
        assert swept.rest(marks[-1], sweep=sweeps[number]) == whole.rest(marks[-1], sweep=False)


@settings(max_examples=300, deadline=None)
@given(marked(lateness_ms=SHORTEST_MS))
def test_an_event_that_is_late_by_no_more_than_its_longest_window_sees_what_it_would_without_a_watermark(
    ops: list[tuple[Op, int]],
) -> None:
    part, marks = [op for op, _ in ops], [mark for _, mark in ops]
    if part:
        one, other = Run().feed(part, marks), Run().feed(part)
        assert one[0].tobytes() == other[0].tobytes() and one[1].tobytes() == other[1].tobytes()


@pytest.mark.parametrize(("short_ms", "seen"), [(0, 0.0), (3, 1.0)])
def test_a_row_reads_as_empty_from_three_longest_windows_before_the_watermark_on(short_ms: int, seen: float) -> None:
    layout = CATALOGUE.layouts[0]
    assert kept_ms(layout) == 3 * max((*layout.entity.windows_ms, *layout.entity.label_windows_ms))
    run, ids = Run(), ("a", "m", "m\x1fx")
    _ = run.feed([Op("old", START_MS, ids, (1.0, 1.0))])
    mark = START_MS + kept_ms(layout) + 1 - short_ms
    x, _, _ = run.feed([Op("late", START_MS + 5, ids, (1.0, 1.0))], [mark])
    assert x[0, CATALOGUE.names.index("card_count_1d")] == seen
    assert x[0, CATALOGUE.names.index("card_merchant_seen")] == seen
