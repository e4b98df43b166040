"""State rows survive their bytes bit for bit, bytes of every version stay readable, and damage is told."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalogue import LABELS_KEPT, MEMORY_FLOATS, MEMORY_INTS, ROW_INTS, USUAL_FLOATS, build_catalogue
from features.codec import CODEC_VERSION, decode_rows, encode_packed, encode_rows, row_bytes_max
from features.engine import Rows
from features.errors import StateMismatch
from features.schema import load_schema
from features.varint import get_number, put_number
from tests.streams import CATALOGUE, Op, Run, small_schema, streams
from tests.test_kernel import card, state, verdict

FIXTURES = [Path(__file__).with_name(f"state_v{version}.hex") for version in range(1, CODEC_VERSION + 1)]


def restored(run: Run) -> Run:
    """A run whose tables were written and read."""
    copy = Run(run.catalogue)
    copy.rows = run.rows
    for table, target in zip(run.tables, copy.tables, strict=True):
        rows = np.arange(len(table), dtype=np.int64)
        values = encode_rows(table.layout, rows, table.ints, table.floats)
        decode_rows(target.layout, values, rows, target.ints, target.floats)
    return copy


@pytest.mark.parametrize("memory", [1, 3, 64])
@settings(max_examples=80, deadline=None)
@given(past=streams(), future=streams())
def test_a_restored_state_goes_on_bit_for_bit(memory: int, past: list[Op], future: list[Op]) -> None:
    run = Run(build_catalogue(small_schema(memory)))
    run.feed(past)
    again = restored(run)
    later = max((op.time for op in past), default=0) - future[0].time
    future = [op._replace(id=op.id if i % 3 else f"new-{op.id}", time=op.time + later) for i, op in enumerate(future)]
    found, wanted = again.feed(future), run.feed(future)
    assert found[0].tobytes() == wanted[0].tobytes()
    assert found[1].tobytes() == wanted[1].tobytes()
    assert found[2] == wanted[2]
    assert state(again) == state(run)


@settings(max_examples=60, deadline=None)
@given(past=streams(), data=st.data())
def test_damaged_bytes_are_refused_or_read_as_some_state_but_never_run_away(
    past: list[Op], data: st.DataObject
) -> None:
    run = Run()
    run.feed(past)
    e = data.draw(st.integers(0, 2))
    table = run.tables[e]
    (value,) = encode_rows(table.layout, np.zeros(1, np.int64), table.ints, table.floats)
    damaged = bytearray(value)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "cut", "grow"]))
        if kind == "cut":
            damaged = damaged[:at]
        elif kind == "grow":
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=12))
        elif damaged:
            damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    target = Rows(table.layout, 3)
    target.ints[:] = target.ints[::2][0]
    before = target.ints[[0, 2]].copy(), target.floats[[0, 2]].copy()
    try:
        decode_rows(table.layout, [bytes(damaged)], np.array([1]), target.ints, target.floats)
    except StateMismatch:
        pass
    else:
        run.tables[e].ints[0], run.tables[e].floats[0] = target.ints[1], target.floats[1]
        run.feed([op._replace(id=f"x{op.id}") for op in past])
        encode_rows(table.layout, np.arange(3), run.tables[e].ints, run.tables[e].floats)
    assert np.array_equal(target.ints[[0, 2]], before[0]) and np.array_equal(target.floats[[0, 2]], before[1])


def story() -> Run:
    """A little of everything that a row can hold."""
    run = Run(build_catalogue(small_schema(4)))
    run.feed([card("e1", 0, 12.34), card("e2", 500, 0.1 + 0.2), verdict("e1", 600, 1), card("e3", 70_000, 1e6 / 3),
              card("e3", 70_001), verdict("e2", 90_000, 0), verdict("e1", 95_000, 0), card("e4", 60_000, 5.0),
              Op("e5", card("", 80_000).time, ("b", "n", "n\x1fy"), (7.0, -1.5)), card("e6", 3_700_000, 0.0)]
             )  # fmt: skip
    return run


def lines(run: Run) -> list[str]:
    """Entity, row and bytes of the first rows."""
    return [
        f"{table.layout.entity.name} {row} {value.hex()}"
        for table, values in zip(run.tables, state(run), strict=True)
        for row, value in enumerate(values[:3])
    ]


def test_the_bytes_of_this_version_stay_what_they_are() -> None:
    assert FIXTURES[-1].read_text(encoding="ascii").splitlines() == lines(story())


def forgotten(run: Run) -> Run:
    """Without what no version before the third could hold: kept labels, levels, usual values."""
    for table in run.tables:
        layout, memory = table.layout, int(table.layout.dims[3])
        table.ints[:, layout.ints - LABELS_KEPT :] = 0
        if memory:
            level = ROW_INTS + int(layout.dims[0] + layout.dims[1]) + 2 + int(layout.dims[4]) + 5 * memory
            table.ints[:, level : level + memory] = 0
            values = layout.floats - MEMORY_FLOATS * memory
            table.floats[:, values - USUAL_FLOATS * int(layout.dims[14]) : values] = 0.0
    return run


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_bytes_of_every_version_stay_readable(fixture: Path) -> None:
    run = Run(build_catalogue(small_schema(4)))
    tables = {table.layout.entity.name: table for table in run.tables}
    for line in fixture.read_text(encoding="ascii").splitlines():
        name, row, value = line.split()
        table = tables[name]
        decode_rows(table.layout, [bytes.fromhex(value)], np.array([int(row)]), table.ints, table.floats)
    original = story() if fixture == FIXTURES[-1] else forgotten(story())
    run.rows = original.rows
    assert lines(run) == lines(original)
    future = [card("e1", 3_800_000), card("e7", 3_800_001, 3.0), verdict("e7", 3_800_002, 1), card("e8", 3_800_003)]
    assert run.feed(future)[0].tobytes() == original.feed(future)[0].tobytes()


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_bytes_that_end_early_are_refused_wherever_they_end(fixture: Path) -> None:
    run = story()
    tables = {table.layout.entity.name: table for table in run.tables}
    for line in fixture.read_text(encoding="ascii").splitlines():
        name, _, value = line.split()
        table = Rows(tables[name].layout, 1)
        for end in range(1, len(value) // 2):
            with pytest.raises(StateMismatch):
                decode_rows(table.layout, [bytes.fromhex(value)[:end]], np.array([0]), table.ints, table.floats)


@settings(max_examples=200, deadline=None)
@given(version=st.integers(1, CODEC_VERSION), noise=st.binary(max_size=300), e=st.integers(0, 2))
def test_noise_never_touches_another_row(version: int, noise: bytes, e: int) -> None:
    table = Rows(CATALOGUE.layouts[e], 3)
    table.ints[[0, 2]], table.floats[[0, 2]] = 7, 7.0
    with contextlib.suppress(StateMismatch):
        decode_rows(table.layout, [bytes([version]) + noise], np.array([1]), table.ints, table.floats)
    assert (table.ints[[0, 2]] == 7).all() and (table.floats[[0, 2]] == 7.0).all()


@settings(max_examples=300, deadline=None)
@given(st.floats() | st.integers(0, 10**8).map(lambda n: n / 100), st.integers(-3, 3))
def test_a_number_keeps_every_bit(value: float, off: int) -> None:
    for _ in range(abs(off)):
        value = math.nextafter(value, math.inf if off > 0 else -math.inf)
    out = np.zeros(16, np.uint8)
    for units in (1e2, 1e4, 1e6):
        end = put_number(out, 0, value, units)
        cursor = np.array([0, end])
        assert np.float64(get_number(out, cursor, units)).tobytes() == np.float64(value).tobytes()
        assert cursor[0] == end <= 9


def test_packed_rows_are_the_rows_end_to_end_however_much_room_they_take() -> None:
    run = story()
    for table in run.tables:
        rows = np.arange(len(table), dtype=np.int64).repeat(400)[::-1].copy()
        data, ends = encode_packed(table.layout, rows, table.ints, table.floats)
        assert data.tobytes() == b"".join(encode_rows(table.layout, rows, table.ints, table.floats))
        assert ends[-1] == len(data) and (np.diff(ends) >= 2).all()
        data, ends = encode_packed(table.layout, rows[:0], table.ints, table.floats)
        assert len(data) == len(ends) == 0


@pytest.mark.parametrize("damage", [lambda v: bytes([CODEC_VERSION + 1]) + v[1:], lambda v: v[:-1], lambda v: v + b"\0",
                                    lambda v: v[:1], lambda v: b"\0" + v[1:]])  # fmt: skip
def test_another_version_or_length_is_refused_with_the_way_out(damage: object) -> None:
    assert callable(damage)
    run = story()
    table = run.tables[0]
    good = state(run)[0][0]
    with pytest.raises(StateMismatch, match="state of a card .* redis.namespace"):
        decode_rows(table.layout, [good, damage(good)], np.array([5, 6]), table.ints, table.floats)


def test_an_entity_without_events_takes_two_bytes_and_one_with_one_event_a_few_dozen() -> None:
    run = Run(build_catalogue(load_schema().transactions))
    for table in run.tables:
        empty = encode_rows(table.layout, np.array([0]), table.ints, table.floats)
        assert len(empty[0]) == 2
    small = Run(CATALOGUE)
    small.feed([card("e1", 0, 12.34)])
    sizes = [len(values[0]) for values in state(small)]
    assert max(sizes) < 100, sizes


def test_the_fullest_row_fits_the_stated_bound() -> None:
    layout = CATALOGUE.layouts[0]
    table = Rows(layout, 1)
    memory, others = int(layout.dims[3]), int(layout.dims[4])
    table.ints[:] = np.iinfo(np.int64).max // 4
    head = layout.ints - LABELS_KEPT - memory * (MEMORY_INTS + others) - 2 - others
    table.ints[0, ROW_INTS:head] = -1  # every bit of every map
    table.ints[0, head : head + 2] = memory - 1, memory
    start = layout.ints - LABELS_KEPT - memory * others
    table.ints[0, start : start + memory * others] = np.arange(memory * others)
    table.floats[:] = 1e300 / 3
    table.floats[:, : layout.dims[9]] = float(1 << 52)
    table.floats[:, 2 : layout.dims[9] : 9] = 1e300 / 3
    usual = layout.floats - MEMORY_FLOATS * memory - USUAL_FLOATS * int(layout.dims[14])
    table.floats[:, usual : layout.floats - MEMORY_FLOATS * memory : USUAL_FLOATS] = 100.0
    table.floats[:, usual + 3 : layout.floats - MEMORY_FLOATS * memory : USUAL_FLOATS] = 1.0
    (value,) = encode_rows(layout, np.array([0]), table.ints, table.floats)
    assert len(value) <= row_bytes_max(layout)
