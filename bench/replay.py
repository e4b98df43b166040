"""Replay on one core against pandas: ``python -m bench.replay [FILE] [--quick]``.

Both make every column of the catalogue, labels folded when they arrive: the kernel by :func:`history_vectors`, pandas
by :mod:`bench.pandas_columns`. They take turns, and before anything counts the columns of both are compared. Those of
windows and of last and first times: pandas' exact window and the window one hop longer enclose the kernel's, and where
those two hold the same records all three are equal. All others are equal in every row. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.history import HANDBOOK, read_history
from bench.pandas_columns import Columns, frames, other_columns, starts_anew_ms, windowed_columns
from features.schema import TransactionSchema
from features.warm import warm
from trainer.vectors import Vectors, history_vectors

QUICK_ROWS = 100_000
ROUNDS = 3


@dataclass
class Agreement:
    """How many values were compared, how many of them differed, and in which columns."""

    compared: int = 0
    equal: int = 0
    outside: int = 0
    columns: int = 0

    def tell(self, name: str, wrong: NDArray[np.bool_], exact: int) -> None:
        """Count one column; ``exact`` of its values had to be equal."""
        self.columns += 1
        self.compared += len(wrong)
        self.equal += exact
        self.outside += int(wrong.sum())
        if wrong.any():
            raise AssertionError(f"{name}: {wrong.sum()} of {len(wrong)} values lie outside of the bound")


def _compare_windows(vectors: Vectors, frame: Any, narrow: Columns, wide: Columns, schema: TransactionSchema,
                     agreement: Agreement) -> None:  # fmt: skip
    """Hold the kernel's windowed columns against both of pandas' windows.

    Rows that share entity and second are left out: pandas' windows end before their second, the kernel's with the row.
    So are the times of entities that paused for so long that they start anew.
    """
    amount = schema.numeric[0].name
    scale = float(np.abs(frame[amount]).max())
    for entity in schema.entities:
        apart = ~frame.duplicated([entity.fields[0], "time"], keep=False).to_numpy()
        pauses = frame.assign(pause=narrow[f"{entity.name}_seconds_since_last"])
        longest_pause = pauses.groupby(entity.fields[0])["pause"]
        known = ~(longest_pause.transform("max") > starts_anew_ms(entity) / 1000).to_numpy()[apart]
        for name in (name for name in vectors.names if name.startswith(f"{entity.name}_") and name in narrow):
            found = vectors.x[apart, vectors.names.index(name)]
            low, high = narrow[name][apart], wide[name][apart]
            suffix = name.rpartition("_")[2]
            if "_seconds_" in name:
                same = known
            else:
                counted = f"{entity.name}_judged_{suffix}" if "_fraud_" in name else f"{entity.name}_count_{suffix}"
                same = narrow[counted][apart] == wide[counted][apart]
            slack = 1e-9 * scale + 1e-9 * np.nan_to_num(np.abs(high))
            if "_std_" in name:  # the root of what two ways of summing squares leave of them
                wrong = np.abs(found**2 - low**2) > 1e-9 * scale * scale
            else:
                wrong = ~(np.isnan(found) & np.isnan(low)) & ~(np.abs(found - low) <= slack)
            wrong &= same
            if any(f"_{kind}_" in name for kind in ("count", "sum", "max")):
                wrong |= (found < low - slack) | (found > high + slack)
            agreement.tell(name, wrong, int(same.sum()))


def compare(vectors: Vectors, frame: Any, narrow: Columns, wide: Columns, others: Columns, schema: TransactionSchema
            ) -> Agreement:  # fmt: skip
    """Hold every column of the kernel against pandas': windows enclosed by ``narrow`` and ``wide``, ``others`` equal.

    Runs of frauds that began so long ago that the kernel drops their first ones are left out.

    Raises
    ------
    AssertionError
        If a column is missing, or a value is not what it has to be.
    """
    missing = set(vectors.names) - set(narrow) - set(others)
    if missing:
        raise AssertionError(f"pandas makes no {', '.join(sorted(missing))}")
    agreement = Agreement()
    _compare_windows(vectors, frame, narrow, wide, schema, agreement)
    long_ago = {
        f"{entity.name}_{column}": others[f"{entity.name}_seconds_since_fraud_run"] > starts_anew_ms(entity) / 1000
        for entity in schema.entities
        for column in ("fraud_run", "seconds_since_fraud_run", "fraud_run_ratio")
    }
    for name in (name for name in vectors.names if name in others):
        found = vectors.x[:, vectors.names.index(name)]
        same = ~long_ago.get(name, np.zeros(len(found), np.bool_))
        wrong = same & ~np.isclose(found, others[name], rtol=1e-12, atol=0.0, equal_nan=True)
        agreement.tell(name, wrong, int(same.sum()))
    return agreement


def _seconds(work: Callable[[], Any]) -> float:
    """Of a core, not of the clock: both run in this process alone, and other processes may want the core too."""
    start = time.process_time()
    work()
    return time.process_time() - start


def _keep_memory() -> None:
    """Have the C library keep what is freed, for both: fresh pages cost a virtual machine 0.04 to 2 s a gigabyte."""
    trim_threshold, mmap_max = -1, -4  # of glibc's malloc.h
    library = ctypes.CDLL(None)
    library.mallopt(trim_threshold, 2**31 - 1)
    library.mallopt(mmap_max, 0)


def measure(quick: bool, *, file: Path = HANDBOOK, rounds: int = ROUNDS) -> dict[str, Any]:
    """Transactions of both per second of a core, and how they compare; ``quick`` takes the first of them only."""
    import pandas as pd

    pa.set_cpu_count(1)
    table, schema, source = read_history(file)
    if quick:
        table = table.slice(0, QUICK_ROWS)
    warm()
    frame, labels = frames(table, schema)
    narrow, wide = (windowed_columns(frame, labels, schema, hop_more=hop_more) for hop_more in (False, True))
    others = other_columns(frame, labels, schema)
    agreement = compare(history_vectors(table, schema), frame, narrow, wide, others, schema)
    del narrow, wide, others
    found = []
    for _ in range(rounds):
        ours = _seconds(lambda: history_vectors(table, schema))
        windows = _seconds(lambda: windowed_columns(frame, labels, schema))
        theirs = windows + _seconds(lambda: other_columns(frame, labels, schema))
        found.append({"s": round(ours, 3), "pandas_s": round(theirs, 3), "pandas_windows_s": round(windows, 3),
                      "ratio": round(theirs / ours, 2), "ratio_windows": round(windows / ours, 2)})  # fmt: skip
    middle = {name: statistics.median(turn[name] for turn in found) for name in found[0]}
    return {
        "events_per_s": round(table.num_rows / middle["s"]),
        "pandas_events_per_s": round(table.num_rows / middle["pandas_s"]),
        "ratio": middle["ratio"],
        "ratio_windows": middle["ratio_windows"],
        "subset": f"{'the first' if quick else 'all'} {table.num_rows:,} transactions with {len(labels):,} labels: "
        + source,
        "rounds": found,
        "compared": {"columns": agreement.columns, "values": agreement.compared, "equal": agreement.equal},
        "pandas": pd.__version__,
    }


def measure_apart(*, quick: bool) -> dict[str, Any]:
    """The same in a process of its own, whose memory is its own."""
    command = [sys.executable, "-m", "bench.replay", *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=HANDBOOK)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    _keep_memory()
    print(json.dumps(measure(arguments.quick, file=arguments.file, rounds=arguments.rounds)))


if __name__ == "__main__":
    main()
