"""The key entity's bounded memory of its recent events, compiled: repeats, label joins, what is new, past decisions.

In: the same columns of operations as :mod:`features.kernel`, and the key entity's state rows. Out: repeats, joined
labels, memory features; the rows changed in place. No IO, no clock.

The memory is a ring of ``TransactionSchema.memory`` events; what is older is forgotten, which is the horizon for
joining labels and recognising repeats. It empties when nothing has been put in for twice the longest window, or for
three times before the watermark.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from features.catalogue import MEMORY_INTS, ROW_INTS
from features.kernel import TRANSACTION, Bytes, Floats, Ints


@njit(cache=True, nogil=True, error_model="numpy")
def _find(ints: Ints, hashes: int, size: int, event_hash: int) -> int:
    for k in range(size):
        if ints[hashes + k] == event_hash:
            return k
    return -1


@njit(cache=True, nogil=True, error_model="numpy")
def _count(ints: Ints, start: int, size: int, wanted: int) -> int:
    found = 0
    for k in range(size):
        if ints[start + k] == wanted:
            found += 1
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def _push(ints: Ints, floats: Floats, dims: Ints, event_hash: int, time: int, others: Ints) -> int:
    """Put an event into the memory, over the oldest when it is full; returns its position."""
    memory, count = dims[3], dims[4]
    head, size = ints[ROW_INTS], ints[ROW_INTS + 1]
    distinct = ROW_INTS + 2
    start = distinct + count
    for o in range(count):
        column = start + MEMORY_INTS * memory + o * memory
        if size == memory and _count(ints, column, memory, ints[column + head]) == 1:
            ints[distinct + o] -= 1
        ints[column + head] = 0
        if _count(ints, column, size, others[o]) == 0:
            ints[distinct + o] += 1
        ints[column + head] = others[o]
    ints[start + head] = event_hash
    ints[start + memory + head] = time
    ints[start + 2 * memory + head] = -1
    ints[start + 3 * memory + head] = 0
    ints[start + 4 * memory + head] = -1
    at = len(floats) - 3 * memory + head
    floats[at] = np.nan
    floats[at + memory] = 0.0
    floats[at + 2 * memory] = 0.0
    ints[ROW_INTS] = (head + 1) % memory
    ints[ROW_INTS + 1] = min(size + 1, memory)
    return int(head)


@njit(cache=True, nogil=True, error_model="numpy")
def recall(kind: Bytes, time: Ints, marks: Ints, event_hash: Ints, fraud: Bytes, slots: Ints, others: Ints, ints: Ints,
           floats: Floats, dims: Ints, memory_columns: Ints, repeat: Bytes, position: Ints, label_moves: Ints,
           missed: Bytes, decided: Floats, out: Floats) -> None:  # fmt: skip
    """Look each operation up in the key entity's memory of recent events, and put new transactions into it.

    A transaction whose event hash is in the memory is a repeat. A label is joined to its transaction: the first
    verdict adds a label; the same verdict again adds nothing; a different one takes the earlier verdict back at the
    time it was folded and adds the new one. A label whose transaction is not remembered counts as a first verdict
    (``missed`` says so), which is exact unless it is a second one that comes after the memory's horizon.

    Parameters
    ----------
    kind, time, marks : int8[n], int64[n], int64[n]
        As in :func:`fold`.
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
    label_moves : int64[n, 4]
        Result: labels to add, frauds to add, 1 + the verdict to take back (0: none), and the time it was folded at.
    decided : float64[n, 3]
        Result: action, score and anomaly of a repeat whose first was decided in an earlier batch; must hold NaN before.
    out : float64[n, features]
        Filled at ``memory_columns``: remembered events with the same other entity, and how many different there are.
    """
    memory, count = dims[3], dims[4]
    start = ROW_INTS + 2 + count
    for i in range(len(kind)):
        row = ints[slots[i]]
        size = row[ROW_INTS + 1]
        newest = (row[ROW_INTS] - 1 + memory) % memory
        pushed = row[start + memory + newest]
        if size > 0 and (time[i] - pushed > dims[5] or marks[i] - pushed > dims[5] + dims[5] // 2):
            row[ROW_INTS:start] = 0
            size = 0
        found = _find(row, start, size, event_hash[i])
        if kind[i] == TRANSACTION:
            for o in range(count):
                column = start + MEMORY_INTS * memory + o * memory
                out[i, memory_columns[o, 0]] = _count(row, column, size, others[i, o])
                out[i, memory_columns[o, 1]] = row[ROW_INTS + 2 + o]
            if found >= 0:
                repeat[i] = 1
                position[i] = found
                if row[start + 4 * memory + found] >= 0:
                    at = floats.shape[1] - 3 * memory + found
                    decided[i, 0] = row[start + 4 * memory + found]
                    decided[i, 1] = floats[slots[i], at + memory]
                    decided[i, 2] = floats[slots[i], at + 2 * memory]
            else:
                position[i] = _push(row, floats[slots[i]], dims, event_hash[i], time[i], others[i])
        elif found < 0:
            missed[i] = 1
            label_moves[i, 0] = 1
            label_moves[i, 1] = fraud[i]
        else:
            earlier = row[start + 2 * memory + found]
            if earlier == fraud[i]:
                continue
            if earlier >= 0:
                label_moves[i, 2] = 1 + earlier
                label_moves[i, 3] = row[start + 3 * memory + found]
            label_moves[i, 0] = 1
            label_moves[i, 1] = fraud[i]
            row[start + 2 * memory + found] = fraud[i]
            row[start + 3 * memory + found] = time[i]


@njit(cache=True, nogil=True, error_model="numpy")
def remember(kind: Bytes, event_hash: Ints, slots: Ints, repeat: Bytes, position: Ints, decided: Floats, ratio: Floats,
             ints: Ints, floats: Floats, dims: Ints, score: Floats, anomaly: Floats, action: Bytes
             ) -> None:  # fmt: skip
    """Write each decision into the memory, and give a repeat the decision of the first.

    ``ratio``, ``score``, ``anomaly`` (float64[n]) and ``action`` (int8[n]) belong to the operations; those of repeats
    are replaced. A ratio is kept in single precision; the others are kept as they are. ``decided`` is what
    :func:`recall` found; the first of a repeat without it is in this batch.
    """
    memory = dims[3]
    start = ROW_INTS + 2 + dims[4]
    for i in range(len(kind)):
        if kind[i] != TRANSACTION:
            continue
        row, values, k = ints[slots[i]], floats[slots[i]], position[i]
        if repeat[i] == 0:
            if row[start + k] != event_hash[i]:
                continue  # more events of this key in one batch than the memory holds
            at = len(values) - 3 * memory + k
            row[start + 4 * memory + k] = action[i]
            values[at] = np.float64(np.float32(ratio[i]))
            values[at + memory] = score[i]
            values[at + 2 * memory] = anomaly[i]
        elif decided[i, 0] == decided[i, 0]:
            action[i] = np.int8(decided[i, 0])
            score[i] = decided[i, 1]
            anomaly[i] = decided[i, 2]
        else:
            for j in range(i - 1, -1, -1):
                if event_hash[j] == event_hash[i] and slots[j] == slots[i] and kind[j] == TRANSACTION:
                    action[i] = action[j]
                    score[i] = score[j]
                    anomaly[i] = anomaly[j]
                    break
