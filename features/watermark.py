"""How far a partition's event time has come for good, and which state nothing can read any more as of then.

In: times of events in the order in which they count. Out: the watermark as of just before each of them. Pure.

A **watermark** is the newest time that :data:`BLOCK` operations in a row have passed: blocks are counted from the
first operation of a partition, and each finished one raises the watermark to its oldest time. It never falls, it does
not depend on how operations are cut into batches, one event from the future does not move it, and late events and
quiet partitions hold it back, which is the safe side.

State whose newest event or label lies further before the watermark than :func:`kept_ms` reads as empty to every later
operation, late or not (:func:`features.kernel.fold`, :func:`features.memory.recall`). So it may be removed from
wherever it lies at any time after that, and no vector shows whether it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.catalogue import Layout
from features.codec import decode_rows
from features.engine import Rows

BLOCK = 64
_Ints = NDArray[np.int64]


class Watermark(NamedTuple):
    """A partition's watermark (epoch ms), and of the block that is not finished the oldest time and the length."""

    time: int = 0
    oldest: int = 0
    length: int = 0


UNMARKED: Final = Watermark()


def advance(watermark: Watermark, times: _Ints) -> tuple[_Ints, Watermark]:
    """The watermark as of just before each of ``times`` (int64[n], in their order), and the one after them.

    >>> marks, after = advance(Watermark(), np.arange(1, 130))
    >>> marks[63], marks[64], marks[128], after
    (np.int64(0), np.int64(1), np.int64(65), Watermark(time=65, oldest=129, length=1))
    """
    time, oldest, length = watermark
    marks, at = np.empty(len(times), np.int64), 0
    while at < len(times):
        end = min(at + BLOCK - length, len(times))
        marks[at:end] = time
        lowest = int(times[at:end].min())
        oldest = min(oldest, lowest) if length else lowest
        length += end - at
        if length == BLOCK:
            time, oldest, length = max(time, oldest), 0, 0
        at = end
    return marks, Watermark(time, oldest, length)


def kept_ms(layout: Layout) -> int:
    """How long before the watermark an entity's newest event or label may lie, see :func:`features.kernel.forget`."""
    return int(layout.dims[5] + layout.dims[5] // 2)


def is_past(newest: _Ints, watermark: int | _Ints, layout: Layout) -> NDArray[np.bool_]:
    """Which rows (newest time of event or label, NEVER for none) read as empty from a watermark on."""
    return np.asarray(newest < watermark - kept_ms(layout))


def past_fields(layout: Layout, values: Mapping[bytes, bytes], watermark: int) -> list[bytes]:
    """Those of ``values`` (encoded rows of one entity kind, by any name) that read as empty from a watermark on."""
    rows = Rows(layout, len(values))
    decode_rows(layout, list(values.values()), np.arange(len(values), dtype=np.int64), rows.ints, rows.floats)
    past = is_past(np.maximum(rows.ints[:, 0], rows.ints[:, 2]), watermark, layout)
    return [name for name, gone in zip(values, past.tolist(), strict=True) if gone]
