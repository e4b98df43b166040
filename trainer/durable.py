"""Files that survive a crash: written and synced before anything points to them, one writer at a time.

In: bytes and arrays. Out: files, or an ``OSError``. No state of its own.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def write(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Replace a file at once: readers see the old bytes or the new ones, also after a crash."""
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    write(scratch, data)
    scratch.replace(path)
    sync(path.parent)


@contextmanager
def exclusive_scratch(root: Path) -> Iterator[Path]:
    """An empty folder inside ``root``, for one holder at a time; what a killed one left behind goes.

    The lock belongs to the open file, so it falls with its process.
    """
    scratch = root / ".publishing"
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of an ``.npz`` with these arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def npz_arrays(data: bytes) -> Arrays:
    """The arrays of an ``.npz``; objects are refused with ``ValueError``."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
