"""Where the archive lies: files named by what is in them, on any fsspec filesystem, each there whole or not at all.

::

    <url>/<kind>/date=2026-03-01/<topic>-<partition>-<first>-<end>.parquet    records of one event date
    <url>/_committed/<topic>-<partition>-<first>-<end>.json                   all files of these offsets are there

In: bytes and names. Out: files, listings, errors in one clear line. State owned: the files below ``url``.

A file of a date and a range of offsets ``[first, end)`` holds every record of the range whose event has that date, also
where nothing was committed yet; so of files that overlap any one may be read, and :func:`clipped` reads each offset
once. A range counts when its marker is there, which is written last: a crash before it leaves files that count for
nothing, and the range is read again. Nothing is ever renamed on an object store, where a PUT is atomic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fsspec
import msgspec
from fsspec.implementations.local import LocalFileSystem

from features.errors import ArchiveUnavailable, HeadraceError, SettingsError
from trainer import durable

Kind = Literal["transactions", "labels", "clicks", "decisions"]
KINDS: tuple[Kind, ...] = ("transactions", "labels", "clicks", "decisions")
# Where an object appears at once, and a rename is a copy.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "obs", "memory"}
_MARKERS = "_committed"
_NAME = re.compile(r"(?P<topic>.+)-(?P<partition>\d+)-(?P<first>\d{19})-(?P<end>\d{19})\.(?:parquet|json)")
_DATE = re.compile(r"date=(\d{4}-\d{2}-\d{2})")
_DRAFT = ".draft-"


class Span(NamedTuple):
    """Offsets ``[first, end)`` of one partition of a topic."""

    topic: str
    partition: int
    first: int
    end: int

    @property
    def name(self) -> str:
        """As files are named; names sort as offsets do."""
        return f"{self.topic}-{self.partition}-{self.first:019d}-{self.end:019d}"

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return self.topic, self.partition


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A file of records: where it lies, the event date (ISO) of all of them, the offsets it covers, and its bytes."""

    path: str
    date: str
    span: Span
    nbytes: int


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges with those that touch or overlap made one, in order.

    >>> joined([(5, 9), (0, 3), (3, 5), (12, 13), (1, 2)])
    [(0, 9), (12, 13)]
    """
    found: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((first, end))
    return found


def clipped(files: Iterable[ArchiveFile], first: int, end: int) -> list[tuple[ArchiveFile, int, int]]:
    """Which offsets to read of which file, so that each of ``[first, end)`` is read once.

    ``files`` are those of one date, topic and partition. Of files that overlap the longest counts.
    """
    found, at = [], first
    for file in sorted(files, key=lambda file: (file.span.first, -file.span.end)):
        start, stop = max(file.span.first, at), min(file.span.end, end)
        if start < stop:
            found.append((file, start, stop))
            at = stop
    return found


class ArchiveStore:
    """The files of one archive.

    Raises
    ------
    SettingsError
        If no filesystem is known for the URL, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.filesystem, self.root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            hint = "install the package that it names beside Headrace, or use file:///DIRECTORY"
            raise SettingsError([f"archive.url = '{url}': expected a URL that fsspec knows: {error}; {hint}"]) from None
        protocol = self.filesystem.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)

    def files(self, kind: Kind) -> list[ArchiveFile]:
        """All files of one kind, committed or not."""
        found = []
        for path, info in self._find(f"{self.root}/{kind}").items():
            folder, _, name = path.rpartition("/")
            match, date = _NAME.fullmatch(name), _DATE.fullmatch(folder.rpartition("/")[2])
            if match and date:
                found.append(ArchiveFile(path, date[1], _span(match), int(info["size"] or 0)))
        return sorted(found, key=lambda file: (file.date, file.span))

    def committed(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """The ranges that count, by topic and partition, as :func:`joined`."""
        found: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for span, _ in self.markers():
            found.setdefault(span.place, []).append((span.first, span.end))
        return {place: joined(ranges) for place, ranges in found.items()}

    def markers(self) -> list[tuple[Span, str]]:
        """Every marker and its path, in order."""
        names = {path: _NAME.fullmatch(path.rpartition("/")[2]) for path in self._find(f"{self.root}/{_MARKERS}")}
        return sorted((_span(match), path) for path, match in names.items() if match)

    def data_path(self, kind: Kind, date: str, span: Span) -> str:
        """Where the records of a date and a range lie."""
        return f"{self.root}/{kind}/date={date}/{span.name}.parquet"

    def commit(self, span: Span, facts: Mapping[str, Any]) -> None:
        """Have a range count; all its files must be there."""
        self.put(f"{self.root}/{_MARKERS}/{span.name}.json", msgspec.json.encode(facts))

    def put(self, path: str, data: bytes) -> None:
        """Write a file that appears whole, and stays after a loss of power where it is a local one."""
        with self._errors():
            if isinstance(self.filesystem, LocalFileSystem):
                target = Path(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                durable.replace(target, data)
            elif self._protocols & _OBJECT_STORES:
                self.filesystem.pipe_file(path, data)
            else:
                folder, _, name = path.rpartition("/")
                self.filesystem.makedirs(folder, exist_ok=True)
                draft = f"{folder}/{_DRAFT}{name}"
                self.filesystem.pipe_file(draft, data)
                self.filesystem.mv(draft, path)

    def remove(self, paths: Sequence[str]) -> None:
        """Delete files; one that is gone already does not matter."""
        with self._errors():
            for path in paths:
                try:
                    self.filesystem.rm_file(path)
                except FileNotFoundError:
                    continue

    def open(self, path: str) -> Any:
        """A file to read.

        Raises
        ------
        FileNotFoundError
            If it is gone: a compaction has put its records into another one. List again.
        """
        try:
            return self.filesystem.open(path, "rb")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._unavailable(error) from error

    def _find(self, folder: str) -> dict[str, Any]:
        with self._errors():
            self.filesystem.invalidate_cache()
            try:
                found = self.filesystem.find(folder, detail=True)
            except FileNotFoundError:
                return {}
            return dict(found) if isinstance(found, dict) else {}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except HeadraceError:
            raise
        except Exception as error:  # every filesystem has errors of its own
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> ArchiveUnavailable:
        reason = " ".join(str(error).split()) or type(error).__name__
        return ArchiveUnavailable(
            f"the archive at {self.url} cannot be used: {reason[:300]}; is archive.url right, and may this user list, "
            "read, write and delete there?"
        )


def _span(match: re.Match[str]) -> Span:
    return Span(match["topic"], int(match["partition"]), int(match["first"]), int(match["end"]))
