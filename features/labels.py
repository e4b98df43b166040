"""The newest labels of an entity one by one, compiled: how many in a row are fraud, since when, and how unusual.

In: labels as they are folded. Out: columns of feature vectors; the last ``dims[13]`` integers of a state row, changed
in place. No IO, no clock.

Each kept label is one integer, ``time << 9 | fraud << 8 | level``, so that their order is that of time, a fraud after a
good one of the same moment; 0 is none. They stand in ascending order. What is older than the second-newest good label
is dropped, since it could only be read again if both were taken back. The level says how unusual the judged transaction
was for its key (:mod:`features.usual`); that of a good label is not kept.

Of more than eight the oldest goes; in a run that fills the row, the oldest but the good label before the run and its
first fraud, so that the run's age is right however long it is. Shards merge exactly as long as they hold no more than
eight together. A label that had to go is not found again when others are taken back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.catalogue import LEVEL_STEPS
from features.uncounted import kernel_part

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
FRAUD = 1 << 8
LEVEL = FRAUD - 1
TIME = 9  # bits below the time


@kernel_part
def label_entry(time: int, fraud: int, level: int) -> int:
    """A label as it is kept."""
    return int(time << TIME | (FRAUD | level if fraud > 0 else 0))


@kernel_part
def keep_label(ints: Ints, end: int, kept: int, entry: int) -> None:
    """Put a label among the ``kept`` integers before ``end``."""
    start = end - kept
    if kept == 0 or entry <= ints[start]:
        return
    k = start
    if ints[start] != 0:
        good = end - 1
        while good >= start and ints[good] & FRAUD != 0:
            good -= 1
        # When a run began is told by the good label before it and its first fraud: those behind them go.
        gone = start + 2 if good == start else start + 1 if good < start else start
        while gone > start:
            ints[gone] = ints[gone - 1]
            gone -= 1
    while k + 1 < end and ints[k + 1] < entry:
        ints[k] = ints[k + 1]
        k += 1
    ints[k] = entry
    goods, k = 0, end - 1
    while k >= start and ints[k] != 0:
        if goods >= 2:
            ints[k] = 0
        elif ints[k] & FRAUD == 0:
            goods += 1
        k -= 1


@kernel_part
def take_label_back(ints: Ints, end: int, kept: int, entry: int) -> None:
    """Remove a label, if it is still kept."""
    start, k = end - kept, end - 1
    while k >= start and ints[k] > entry:
        k -= 1
    if k < start or ints[k] != entry:
        return
    while k > start:
        ints[k] = ints[k - 1]
        k -= 1
    ints[start] = 0


@kernel_part
def emit_run(ints: Ints, end: int, dims: Ints, time: int, columns: Ints, out: Floats, o: int) -> None:
    """Write the columns of a transaction at ``time``; labels older than the expiry are none."""
    if columns[0] < 0:
        return
    run, begun, level, good, oldest = 0, 0, 0, 0, time - dims[5]
    for back in range(1, dims[13] + 1):
        entry = ints[end - back]
        at = entry >> TIME
        if entry == 0 or at < oldest:
            break
        if entry & FRAUD == 0:
            good = at
            break
        run, begun = run + 1, at
        found = entry & LEVEL
        if found > 0 and (level == 0 or found < level):
            level = found
    out[o + columns[0]] = run
    out[o + columns[1]] = max(time - begun, 0) / 1000.0 if run > 0 else np.nan
    out[o + columns[2]] = max(time - good, 0) / 1000.0 if good > 0 else np.nan
    if columns[3] >= 0:
        out[o + columns[3]] = (level - 1) / LEVEL_STEPS if level > 0 else np.nan
