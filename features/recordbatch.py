"""Kafka's record batch (format 2), written by compiled code: many keys and values without an object for each.

In: keys and values end to end. Out: the bytes of one batch, as a producer sends it. Pure. The format is that of
Kafka's protocol guide, "Record Batch": lengths as zigzag varints, all integers big-endian, no compression.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.bits import copy_bytes
from features.hashing import pack
from features.texts import Texts

_U8 = NDArray[np.uint8]
_Ints = NDArray[np.int64]

# base offset, length, leader epoch, magic, crc | attributes, last offset delta, first and newest time, producer id,
# producer epoch, base sequence, count
_HEAD = struct.Struct(">qiibIhiqqqhii")
_PRODUCER = struct.Struct(">qhi")
_LENGTH_FROM, PRODUCER_AT, CRC_AT, CRC_FROM = 12, 43, 17, 21
HEAD_BYTES = _HEAD.size
RECORD_BYTES = 24  # what a record needs beside its key and value, at most


class Columns(Sequence[tuple[bytes, bytes]]):
    """Messages as columns: message i is key i and value i. Reads as a sequence of pairs of bytes."""

    __slots__ = ("_bytes", "keys", "values")

    def __init__(self, keys: Texts, values: Texts) -> None:
        self.keys, self.values = keys, values
        self._bytes = 0

    @classmethod
    def of(cls, messages: Sequence[tuple[bytes, bytes]]) -> Columns:
        """Messages that lie here and there."""
        data, bounds = pack([part for message in messages for part in message])
        ends = bounds[1:].reshape(-1, 2).T.copy()  # of keys, and of values
        return cls(Texts(data, bounds[:-1:2].copy(), ends[0]), Texts(data, ends[0], ends[1]))

    def part(self, at: slice) -> Columns:
        """Consecutive messages; nothing is copied."""
        return Columns(self.keys.part(at), self.values.part(at))

    def record_ends(self) -> _Ints:
        """Where each record ends at most, in bytes after a batch's head; int64[n]."""
        keys, values = self.keys, self.values
        return np.cumsum(keys.ends - keys.starts + values.ends - values.starts + RECORD_BYTES)

    @property
    def record_bytes(self) -> int:
        """How long a batch of all of them is at most."""
        if not self._bytes:
            self._bytes = HEAD_BYTES + (int(self.record_ends()[-1]) if len(self) else 0)
        return self._bytes

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> tuple[bytes, bytes]:  # type: ignore[override]
        return self.keys.raw(i), self.values.raw(i)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return zip(self.keys.raws(), self.values.raws(), strict=True)


@njit(cache=True, nogil=True)
def _varint(out: _U8, at: int, value: int) -> int:
    """A number of at least 0 as zigzag varint; returns where it ends."""
    rest = value << 1
    while rest > 127:
        out[at] = 128 | (rest & 127)
        rest >>= 7
        at += 1
    out[at] = rest
    return at + 1


@njit(cache=True, nogil=True)
def _size(value: int) -> int:
    """How many bytes :func:`_varint` needs."""
    size, rest = 1, value >> 6
    while rest > 0:
        size += 1
        rest >>= 7
    return size


@njit(cache=True, nogil=True)
def _records(keys: _U8, key_starts: _Ints, key_ends: _Ints, values: _U8, value_starts: _Ints, value_ends: _Ints,
             before: int, out: _U8, at: int) -> int:  # fmt: skip
    """Write records from ``at`` on, after as many others of the batch; where they end."""
    for i in range(len(key_starts)):
        key, value, number = key_ends[i] - key_starts[i], value_ends[i] - value_starts[i], before + i
        at = _varint(out, at, 3 + _size(number) + _size(key) + _size(value) + key + value)
        out[at], out[at + 1] = 0, 0  # attributes, and as much later than the batch's first time
        at = _varint(out, at + 2, number)
        at = _varint(out, at, key)
        at = copy_bytes(out, at, keys, key_starts[i], key)
        at = _varint(out, at, value)
        at = copy_bytes(out, at, values, value_starts[i], value)
        out[at] = 0  # headers
        at += 1
    return at


def record_batch(parts: Sequence[Columns], time_ms: int) -> bytearray:
    """A batch of the messages of several, all of one time. It has neither a producer nor a checksum yet."""
    out = np.empty(sum(part.record_bytes for part in parts), np.uint8)
    at, count = HEAD_BYTES, 0
    for part in parts:
        keys, values = part.keys, part.values
        at = _records(keys.data, keys.starts, keys.ends, values.data, values.starts, values.ends, count, out, at)
        count += len(part)
    batch = bytearray(out[:at])
    _HEAD.pack_into(batch, 0, 0, len(batch) - _LENGTH_FROM, -1, 2, 0, 0, count - 1, time_ms, time_ms, -1, -1, -1, count)
    return batch


def set_producer(batch: bytearray, producer_id: int, epoch: int, sequence: int) -> None:
    """Say who sends a batch and which number its first record has, for a producer that is idempotent."""
    _PRODUCER.pack_into(batch, PRODUCER_AT, producer_id, epoch, sequence)
