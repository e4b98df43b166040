"""The backtest of recommendations: its lists are those of a live worker, and its figures are counted by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from features.partitioner import partition_of
from features.recommender import Recommender
from features.schema import load_schema
from stream.ab_settings import AbSettings
from stream.backtest_recommend import Answered, asked_of, replay_clicks, report_of, write_lists
from stream.cli import app
from stream.lane import Tally
from stream.recommend import RecommendLane
from stream.sessions import SESSION_ITEMS, Session, decode_session, encode_session
from stream.settings import Settings
from tests.fakes import World
from tests.sessions import checkerboard, clicks, fitted
from tests.test_lane import Sent
from trainer.clicks import grouped
from trainer.ranking import Asked, accuracy, breadth, by_length
from trainer.recommender import evaluate

SCHEMA = load_schema()
WEEK_MS = 7 * 86_400_000


@pytest.fixture(scope="module")
def model() -> Recommender:
    return fitted(checkerboard(sessions=300))


def interleaved() -> pa.Table:
    """Clicks of other sessions than those of the training, four sessions at a time, one of them long."""
    table = checkerboard(sessions=30, seed=9)
    bot = clicks([[f"g{n % 4}-{n % 5}" for n in range(60)]])
    bot = bot.set_column(2, "session_id", pa.array(["bot"] * bot.num_rows))
    bot = bot.set_column(0, "event_id", pa.array([f"b{place}" for place in range(bot.num_rows)]))
    table = pa.concat_tables([table, bot])
    rng = np.random.default_rng(3)
    return table.take(pa.array(np.argsort(np.arange(table.num_rows) + rng.uniform(0, 12, table.num_rows))))


def test_the_lists_of_the_backtest_are_those_that_a_worker_publishes(model: Recommender) -> None:
    """Cycles, state in a store that reads back what was written, and a crash in between change no list."""
    table = interleaved()
    answered = replay_clicks(Settings(), SCHEMA, model, table, 20)
    rows, world = table.to_pylist(), World()
    world.recommender = model
    for row in rows:
        body = {name: row[name] for name in ("event_id", "event_time", "session_id", "item_id")}
        world.log.append("clicks", row["session_id"], body)

    async def run() -> None:
        for cache, counts in ((1, 7), (1000, 50)):
            worker = world.worker(cache=cache, in_flight=3)
            await worker.take_over()
            for _ in range(len(rows) // 2 // counts):
                await worker.fetch(counts)
            if cache > 1:
                await worker.finish(counts)

    asyncio.run(run())
    world_lists: dict[str, list[str]] = {}
    for answer in world.answers("recommendations"):
        world_lists[answer["event_id"]] = [item["item_id"] for item in answer["items"]]
    assert len(world_lists) == len(rows)
    assert [world_lists[row["event_id"]] for row in rows] == answered.lists


def test_an_experiment_in_the_settings_changes_no_list_of_the_backtest(model: Recommender) -> None:
    """One model is trained, so every click is answered as for A."""
    table, ab = checkerboard(sessions=20, seed=4), AbSettings(share=0.5, ranker=False, recommendations_k=2)
    plain, tried = (replay_clicks(replace(Settings(), ab=some), SCHEMA, model, table, 5) for some in (AbSettings(), ab))
    assert tried.lists == plain.lists and all(found is not None and len(found) == 5 for found in tried.lists)


def test_figures_of_the_backtest_are_those_of_the_model_asked_directly(model: Recommender) -> None:
    table = checkerboard(sessions=60, seed=4)
    answered = replay_clicks(Settings(), SCHEMA, model, table, 5)
    found = accuracy(asked_of(table, answered, model, 5))
    assert found["queries"] == table.num_rows - len(set(table["session_id"].to_pylist()))
    assert {name: found[name] for name in ("hr", "mrr", "queries")} == pytest.approx(evaluate(model, grouped(table), 5))


def test_accuracy_counted_by_hand() -> None:
    asked = Asked(
        items=np.array([[7, 1, 2], [7, 1, 2], [7, 1, -1], [7, 1, 2]]),
        target=np.array([7, 2, 9, -1]),
        position=np.array([1, 2, 2, 11]),
        cold=np.array([True, False, False, False]),
    )
    found = accuracy(asked)
    assert found == {"hr": 0.5, "mrr": (1 + 1 / 3) / 4, "ndcg": (1 + 0.5) / 4, "queries": 4}
    groups = by_length(asked)
    assert groups["2"]["hr"] == 0.5 and groups["11-20"] == {"hr": 0.0, "mrr": 0.0, "ndcg": 0.0, "queries": 1.0}
    assert groups["21+"] == {"hr": None, "mrr": None, "ndcg": None, "queries": 0.0}
    told = breadth(asked, np.array([0.0, 5, 2, 0, 0, 0, 0, 10, 0, 1]))
    assert told["coverage"] == 3 / 10 and told["cold"] == 0.25 and told["unknown_targets"] == 0.25
    assert told["popularity"] == pytest.approx((4 * 1.0 + 4 * 0.5 + 3 * 0.2) / 11)
    assert told["popularity_of_targets"] == pytest.approx((1.0 + 0.2 + 0.1) / 3)


def test_a_click_counts_in_the_very_next_answer_and_an_unknown_one_is_passed_over(model: Recommender) -> None:
    model = replace(model, ranker="")  # which met no session that changes its group
    table = clicks([["g0-0", "new here", "g1-0"], ["never", "seen"]])
    answered = replay_clicks(Settings(), SCHEMA, model, table, 3)
    first = [lists[0][:2] for lists in answered.lists if lists]
    assert first[:3] == ["g0", "g0", "g1"]
    popular = [model.item_id(number) for number in range(3)]
    assert answered.lists[3:] == [popular, popular]
    asked = asked_of(table, answered, model, 3)
    assert asked.cold.tolist() == [False, False, True] and asked.target.tolist()[0] == -1


def test_ids_of_any_script_pass_from_file_to_list(tmp_path: Path) -> None:
    table = clicks([["ключ", "鍵"], ["鍵", "🗝️"]] * 30)
    trained = fitted(table)
    answered = replay_clicks(Settings(), SCHEMA, trained, table, 2)
    write_lists(tmp_path / "recs.parquet", table, answered)
    rows = pq.read_table(tmp_path / "recs.parquet").to_pylist()
    assert rows[0] == {"session_id": "s00000", "position": 1, "items": answered.lists[0]}
    assert rows[0]["items"][0] == "鍵" and [row["position"] for row in rows[:4]] == [1, 2, 1, 2]


def test_clicks_out_of_order_count_as_they_arrive_and_repeated_ones_once(model: Recommender) -> None:
    lane = RecommendLane(Settings())
    table = clicks([["g0-0", "g1-1", "g2-2"]]).to_pylist()
    sent = [table[2], table[0], table[0], table[1]]
    session, _ = _after(lane, sent, model)
    assert session.count == 3 and len(session.clicks) == 3
    assert [time for _, _, time in session.clicks] == [row["event_time"] for row in (sent[0], sent[1], sent[3])]


def test_a_session_of_ten_thousand_clicks_is_answered_in_bounds_and_marked(model: Recommender) -> None:
    lane = RecommendLane(Settings())
    rows = clicks([[f"g{n % 4}-{n % 5}" for n in range(10_000)]]).to_pylist()
    session, given = _after(lane, rows, model, cycle_clicks=2500)
    assert len(session.clicks) == SESSION_ITEMS and session.count == 10_000
    assert len(encode_session(session)) == 6 + 24 * SESSION_ITEMS
    marks = [answer["long_session"] for answer in given]
    assert marks == [False] * 500 + [True] * 9_500
    assert all(len(answer["items"]) == model.items - 1 for answer in given)  # all but the one now viewed


def _after(lane: RecommendLane, rows: list[dict[str, Any]], model: Recommender, cycle_clicks: int = 100
           ) -> tuple[Session, list[dict[str, Any]]]:  # fmt: skip
    """One session's state after its clicks came in this order, and the answers to them."""
    partition = partition_of(b"s00000", lane.partitions)
    lane.resume(partition, {"clicks": 0})
    models = SimpleNamespace(version="000001", recommender=model)
    value, start = b"", 0
    given: list[dict[str, Any]] = []
    while start < len(rows):
        part = rows[start : start + cycle_clicks]
        records = [
            Sent("clicks", partition, start + i, b"s00000", msgspec.json.encode(
                {name: row[name] for name in ("event_id", "event_time", "session_id", "item_id")}))
            for i, row in enumerate(part)
        ]  # fmt: skip
        work = lane.begin({partition: {"clicks": records}}, {partition: False}, Tally())
        wanted = lane.wanted(work, 1, 0.0)
        lane.fill(work, {p: dict.fromkeys(names, value or None) for p, names in wanted.items()}, 0.0)
        (produced,) = lane.compute(work, models, 1, Tally())
        assert isinstance(produced.fields, Mapping)
        value = produced.fields[b"session:s00000"]
        given.extend(msgspec.json.decode(message) for _, message in produced.messages["recommendations"])
        start += cycle_clicks
    return decode_session(value), given


def test_the_command_trains_replays_and_reports(tmp_path: Path) -> None:
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    for path, table in ((train, checkerboard(sessions=60)), (test, checkerboard(sessions=10, seed=7))):
        columns = {"session_id": table["session_id"], "item_id": table["item_id"], "time_ms": table["event_time"]}
        pq.write_table(pa.table(columns), path)
    schema = Path(__file__).parents[1] / "examples" / "sessions.toml"
    arguments = ["backtest", "recommend", "--train", str(train), "--test", str(test), "--schema", str(schema),
                 "--k", "4", "--out", str(tmp_path / "recs.parquet"), "--report", str(tmp_path / "report")]  # fmt: skip
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    lists = pq.read_table(tmp_path / "recs.parquet")
    assert lists.column_names == ["session_id", "position", "items"]
    assert lists.num_rows == pq.read_table(test).num_rows
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["k"] == 4 and report["accuracy"]["hr"] > 0.9 and report["refused_clicks"] == 0
    assert report["latency_ms"]["p99"] >= report["latency_ms"]["p50"] > 0 and report["training"]["items"] == 20
    assert "| all |" in outcome.output and "HR@4" in outcome.output


def test_a_file_that_cannot_be_read_is_one_line_and_not_a_trace(tmp_path: Path) -> None:
    arguments = ["backtest", "recommend", "--train", "none.txt", "--test", "none.txt", "--out", str(tmp_path / "r")]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 2 and "none.txt" in outcome.output


def test_a_report_without_queries_says_so(model: Recommender) -> None:
    table = clicks([["g0-0"]])
    report = report_of(asked_of(table, Answered([["g0-1"]]), model, 1), Answered([["g0-1"]]), model, table, 1)
    assert report["accuracy"] == {"hr": None, "mrr": None, "ndcg": None, "queries": 0.0}
    assert report["clicks_per_s"] is None
