"""The naive oracle: every windowed feature from the plain list of what happened, with no tiles and no compiler."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import takewhile
from typing import Any


def exact(time: int, window: int, newest: int) -> tuple[int, int]:
    return time - window, time  # the window as it is promised


def tiles(time: int, window: int, newest: int) -> tuple[int, int]:
    hop = -(-window // 12)  # the window as the kernel cuts it
    return max(time // hop - 12, newest // hop - 15) * hop, (time // hop + 1) * hop - 1


def statistics(past: list[float], value: float) -> dict[str, float]:
    known = [v for v in past if not math.isnan(v)]
    if not known:
        return {"sum": 0.0}
    mean = math.fsum(known) / len(known)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / len(known))
    ratio, zscore = value / mean if mean else math.nan, (value - mean) / std if std else math.nan
    return {"sum": math.fsum(known), "mean": mean, "max": max(known), "std": std, "ratio": ratio, "zscore": zscore}


def keep(kept: list[Any], moves: Any) -> list[Any]:
    """Eight labels (time, fraud, level) after the ``moves``, from the second-newest good one on, first of a run too."""
    for time, labels, frauds, level in moves:
        entry = (time, abs(frauds), level if frauds else 0)
        if labels > 0:
            if len(kept) == 8 and entry > kept[0]:
                newest_good = max((i for i, label in enumerate(kept) if not label[1]), default=-1)
                gone = {-1: 1, 0: 2}.get(newest_good, 0)
                kept = kept[:gone] + kept[gone + 1 :]
            kept = sorted([*kept, entry])[-8:]
            goods = [i for i, label in enumerate(kept) if not label[1]]
            kept = kept[goods[-2] :] if len(goods) > 1 else kept
        elif entry in kept:
            kept = [*kept[: kept.index(entry)], *kept[kept.index(entry) + 1 :]]
    return kept


def run(name: str, key: str, kept: list[Any], time: int, expiry: int) -> dict[Any, float]:
    alive = [label for label in kept if label[0] >= time - expiry]
    frauds = list(takewhile(lambda label: label[1], reversed(alive)))
    out: dict[Any, float] = {(name, "fraud_run"): len(frauds)}
    if frauds:
        out[name, "since_fraud_run"] = max(time - frauds[-1][0], 0) / 1000
        levels = [level for _, _, level in frauds if level]
        out |= {(name, key, "fraud_run_ratio"): (min(levels) - 1) / 32} if levels else {}
    if len(frauds) < len(alive):
        out[name, "since_good_label"] = max(time - alive[-1 - len(frauds)][0], 0) / 1000
    return out


class Oracle:
    def __init__(self, schema: Any, span: Any = exact) -> None:
        self.schema, self.span = schema, span
        self.past: Any = defaultdict(lambda: ([], [], []))  # (entity, id): (time, values), (time, labels, frauds), kept

    def step(self, op: Any, *, fold: bool = True, moves: Any = ()) -> dict[Any, float]:
        """Features as of just before ``op``; then it is folded, or the ``moves`` (time, labels, frauds, level)."""
        out: dict[Any, float] = {}
        for entity, id_ in zip(self.schema.entities, op.ids, strict=True):
            events, labels, kept = self.past[entity.name, id_]
            expiry = 2 * max(entity.windows_ms + entity.label_windows_ms)
            newest = max((record[0] for record in events + labels), default=op.time)
            if op.time - newest > expiry:  # long unseen: starts anew
                events, labels, kept = [], [], []
            out |= self.windows(entity, events, labels, op)
            out |= run(entity.name, self.schema.key.name, kept, op.time, expiry)
            if moves or fold:
                self.past[entity.name, id_] = events, labels, keep(kept, moves)
            labels += moves
            events += [(op.time, op.values)] if fold else []
        return out

    def windows(self, entity: Any, events: Any, labels: Any, op: Any) -> dict[Any, float]:
        name, times = entity.name, [record[0] for record in events]
        out: dict[Any, float] = {}
        for w in entity.windows_ms:
            low, high = self.span(op.time, w, max(times, default=0))
            inside = [values for time, values in events if low <= time <= high]
            out[name, "count", w] = len(inside)
            for f, numeric in enumerate(self.schema.numeric if op.values else ()):
                for statistic, value in statistics([values[f] for values in inside], op.values[f]).items():
                    out[name, numeric.name, statistic, w] = value
        if times:
            out[name, "since_last"] = max(op.time - max(times), 0) / 1000
            out[name, "since_first"] = max(op.time - min(times), 0) / 1000
        for w in entity.label_windows_ms:
            low, high = self.span(op.time, w, max((record[0] for record in labels), default=0))
            judged, frauds = (sum(record[i] for record in labels if low <= record[0] <= high) for i in (1, 2))
            out |= {(name, "fraud_count", w): frauds} | ({(name, "fraud_rate", w): frauds / judged} if judged else {})
        return out
