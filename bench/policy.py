"""Row 10: what rules and an alert budget cost, in CPU time of the fraud lane, both ways alternating in one run.

In: the stage's transactions, models and state. Out: CPU microseconds of an event, decoding to answers and new state,
with the defaults (0.5 % alerts) and with 20 rules and the budget's controller (0.7 %). No broker and no Redis: what
they cost is the same in both, and would only make the difference look smaller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bench.stage import Load, Stage, median
from features.catalogue import Catalogue, build_catalogue
from features.hashing import hash_strings
from features.messages import Decision
from stream.fraud import FraudLane
from stream.lane import Records, Tally
from stream.metrics import Metrics
from stream.models import Served, load_served
from stream.rules import RulesHolder
from stream.settings import Settings, TopicSettings, WorkerSettings
from trainer import artifacts

ALERT_SHARE = 0.005
RULES = 20
_CYCLE = 4096
_LISTED = 1000
_AHEAD_S = 86_400.0 * 365 * 30
_DAY_MS = 86_400_000


class _Record(NamedTuple):
    offset: int
    key: bytes
    value: bytes
    timestamp: int


def rules_text(catalogue: Catalogue, amount: float) -> str:
    """Twenty rules as a team writes them: comparisons, arithmetic, lists; few hit, and the last half only watches.

    ``amount`` is one that few transactions reach.
    """
    numeric = catalogue.schema.numeric[0].name
    key, other = (entity.name for entity in catalogue.schema.entities[:2])
    counts = [name for name in catalogue.names if name.startswith(f"{key}_count_")]
    means = [name for name in catalogue.names if name.startswith(f"{key}_{numeric}_mean_")]
    conditions = [
        f"{key} in listed_keys",
        f"{other} in listed_others and {numeric} > 10",
        *(f"{name} >= {20 * (n + 1)} and {numeric} > {amount:.2f}" for n, name in enumerate(counts)),
        *(f"not missing({name}) and {numeric} > 10 * {name} + {amount:.2f}" for name in means),
    ]
    conditions += [
        f"{numeric} > {amount * (1 + n / 10):.2f} and (event_hour < {n % 6} or score > 0.{n + 1:02d})"
        for n in range(RULES - len(conditions))
    ]
    lines = [f'[lists]\nlisted_keys = "{key}"\nlisted_others = "{other}"']
    for n, condition in enumerate(conditions):
        kind = f'action = "review"\nshadow = {"true" if n >= RULES // 2 else "false"}'
        lines.append(f'[[rule]]\nname = "rule-{n}"\nwhen = "{condition}"\nreason = "rule {n}"\n{kind}')
    return "\n\n".join(lines) + "\n"


def _fetches(load: Load, partitions: int, size: int, topic: str, now_ms: int) -> list[dict[int, Records]]:
    offsets = [0] * partitions
    found: list[dict[int, Records]] = []
    for at in range(0, len(load), size):
        by_partition: dict[int, list[_Record]] = {}
        for i in range(at, min(at + size, len(load))):
            p = load.partitions[i]
            by_partition.setdefault(p, []).append(_Record(offsets[p], load.keys[i], load.values[i], now_ms))
            offsets[p] += 1
        found.append({p: {topic: records} for p, records in by_partition.items()})
    return found


class _Run:
    """A fraud lane over the load, begun with the state of the history."""

    def __init__(self, play: Stage, served: Served, settings: Settings, rules: RulesHolder | None = None) -> None:
        self.lane = FraudLane(settings, build_catalogue(play.schema.transactions), None, rules)
        self._states = dict(play.history_states())
        self._served = served
        self.alerts = self.events = 0
        for partition in range(play.partitions):
            self.lane.resume(partition, dict.fromkeys(self.lane.topics, 0))

    def cycles(self, fetches: Sequence[dict[int, Records]]) -> Iterator[list[Any]]:
        """Run a cycle of each fetch."""
        lane = self.lane
        for cycle, fetched in enumerate(fetches, 1):
            tally = Tally()
            lane.evict(cycle - 1)
            work = lane.begin(fetched, dict.fromkeys(fetched, False), tally)
            wanted = lane.wanted(work, cycle, 0.0)
            held = {p: {f: self._states.get(p, {}).get(f) for f in fields} for p, fields in wanted.items()}
            lane.fill(work, held, 0.0)
            produced = lane.compute(work, self._served, cycle, tally)
            self.alerts += tally.alerts
            self.events += sum(tally.actions.values())
            yield produced

    def cpu_us(self, fetches: Sequence[dict[int, Records]]) -> float:
        """CPU microseconds of an event, all threads together."""
        start = time.process_time()
        for produced in self.cycles(fetches):
            for part in produced:
                _ = part.fields.result() if hasattr(part.fields, "result") else part.fields
        return (time.process_time() - start) / max(self.events, 1) * 1e6


def _scores(run: _Run, fetches: Sequence[dict[int, Records]]) -> list[float]:
    decode = msgspec.json.Decoder(Decision).decode
    topic = run.lane.outputs[0]
    return [decode(value).score for produced in run.cycles(fetches) for part in produced
            for _, value in part.messages.get(topic, ())]  # fmt: skip


def measure(play: Stage, rounds: int, say: Callable[[str], object], *, events: int = 100_000) -> dict[str, Any]:
    """Medians of alternating rounds, and their ratio: 0.9 says that rules and budget cost a tenth of the throughput."""
    load = Load(play.load.keys[:events], play.load.values[:events], play.load.partitions[:events])
    catalogue = build_catalogue(play.schema.transactions)
    topics = TopicSettings(transaction_partitions=play.partitions, click_partitions=play.partitions)
    served = load_served(play.artifacts, artifacts.current_version(play.artifacts) or "", play.schema.hash,
                         catalogue.names)  # fmt: skip
    now_ms = int(time.time() * 1000)
    fetches = _fetches(load, play.partitions, _CYCLE, topics.transactions, now_ms)

    def settings(**worker: Any) -> Settings:
        return Settings(topics=topics, worker=WorkerSettings(ahead_max_s=_AHEAD_S, **worker))

    scores = _scores(_Run(play, served, settings(review_score=1.0, block_score=1.0)), fetches)
    review = float(np.quantile(scores, 1.0 - ALERT_SHARE))
    file = play.directory / "rules.toml"
    amounts = play.history[catalogue.schema.numeric[0].name].to_numpy()
    file.write_text(rules_text(catalogue, float(np.quantile(amounts, 0.9999))), encoding="utf-8")
    days = _days(play, len(load))
    plain = settings(review_score=review, block_score=1.0)
    ruled = settings(cases_per_day=max(1, round(ALERT_SHARE * len(load) / days)), rules=file)
    found: dict[str, list[_Run]] = {"defaults": [], "rules_and_budget": []}
    costs: dict[str, list[float]] = {name: [] for name in found}
    for n in range(rounds + 1):
        for name, how in (("defaults", plain), ("rules_and_budget", ruled)):
            run = _Run(play, served, how, _holder(file, catalogue) if name != "defaults" else None)
            cost = run.cpu_us(fetches)
            if n:  # the first round compiles
                found[name].append(run)
                costs[name].append(cost)
                say(f"round {n}  {name:18s} {cost:6.2f} us of CPU an event, {run.alerts / run.events:.2%} alerts")
    rows = {name: {"cpu_us_per_event": median(mine), "rounds": [round(cost, 2) for cost in mine],
                   "alert_share": round(found[name][-1].alerts / found[name][-1].events, 5)}
            for name, mine in costs.items()}  # fmt: skip
    ratio = median([one / other for one, other in zip(costs["defaults"], costs["rules_and_budget"], strict=True)])
    return {**rows, "ratio": ratio}


def _holder(file: Path, catalogue: Catalogue) -> RulesHolder:
    holder = RulesHolder(file, catalogue, Metrics())
    never = {int(h): 1 << 62 for h in hash_strings([f"listed-{n}" for n in range(_LISTED)]).view(np.int64)}
    asyncio.run(holder.use_lists({"listed_keys": never, "listed_others": never}))
    return holder


def _days(play: Stage, events: int) -> float:
    """Days of event time that so many transactions of the load take."""
    name = play.schema.transactions.time
    times = [msgspec.json.decode(play.load.values[i])[name] for i in (0, events - 1)]
    return max(float(times[1] - times[0]) / _DAY_MS, 0.01)
