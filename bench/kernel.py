"""How fast the feature kernel replays history on one core: ``python -m bench.kernel [FILE --schema SCHEMA]``.

Without a file the built-in simulator's world is replayed. Prints one JSON object; the best of ``--repeats`` counts,
since noise on a shared machine only ever slows a run down.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from bench.history import LABEL_DELAY_MS
from features.schema import load_schema
from features.warm import warm
from trainer.history import read_transactions
from trainer.simulator import simulate
from trainer.vectors import history_vectors


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--schema", action="append", type=Path, default=[])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    schema = load_schema(arguments.schema).transactions
    with tempfile.TemporaryDirectory() as directory:
        file = arguments.file or simulate(Path(directory)).transactions
        table = read_transactions(file, schema, LABEL_DELAY_MS)
    warm()
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        vectors = history_vectors(table, schema)
        seconds.append(time.perf_counter() - start)
    labels = table.num_rows - table[schema.label].null_count
    print(json.dumps({
        "transactions": table.num_rows,
        "labels": labels,
        "features": len(vectors.names),
        "seconds": [round(value, 3) for value in seconds],
        "transactions_per_s": round(table.num_rows / min(seconds)),
        "operations_per_s": round((table.num_rows + labels) / min(seconds)),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
