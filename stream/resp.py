"""Redis' wire format: commands packed in C, and arguments that are in it already.

In: commands. Out: bytes. No state. redis-py joins each argument to all before it, which costs more than the cycle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection


class Wired(Mapping[bytes, bytes]):
    """Names and values in the wire format (:mod:`features.wire`); whoever asks for one by name has it read."""

    def __init__(self, count: int, wire: bytes) -> None:
        self.count = count
        self.wire = wire

    @classmethod
    def of(cls, parts: Sequence[Wired]) -> Wired:
        """All of several."""
        return cls(sum(part.count for part in parts), b"".join([part.wire for part in parts]))

    @classmethod
    def plain(cls, fields: Mapping[bytes, bytes]) -> Wired:
        """Of names and values as they are."""
        words = [word for pair in fields.items() for word in pair]
        return cls(len(fields), b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words]))

    @cached_property
    def _pairs(self) -> dict[bytes, bytes]:
        words, at = [], 0
        while at < len(self.wire):
            start = self.wire.index(b"\r\n", at) + 2
            end = start + int(self.wire[at + 1 : start - 2])
            words.append(self.wire[start:end])
            at = end + 2
        return dict(zip(words[::2], words[1::2], strict=True))

    def __getitem__(self, name: bytes) -> bytes:
        return self._pairs[name]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return self.count


class _Packed(AbstractConnection):
    """Packs commands whose arguments are mostly bytes already, and may end with :class:`Wired` ones."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """One command; its name may hold several words, as in ``CONFIG GET``."""
        words = tuple(args[0].encode().split() if isinstance(args[0], str) else args[0].split())
        encode: Any = self.encoder.encode
        wired = args[-1] if isinstance(args[-1], Wired) else None
        plain_args = args[1:] if wired is None else args[1:-1]
        rest = tuple([arg if type(arg) is bytes else bytes(encode(arg)) for arg in plain_args])
        packed = hiredis.pack_command((*words, *rest))
        if wired is None:
            return [packed]
        plain, _, body = packed.partition(b"\r\n")
        return [b"*%d\r\n" % (int(plain[1:]) + 2 * wired.count), body, wired.wire]

    def pack_commands(self, commands: Any) -> list[bytes]:
        """Several commands."""
        return [piece for command in commands for piece in self.pack_command(*command)]


class _PackedConnection(_Packed, Connection):
    pass


class _PackedSSLConnection(_Packed, SSLConnection):
    pass


class _PackedUnixConnection(_Packed, UnixDomainSocketConnection):
    pass


_PACKED: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _PackedConnection,
    SSLConnection: _PackedSSLConnection,
    UnixDomainSocketConnection: _PackedUnixConnection,
}


def packed(connection: type[AbstractConnection]) -> type[AbstractConnection]:
    """The class of connections that does the same and packs in C."""
    return _PACKED[connection]
