"""The worker's cache of one entity kind: which row holds which shard, what is missing, what may be dropped.

In: ids by partition. Out: rows of a :class:`~features.engine.Rows` table. This worker is the only writer of the
partitions it owns, so what it has written is always right; a partition's rows are dropped when it is lost.

Rows that are let go stay here a while as Redis has them: a tenth of the memory, and no round trip to have them again.

An entity that is not the partition key has a shard in every partition. Its *view* is a row that merges all shards:
folded into by this worker, and rebuilt from Redis at most every ``refresh_s`` for what other workers wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.catalogue import Layout
from features.codec import decode_rows, encode_packed, encode_rows
from features.engine import Rows
from features.rowindex import RowIndex, merge_all
from features.texts import Texts
from features.watermark import is_past, past_fields
from stream.packed import Packed
from stream.resp import Wired

Ints = NDArray[np.int64]
VIEW = -1  # the partition under which views are indexed
_BUILT_AT_ONCE = 4096  # shards that lie in rows of their own while views are built
_SLACK = 16  # an eviction frees a sixteenth of the budget, so that it is rare
_PACKED_SHARE = 0.25  # of the budget, at most, for rows as Redis has them


@dataclass(slots=True)
class _Stale:
    """Views to build: their rows, names, and the row of each shard that is held (int64[n, partitions], -1: none)."""

    views: Ints
    names: list[bytes]
    shards: Ints


class EntityCache:
    """Rows of one entity kind, by partition and id."""

    def __init__(self, layout: Layout, *, partitions: int, merged: bool, refresh_s: float) -> None:
        self.layout = layout
        self.row_bytes = 8 * (layout.ints + layout.floats)
        self.rows = Rows(layout)
        self.merged = merged
        self.refresh_s = refresh_s
        self.hits = 0
        self.misses = 0
        self._partitions = partitions
        self._prefix = layout.entity.name.encode() + b":"
        self._index = RowIndex()
        self._cycles = np.zeros(0, np.int64)  # by row, the last cycle that used it
        self._fresh_until = np.zeros(0)  # by view's row
        self._unread: dict[int, Ints] = {}  # by partition, rows whose state is still in Redis
        self._stale: _Stale | None = None
        self.packed = Packed()  # applied state of rows that were let go, and of no others

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Memory of all rows, used or free, of what finds them, and of those that were let go."""
        return self.rows.nbytes + self._index.nbytes + self.packed.nbytes

    # -- what a cycle needs --------------------------------------------------------------------------------------

    def claim(self, partition: int, ids: Texts, hashes: Ints, cycle: int) -> Ints:
        """The row of each id, int64[n], used by ``cycle``; rows that are new wait for :meth:`fill`."""
        rows, new = self._rows(partition, ids, hashes, cycle)
        if len(new):
            held = self._unread.get(partition)
            self._unread[partition] = new if held is None else np.concatenate([held, new])
        self.misses += len(new)
        self.hits += len(rows) - len(new)
        return rows

    def claim_views(self, ids: Texts, hashes: Ints, cycle: int, now_s: float, rebuilt_max: int | None = None) -> Ints:
        """The row of each id's view; those that are new or stale wait for :meth:`fill`. Call it once for a cycle.

        Of those built before, at most ``rebuilt_max`` are built anew, the ones first that have waited longest.
        """
        rows, _ = self._rows(VIEW, ids, hashes, cycle)
        stale, at = np.unique(rows, return_index=True)
        until = self._fresh_until[stale]
        due = until <= now_s
        if rebuilt_max is not None and np.count_nonzero(due & (until >= 0.0)) > rebuilt_max:
            longest = np.sort(until[due & (until >= 0.0)])[rebuilt_max]
            due &= until < longest
        stale, at = stale[due], at[due]
        if len(stale):
            some, some_hashes = ids.take(at), hashes[at]
            shards = [self._index.find(p, some, some_hashes)[0] for p in range(self._partitions)]
            names = self._index.names
            self._stale = _Stale(stale, [names[row] for row in stale.tolist()], np.stack(shards, axis=1))
        return rows

    def wanted(self) -> dict[int, list[bytes]]:
        """Redis fields by partition that :meth:`fill` needs."""
        names = self._index.names
        wanted: dict[int, list[bytes]] = {}
        for p, rows in self._unread.items():
            far = self.packed.lacks(p, [names[row] for row in rows.tolist()])
            if far:
                wanted[p] = far
        if self._stale is not None:
            for p in range(self._partitions):
                absent = [self._stale.names[i] for i in np.flatnonzero(self._stale.shards[:, p] < 0).tolist()]
                far = self.packed.lacks(p, absent)
                if far:
                    wanted.setdefault(p, []).extend(far)
        return wanted

    def fill(self, values: Mapping[int, Mapping[bytes, bytes | None]], until_s: float, watermarks: Ints) -> None:
        """Take in what was read for :meth:`wanted`; views are good until ``until_s``.

        ``watermarks`` int64[partitions]: a shard that reads as empty at that of its partition is left out of a view, so
        that the view is the same whether it was removed or not.
        """
        names = self._index.names
        for p, rows in self._unread.items():
            mine = [names[row] for row in rows.tolist()]
            near, read = self.packed.take(p, mine), values.get(p, {})
            self.hits, self.misses = self.hits + len(near), self.misses - len(near)
            self._decode([near[name] if name in near else read[name] or b"" for name in mine], rows)
        self._unread = {}
        if self._stale is not None:
            self._build(self._stale, values, watermarks)
            self._fresh_until[self._stale.views] = until_s
            self._stale = None

    def encode(self, rows: Ints) -> Wired:
        """Redis fields and values of ``rows`` (each once) as they are now."""
        data, ends = encode_packed(self.layout, rows, self.rows.ints, self.rows.floats)
        return Wired(len(rows), self._index.arguments(self._prefix, rows, data, ends))

    def past(self, values: Mapping[bytes, bytes], watermark: int) -> list[bytes]:
        """Those of the Redis fields that are of this kind and read as empty from a watermark on."""
        own = {name: value for name, value in values.items() if name.startswith(self._prefix)}
        return past_fields(self.layout, own, watermark) if own else []

    # -- letting go ----------------------------------------------------------------------------------------------

    def drop(self, partition: int) -> None:
        """Forget a partition, and all views, since they include it."""
        self._unread, self._stale = {}, None
        self.packed.drop(partition)
        self.release(np.concatenate([self._index.rows(partition), self._index.rows(VIEW)]))

    def evictable(self, settled: int) -> tuple[Ints, NDArray[np.float64]]:
        """Rows that may go, and how many cycles each was not used, over what it costs to have it again.

        Rows used after cycle ``settled`` stay: what they hold is not in Redis yet. A view reads a shard of every
        partition, other rows read one.
        """
        rows = np.flatnonzero(self._index.used & (self._cycles <= settled))
        idle = settled + 1.0 - self._cycles[rows]
        return rows, np.where(self._index.of(rows) == VIEW, idle / self._partitions, idle)

    def let_go(self, rows: Ints) -> None:
        """Forget rows that :meth:`evictable` gave, but for what Redis has of them."""
        of, names = self._index.of(rows), self._index.names
        shards = rows[of != VIEW]
        values = encode_rows(self.layout, shards, self.rows.ints, self.rows.floats)
        self.packed.put(of[of != VIEW].tolist(), [names[row] for row in shards.tolist()], values)
        self.release(rows)

    def release(self, rows: Ints) -> None:
        """Forget rows."""
        if len(rows):
            self._index.remove(rows)
            self.rows.give_back(rows)

    # -- inside --------------------------------------------------------------------------------------------------

    def _rows(self, partition: int, ids: Texts, hashes: Ints, cycle: int) -> tuple[Ints, Ints]:
        """The row of each id, and the rows that are new."""
        found, missing = self._index.find(partition, ids, hashes)
        new = np.zeros(0, np.int64)
        if missing:
            spare = self.rows.spare(missing)
            firsts = self._index.add(partition, ids, hashes, found, spare)
            self.rows.spend(len(firsts))
            self._grow()
            new = spare[: len(firsts)]
            self._fresh_until[new] = -1.0
            names, prefix = self._index.names, self._prefix
            for row, id_ in zip(new.tolist(), ids.take(firsts).raws(), strict=True):
                names[row] = prefix + id_
        self._cycles[found] = cycle
        return found, new

    def _grow(self) -> None:
        more = len(self._index.used) - len(self._cycles)
        if more > 0:
            self._cycles = np.concatenate([self._cycles, np.zeros(more, np.int64)])
            self._fresh_until = np.concatenate([self._fresh_until, np.full(more, -1.0)])

    def _decode(self, values: Sequence[bytes], rows: Ints) -> None:
        decode_rows(self.layout, list(values), rows, self.rows.ints, self.rows.floats)

    def _build(self, stale: _Stale, values: Mapping[int, Mapping[bytes, bytes | None]], watermarks: Ints) -> None:
        """Merge the shards held here with those read, in the order of the partitions."""
        some = max(_BUILT_AT_ONCE // self._partitions, 1)
        for at in range(0, len(stale.names), some):
            part = slice(at, at + some)
            self._merge(stale.views[part], stale.names[part], stale.shards[part], values, watermarks)

    def _merge(self, views: Ints, entities: list[bytes], parts: Ints,
               values: Mapping[int, Mapping[bytes, bytes | None]], watermarks: Ints) -> None:  # fmt: skip
        read: list[bytes] = []
        places: list[tuple[int, int]] = []
        for p in range(self._partitions):
            absent = np.flatnonzero(parts[:, p] < 0).tolist()
            near, found = self.packed.of(p), values.get(p, {})
            for i in absent:
                value = near[entities[i]] if entities[i] in near else found[entities[i]]
                if value:
                    places.append((i, p))
                    read.append(value)
        scratch = self.rows.spare(len(read))
        self.rows.spend(len(read))
        if read:
            self._decode(read, scratch)
            at = np.array(places, np.int64)
            parts[at[:, 0], at[:, 1]] = scratch
        ints, layout = self.rows.ints, self.layout
        newest = np.maximum(ints[parts, 0], ints[parts, 2])
        parts[is_past(newest, watermarks[None, :], layout)] = -1
        merge_all(*self.rows.flat, parts, views, layout.dims)
        self.rows.give_back(scratch)


def evict(caches: Sequence[EntityCache], nbytes_max: int, settled: int) -> None:
    """Hold the rows of several caches together to a budget, first those long unused that cost least."""
    for cache in caches:
        cache.packed.hold(int(nbytes_max * _PACKED_SHARE) // len(caches))
    rows_max = nbytes_max - sum(cache.packed.nbytes for cache in caches)
    surplus = sum(len(cache) * cache.row_bytes for cache in caches) - rows_max
    if surplus <= 0:
        return
    surplus += rows_max // _SLACK
    found = [cache.evictable(settled) for cache in caches]
    counts = [len(rows) for rows, _ in found]
    idle = -np.concatenate([idle for _, idle in found])
    order = np.arange(len(idle))
    if (few := surplus // min(cache.row_bytes for cache in caches) + 1) < len(order):
        order = np.argpartition(idle, few)[:few]
    order = order[np.argsort(idle[order], kind="stable")]
    sizes = np.repeat([cache.row_bytes for cache in caches], counts)[order]
    gone = order[: int(np.searchsorted(np.cumsum(sizes), surplus)) + 1]
    first = 0
    for cache, (rows, _), count in zip(caches, found, counts, strict=True):
        cache.let_go(rows[gone[(gone >= first) & (gone < first + count)] - first])
        first += count
