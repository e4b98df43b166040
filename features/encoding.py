"""Columns from field values: categories as buckets, ids as text. Shared by the stream's decoder and the trainer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features.hashing import hash_spans, hash_strings

CATEGORY_BUCKETS = 256


def category_buckets(values: Sequence[str | None]) -> NDArray[np.float64]:
    """Bucket in 0..255 of each category, the same in every run and process; NaN where the value is missing."""
    known = [value for value in dict.fromkeys(values) if value is not None]
    buckets: dict[str | None, float] = dict(
        zip(known, (hash_strings(known) % np.uint64(CATEGORY_BUCKETS)).astype(np.float64).tolist(), strict=True)
    )
    buckets[None] = float("nan")
    return np.array([buckets[value] for value in values], np.float64)


def span_buckets(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """:func:`category_buckets` of ``data[starts[i]:ends[i]]``; NaN where ``starts[i]`` is negative."""
    missing = starts < 0
    hashes = hash_spans(data, np.where(missing, 0, starts), np.where(missing, 0, ends))
    return np.where(missing, np.nan, (hashes % np.uint64(CATEGORY_BUCKETS)).astype(np.float64))
