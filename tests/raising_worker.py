"""A worker with a bug: its kernel raises at every batch that holds an event id of ``RAISES_ON``, ids with commas."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from features import engine
from features.hashing import hash_strings
from stream.cli import main

_fold = engine.fold


def _raising(catalogue: Any, tables: Any, operations: Any, *more: Any) -> Any:
    folded = _fold(catalogue, tables, operations, *more)  # the state in memory is spoilt when it raises
    hashes = hash_strings(os.environ["RAISES_ON"].split(",")).view(np.int64)
    if np.isin(operations.event_hash, hashes).any():
        raise FloatingPointError("a bug of ours")
    return folded


if __name__ == "__main__":
    setattr(engine, "fold", _raising)  # noqa: B010 - as a bug in it would
    main()
