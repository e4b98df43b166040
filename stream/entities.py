"""The worker's cache of one entity kind: which row holds which shard, what is missing, what may be dropped.

In: ids by partition. Out: rows of a :class:`~features.engine.Rows` table. This worker is the only writer of the
partitions it owns, so what it has written is always right; a partition's rows are dropped when it is lost.

An entity that is not the partition key has a shard in every partition. Its *view* is a row that merges all shards:
folded into by this worker, and rebuilt from Redis at most every ``refresh_s`` for what other workers wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from features.catalogue import Layout
from features.codec import decode_rows, encode_rows
from features.engine import Rows
from features.watermark import is_past, past_fields


class EntityCache:
    """Rows of one entity kind, by partition and id, the least recently used first."""

    def __init__(self, layout: Layout, capacity: int, *, merged: bool, refresh_s: float) -> None:
        self.layout = layout
        self.rows = Rows(layout)
        self.merged = merged
        self.capacity = capacity
        self.refresh_s = refresh_s
        self._name = layout.entity.name.encode()
        self._shards: dict[int, dict[str, int]] = {}
        self._views: dict[str, int] = {}
        self._fresh_until: dict[str, float] = {}
        self._used: dict[int, int] = {}  # row -> the last cycle that used it

    def __len__(self) -> int:
        return sum(map(len, self._shards.values())) + len(self._views)

    def field(self, id_: str) -> bytes:
        """The Redis field of an id."""
        return self._name + b":" + id_.encode()

    def missing(self, partition: int, ids: Iterable[str]) -> list[str]:
        """Those of ``ids`` (each once) that have no row yet."""
        shard = self._shards.setdefault(partition, {})
        return [id_ for id_ in dict.fromkeys(ids) if id_ not in shard]

    def fill(self, partition: int, ids: Sequence[str], values: Sequence[bytes | None]) -> None:
        """Give each id a row that holds its state; ``None`` is an entity without events."""
        shard = self._shards[partition]
        rows = [self.rows.take() for _ in ids]
        decode_rows(self.layout, [value or b"" for value in values], np.array(rows, np.int64), self.rows.ints,
                    self.rows.floats)  # fmt: skip
        shard.update(zip(ids, rows, strict=True))

    def use(self, partition: int, ids: Sequence[str], cycle: int) -> NDArray[np.int64]:
        """The row of each id; marks them as used by ``cycle``."""
        shard = self._shards[partition]
        for id_ in dict.fromkeys(ids):
            row = shard[id_] = shard.pop(id_)
            self._used[row] = cycle
        return np.array([shard[id_] for id_ in ids], np.int64)

    def encode(self, partition: int, ids: Iterable[str]) -> dict[bytes, bytes]:
        """Redis fields and values of ``ids`` as they are now."""
        shard = self._shards[partition]
        names = list(dict.fromkeys(ids))
        rows = np.array([shard[id_] for id_ in names], np.int64)
        values = encode_rows(self.layout, rows, self.rows.ints, self.rows.floats)
        return {self.field(id_): value for id_, value in zip(names, values, strict=True)}

    def past(self, values: Mapping[bytes, bytes], watermark: int) -> list[bytes]:
        """Those of the Redis fields that are of this kind and read as empty from a watermark on."""
        own = {name: value for name, value in values.items() if name.startswith(self._name + b":")}
        return past_fields(self.layout, own, watermark) if own else []

    def stale(self, ids: Iterable[str], now_s: float) -> list[str]:
        """Those of ``ids`` (each once) whose view must be built anew."""
        until = self._fresh_until
        return [id_ for id_ in dict.fromkeys(ids) if until.get(id_, -1.0) <= now_s]

    def uncached_shards(self, id_: str, partitions: int) -> list[int]:
        """Partitions whose shard of ``id_`` is not held here."""
        return [p for p in range(partitions) if id_ not in self._shards.get(p, ())]

    def build_view(self, id_: str, others: Mapping[int, bytes | None], until_s: float,
                   watermarks: Mapping[int, int] | None = None) -> None:  # fmt: skip
        """Merge the shards held here with ``others`` (partition to state) into the view of ``id_``, good for a time.

        A shard that reads as empty at the watermark of its partition is left out, so that the view is the same whether
        it was removed or not.
        """
        values = {p: value for p, value in others.items() if value}
        scratch = [self.rows.take() for _ in values]
        decode_rows(self.layout, list(values.values()), np.array(scratch, np.int64), self.rows.ints, self.rows.floats)
        held = {p: shard[id_] for p, shard in self._shards.items() if id_ in shard}
        found, marks = held | dict(zip(values, scratch, strict=True)), watermarks or {}
        rows = np.array([found[p] for p in sorted(found)], np.int64)
        limits = np.array([marks.get(p, 0) for p in sorted(found)], np.int64)
        past = is_past(np.maximum(self.rows.ints[rows, 0], self.rows.ints[rows, 2]), limits, self.layout)
        if id_ not in self._views:
            self._views[id_] = self.rows.take()
        self.rows.merge(rows[~past], self._views[id_])
        for row in scratch:
            self.rows.give_back(row)
        self._fresh_until[id_] = until_s

    def views(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The view row of each id."""
        views = self._views
        for id_ in dict.fromkeys(ids):
            views[id_] = views.pop(id_)
        return np.array([views[id_] for id_ in ids], np.int64)

    def drop(self, partition: int) -> None:
        """Forget a partition, and all views, since they include it."""
        for row in self._shards.pop(partition, {}).values():
            self._release(row)
        self._drop_views(len(self._views))

    def evict(self, settled: int) -> None:
        """Drop the least recently used until the capacity holds. Rows used after cycle ``settled`` stay.

        What such a row holds is not in Redis yet.
        """
        surplus = len(self) - self.capacity
        if surplus <= 0:
            return
        dropped = min(surplus, max(len(self._views) - self.capacity // 2, 0))
        self._drop_views(dropped)
        surplus -= dropped
        for shard in self._shards.values():
            share = -(-surplus * len(shard) // max(len(self), 1))
            for id_ in list(shard)[:share]:
                if self._used.get(shard[id_], -1) > settled:
                    break
                self._release(shard.pop(id_))

    def _drop_views(self, count: int) -> None:
        for id_ in list(self._views)[:count]:
            self.rows.give_back(self._views.pop(id_))
            self._fresh_until.pop(id_, None)

    def _release(self, row: int) -> None:
        self._used.pop(row, None)
        self.rows.give_back(row)
