"""The worker's cache of entities: what may be dropped, what must stay, and views that merge shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from features.catalogue import NEVER, RING, ROW_INTS
from features.rowindex import RowIndex
from features.texts import Texts
from stream.entities import EntityCache, evict
from tests.streams import CATALOGUE, START_MS

Values = Mapping[int, Mapping[bytes, bytes | None]]


def new_cache(*, partitions: int = 1, refresh_s: float = 1.0) -> EntityCache:
    return EntityCache(CATALOGUE.layouts[1], partitions=partitions, merged=partitions > 1, refresh_s=refresh_s)


def hold(cache: EntityCache, rows: int, settled: int) -> None:
    """Let go of rows, and of what Redis has of them."""
    evict([cache], rows * cache.row_bytes, settled)
    cache.packed.hold(0)


def claim(cache: EntityCache, partition: int, ids: Sequence[str], cycle: int) -> list[bytes]:
    """Use rows; the fields that have to be read for it."""
    texts = Texts.of(ids)
    cache.claim(partition, texts, texts.hashes(), cycle)
    return cache.wanted().get(partition, [])


def answer(cache: EntityCache, values: Values | None = None, until_s: float = 0.0) -> None:
    """Fill in what is wanted: ``values`` where they are given, else nothing."""
    given = values or {}
    cache.fill({p: {field: given.get(p, {}).get(field) for field in fields} for p, fields in cache.wanted().items()},
               until_s, np.zeros(cache._partitions, np.int64))  # fmt: skip


def fill(cache: EntityCache, partition: int, ids: Sequence[str], cycle: int) -> list[bytes]:
    wanted = claim(cache, partition, ids, cycle)
    answer(cache)
    return wanted


def row_of(cache: EntityCache, partition: int, id_: str) -> int:
    texts = Texts.of([id_])
    return int(cache.claim(partition, texts, texts.hashes(), 0)[0])


def mark(cache: EntityCache, partition: int, id_: str, events: int) -> None:
    """Make a row hold some events of one tile."""
    row = row_of(cache, partition, id_)
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


def view(cache: EntityCache, id_: str, now_s: float, until_s: float, values: Values | None = None) -> float:
    """The events that a view holds, built anew where it is stale."""
    texts = Texts.of([id_])
    (row,) = cache.claim_views(texts, texts.hashes(), 1, now_s)
    answer(cache, values, until_s)
    return newest_count(cache, int(row))


def test_the_least_recently_used_goes_first_and_what_is_not_applied_stays() -> None:
    cache = new_cache()
    for cycle, id_ in enumerate(["a", "b", "c", "d"], 1):
        fill(cache, 0, [id_], cycle)
    fill(cache, 0, ["a"], 5)
    hold(cache, 2, settled=2)
    assert len(cache) == 3 and claim(cache, 0, ["a", "c", "d"], 5) == []
    assert fill(cache, 0, ["b"], 6) == [b"merchant:b"]
    hold(cache, 2, settled=5)
    assert 1 <= len(cache) <= 2  # a little more goes than has to, so that it is rare
    assert claim(cache, 0, ["b"], 6) == []


def test_a_row_that_was_let_go_is_had_again_without_redis_until_its_partition_is_lost() -> None:
    cache = new_cache(partitions=2)
    for cycle, id_ in enumerate("abcdefghij"):
        fill(cache, 0, [id_], cycle)
        mark(cache, 0, id_, cycle + 1)
    evict([cache], 4 * cache.row_bytes, settled=20)
    assert len(cache) <= 4 and cache.hits == 10
    assert view(cache, "b", 0.0, 1.0, {1: {b"merchant:b": None}}) == 2.0  # of a shard that is not among the rows
    assert fill(cache, 0, ["a", "c", "new"], 21) == [b"merchant:new"]
    assert [newest_count(cache, row_of(cache, 0, id_)) for id_ in ("a", "c", "new")] == [1.0, 3.0, 0.0]
    assert cache.packed.lacks(0, [b"merchant:a", b"merchant:b"]) == [b"merchant:a"]
    cache.drop(0)
    assert fill(cache, 0, ["a", "b"], 22) == [b"merchant:a", b"merchant:b"] and cache.packed.nbytes == 0


def test_what_was_let_go_keeps_to_its_share_of_the_budget_the_oldest_first_to_go() -> None:
    cache = new_cache()
    for cycle in range(0, 400, 10):
        fill(cache, 0, [f"m{cycle + i}" for i in range(10)], cycle)
        evict([cache], 20 * cache.row_bytes, settled=cycle)
        assert len(cache) * cache.row_bytes + cache.packed.nbytes <= 31 * cache.row_bytes
    assert 0 < cache.packed.nbytes <= 6 * cache.row_bytes
    held = [n for n in range(400) if not cache.packed.lacks(0, [b"merchant:m%d" % n])]
    assert len(held) >= 20 and min(held) >= 300


def test_an_evicted_row_is_used_again_and_reads_as_nothing() -> None:
    cache = new_cache()
    fill(cache, 0, ["a"], 1)
    mark(cache, 0, "a", 3)
    fill(cache, 0, ["b"], 2)
    hold(cache, 1, settled=1)
    rows = len(cache.rows)
    assert fill(cache, 0, ["b", "c"], 3) == [b"merchant:c"]
    assert len(cache.rows) == rows
    row = row_of(cache, 0, "c")
    assert cache.rows.ints[row, :3].tolist() == [NEVER] * 3 and newest_count(cache, row) == 0.0


def test_a_view_outlives_the_shards_since_it_costs_one_of_every_partition() -> None:
    cache = new_cache(partitions=8)
    view(cache, "a", 0.0, 1000.0)  # in cycle 1
    for cycle, id_ in enumerate("bcdefg", 2):
        fill(cache, 0, [id_], cycle)
    hold(cache, 3, settled=7)
    assert view(cache, "a", 1.0, 1000.0) == 0.0 and cache.wanted() == {}
    texts = Texts.of(["a"])
    cache.claim_views(texts, texts.hashes(), 7, 1.0)
    assert cache.wanted() == {}, "it is still there"
    fill(cache, 0, ["x", "y", "z"], 60)
    hold(cache, 3, settled=60)
    cache.claim_views(texts, texts.hashes(), 61, 1.0)
    assert cache.wanted() != {}, "in the end it goes too"


def test_many_views_are_built_in_few_rows_and_each_right() -> None:
    partitions, ids = 5, [f"m{i}" for i in range(2000)]
    far = new_cache()
    fill(far, 0, ids, 1)
    for events, id_ in enumerate(ids, 1):
        mark(far, 0, id_, events)
    value = far.encode(np.array([row_of(far, 0, id_) for id_ in ids]))
    cache, texts = new_cache(partitions=partitions), Texts.of(ids)
    rows = cache.claim_views(texts, texts.hashes(), 1, 0.0)
    answer(cache, dict.fromkeys(range(partitions), value), until_s=1.0)
    assert [newest_count(cache, row) for row in rows.tolist()] == [partitions * n for n in range(1, 2001)]
    assert len(cache.rows) < 2000 + 2 * 4096, "not a row for each of the 10,000 shards"


def test_rows_that_somebody_looks_at_stay_as_they_are_while_the_table_grows() -> None:
    cache = new_cache()
    fill(cache, 0, ["a"], 1)
    mark(cache, 0, "a", 3)
    seen, row = cache.rows.ints[:], row_of(cache, 0, "a")
    before = seen.copy()
    fill(cache, 0, [f"m{i}" for i in range(3000)], 2)
    assert len(cache.rows) >= 3000 and (seen == before).all() and newest_count(cache, row) == 3.0


@pytest.mark.parametrize("partitions", [1, 3])
def test_memory_stays_bounded_while_ids_never_end(partitions: int) -> None:
    cache = new_cache(partitions=partitions)
    for cycle in range(200):
        ids = [f"{cycle}-{i}" for i in range(5)]
        for partition in range(partitions):
            fill(cache, partition, ids, cycle)
        if partitions > 1:
            texts = Texts.of(ids)
            cache.claim_views(texts, texts.hashes(), cycle, float(cycle))
            answer(cache)
        hold(cache, 30, settled=cycle - 2)
        assert len(cache) <= 30 + 4 * 5 * (partitions + 1)
    assert len(cache.rows) <= 256


def test_what_is_encoded_is_what_is_filled_in_again() -> None:
    cache = new_cache()
    fill(cache, 0, ["a", "b", "a"], 1)
    mark(cache, 0, "a", 3)
    fields = cache.encode(np.array([row_of(cache, 0, "a"), row_of(cache, 0, "b")]))
    assert list(fields) == [b"merchant:a", b"merchant:b"]
    other = new_cache()
    assert claim(other, 0, ["a", "b"], 1) == list(fields)
    answer(other, {0: fields})
    assert other.encode(np.array([row_of(other, 0, "a"), row_of(other, 0, "b")])) == fields


def test_a_view_adds_the_shards_held_here_and_those_read() -> None:
    cache = new_cache(partitions=3)
    fill(cache, 0, ["a"], 1)
    mark(cache, 0, "a", 3)
    far = new_cache()
    fill(far, 0, ["a"], 1)
    mark(far, 0, "a", 4)
    free = len(cache.rows.free)
    texts = Texts.of(["a", "a"])
    cache.claim_views(texts, texts.hashes(), 1, 10.0)
    assert cache.wanted() == {1: [b"merchant:a"], 2: [b"merchant:a"]}
    answer(cache, {1: far.encode(np.array([row_of(far, 0, "a")]))}, until_s=11.0)
    assert len(cache.rows.free) == free - 1  # scratch rows are given back
    assert view(cache, "a", 10.9, 11.0) == 7.0, "still good: nothing is read"
    assert view(cache, "a", 11.0, 12.0) == 3.0, "built anew, and the far shard is gone"


def test_a_view_built_again_holds_nothing_of_the_one_before() -> None:
    cache = new_cache(partitions=2)
    fill(cache, 0, ["a"], 1)
    mark(cache, 0, "a", 3)
    for _ in range(3):
        assert view(cache, "a", 1.0, 0.0) == 3.0


def test_only_so_many_views_are_built_anew_and_new_ones_always_are() -> None:
    cache = new_cache(partitions=2)
    for n, id_ in enumerate("abcd"):
        view(cache, id_, 0.0, float(n))  # a is stale first
    texts = Texts.of(list("dcbae"))
    for expected in ({"a", "b", "e"}, {"c", "d"}, set()):
        cache.claim_views(texts, texts.hashes(), 2, 10.0, rebuilt_max=2)
        assert {field.decode()[-1] for field in cache.wanted().get(0, [])} == expected
        answer(cache, until_s=20.0)


def test_losing_a_partition_forgets_its_rows_and_all_views() -> None:
    cache = new_cache(partitions=2)
    for partition in (0, 1):
        fill(cache, partition, ["a"], 1)
        mark(cache, partition, "a", 2)
    assert view(cache, "a", 1.0, 1000.0) == 4.0
    cache.drop(0)
    assert view(cache, "a", 1.0, 1000.0) == 2.0
    assert claim(cache, 1, ["a"], 1) == [] and fill(cache, 0, ["a"], 1) == [b"merchant:a"]
    cache.drop(7)  # one that was never held


def test_caches_share_one_budget_whoever_was_used_last_stays() -> None:
    cards, shops = EntityCache(CATALOGUE.layouts[0], partitions=1, merged=False, refresh_s=1.0), new_cache()
    fill(cards, 0, ["a", "b"], 1)
    fill(shops, 0, ["m", "n", "o"], 2)
    evict([cards, shops], 2 * shops.row_bytes, settled=9)
    assert len(cards) == 0 and 1 <= len(shops) <= 2
    held = len(shops)
    evict([cards, shops], 0, settled=1)
    assert len(shops) == held, "what is not applied stays"


def test_hits_and_misses_are_counted() -> None:
    cache = new_cache()
    fill(cache, 0, ["a", "a", "b"], 1)
    fill(cache, 0, ["a", "c"], 2)
    assert (cache.hits, cache.misses) == (2, 3)


def test_rows_are_found_by_partition_and_id_however_many_come_and_go() -> None:
    index, rng = RowIndex(), np.random.default_rng(1)
    held: dict[tuple[int, str], int] = {}
    free = list(range(5000))
    for _ in range(60):
        partition = int(rng.integers(3))
        ids = [f"{'x' * int(rng.integers(1, 40))}{n}" for n in rng.integers(0, 400, 50)]
        texts = Texts.of(ids)
        found, missing = index.find(partition, texts, texts.hashes() % 7)  # few hashes: ids have to be told apart
        assert [None if row < 0 else row for row in found.tolist()] == [held.get((partition, id_)) for id_ in ids]
        spare = np.array(free[:missing], np.int64)
        firsts = index.add(partition, texts, texts.hashes() % 7, found, spare)
        for place, row in zip(firsts.tolist(), spare.tolist(), strict=False):
            held[partition, ids[place]] = row
        del free[: len(firsts)]
        assert found.tolist() == [held[partition, id_] for id_ in ids]
        gone = [key for key in held if rng.random() < 0.2]
        index.remove(np.array([held[key] for key in gone], np.int64))
        free += [held.pop(key) for key in gone]
        assert len(index) == len(held)
        assert sorted(index.rows(1).tolist()) == sorted(row for (p, _), row in held.items() if p == 1)
