"""What a transaction says of itself: the leading columns of its vector, compiled.

In: columns of operations. Out: feature columns. No state, no IO.
"""

from __future__ import annotations

from features.bits import prefetch
from features.kernel import AHEAD, TRANSACTION, Bytes, Floats, Ints
from features.uncounted import kernel

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000


@kernel
def event_features(kind: Bytes, time: Ints, values: Floats, categories: Floats, places: Ints, out: Floats
                   ) -> None:  # fmt: skip
    """Fill the leading columns: numeric values, hour of day, day of week, categories."""
    fields, more = values.shape[1], categories.shape[1]
    for i in range(len(time)):
        if i + AHEAD < len(time) and kind[i + AHEAD] == TRANSACTION:
            prefetch(out, places[i + AHEAD])
        if kind[i] == TRANSACTION:
            o = places[i]
            for f in range(fields):
                out[o + f] = values[i, f]
            out[o + fields] = (time[i] % _DAY_MS) / _HOUR_MS
            out[o + fields + 1] = (time[i] // _DAY_MS + 3) % 7
            for c in range(more):
                out[o + fields + 2 + c] = categories[i, c]
