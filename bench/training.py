"""How training on clicks grows: ``python -m bench.training [--clicks 1000000,10000000] [--items 100000]``.

Clicks are synthetic: sessions of five clicks on average, each within one of many groups of fifty items. Every size is
fitted in a process of its own. Prints JSON: seconds, peak memory of the process, and the size of the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.ranker import RankerSettings
from trainer.recommender import RecommenderSettings, fit_recommender

_GROUP, _LENGTH, _START_MS = 50, 5.0, 1_700_000_000_000


def synthetic_clicks(count: int, items: int, seed: int = 1) -> pa.Table:
    """A canonical table of clicks, of which all but what training reads is null."""
    rng = np.random.default_rng(seed)
    groups = max(items // _GROUP, 1)
    lengths = np.minimum(rng.geometric(1 / _LENGTH, int(count / _LENGTH * 1.2)), 60)
    session = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[:count]
    chosen = rng.zipf(1.3, len(lengths)) % groups
    place = (rng.zipf(1.5, len(session)) - 1) % _GROUP
    item = (chosen[session] * _GROUP + place).astype(np.int32)
    names = pa.array([f"i{n}" for n in range(items)])
    sessions = pa.array([f"s{n}" for n in range(int(session[-1]) + 1)])
    times = pa.array(_START_MS + np.arange(len(session), dtype=np.int64) * 200)
    return pa.table(
        {
            "event_time": times,
            "session_id": sessions.take(pa.array(session)),
            "user_id": pa.nulls(len(session), pa.string()),
            "item_id": names.take(pa.array(item)),
        }
    )


def fit_one(count: int, items: int, threads: int) -> dict[str, Any]:
    """Fit on so many clicks; what it took."""
    table = synthetic_clicks(count, items)
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, cpu = time.perf_counter(), time.process_time()
    settings = RecommenderSettings(ranker=RankerSettings(threads=threads))
    fitted = fit_recommender(table, settings, lambda done, total: print(f"{done}/{total}", end="\r", file=sys.stderr))
    nbytes = sum(array.nbytes for array in fitted.model.to_arrays().values())
    return {
        "clicks": table.num_rows,
        "items": fitted.model.items,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "of_which_clicks_mb": round(before_mb),
        "model_mb": round(nbytes / 2**20, 1),
        "model_kb_per_1000_items": round(nbytes / 2**10 / fitted.model.items * 1000, 1),
        "model_mb_per_1m_clicks": round(nbytes / 2**20 / table.num_rows * 1e6, 2),
        "hr": fitted.metrics["hr"],
    }


def main() -> None:
    """Fit every size, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", default="1000000,10000000")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.clicks.split(",")]
    if len(counts) == 1:
        print(json.dumps(fit_one(counts[0], arguments.items, arguments.threads)), flush=True)
        return
    for count in counts:
        command = [sys.executable, "-m", "bench.training", "--clicks", str(count), "--items", str(arguments.items),
                   "--threads", str(arguments.threads)]  # fmt: skip
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
