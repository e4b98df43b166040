"""What all rounds share: the broker and its proxy, and models fitted once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.play import Arena
from chaos.proxy import Proxy
from chaos.servers import ProxiedKafka
from features.schema import load_schema
from tests.servers import Unavailable, fresh_name, kafka_libs
from tests.world import make_world

# With the models of make_world about half of the traffic reaches it: decisions with and without an alert.
_REVIEW_SCORE = 0.027


@contextmanager
def arena(directory: Path, models: Path | None = None) -> Iterator[Arena]:
    """Start the broker and fit the models, unless the directory ``models`` has them from an earlier run.

    Raises
    ------
    Unavailable
        If Kafka or redis-server cannot be run here.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        raise Unavailable("no redis-server on PATH")
    kafka = ProxiedKafka(directory / fresh_name("kafka"), kafka_libs())
    kafka.start()
    proxy = Proxy(kafka.advertised, kafka.behind, framed=True)
    try:
        world = models or directory / "world"
        if not (world / "artifacts" / "CURRENT").exists():
            make_world(world, load_schema())
        yield Arena(directory, kafka, proxy, Path(binary), load_schema(), world / "artifacts", _REVIEW_SCORE)
    finally:
        proxy.stop()
        kafka.stop(timeout_s=20.0)
