"""The vector log: feature vectors as the worker scored them, to prove that a replay gives the same bits.

In: vectors with their sources. Out: ``.npz`` files in a directory, one for each cycle that was scored. Vectors of
cycles that failed are logged too; the last one of a source counts. For tests and audits, off by default.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.texts import Texts


def sampled(event_ids: Texts, share: float) -> NDArray[np.bool_]:
    """Which decisions carry their vector: always the same event ids, about ``share`` of all."""
    return (event_ids.hashes().view(np.uint64) >> np.uint64(11)) < np.uint64(share * 2**53)


class VectorLog:
    """Writes vectors to numbered files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._number = len(list(directory.glob("*.npz")))

    def append(self, sources: Sequence[str], label_positions: NDArray[np.int64], x: NDArray[np.float64]) -> None:
        """Log n vectors, ``x`` float64[n, features], with their sources and label positions (int64[n])."""
        if len(sources):
            path = self._directory / f"{self._number:09d}-{os.getpid()}.npz"
            draft = path.with_suffix(".draft")
            with draft.open("wb") as file:
                np.savez(file, source=np.array(sources, np.str_), label_position=label_positions, x=x)
            draft.replace(path)  # a worker that is killed leaves no half of a file
            self._number += 1


def read_vector_log(directory: Path) -> dict[str, tuple[int, NDArray[np.float64]]]:
    """Label position and vector by source."""
    found: dict[str, tuple[int, NDArray[np.float64]]] = {}
    for path in sorted(directory.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            rows = zip(file["source"].tolist(), file["label_position"].tolist(), file["x"], strict=True)
            found |= {source: (position, vector) for source, position, vector in rows}
    return found
