"""Stable 64-bit hashes of ids and Kafka's murmur2, compiled, over many strings at once.

In: UTF-8 bytes of many strings laid end to end. Out: one number per string. Pure.

The 64-bit hash is FNV-1a followed by the finalizer of MurmurHash3 (Appleby), so that short ids that differ in one
character differ in half of the bits. It is part of the stored state and of the artifacts: never change it.
murmur2 is what Kafka's Java client uses to choose a partition from a key.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_S33 = np.uint64(33)
_M = np.uint32(0x5BD1E995)
_MURMUR_SEED = np.uint32(0x9747B28C)


@njit(cache=True, nogil=True)
def hash_spans(buffer: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64-bit hash of each of n byte strings.

    Parameters
    ----------
    buffer : uint8[b]
        Bytes that hold all strings.
    starts, ends : int64[n]
        String i is ``buffer[starts[i]:ends[i]]``.

    Returns
    -------
    uint64[n]
    """
    out = np.empty(len(starts), np.uint64)
    for i in range(len(out)):
        h = _FNV_OFFSET
        for j in range(starts[i], ends[i]):
            h = (h ^ np.uint64(buffer[j])) * _FNV_PRIME
        h ^= h >> _S33
        h *= _MIX_1
        h ^= h >> _S33
        h *= _MIX_2
        h ^= h >> _S33
        out[i] = h
    return out


@njit(cache=True, nogil=True)
def murmur2_spans(buffer: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int32]:
    """Kafka's murmur2 of each of n byte strings, made positive as the Java client does; int32[n]."""
    out = np.empty(len(starts), np.int32)
    for i in range(len(out)):
        start = starts[i]
        length = ends[i] - start
        h = _MURMUR_SEED ^ np.uint32(length)
        blocks = length // 4
        for b in range(blocks):
            p = start + 4 * b
            k = (
                np.uint32(buffer[p])
                | np.uint32(np.uint32(buffer[p + 1]) << np.uint32(8))
                | np.uint32(np.uint32(buffer[p + 2]) << np.uint32(16))
                | np.uint32(np.uint32(buffer[p + 3]) << np.uint32(24))
            )
            k = np.uint32(k * _M)
            k = np.uint32(k ^ (k >> np.uint32(24)))
            k = np.uint32(k * _M)
            h = np.uint32(np.uint32(h * _M) ^ k)
        p = start + 4 * blocks
        rest = length - 4 * blocks
        if rest == 3:
            h = np.uint32(h ^ np.uint32(np.uint32(buffer[p + 2]) << np.uint32(16)))
        if rest >= 2:
            h = np.uint32(h ^ np.uint32(np.uint32(buffer[p + 1]) << np.uint32(8)))
        if rest >= 1:
            h = np.uint32(np.uint32(h ^ np.uint32(buffer[p])) * _M)
        h = np.uint32(h ^ (h >> np.uint32(13)))
        h = np.uint32(h * _M)
        h = np.uint32(h ^ (h >> np.uint32(15)))
        out[i] = np.int32(h & np.uint32(0x7FFFFFFF))
    return out


def hash_buffer(buffer: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64-bit hash of each of n byte strings that lie end to end; string i is ``buffer[offsets[i]:offsets[i + 1]]``."""
    return hash_spans(buffer, offsets[:-1], offsets[1:])


def pack(texts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of ``texts`` end to end, and their n + 1 offsets."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    # Of a bytearray: compiled code has one version for arrays that may be written, and would need one for others.
    return np.frombuffer(bytearray().join(texts), np.uint8), offsets


def hash_strings(texts: Sequence[str]) -> NDArray[np.uint64]:
    """64-bit hash of each string's UTF-8 bytes; uint64[n].

    >>> [hex(h) for h in hash_strings(["card-1", "card-2"])]
    ['0x2ef6cb114039dc73', '0x1420ffb8ae31c320']
    """
    return hash_buffer(*pack([text.encode() for text in texts]))


def partitions_of(keys: Sequence[bytes], partitions: int) -> NDArray[np.int32]:
    """The partition that Kafka's default partitioner gives each key; int32[n] in ``[0, partitions)``."""
    data, offsets = pack(keys)
    return murmur2_spans(data, offsets[:-1], offsets[1:]) % np.int32(partitions)
