"""Compressed batches are unpacked up to a limit, and one that is refused is skipped as one record that says why.

In: what aiokafka fetched. Out: its records, and for a batch that must not or cannot be unpacked one
:class:`~stream.lane.StandIn` at its last offset, so that whoever has read it goes on after the batch. A broker accepts
any batch whose *compressed* size fits, and a thousand times that comes out of one: aiokafka unpacks it whole before
anybody can look at it, so the limit lies inside the functions that aiokafka calls to unpack. State owned: the limit,
one for the process. ``tests/test_unpacking.py`` pins the names of aiokafka that are relied on.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import cramjam
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException

from features.checks import Refused
from features.errors import HeadraceError
from stream.lane import StandIn
from stream.settings import KafkaSettings

# Compiled and plain forms of the same; each has imported the functions by name.
_USERS = ("aiokafka.record._crecords.default_records", "aiokafka.record._crecords.legacy_records",
          "aiokafka.record.default_records", "aiokafka.record.legacy_records")  # fmt: skip
_XERIAL = b"\x82SNAPPY\x00"  # the framing of Java's snappy: 16 bytes, then blocks with their lengths
_GROWTH = 8  # how much larger the next buffer is: JSON shrinks by about as much, so the first one mostly fits
_FIRST_BYTES = 65_536
_INVALID_CRC = "Invalid CRC"  # damaged on its way: worth another fetch, unlike what is wrong inside a batch

_limit = KafkaSettings().batch_bytes_max


class UnreadableBatch(HeadraceError):
    """A batch that unpacks to more than the limit, or to nothing that can be read."""


def _too_large(codec: str, packed: int) -> UnreadableBatch:
    return UnreadableBatch(
        f"a batch of {packed} bytes ({codec}) unpacks to more than {_limit} bytes (kafka.batch_bytes_max)"
    )


def gunzip(payload: Any) -> bytes:
    """The content of one or more gzip members, at most the limit."""
    data, parts, left = bytes(payload), list[bytes](), _limit
    size = len(data)
    while data:
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(data, left + 1))
        except zlib.error as error:
            raise UnreadableBatch(f"a batch of {size} bytes (gzip) is damaged: {error}") from None
        left -= len(parts[-1])
        if left < 0:
            raise _too_large("gzip", size)
        if not member.eof:
            raise UnreadableBatch(f"a batch of {size} bytes (gzip) is cut off")
        data = member.unused_data.lstrip(b"\0")
    return b"".join(parts)


def unsnap(payload: Any) -> bytes:
    """The content of a raw snappy block, or of the blocks of Java's framing, at most the limit."""
    data = bytes(payload)
    parts, left = list[bytes](), _limit
    try:
        for block in _snappy_blocks(data):
            left -= cramjam.snappy.decompress_raw_len(block)  # the block says it first, and is held to it
            if left < 0:
                raise _too_large("snappy", len(data))
            parts.append(bytes(cramjam.snappy.decompress_raw(block)))
    except (cramjam.DecompressionError, struct.error, ValueError) as error:
        raise UnreadableBatch(f"a batch of {len(data)} bytes (snappy) is damaged: {error}") from None
    return b"".join(parts)


def _snappy_blocks(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_XERIAL):
        yield data
        return
    at = 16
    while at < len(data):
        (size,) = struct.unpack_from("!I", data, at)
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _into_buffer(codec: str, unpack_into: Callable[[Any, Any], int]) -> Callable[[Any], bytes]:
    """Unpacks into buffers of growing size: neither lz4 nor zstd must say how much comes out."""

    def unpack(payload: Any) -> bytes:
        data = bytes(payload)
        size = min(_limit, max(_FIRST_BYTES, _GROWTH * len(data)))
        while True:
            buffer = bytearray(size)
            try:
                return bytes(memoryview(buffer)[: unpack_into(data, buffer)])
            except cramjam.DecompressionError as error:
                if size == _limit:
                    raise UnreadableBatch(f"{_too_large(codec, len(data))}, or is damaged: {error}") from None
            size = min(_limit, size * _GROWTH)

    return unpack


_FUNCTIONS: dict[str, Callable[[Any], bytes]] = {
    "gzip_decode": gunzip,
    "snappy_decode": unsnap,
    "lz4_decode": _into_buffer("lz4", cramjam.lz4.decompress_into),
    "zstd_decode": _into_buffer("zstd", cramjam.zstd.decompress_into),
}


class _Batches:
    """aiokafka's batches of a fetch; ``last`` is the one that was taken last."""

    def __init__(self, batches: Any) -> None:
        self.has_next: Callable[[], bool] = batches.has_next
        self._next: Callable[[], Any] = batches.next_batch
        self.last: Any = None

    def next_batch(self) -> Any:
        """The next one."""
        self.last = self._next()
        return self.last


class Records(PartitionRecords):  # type: ignore[misc]
    """What was fetched of a partition; a batch that cannot be read gives one record in its place."""

    _records_iterator: Any
    next_fetch_offset: int

    def __init__(self, tp: Any, records: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tp, _Batches(records), *args, **kwargs)

    def __next__(self) -> Any:
        try:
            return next(self._records_iterator)
        except StopIteration:
            self._records_iterator = None
            raise
        except (UnreadableBatch, CorruptRecordException) as error:
            batch = self._records.last
            if _INVALID_CRC in str(error) or getattr(batch, "next_offset", None) is None:
                raise  # an old format does not say where a batch ends
            return self._instead_of(batch, str(error))

    def _instead_of(self, batch: Any, sentence: str) -> Any:
        first = max(self.next_fetch_offset, batch.base_offset)
        self._records_iterator = self._unpack_records()  # goes on with the next batch
        self.next_fetch_offset = batch.next_offset
        last = batch.next_offset - 1
        text = f"offsets {first} to {last} are skipped: {sentence}"
        value = Refused.of("unreadable_batch", text, first=first)
        return self._consumer_record(self._tp, StandIn(last, None, value, batch.max_timestamp))


def patched_modules() -> list[ModuleType]:
    """The modules of aiokafka that unpack, as far as this installation has them."""
    found = []
    for name in _USERS:
        with suppress(ImportError):
            found.append(import_module(name))
    return found


def bound_unpacking(limit: int) -> None:
    """Have every consumer of this process unpack a batch to at most ``limit`` bytes."""
    global _limit  # aiokafka calls plain functions, so the limit is one for the process
    _limit = limit
    for module in patched_modules():
        for name, function in _FUNCTIONS.items():
            if hasattr(module, name):
                setattr(module, name, function)
    fetcher.PartitionRecords = Records
