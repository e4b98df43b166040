"""The regression guard: ratios of a run beside those of the committed baseline.

In: summaries. Out: lines that say what changed. Only ratios are compared, since absolute figures belong to a machine,
and nothing fails: a person reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.15  # of a ratio of medians on a shared machine


def baseline() -> dict[str, float | None]:
    """The committed summary; empty where there is none."""
    if not BASELINE.exists():
        return {}
    return dict(json.loads(BASELINE.read_text(encoding="utf-8"))["summary"])


def compare(now: Mapping[str, float | None], before: Mapping[str, float | None]) -> list[str]:
    """One line for each ratio that moved by more than the tolerance.

    >>> compare({"ratio_vs_usual_way": 20.0, "ready_s": 9.0}, {"ratio_vs_usual_way": 30.0, "ready_s": 2.0})
    ['ratio_vs_usual_way fell by 33% against the baseline: 30 -> 20']
    """
    lines = []
    for name in sorted(now):
        new, old = now[name], before.get(name)
        if "ratio" not in name or new is None or not old:
            continue
        change = new / old - 1
        if abs(change) > TOLERANCE:
            verb = "rose" if change > 0 else "fell"
            lines.append(f"{name} {verb} by {abs(change):.0%} against the baseline: {old:g} -> {new:g}")
    return lines
