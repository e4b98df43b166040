"""``headrace backtest recommend``: trains on one file of clicks and answers another, click by click.

In: two history files. Out: the list after every click as Parquet, and how good the lists are. The clicks pass through
the lane of the worker (:mod:`stream.recommend`) as messages of one partition, with state in a mapping where the worker
has Redis: what is recorded is what a worker would publish.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import HistoryError
from features.messages import Recommendation
from features.recommender import Recommender
from features.schema import Schema
from features.warm import warm
from stream.ab_settings import AbSettings
from stream.lane import Tally
from stream.models import Served
from stream.progress import progress_bar, stage_bars
from stream.recommend import RecommendLane
from stream.settings import Settings
from stream.timeline import Message, build_timeline
from trainer.clicks import places
from trainer.files import check_name
from trainer.history import read_clicks
from trainer.ranker import RankerSettings
from trainer.ranking import Asked, accuracy, breadth, by_length
from trainer.recommender import RecommenderSettings, fit_recommender

_CYCLE, _ALONE = 256, 16  # clicks of a cycle, and how many of each cycle's share are answered alone and timed
_NONE = -1


@dataclass(frozen=True, slots=True)
class _Click:
    """A record as the lane takes it."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int


@dataclass(slots=True)
class Answered:
    """Lists by click, in the order of the file: ``lists[i]`` best first, None where the click was refused.

    ``alone_s`` are the times of cycles of one click, ``cycle_clicks`` and ``cycle_s`` those of full cycles.
    """

    lists: list[list[str] | None]
    alone_s: list[float] = field(default_factory=list)
    cycle_clicks: int = 0
    cycle_s: float = 0.0

    @property
    def latency_ms(self) -> dict[str, float | None]:
        """Quantiles of the time from a click to its encoded answer, one click at a time, in ms."""
        if not self.alone_s:
            return {"p50": None, "p90": None, "p99": None}
        p50, p90, p99 = np.percentile(self.alone_s, [50, 90, 99]) * 1000
        return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}

    @property
    def clicks_per_s(self) -> float | None:
        """Answered clicks a second on one thread in cycles of 256."""
        return self.cycle_clicks / self.cycle_s if self.cycle_s else None


class _Replay:
    """The lane of one worker with one partition."""

    def __init__(self, settings: Settings, model: Recommender, k: int) -> None:
        self._settings = replace(
            settings,
            ab=AbSettings(),  # one model is trained: it answers as for A
            topics=replace(settings.topics, click_partitions=1),
            worker=replace(settings.worker, recommendations_k=k, list_ttl_s=0, degrade=False, online_learning=False),
        )
        self._lane = RecommendLane(self._settings)
        self._lane.resume(0, {})
        self._models = Served("backtest", None, model)
        warm()
        self._models.warm()
        self._state: dict[bytes, bytes] = {}
        self._cycle = 0
        self._source = f"{self._lane.topics[0]}:0:"

    def answer(self, messages: list[Message], offset: int) -> dict[int, list[str]]:
        """One cycle: the lists by offset."""
        lane, topics, tally = self._lane, self._settings.topics, Tally()
        self._cycle += 1
        records = [_Click(offset + i, key, value, 0) for i, (key, value) in enumerate(messages)]
        work = lane.begin({0: {topics.clicks: records}}, {0: False}, tally)
        wanted = lane.wanted(work, self._cycle, 0.0)
        lane.fill(work, {p: {name: self._state.get(name) for name in names} for p, names in wanted.items()}, 0.0)
        found: dict[int, list[str]] = {}
        for produced in lane.compute(work, self._models, self._cycle, tally):
            fields = produced.fields
            self._state.update(fields.result() if isinstance(fields, Future) else fields)
            for _, value in produced.messages.get(topics.recommendations, ()):
                message = msgspec.json.decode(value, type=Recommendation)
                place = int(message.recommendation_id.removeprefix(self._source))
                found[place] = [item.item_id for item in message.items]
        lane.evict(self._cycle)
        return found


def _cycles(total: int) -> Iterator[tuple[int, int]]:
    """Ranges of clicks: a few alone, then the rest of a full cycle, and so on."""
    start = 0
    while start < total:
        for _ in range(min(_ALONE, total - start)):
            yield start, start + 1
            start += 1
        end = min(start + _CYCLE, total)
        if end > start:
            yield start, end
        start = end


def replay_clicks(settings: Settings, schema: Schema, model: Recommender, clicks: pa.Table, k: int,
                  progress: Callable[[int], None] | None = None) -> Answered:  # fmt: skip
    """Answer every click of a canonical table as one worker with one partition would.

    Times out of ``ahead_max_s`` of their record are not refused, since a file's records have no time of their own.
    """
    (feed,) = build_timeline(schema, settings.topics, clicks=clicks).feeds
    lane = _Replay(replace(settings, worker=replace(settings.worker, ahead_max_s=_FOREVER_S)), model, k)
    answered = Answered([None] * clicks.num_rows)
    for start, end in _cycles(clicks.num_rows):
        messages = feed.messages(start, end)
        began = time.perf_counter()
        found = lane.answer(messages, start)
        took = time.perf_counter() - began
        if end - start == 1:
            answered.alone_s.append(took)
        else:
            answered.cycle_clicks += end - start
            answered.cycle_s += took
        for place, items in found.items():
            answered.lists[place] = items
        if progress is not None:
            progress(end)
    return answered


_FOREVER_S = 86_400.0 * 36_500


def _coded(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    column = table[name].combine_chunks().dictionary_encode()
    return np.asarray(column.indices.to_numpy(zero_copy_only=False), np.int64)


def _positions(clicks: pa.Table) -> tuple[Any, Any, Any]:
    """By click its position in its session from 1, the row of the session's next click or -1, and the session."""
    session = _coded(clicks, "session_id")
    order = np.argsort(session, kind="stable")
    position, following = np.empty(len(session), np.int64), np.full(len(session), _NONE, np.int64)
    position[order] = places(session[order]) + 1
    same = np.flatnonzero(session[order][1:] == session[order][:-1])
    following[order[same]] = order[same + 1]
    return position, following, session


def asked_of(clicks: pa.Table, answered: Answered, model: Recommender, k: int) -> Asked:
    """The queries among the clicks: every one but a session's last that was answered."""
    position, following, session = _positions(clicks)
    item = model.numbers(clicks["item_id"].to_pylist())
    known = {model.item_id(number): number for number in range(model.items)}
    rows = np.array([row for row in np.flatnonzero(following >= 0) if answered.lists[row] is not None], np.int64)
    items = np.full((len(rows), k), _NONE, np.int64)
    for i, row in enumerate(rows.tolist()):
        numbers = [known[id_] for id_ in answered.lists[row] or ()]
        items[i, : len(numbers)] = numbers
    first_known = np.full(int(session.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first_known, session[item >= 0], position[item >= 0])
    return Asked(items, item[following[rows]], position[rows], first_known[session[rows]] > position[rows])


def report_of(asked: Asked, answered: Answered, model: Recommender, train: pa.Table, k: int) -> dict[str, Any]:
    """Every figure of a backtest."""
    counts = np.bincount(model.numbers(train["item_id"].to_pylist()), minlength=model.items).astype(np.float64)
    return {
        "k": k,
        "accuracy": accuracy(asked),
        "breadth": breadth(asked, counts),
        "by_clicks_so_far": by_length(asked),
        "answered_clicks": sum(found is not None for found in answered.lists),
        "refused_clicks": sum(found is None for found in answered.lists),
        "latency_ms": answered.latency_ms,
        "clicks_per_s": answered.clicks_per_s,
    }


def write_lists(path: Path, clicks: pa.Table, answered: Answered) -> None:
    """One row per click in the order of the file: session_id, position (from 1), items (best first)."""
    position, _, _ = _positions(clicks)
    table = pa.table({
        "session_id": clicks["session_id"],
        "position": pa.array(position),
        "items": pa.array(answered.lists, pa.list_(pa.string())),
    })  # fmt: skip
    pq.write_table(table, path)


def _lines(report: dict[str, Any]) -> list[str]:
    """The report for people, as Markdown."""
    k, figures = report["k"], report["accuracy"]

    def percent(value: float | None) -> str:
        return "unknown" if value is None else f"{100 * value:.2f}"

    lines = [f"| clicks so far | queries | HR@{k} % | MRR@{k} % | NDCG@{k} % |", "|---|---|---|---|---|"]
    for name, found in {"all": figures, **report["by_clicks_so_far"]}.items():
        cells = " | ".join(percent(found[figure]) for figure in ("hr", "mrr", "ndcg"))
        lines.append(f"| {name} | {found['queries']:,.0f} | {cells} |")
    lines.append("")
    lines += [f"- {name.replace('_', ' ')}: {percent(value)} %" for name, value in report["breadth"].items()]
    told = ", ".join(f"{name} {value:.2f}" for name, value in report["latency_ms"].items() if value is not None)
    lines.append(f"- answer to one click: {told or 'unknown'} ms")
    if report["clicks_per_s"] is not None:
        lines.append(f"- answered in cycles of {_CYCLE} on one thread: {report['clicks_per_s']:,.0f} clicks/s")
    lines.append(f"- training: {report['training_s']:.1f} s for {report['training']['clicks']:,} clicks")
    return lines


def run(settings: Settings, schema: Schema, train: Path, test: Path, k: int, out: Path, report: Path | None) -> None:
    """The command: train, replay, write, print.

    Raises
    ------
    HistoryError
        If a file cannot be read, or the lists cannot be written.
    TrainingError
        If there is too little to train on.
    """
    check_name(out)
    past, clicks = read_clicks(train, schema.clicks), read_clicks(test, schema.clicks)
    began = time.perf_counter()
    # One core is left to others, as in `headrace train`.
    ranker = RankerSettings(seed=settings.trainer.seed, queries_max=settings.trainer.ranker_queries,
                            threads=max(1, (os.cpu_count() or 1) - 1))  # fmt: skip
    with stage_bars() as advance:
        fitted = fit_recommender(
            past,
            RecommenderSettings(ranker=ranker),
            lambda done, total: advance("training", done, total),
        )
    training_s = time.perf_counter() - began
    with progress_bar("answering", clicks.num_rows) as answering:
        answered = replay_clicks(settings, schema, fitted.model, clicks, k, answering)
    found = report_of(asked_of(clicks, answered, fitted.model, k), answered, fitted.model, past, k)
    found |= {"training": fitted.training, "training_s": training_s, "seed": settings.trainer.seed}
    lines = _lines(found)
    try:
        write_lists(out, clicks, answered)
        if report is not None:
            report.mkdir(parents=True, exist_ok=True)
            (report / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            (report / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise HistoryError(f"{out}: the lists or their report cannot be written: {error}") from None
    print("\n".join(lines))
