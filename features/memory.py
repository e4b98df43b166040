"""The key entity's bounded memory of its recent events, compiled: repeats, label joins, what is new, past decisions.

In: the same columns of operations as :mod:`features.kernel`, and the key entity's state rows. Out: repeats, joined
labels, memory features; the rows changed in place. No IO, no clock.

The memory is a ring of ``TransactionSchema.memory`` events; what is older is forgotten, which is the horizon for
joining labels and recognising repeats. It empties when the newest event in it lies twice the longest window back, or
three times before the watermark.
"""

from __future__ import annotations

import numpy as np

from features.bits import prefetch
from features.catalogue import MEMORY_FLOATS, MEMORY_INTS, ROW_INTS, USUAL_FLOATS
from features.kernel import AHEAD, LINE, TRANSACTION, Bytes, Floats, Ints, U, approach_vector
from features.uncounted import kernel
from features.usual import usual


@kernel
def find_last(ints: Ints, start: int, size: int, wanted: int) -> int:
    """The last of ``size`` cells that holds ``wanted``, or -1. Without a way out it compares several at once."""
    found = -1
    for k in range(size):
        found = k if ints[U(start + k)] == wanted else found
    return found


@kernel
def _count(ints: Ints, start: int, size: int, wanted: int) -> int:
    found = 0
    for k in range(size):
        found += 1 if ints[U(start + k)] == wanted else 0
    return found


@kernel
def _push(ints: Ints, floats: Floats, i: int, f: int, dims: Ints, event_hash: int, time: int, level: int) -> int:
    """Put an event into the memory, over the oldest when it is full; returns its position."""
    memory, start = dims[3], i + ROW_INTS + dims[0] + dims[1]
    head = ints[start]
    ints[start] = head + 1 if head + 1 < memory else 0
    ints[start + 1] = min(ints[start + 1] + 1, memory)
    at = start + 2 + dims[4] + head
    ints[at] = event_hash
    ints[at + memory] = time
    ints[at + 2 * memory] = -1
    ints[at + 3 * memory] = 0
    ints[at + 4 * memory] = -1
    ints[at + 5 * memory] = level
    at = f + dims[11] - MEMORY_FLOATS * memory + head
    floats[at] = 0.0
    floats[at + memory] = 0.0
    return int(head)


@kernel
def recall(kind: Bytes, time: Ints, marks: Ints, event_hash: Ints, values: Floats, fraud: Bytes, slots: Ints,
           others: Ints, ints: Ints, floats: Floats, dims: Ints, memory_columns: Ints, usual_columns: Ints,
           repeat: Bytes, position: Ints, label_moves: Ints, missed: Bytes, decided: Floats, places: Ints,
           out: Floats) -> None:  # fmt: skip
    """Look each operation up in the key entity's memory of recent events, and put new transactions into it.

    A transaction whose event hash is in the memory is a repeat. A label is joined to its transaction: the first
    verdict adds a label; the same verdict again adds nothing; a different one takes the earlier verdict back at the
    time it was folded and adds the new one. A label whose transaction is not remembered counts as a first verdict
    (``missed`` says so), which is exact unless it is a second one that comes after the memory's horizon.

    Parameters
    ----------
    kind, time, marks : int8[n], int64[n], int64[n]
        As in :func:`features.kernel.fold`.
    event_hash : int64[n]
        Hash of the transaction's id; of a label, of the transaction that it judges.
    fraud : int8[n]
        Verdict of a label, 0 or 1.
    slots : int64[n]
        Row of the key entity.
    others : int64[n, entities - 1]
        Hash of the id of each other entity.
    repeat, missed : int8[n]
        Results; must hold 0 before.
    position : int64[n]
        Result: where in the memory the transaction lies.
    label_moves : int64[n, 5]
        Result: labels to add, frauds to add, 1 + the verdict to take back (0: none), the time it was folded at, and
        the level of the judged transaction, see :mod:`features.usual`.
    decided : float64[n, 3]
        Result: action, score and anomaly of a repeat whose first was decided in an earlier batch; must hold NaN before.
    values, ints, floats, places, out :
        As in :func:`features.kernel.fold`.
    memory_columns : int64[entities - 1, 2]
        Columns of remembered events with the same other entity, and of how many different ones there are.
    usual_columns : int64[fields, 3]
        See :func:`features.usual.usual`. What is usual is forgotten when the memory empties.
    """
    memory, count, fields = dims[3], dims[4], dims[14]
    usual_at = dims[11] - MEMORY_FLOATS * memory - USUAL_FLOATS * fields
    for n in range(len(kind)):
        if n + AHEAD < len(kind):
            coming = slots[n + AHEAD] * dims[10] + ROW_INTS + dims[0] + dims[1]
            for k in range(coming, coming + 2 + count + memory, LINE):
                prefetch(ints, k)
            coming += 2 + count + MEMORY_INTS * memory
            for k in range(coming, coming + count * memory, LINE):
                prefetch(ints, k)
            prefetch(floats, slots[n + AHEAD] * dims[11] + usual_at)
            if kind[n + AHEAD] == TRANSACTION:
                approach_vector(out, places[n + AHEAD], dims)
        i, f = slots[n] * dims[10], slots[n] * dims[11]
        head_at = i + ROW_INTS + dims[0] + dims[1]
        start = head_at + 2 + count
        size, head = ints[head_at + 1], ints[head_at]
        pushed = ints[start + memory + (head if head > 0 else memory) - 1]
        if size > 0 and (time[n] - pushed > dims[5] or marks[n] - pushed > dims[5] + dims[5] // 2):
            for k in range(start + memory, start + memory + size):
                pushed = max(pushed, ints[k])  # the last one may have come years late
            if time[n] - pushed > dims[5] or marks[n] - pushed > dims[5] + dims[5] // 2:
                ints[head_at:start] = 0
                size, head = 0, 0
        if size == 0:
            floats[f + usual_at : f + usual_at + USUAL_FLOATS * fields] = 0.0
        found = find_last(ints, start, size, event_hash[n])
        if kind[n] == TRANSACTION:
            level = usual(values, n * fields, time[n], floats, f + usual_at, fields, found < 0, usual_columns, out,
                          places[n])  # fmt: skip
            for o in range(count):
                column, other = start + (MEMORY_INTS + o) * memory, others[n, o]
                seen = _count(ints, column, size, other)
                distinct = ints[head_at + 2 + o]
                out[places[n] + memory_columns[o, 0]] = seen
                out[places[n] + memory_columns[o, 1]] = distinct
                if found < 0:
                    if size == memory and ints[column + head] != other:
                        distinct -= 1 if _count(ints, column, size, ints[column + head]) == 1 else 0
                    ints[head_at + 2 + o] = distinct + (1 if seen == 0 else 0)
                    ints[column + head] = other
            if found < 0:
                position[n] = _push(ints, floats, i, f, dims, event_hash[n], time[n], level)
                continue
            repeat[n] = 1
            position[n] = found
            if ints[start + 4 * memory + found] >= 0:
                at = f + dims[11] - MEMORY_FLOATS * memory + found
                decided[n, 0] = ints[start + 4 * memory + found]
                decided[n, 1] = floats[at]
                decided[n, 2] = floats[at + memory]
        elif found < 0:
            missed[n] = 1
            label_moves[n, 0] = 1
            label_moves[n, 1] = fraud[n]
        else:
            earlier = ints[start + 2 * memory + found]
            if earlier == fraud[n]:
                continue
            if earlier >= 0:
                label_moves[n, 2] = 1 + earlier
                label_moves[n, 3] = ints[start + 3 * memory + found]
            label_moves[n, 0] = 1
            label_moves[n, 1] = fraud[n]
            label_moves[n, 4] = ints[start + 5 * memory + found]
            ints[start + 2 * memory + found] = fraud[n]
            ints[start + 3 * memory + found] = time[n]


@kernel
def remember(kind: Bytes, event_hash: Ints, slots: Ints, repeat: Bytes, position: Ints, decided: Floats, ints: Ints,
             floats: Floats, dims: Ints, score: Floats, anomaly: Floats, action: Bytes) -> None:  # fmt: skip
    """Write each decision into the memory, and give a repeat the decision of the first.

    ``score``, ``anomaly`` (float64[n]) and ``action`` (int8[n]) belong to the operations; those of repeats are
    replaced. ``decided`` is what :func:`recall` found; the first of a repeat without it is in this batch.
    """
    memory = dims[3]
    hashes_at = ROW_INTS + dims[0] + dims[1] + 2 + dims[4]
    for n in range(len(kind)):
        if n + AHEAD < len(kind):
            coming = slots[n + AHEAD] * dims[10] + hashes_at + position[n + AHEAD]
            prefetch(ints, coming)
            prefetch(ints, coming + 4 * memory)
            prefetch(floats, (slots[n + AHEAD] + 1) * dims[11] - MEMORY_FLOATS * memory + position[n + AHEAD])
        if kind[n] != TRANSACTION:
            continue
        if repeat[n] == 0:
            at = slots[n] * dims[10] + hashes_at + position[n]
            if ints[at] != event_hash[n]:
                continue  # more events of this key in one batch than the memory holds
            ints[at + 4 * memory] = action[n]
            at = (slots[n] + 1) * dims[11] - MEMORY_FLOATS * memory + position[n]
            floats[at] = score[n]
            floats[at + memory] = anomaly[n]
        elif decided[n, 0] == decided[n, 0]:
            action[n] = np.int8(decided[n, 0])
            score[n] = decided[n, 1]
            anomaly[n] = decided[n, 2]
        else:
            for j in range(n - 1, -1, -1):
                if event_hash[j] == event_hash[n] and slots[j] == slots[n] and kind[j] == TRANSACTION:
                    action[n] = action[j]
                    score[n] = score[j]
                    anomaly[n] = anomaly[j]
                    break
