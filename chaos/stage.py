"""What all rounds share: the broker and its proxy, and models fitted once."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import features
from chaos.play import Arena
from chaos.proxy import Proxy
from chaos.servers import ProxiedKafka
from features.schema import load_schema
from tests.servers import Unavailable, fresh_name, kafka_libs
from tests.world import make_world

SHIPPED = Path(features.__file__).with_name("default.toml")
# With the models of make_world about half of the traffic reaches it: decisions with and without an alert.
_REVIEW_SCORE = 0.075
# Of the shipped schema's 32 remembered transactions so many are kept: a card that remembered what is folded a second
# time would take it for a repeat, and its state would be right although the worker was wrong.
_MEMORY = 2


def write_schema(path: Path) -> None:
    """Write the shipped schema with a short memory.

    Raises
    ------
    ValueError
        If the shipped schema does not say how much is remembered, exactly once.
    """
    shipped = SHIPPED.read_text(encoding="utf-8")
    text, count = re.subn(r"^memory = \d+", f"memory = {_MEMORY}", shipped, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{SHIPPED} holds {count} lines that begin with `memory = `, not one")
    path.write_text(text, encoding="utf-8")


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
        world = (models or directory / "world").resolve()
        world.mkdir(parents=True, exist_ok=True)
        write_schema(world / "schema.toml")
        schema = load_schema([world / "schema.toml"])
        if not (world / "artifacts" / "CURRENT").exists():
            make_world(world, schema)
        yield Arena(directory, kafka, proxy, Path(binary), schema, world / "schema.toml", world / "artifacts",
                    _REVIEW_SCORE)  # fmt: skip
    finally:
        proxy.stop()
        kafka.stop(timeout_s=20.0)
