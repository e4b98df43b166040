"""History files as batches of columns: which files there are, which columns they have, and their rows.

In: a path. Out: :class:`HistoryFile`, whose batches hold only the columns asked for. No state; files are only read.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from features.errors import HistoryError

BATCH_ROWS = 1 << 20
TEXT_BLOCK_BYTES = 1 << 25
_LET_GO_S = 5.0
DELIMITERS = "\t,;"


def history_files(path: Path) -> list[Path]:
    """The file itself, or the Parquet files below a directory in order of their names.

    Raises
    ------
    HistoryError
        If there is none.
    """
    check_name(path)
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*.parquet")
            # Names that begin with a dot or underscore are half-written files and listings of other tools.
            if not any(piece[0] in "._" for piece in file.relative_to(path).parts)
        )
        if not files:
            raise HistoryError(f"{path}: a directory without *.parquet files; give Parquet files, or one CSV or TSV")
        for file in files:
            check_name(file)
        return files
    if not path.exists():
        raise HistoryError(f"{path}: no such file or directory; history is a Parquet, CSV or TSV file")
    return [path]


def check_name(path: Path) -> None:
    """Refuse what Arrow cannot open.

    Raises
    ------
    HistoryError
        If a name holds bytes that are not UTF-8.
    """
    name = os.fsencode(path)
    try:
        name.decode()
    except UnicodeDecodeError:
        raise HistoryError(f"{name.decode(errors='backslashreplace')}: the name is not UTF-8; rename it") from None


def said(error: Exception) -> str:
    """What is wrong with a file, of an error of Arrow's."""
    return "holds bytes that are not UTF-8; convert it to UTF-8" if "UTF8" in str(error) else str(error)


@contextmanager
def _let_go(handler: object) -> Iterator[None]:
    """Wait until Arrow's threads have let go of a function: one that does so as Python ends takes the process along."""
    held, until_s = sys.getrefcount(handler), time.monotonic() + _LET_GO_S
    try:
        yield
    finally:
        while sys.getrefcount(handler) > held and time.monotonic() < until_s:
            time.sleep(0.001)


@dataclass(slots=True)
class HistoryFile:
    """A history file: its columns, whether they have types (text has none), and the malformed rows it skipped."""

    names: list[str]
    typed: bool
    open: Callable[[list[str]], Iterator[pa.RecordBatch]]
    path: Path
    malformed: int = 0

    def batches(self, wanted: list[str]) -> Iterator[pa.RecordBatch]:
        """The columns ``wanted`` (each once), batch by batch; text arrives as strings."""
        try:
            yield from self.open(wanted)
        except (pa.ArrowException, OSError) as error:
            raise HistoryError(f"{self.path}: cannot be read: {said(error)}") from None


def open_file(path: Path) -> HistoryFile:
    """Open a Parquet file, or text with a header whose delimiter is the commonest of tab, comma and semicolon in it.

    Raises
    ------
    HistoryError
        If the file is empty or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
        if not magic:
            raise HistoryError(f"{path}: is empty (0 bytes); history is a Parquet, CSV or TSV file")
        if magic == b"PAR1" or path.suffix.lower() in (".parquet", ".pq"):
            return _open_parquet(path)
        return _open_text(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise HistoryError(f"{path}: cannot be read: {error}") from None


def _open_parquet(path: Path) -> HistoryFile:
    file = pq.ParquetFile(path)

    def batches(wanted: list[str]) -> Iterator[pa.RecordBatch]:
        with file:
            yield from file.iter_batches(BATCH_ROWS, columns=wanted)

    return HistoryFile(file.schema_arrow.names, True, batches, path)


def _open_text(path: Path) -> HistoryFile:
    with pa.input_stream(str(path), compression="detect") as stream:
        start = stream.read(1 << 16).decode("utf-8-sig", errors="replace")
    header, _, rest = start.partition("\n")
    header = header.rstrip("\r")
    delimiter = max(DELIMITERS, key=header.count)
    names = [name.strip().strip('"') for name in header.split(delimiter)]
    file = HistoryFile(names, False, lambda _: iter(()), path)
    if not rest.strip():
        return file

    def skip(_row: pa_csv.InvalidRow) -> str:
        file.malformed += 1
        return "skip"

    def batches(wanted: list[str]) -> Iterator[pa.RecordBatch]:
        with _let_go(skip), pa.input_stream(str(path), compression="detect") as stream:
            reader = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(column_names=names, skip_rows=1, block_size=TEXT_BLOCK_BYTES),
                parse_options=pa_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=skip),
                convert_options=pa_csv.ConvertOptions(
                    # Everything as text: one bad value must not change the type of its column, nor "007" become 7.
                    column_types={name: pa.string() for name in wanted},
                    include_columns=wanted,
                    null_values=["", "\\N"],
                    strings_can_be_null=True,
                ),
            )
            try:
                yield from reader
            finally:
                reader.close()
                del reader

    file.open = batches
    return file
