"""What rules cost a worker: ``python -m bench.rules``.

Twenty rules and a list of 10,000 ids, on cycles of 2 transactions (1,000 a second) and of 4,096 (a backlog), about 1 in
200 of them hit. Prints one JSON object: microseconds of this thread's own CPU time for each cycle, all that a worker
does for rules included, the median of many.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from features.catalogue import Catalogue, build_catalogue
from features.rule_machine import NEVER
from features.schema import load_schema
from features.texts import Texts
from stream.deciding import Decided, Policy, Seen
from stream.metrics import Metrics
from stream.rule_books import RuleBooks
from stream.rules import RulesHolder
from stream.settings import WorkerSettings

_CONDITIONS = (
    ("amount > 2000 and card_count_1h >= 3", "review"),
    ("card in stolen", "block"),
    ("merchant in trusted and amount < 20", "allow"),
    ("card_amount_sum_1h + amount > 3 * card_amount_mean_30d and card_merchant_seen == 0 and score > 0.995", "review"),
)  # fmt: skip
_RULES, _ENTRIES = 20, 10_000
_REPEATS = {2: 5000, 4096: 100}


def _text() -> str:
    rules = (_CONDITIONS[i % len(_CONDITIONS)] for i in range(_RULES))
    tables = [f"[[rule]]\nname = 'r{i}'\nwhen = '{when}'\naction = '{action}'\nreason = 'because'\n"
              for i, (when, action) in enumerate(rules)]  # fmt: skip
    return "[lists]\nstolen = 'card'\ntrusted = 'merchant'\n" + "".join(tables)


def _microseconds(policy: Policy, holder: RulesHolder, catalogue: Catalogue, n: int) -> float:
    """Of one cycle of ``n`` transactions."""
    rng = np.random.default_rng(1)
    x = rng.lognormal(3.0, 1.0, (n, len(catalogue.features)))
    x[:, catalogue.names.index("card_merchant_seen")] = 0.0
    ids, times = rng.integers(0, 1 << 60, (2, n)), np.full(n, 1_700_000_000_000)
    event_id, books = Texts.of([str(number) for number in ids[0].tolist()]), RuleBooks("transactions")
    batch = SimpleNamespace(time=times, category_hash=np.zeros((n, 0), np.int64), event_id=event_id)
    part: Any = SimpleNamespace(batch=batch, hashes=list(ids), records=[None] * n, labels=(), partition=0)
    score, repeat = rng.random(n), np.zeros(n, np.int8)
    books.resume(0, ())
    found = []
    for _ in range(_REPEATS[n]):
        decided = Decided(score, score, np.zeros(n, np.int8), np.zeros(n), np.zeros(n, np.int8))
        start = time.thread_time_ns()
        policy._apply(holder.current, Seen([part], x), decided)
        books.count([part], decided, repeat, [{}])
        _ = books.changed(0), books.standing()
        found.append((time.thread_time_ns() - start) / 1000)
    return round(statistics.median(found), 1)


def main() -> None:
    """Measure and print."""
    catalogue = build_catalogue(load_schema().transactions)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rules.toml"
        file.write_text(_text())
        holder = RulesHolder(file, catalogue, Metrics())
    ids = np.random.default_rng(2).integers(0, 1 << 60, _ENTRIES).tolist()
    asyncio.run(holder.use_lists({"stolen": dict.fromkeys(ids, NEVER)}))
    policy = Policy(WorkerSettings(), catalogue.schema, holder)
    print(json.dumps({f"us_per_cycle_of_{n}": _microseconds(policy, holder, catalogue, n) for n in _REPEATS}))


if __name__ == "__main__":
    main()
