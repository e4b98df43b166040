"""Rows of state grow in place and take memory only where they are used."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from features.catalogue import build_catalogue
from features.engine import Rows
from features.growing import Growing
from features.schema import load_schema


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_what_was_never_written_takes_no_memory_however_much_room_there_is() -> None:
    before = _resident_bytes()
    table = Growing(100, np.float64)
    for rows in (1000, 100_000, 1_000_000):
        table.hold(rows)
        table.array[rows - 1] = rows
    assert table.array.nbytes == 800_000_000
    assert _resident_bytes() - before < 30_000_000
    assert [table.array[rows - 1, 99] for rows in (1000, 100_000, 1_000_000)] == [1000, 100_000, 1_000_000]


@pytest.mark.parametrize("width", [0, 3])
def test_who_has_a_view_keeps_what_was_there_and_the_table_grows_all_the_same(width: int) -> None:
    table = Growing(width, np.int64)
    table.hold(2)
    table.array[:] = 5
    view = table.array[1]
    table.hold(5000)
    table.array[1] = 6
    assert table.array.shape == (5000, width)
    assert (view == 5).all() and (table.array[0] == 5).all() and (table.array[2:] == 0).all()


def test_who_reads_a_table_while_another_thread_grows_it_never_finds_fewer_rows() -> None:
    table, done, found = Growing(4, np.int64), threading.Event(), list[int]()
    table.hold(8)

    def read() -> None:
        while not done.is_set():
            found.append(len(table.array))

    reader, interval = threading.Thread(target=read), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reader.start()
    try:
        for rows in range(9, 4000):
            table.hold(rows)
    finally:
        done.set()
        reader.join()
        sys.setswitchinterval(interval)
    assert found and min(found) >= 8 and found == sorted(found)


def test_rows_that_are_given_back_are_used_again_before_the_table_grows() -> None:
    table = Rows(build_catalogue(load_schema().transactions).layouts[0])
    rows = table.spare(1000)
    table.spend(1000)
    held = table.nbytes
    for _ in range(5):
        table.give_back(rows)
        rows = table.spare(1000)
        table.spend(1000)
    assert table.nbytes == held and len(np.unique(rows)) == 1000
