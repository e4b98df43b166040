"""Redis' wire format, packed in C: redis-py joins each argument to all before it, which costs more than the cycle.

In: commands. Out: bytes. No state.
"""

from __future__ import annotations

from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection


class _Packed(AbstractConnection):
    """Packs commands whose arguments are mostly bytes already."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """One command in one piece; its name may hold several words, as in ``CONFIG GET``."""
        words = tuple(args[0].encode().split() if isinstance(args[0], str) else args[0].split())
        encode: Any = self.encoder.encode
        rest = tuple([arg if type(arg) is bytes else bytes(encode(arg)) for arg in args[1:]])
        return [hiredis.pack_command((*words, *rest))]

    def pack_commands(self, commands: Any) -> list[bytes]:
        """Several commands, one piece each."""
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
