"""Columns from field values: categories as buckets, ids as text. Shared by the stream's decoder and the trainer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features.hashing import hash_spans, hash_strings

CATEGORY_BUCKETS = 256
MISSING_TEXT = np.int64(-(1 << 63))  # the hash of a text that is not there


def category_buckets(values: Sequence[str | None]) -> NDArray[np.float64]:
    """Bucket in 0..255 of each category, the same in every run and process; NaN where the value is missing."""
    known = [value for value in dict.fromkeys(values) if value is not None]
    buckets: dict[str | None, float] = dict(
        zip(known, (hash_strings(known) % np.uint64(CATEGORY_BUCKETS)).astype(np.float64).tolist(), strict=True)
    )
    buckets[None] = float("nan")
    return np.array([buckets[value] for value in values], np.float64)


def category_hashes(values: Sequence[str | None]) -> NDArray[np.int64]:
    """64-bit hash of each category, :data:`MISSING_TEXT` where the value is missing; int64[n]."""
    hashes = hash_strings([value or "" for value in values]).view(np.int64)
    return np.where(np.array([value is None for value in values], np.bool_), MISSING_TEXT, hashes)


def span_hashes(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """:func:`category_hashes` of ``data[starts[i]:ends[i]]``; missing where ``starts[i]`` is negative."""
    missing = starts < 0
    hashes = hash_spans(data, np.where(missing, 0, starts), np.where(missing, 0, ends))
    return np.where(missing, MISSING_TEXT, hashes.view(np.int64))


def hash_buckets(hashes: NDArray[np.int64]) -> NDArray[np.float64]:
    """:func:`category_buckets` of what :func:`category_hashes` gave; float64[n]."""
    buckets = (hashes.view(np.uint64) % np.uint64(CATEGORY_BUCKETS)).astype(np.float64)
    return np.where(hashes == MISSING_TEXT, np.nan, buckets)
