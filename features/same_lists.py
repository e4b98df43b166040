"""Which lists of a cycle are the same, so that each is worded and encoded once. Compiled.

In: lists as :mod:`features.last_filter` fills them. Out: a number for each. Pure. Where nothing of a session is asked,
lists differ only by what its own query forbids, so thousands of clicks share a few lists.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from features.list_gate import Filled
from features.sources import Longs


@njit(cache=True, nogil=True)
def _alike(a: int, b: int, filled: Filled) -> bool:
    """Whether two lists say the same."""
    for t in range(filled.places.shape[1]):
        if filled.places[a, t] != filled.places[b, t] or filled.because[a, t] != filled.because[b, t]:
            return False
        if filled.scores[a, t] != filled.scores[b, t] or filled.reasons[a, t] != filled.reasons[b, t]:
            return False
    left, other = filled.left_out[a], filled.left_out[b]
    return bool((left == other).all())


@njit(cache=True, nogil=True)
def first_of_each(filled: Filled, same: Longs) -> Longs:
    """Number m lists so that equal ones share a number, written to ``same`` int64[m]; the first of each number."""
    m = len(same)
    firsts, count = np.empty(m, np.int64), 0
    size = 16
    while size < 2 * m:
        size *= 2
    table = np.full(size, -1, np.int64)
    for i in range(m):
        mixed = np.uint64(0)
        for t in range(filled.places.shape[1]):
            mixed = (mixed ^ np.uint64(filled.places[i, t] + 1)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        at = np.int64(mixed % np.uint64(size))
        while table[at] >= 0 and not _alike(firsts[table[at]], i, filled):
            at = (at + 1) % size
        if table[at] < 0:
            table[at], firsts[count] = count, i
            count += 1
        same[i] = table[at]
    return firsts[:count]
