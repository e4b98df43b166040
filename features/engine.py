"""Drives the kernel over a batch of operations: the one door to the features, for the trainer and for the stream.

In: :class:`Operations` (columns in the order in which they count) and the state tables that their rows lie in.
Out: :class:`Folded`, the feature vectors and what the memory found; afterwards :func:`remember` takes the decisions.
No IO. The tables are changed in place, in the same way however the operations are cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import event, kernel, memory
from features.catalogue import NEVER, Catalogue, Layout
from features.growing import Growing
from features.kernel import Bytes, Floats, Ints

_STEP = 256  # rows made ready at once


class Rows:
    """State rows of one entity kind: two arrays that grow, and a list of free rows.

    The arrays may be longer than there are rows; what was never a row takes no memory.
    """

    def __init__(self, layout: Layout, rows: int = 0) -> None:
        self.layout = layout
        self._ints, self._floats = Growing(layout.ints, np.int64), Growing(layout.floats, np.float64)
        self._count = 0
        self.free: list[int] = []
        self.grow(rows)

    def __len__(self) -> int:
        return self._count

    @property
    def ints(self) -> Ints:
        """All rows' integers."""
        return self._ints.array

    @property
    def floats(self) -> Floats:
        """All rows' numbers."""
        return self._floats.array

    @property
    def nbytes(self) -> int:
        """Memory of all rows, used or free."""
        return self._count * 8 * (self.layout.ints + self.layout.floats)

    @property
    def flat(self) -> tuple[Ints, Floats]:
        """Views of all rows, end to end."""
        return self.ints.reshape(-1), self.floats.reshape(-1)

    def grow(self, rows: int) -> None:
        """Add ``rows`` cleared rows."""
        first, self._count = self._count, self._count + rows
        if self._count > len(self.ints):
            room = max(self._count, 2 * len(self.ints))  # room is only addresses
            self._ints.hold(room)
            self._floats.hold(room)
        self.ints[first : self._count, :3] = NEVER
        self.free.extend(range(self._count - 1, first - 1, -1))

    def take(self) -> int:
        """A cleared row that is now in use."""
        if not self.free:
            self.grow(_STEP)
        return self.free.pop()

    def spare(self, count: int) -> Ints:
        """The next ``count`` cleared rows that :meth:`spend` would take, int64[count]."""
        if len(self.free) < count:
            self.grow(max(_STEP, count - len(self.free)))
        return np.array(self.free[len(self.free) - count :][::-1], np.int64)

    def spend(self, count: int) -> None:
        """Take the first ``count`` rows of those that :meth:`spare` showed."""
        del self.free[len(self.free) - count :]

    def give_back(self, rows: Ints) -> None:
        """Clear rows and make them free. Tiles that no map names need no clearing."""
        self.ints[rows] = 0
        self.ints[rows, :3] = NEVER
        self.free.extend(rows.tolist())

    def merge(self, rows: Ints, view: int) -> None:
        """Make row ``view`` the sum of ``rows``, see :func:`features.kernel.merge`."""
        kernel.merge(*self.flat, rows, view, self.layout.dims)


@dataclass(slots=True)
class Operations:
    """Columns of n transactions and labels.

    ``kind`` int8, ``time`` int64 epoch ms, ``event_hash`` int64 (of a label: of the judged transaction), ``values``
    float64[n, numeric], ``categories`` float64[n, categorical], ``fraud`` int8 (labels), ``entity_hash`` int64[n, E],
    ``slots`` and ``views`` int64[n, E]: rows in the table of each entity.
    """

    kind: Bytes
    time: Ints
    event_hash: Ints
    values: Floats
    categories: Floats
    fraud: Bytes
    entity_hash: Ints
    slots: Ints
    views: Ints

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(slots=True)
class Folded:
    """The vectors, and what :func:`features.memory.recall` found.

    ``x`` float64[:, features], row-major; that of operation i begins at ``x.flat[places[i]]``, int64[n]. Unless
    :func:`fold` was told otherwise that is row i, and rows of labels are NaN. ``repeat`` and ``missed`` int8[n],
    ``position`` int64[n], ``decided`` float64[n, 3].
    """

    x: Floats
    places: Ints
    repeat: Bytes
    missed: Bytes
    position: Ints
    decided: Floats


def _dense(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order: one memory layout for every schema, so that what was compiled once serves them all."""
    return np.ascontiguousarray(array)


def fold(catalogue: Catalogue, tables: tuple[Rows, ...], operations: Operations, marks: Ints | None = None,
         x: Floats | None = None, places: Ints | None = None, orders: tuple[Ints, ...] = ()
         ) -> Folded:  # fmt: skip
    """Emit the vector of each transaction as of just before it, and fold every operation, in order.

    ``marks`` (int64[n]) are watermarks, see :mod:`features.watermark`. Operations in the order of their times, as a
    history's are, need none: they would change nothing.

    ``x`` (float64[:, features], row-major) and ``places`` (int64[n]: where in it, counted in numbers, the vector of
    each transaction begins) are given by a caller that has a place for the vectors already.

    What counts is the order of the operations of each row. The key entity's rows get them in the order given; for each
    other entity ``orders`` (int64[n]) may name one that takes a row's operations together, while it is near.
    """
    n, key, width = len(operations), tables[0], len(catalogue.features)
    if x is None or places is None:
        x = np.full((n, width), np.nan)
        places = np.arange(0, n * width, width)
    repeat, missed = np.zeros(n, np.int8), np.zeros(n, np.int8)
    position, moves = np.zeros(n, np.int64), np.zeros((n, 5), np.int64)
    decided = np.full((n, 3), np.nan)
    marks = np.zeros(n, np.int64) if marks is None else marks
    o, flat = operations, x.reshape(-1, copy=False)
    values, categories, others, slots = map(_dense, (o.values, o.categories, o.entity_hash[:, 1:], o.slots.T))
    views = slots if o.views is o.slots else _dense(o.views.T)
    event.event_features(o.kind, o.time, values, categories, places, flat)
    memory.recall(o.kind, o.time, marks, o.event_hash, values.reshape(-1), o.fraud, slots[0], others, *key.flat,
                  key.layout.dims, key.layout.memory_columns, key.layout.usual_columns, repeat, position, moves, missed,
                  decided, places, flat)  # fmt: skip
    for e, table in enumerate(tables):
        layout = table.layout
        columns: list[Any] = [o.kind, o.time, marks, values, slots[e], views[e], repeat, moves, places]
        if orders and e > 0:
            columns = [column.take(orders[e - 1], 0) for column in columns]
        kind, time, mark, value, slot, view, again, move, at = columns
        kernel.fold(kind, time, mark, value.reshape(-1), slot, view, again, move, *table.flat, layout.dims,
                    layout.hops_ms, layout.label_hops_ms, layout.count_columns, layout.field_columns.reshape(-1),
                    layout.label_columns, layout.time_columns, layout.run_columns, at, flat)  # fmt: skip
    return Folded(x, places, repeat, missed, position, decided)


def remember(catalogue: Catalogue, tables: tuple[Rows, ...], operations: Operations, folded: Folded,
             score: Floats, anomaly: Floats, action: Bytes) -> None:  # fmt: skip
    """Write the decisions of the operations into the memory; repeats get the decision of the first instead."""
    key, slots = tables[0], _dense(operations.slots[:, 0])
    memory.remember(operations.kind, operations.event_hash, slots, folded.repeat, folded.position, folded.decided,
                    *key.flat, key.layout.dims, score, anomaly, action)  # fmt: skip
