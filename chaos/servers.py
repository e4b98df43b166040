"""The servers of the suite: Kafka that advertises a proxy to the workers and itself to the suite, and Redis with a log.

The suite sends and reads by the broker's own listener; workers come by the second one, whose advertised address is the
proxy's, so that whatever the proxy does happens to them alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from stream.embedded import LOOPBACK, RedisServer, free_port
from tests.servers import KafkaServer


class ProxiedKafka(KafkaServer):
    """Kafka with a second listener, to be reached by a proxy at ``advertised``."""

    def __init__(self, directory: Path, libs: Path, extra: dict[str, str] | None = None) -> None:
        super().__init__(directory, libs)
        self.behind = free_port()
        self.advertised = free_port()
        self._extra = extra or {}

    def forget(self) -> None:
        """Remove the data and the format, so that the next start is that of an empty broker on the same ports."""
        shutil.rmtree(self.directory / "kafka")
        self._properties.unlink()

    def _settings(self) -> str:
        listeners = f"PLAINTEXT://{self.bootstrap},PROXIED://{LOOPBACK}:{self.behind}"
        advertised = f"PLAINTEXT://{self.bootstrap},PROXIED://{LOOPBACK}:{self.advertised}"
        settings = dict(line.split("=", 1) for line in super()._settings().splitlines())
        controller = settings["listeners"].rpartition(",")[2]
        settings |= {
            "listeners": f"{listeners},{controller}",
            "advertised.listeners": advertised,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            **self._extra,
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


class LoggedRedis(RedisServer):
    """Redis with an append-only file that a restart replays, also when its tail is torn."""

    def __init__(self, directory: Path, binary: Path) -> None:
        super().__init__(directory, appendonly=True, binary=binary)

    def log_files(self) -> list[Path]:
        """The files that hold the log, the one that is written to last."""
        data = self.directory / "redis"
        found = [*data.glob("appendonlydir/*.incr.aof"), *data.glob("appendonly.aof")]
        return sorted(found, key=lambda path: path.stat().st_mtime)
