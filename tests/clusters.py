"""A Redis Cluster of three masters on loopback, whose slots can be moved while it is written to."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from stream.embedded import LOOPBACK, RedisServer, free_port

_SLOTS = 16_384
_BUS = 10_000  # a node's second port lies so far above the first
_NODE_TIMEOUT_MS = 2_000
_READY_S = 40.0


class _Node(RedisServer):
    """One Redis in cluster mode; it keeps its data and its place in the cluster over restarts."""

    def __init__(self, directory: Path, binary: Path) -> None:
        super().__init__(directory, appendonly=True, port=_free_pair(), binary=binary)

    def arguments(self) -> list[str]:
        cluster = {"enabled": "yes", "node-timeout": str(_NODE_TIMEOUT_MS), "require-full-coverage": "no"}
        return [*super().arguments(), *(word for k, v in cluster.items() for word in (f"--cluster-{k}", v))]

    def ask(self, *words: Any) -> Any:
        """The raw reply to one command."""
        with Redis(LOOPBACK, self.port, protocol=2, socket_timeout=10.0) as client:
            return client.execute_command(*words)


def _free_pair() -> int:
    """A free port whose bus port is free too."""
    while True:
        port = free_port()
        try:
            with socket.create_server((LOOPBACK, port + _BUS)):
                return port
        except (OSError, OverflowError):
            continue


class RedisClusterServers:
    """Three masters that share the slots in equal ranges."""

    def __init__(self, directory: Path, binary: Path, count: int = 3) -> None:
        self.binary = binary
        self._directory = directory
        self._size = count
        self.nodes = [_Node(directory / f"node-{number}", binary) for number in range(count)]

    @property
    def url(self) -> str:
        """Where clients first ask."""
        return self.nodes[0].url

    def start(self) -> None:
        """Start all nodes and have them meet."""
        for node in self.nodes:
            node.start()
        share = -(-_SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            _ = node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            _ = node.ask("CLUSTER", "ADDSLOTS", *range(number * share, min((number + 1) * share, _SLOTS)))
        for node in self.nodes[1:]:
            _ = self.nodes[0].ask("CLUSTER", "MEET", LOOPBACK, node.port)
        self.wait_until_whole()

    def join(self) -> int:
        """Add a master without slots, which no client has heard of; its number."""
        node = _Node(self._directory / f"node-{len(self.nodes)}", self.binary)
        self.nodes.append(node)
        node.start()
        _ = self.nodes[0].ask("CLUSTER", "MEET", LOOPBACK, node.port)
        known = f"cluster_known_nodes:{len(self.nodes)}"
        _wait(lambda: all(known in n.ask("CLUSTER", "INFO").decode() for n in self.nodes), "the nodes know each other")
        self.wait_until_whole()
        return len(self.nodes) - 1

    def stop(self) -> None:
        """Stop all nodes."""
        for node in self.nodes:
            node.stop()

    def wait_until_whole(self) -> None:
        """Wait until every node sees every node and all slots."""
        _wait(lambda: all(self._is_whole(node) for node in self.nodes), "the cluster is whole")

    def _is_whole(self, node: _Node) -> bool:
        try:
            facts = node.ask("CLUSTER", "INFO").decode()
            links = node.ask("CLUSTER", "NODES").decode()
        except (RedisError, OSError):
            return False
        wanted = ("cluster_state:ok", f"cluster_slots_ok:{_SLOTS}", f"cluster_size:{self._size}")
        return all(word in facts for word in wanted) and "fail" not in links and "handshake" not in links

    def owner(self, key: str) -> int:
        """The number of the node that a key's slot belongs to, as the nodes agree; -1 while they do not."""
        slot, found = key_slot(key.encode()), set()
        for node in self.nodes:
            for first, last, master, *_ in node.ask("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    found.add(master[1])
        ports = [node.port for node in self.nodes]
        return ports.index(found.pop()) if len(found) == 1 else -1

    def begin_move(self, key: str, target: int) -> Callable[[], None]:
        """Announce the move of a key's slot to a node; returns what takes the keys there."""
        slot, source = key_slot(key.encode()), self.nodes[self.owner(key)]
        ids = [node.ask("CLUSTER", "MYID") for node in (source, self.nodes[target])]
        _ = self.nodes[target].ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        _ = source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])

        def carry() -> None:
            keys: Sequence[bytes] = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100)
            for name in keys:
                _ = source.ask("MIGRATE", LOOPBACK, self.nodes[target].port, name, 0, 5000)

        return carry

    def end_move(self, key: str, target: int) -> None:
        """Give a key's slot to the node that holds its keys now."""
        slot, id_ = key_slot(key.encode()), self.nodes[target].ask("CLUSTER", "MYID")
        for node in (self.nodes[target], *self.nodes):
            _ = node.ask("CLUSTER", "SETSLOT", slot, "NODE", id_)
        _wait(lambda: self.owner(key) == target, "all nodes know the slot's new owner")


def _wait(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_S
    while not done():
        assert time.monotonic() < deadline, f"not within {_READY_S:.0f} s: {what}"
        time.sleep(0.05)
