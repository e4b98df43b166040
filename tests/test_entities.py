"""The worker's cache of entities: what may be dropped, what must stay, and views that merge shards."""

from __future__ import annotations

import numpy as np
import pytest

from features.catalogue import NEVER, RING, ROW_INTS
from stream.entities import EntityCache
from tests.streams import CATALOGUE, START_MS


def new_cache(capacity: int = 100, *, merged: bool = False, refresh_s: float = 1.0) -> EntityCache:
    return EntityCache(CATALOGUE.layouts[1], capacity, merged=merged, refresh_s=refresh_s)


def fill(cache: EntityCache, partition: int, ids: list[str], cycle: int) -> None:
    missing = cache.missing(partition, ids)
    cache.fill(partition, missing, [None] * len(missing))
    cache.use(partition, ids, cycle)


def mark(cache: EntityCache, partition: int, id_: str, events: int) -> None:
    """Make a row hold some events of one tile."""
    row = int(cache.use(partition, [id_], 0)[0])
    cache.rows.ints[row, :2] = START_MS
    for w, hop in enumerate(cache.layout.hops_ms):
        tile = START_MS // int(hop)
        cache.rows.ints[row, ROW_INTS + w] = tile << RING | 1 << (RING - 1)
        stride = int(cache.layout.dims[9]) // (RING * len(cache.layout.hops_ms))
        at = (w * RING + tile % RING) * stride
        cache.rows.floats[row, at : at + stride] = events


def newest_count(cache: EntityCache, row: int) -> float:
    """What :func:`mark` has made a row, or those that it merges, hold."""
    if cache.rows.ints[row, 0] == NEVER:
        return 0.0
    stride = int(cache.layout.dims[9]) // (RING * len(cache.layout.hops_ms))
    return float(cache.rows.floats[row, START_MS // int(cache.layout.hops_ms[0]) % RING * stride])


def test_the_least_recently_used_goes_first_and_what_is_not_applied_stays() -> None:
    cache = new_cache(capacity=2)
    for cycle, id_ in enumerate(["a", "b", "c", "d"], 1):
        fill(cache, 0, [id_], cycle)
    cache.use(0, ["a"], 5)
    cache.evict(settled=2)
    assert cache.missing(0, ["a", "b", "c", "d"]) == ["b"]
    cache.evict(settled=4)
    assert cache.missing(0, ["a", "b", "c", "d"]) == ["b", "c"]
    cache.evict(settled=5)
    assert len(cache) == 2


def test_an_evicted_row_is_used_again_and_reads_as_nothing() -> None:
    cache = new_cache(capacity=1)
    fill(cache, 0, ["a"], 1)
    mark(cache, 0, "a", 3)
    fill(cache, 0, ["b"], 2)
    cache.evict(settled=9)
    assert cache.missing(0, ["a", "b"]) == ["a"]
    rows = len(cache.rows)
    fill(cache, 0, ["c"], 3)
    assert len(cache.rows) == rows
    (row,) = cache.use(0, ["c"], 3)
    assert cache.rows.ints[row, :3].tolist() == [NEVER] * 3
    assert newest_count(cache, int(row)) == 0.0


@pytest.mark.parametrize("partitions", [1, 3])
def test_memory_stays_bounded_while_ids_never_end(partitions: int) -> None:
    cache = new_cache(capacity=30, merged=partitions > 1)
    for cycle in range(200):
        for partition in range(partitions):
            fill(cache, partition, [f"{cycle}-{i}" for i in range(5)], cycle)
        if partitions > 1:
            for i in range(5):
                cache.build_view(f"{cycle}-{i}", {}, float(cycle))
            cache.views([f"{cycle}-{i}" for i in range(5)])
        cache.evict(settled=cycle - 2)
        assert len(cache) <= 30 + 4 * 5 * (partitions + 1)
    assert len(cache.rows) <= 256


def test_what_is_encoded_is_what_is_filled_in_again() -> None:
    cache = new_cache()
    fill(cache, 2, ["a", "b"], 1)
    mark(cache, 2, "a", 3)
    fields = cache.encode(2, ["a", "b", "a"])
    assert list(fields) == [b"merchant:a", b"merchant:b"]
    other = new_cache()
    assert other.missing(2, ["a", "b"]) == ["a", "b"]
    other.fill(2, ["a", "b"], list(fields.values()))
    assert other.encode(2, ["a", "b"]) == fields


def test_a_view_adds_the_shards_held_here_and_those_read() -> None:
    cache = new_cache(merged=True)
    fill(cache, 0, ["a"], 1)
    mark(cache, 0, "a", 3)
    far = new_cache()
    fill(far, 1, ["a"], 1)
    mark(far, 1, "a", 4)
    assert cache.uncached_shards("a", 3) == [1, 2]
    assert cache.stale(["a", "a"], 10.0) == ["a"]
    free = len(cache.rows.free)
    cache.build_view("a", {1: far.encode(1, ["a"])[b"merchant:a"], 2: None}, 11.0)
    assert newest_count(cache, int(cache.views(["a"])[0])) == 7.0
    assert len(cache.rows.free) == free - 1  # scratch rows are given back
    assert cache.stale(["a"], 10.9) == [] and cache.stale(["a"], 11.0) == ["a"]


def test_a_view_built_again_holds_nothing_of_the_one_before() -> None:
    cache = new_cache(merged=True)
    fill(cache, 0, ["a"], 1)
    mark(cache, 0, "a", 3)
    for _ in range(3):
        cache.build_view("a", {1: None}, 0.0)
        assert newest_count(cache, int(cache.views(["a"])[0])) == 3.0


def test_losing_a_partition_forgets_its_rows_and_all_views() -> None:
    cache = new_cache(merged=True)
    for partition in (0, 1):
        fill(cache, partition, ["a"], 1)
        mark(cache, partition, "a", 2)
    cache.build_view("a", {}, 1000.0)
    cache.drop(0)
    assert cache.missing(0, ["a"]) == ["a"] and cache.missing(1, ["a"]) == []
    assert cache.stale(["a"], 1.0) == ["a"]
    cache.build_view("a", {0: None}, 1000.0)
    assert newest_count(cache, int(cache.views(["a"])[0])) == 2.0
    cache.drop(7)  # one that was never held
    assert np.isfinite(cache.rows.nbytes)
