"""Files that survive a crash: written and synced before anything points to them, one writer at a time.

In: bytes and arrays. Out: files, or an ``OSError``. No state of its own.
"""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Buffer = bytes | mmap.mmap
_ALIGN = 64  # bytes; a member's array then begins where a processor likes it, and NumPy pads its own header alike
_LOCAL = 30  # bytes of a member's header in a zip file, before its name
_PADDING = 0xD935  # kind of extra field that is read as room


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
    """The bytes of an ``.npz`` with these arrays, each of which begins at a multiple of 64 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")
            room = -(buffer.tell() + _LOCAL + len(entry.filename.encode()) + 4) % _ALIGN
            entry.extra = struct.pack("<HH", _PADDING, room) + bytes(room)
            archive.writestr(entry, member.getvalue())
    return buffer.getvalue()


def npz_arrays(data: Buffer) -> Arrays:
    """The arrays of an ``.npz``; objects are refused with ``ValueError``. Those of a mapped file stay in it."""
    if isinstance(data, mmap.mmap):
        return _views(data)
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def mapped(path: Path) -> Buffer:
    """A file as memory that processes share as long as they only read it; an empty one cannot be shared.

    Whoever shortens the file ends its readers: this is for files that are never changed.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writable, or compiled code would need a twin


def _views(memory: mmap.mmap) -> Arrays:
    """The arrays without a copy; those that are not aligned, of an ``.npz`` by NumPy, are copied."""
    found: Arrays = {}
    file: Any = memory  # has what is read of a file
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
            name, extra = struct.unpack_from("<HH", memory, entry.header_offset + _LOCAL - 4)
            start = entry.header_offset + _LOCAL + name + extra
            header = io.BytesIO(memory[start : start + min(entry.file_size, 4096)])
            np.lib.format.read_magic(header)
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(header)
            if dtype.hasobject:
                raise ValueError(f"{entry.filename} holds objects")
            array = np.frombuffer(memory, dtype, int(np.prod(shape)), start + header.tell())
            array = array.reshape(shape, order="F" if by_columns else "C")
            found[entry.filename.removesuffix(".npy")] = array if array.flags.aligned else array.copy()
    return found
