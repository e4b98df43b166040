"""The benchmark's arithmetic: latencies by place, summaries with what is missing, and a guard that only speaks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import guard
from bench.__main__ import SUMMARY, summarize
from bench.load import latencies_ms
from bench.policy import rules_text
from bench.together import share
from features.catalogue import build_catalogue
from features.rules import Rules
from features.schema import load_schema


def _sent(file: Path, due_ms: list[float], partitions: list[int]) -> Path:
    np.savez(file, due_ms=np.array(due_ms), partition=np.array(partitions))
    return file


def test_the_kth_answer_of_a_partition_belongs_to_its_kth_message(tmp_path: Path) -> None:
    sent = _sent(tmp_path / "sent.npz", [1000.0, 2000.0, 3000.25, 4000.0], [0, 1, 0, 1])
    # To the end of the millisecond in which the broker appended it.
    assert latencies_ms(sent, {0: [2750, 3500], 1: [2500, 4125]}).tolist() == [1751.0, 501.0, 500.75, 126.0]


def test_a_lost_answer_is_no_measurement(tmp_path: Path) -> None:
    sent = _sent(tmp_path / "sent.npz", [1000.0, 2000.0], [0, 0])
    with pytest.raises(RuntimeError, match="partition 0: 2 messages have 1 answers"):
        latencies_ms(sent, {0: [1500]})


def test_a_summary_names_every_figure_and_none_that_was_not_measured() -> None:
    rates = {"headrace": 60.0, "faust_empty": 15.0, "usual_way": 2.0}
    found = summarize({"throughput": {name: {"events_per_s": rate} for name, rate in rates.items()}})
    assert set(found) == set(SUMMARY)
    assert {name: value for name, value in found.items() if value is not None} == {
        "ratio_vs_faust_empty": 4.0,
        "ratio_vs_usual_way": 30.0,
        "events_per_s": 60.0,
    }


def test_a_worker_holds_what_the_newest_line_of_its_log_says_and_no_labels() -> None:
    first = "INFO reading t-1-clicks-0@0, t-1-labels-0@0, t-1-labels-1@0, t-1-0@0, t-1-1@7"
    log = ["INFO metrics on http://127.0.0.1:1/metrics", first, "INFO reading t-1-clicks-0@0, t-1-0@0"]
    assert [share(log[:n], "t-1") for n in (1, 2, 3)] == [0, 2, 1]


def test_the_guard_tells_ratios_that_moved_and_nothing_else() -> None:
    before = {"ratio_vs_usual_way": 30.0, "ratio_vs_passthrough": 0.1, "ready_s": 2.0}
    now = {"ratio_vs_usual_way": 20.0, "ratio_vs_passthrough": 0.105, "ready_s": 9.0, "ratio_new": 1.0}
    assert guard.compare(now, before) == ["ratio_vs_usual_way fell by 33% against the baseline: 30 -> 20"]
    assert guard.compare({"ratio_vs_usual_way": None}, before) == []


def test_the_committed_baseline_holds_every_figure() -> None:
    held = json.loads(guard.BASELINE.read_text(encoding="utf-8"))["summary"]
    assert set(held) == set(SUMMARY)


def test_the_rules_of_the_benchmark_are_twenty_that_a_worker_would_take() -> None:
    for files in ((), (guard.BASELINE.parents[1] / "examples" / "handbook.toml",)):
        catalogue = build_catalogue(load_schema(files).transactions)
        rules = Rules.parse(rules_text(catalogue, 500.0), catalogue)
        assert len(rules) == 20 and rules.shadow.sum() == 10
        assert set(rules.lists) == {"listed_keys", "listed_others"}
