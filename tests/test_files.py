"""Files that are not UTF-8 are refused with a sentence, and the process ends as it should."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stream.cli import app
from tests.sessions import checkerboard

SCHEMA = Path(__file__).parents[1] / "examples" / "sessions.toml"
BAD = b"caf\xe9"
_HEAD = b"session_id,item_id,time_ms\n"


def good(path: Path) -> Path:
    table = checkerboard(sessions=20)
    columns = {"session_id": table["session_id"], "item_id": table["item_id"], "time_ms": table["event_time"]}
    pq.write_table(pa.table(columns), path)
    return path


def as_text(path: Path) -> None:
    path.write_bytes(_HEAD + b"s,a,1600000000000\ns," + BAD + b",1600000000001\n")


def as_column(name: str, kind: pa.DataType) -> Callable[[Path], None]:
    """Writes one column with bytes that its type may not hold."""

    def write(path: Path) -> None:
        values = pa.array([b"a", BAD], pa.binary())
        if kind != pa.binary():
            values = pa.Array.from_buffers(pa.string(), 2, values.buffers())
        if pa.types.is_dictionary(kind):
            values = pa.DictionaryArray.from_arrays(pa.array([0, 1]), values)
        columns = {"session_id": pa.array(["s", "s"]), "item_id": pa.array(["a", "b"])} | {name: values}
        pq.write_table(pa.table(columns | {"time_ms": pa.array([1_600_000_000_000] * 2)}), path)

    return write


@pytest.mark.parametrize("which", ["--train", "--test"])
@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("clicks.csv", as_text, "clicks.csv"),
        ("bytes.parquet", as_column("item_id", pa.binary()), "item_id"),
        ("strings.parquet", as_column("item_id", pa.string()), "item_id"),
        ("sessions.parquet", as_column("session_id", pa.string()), "session_id"),
        ("users.parquet", as_column("user_id", pa.string()), "user_id"),
        ("dictionary.parquet", as_column("item_id", pa.dictionary(pa.int64(), pa.string())), "cannot be read"),
    ],
)
def test_a_backtest_of_ids_that_are_not_utf8_says_which_file_and_mostly_which_column(
    tmp_path: Path, which: str, name: str, write: Callable[[Path], None], said: str
) -> None:
    files = {"--train": good(tmp_path / "train.parquet"), "--test": good(tmp_path / "test.parquet")}
    write(tmp_path / name)
    files[which] = tmp_path / name
    words = [str(word) for pair in files.items() for word in pair]
    outcome = CliRunner().invoke(app, ["backtest", "recommend", *words, "--schema", str(SCHEMA), "--out",
                                       str(tmp_path / "recs.parquet")])  # fmt: skip
    assert outcome.exit_code == 2, outcome.output
    assert all(part in outcome.output for part in (name, said, "not UTF-8")), outcome.output
    assert not (tmp_path / "recs.parquet").exists()


@pytest.mark.parametrize("which", ["--train", "--test", "--out"])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_trained(tmp_path: Path, which: str) -> None:
    given = {"--train": good(tmp_path / "train.parquet"), "--test": good(tmp_path / "test.parquet"),
             "--out": tmp_path / "recs.parquet"}  # fmt: skip
    given[which] = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.parquet"))
    words = [os.fsencode(word) for pair in given.items() for word in pair]
    outcome = subprocess.run([sys.executable, "-m", "stream.cli", "backtest", "recommend", *words, "--schema", SCHEMA],
                             capture_output=True, check=False, timeout=120)  # fmt: skip
    assert outcome.returncode == 2, outcome.stderr
    assert b"caf\\xe9.parquet: the name is not UTF-8" in outcome.stderr and b"Traceback" not in outcome.stderr


def test_a_process_that_met_a_bad_text_file_ends_as_any_other(tmp_path: Path) -> None:
    """Arrow's threads hold on to the reader after its error; one that is late ends the process with a signal."""
    as_text(tmp_path / "clicks.csv")
    program = (
        "import sys; from pathlib import Path; from features.errors import HistoryError\n"
        "from features.schema import load_schema; from trainer.history import read_clicks\n"
        "try: read_clicks(Path(sys.argv[1]), load_schema([Path(sys.argv[2])]).clicks)\n"
        "except HistoryError: sys.exit(7)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "clicks.csv"), str(SCHEMA)]
    assert {subprocess.run(command, check=False, timeout=60).returncode for _ in range(12)} == {7}
