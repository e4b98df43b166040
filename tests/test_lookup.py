"""``headrace recommend`` and ``headrace similar``: what people see of lists, and the way out where there is none."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from features.recommender import Recommender
from features.schema import load_schema
from features.similar import similar
from stream.cli import app
from stream.connections import redis_client
from stream.embedded import RedisServer, free_port
from stream.lists import ListWriter
from stream.metrics import Metrics
from stream.settings import KafkaSettings, RedisSettings, Settings, TopicSettings
from stream.topics import create_topics
from tests.servers import RunningBroker, fresh_name
from tests.sessions import answers, checkerboard, clicks, fitted
from tests.test_items import send_items
from tests.test_lists import message
from trainer.artifacts import Draft, publish


@pytest.fixture(scope="module")
def model() -> Recommender:
    return fitted(checkerboard(sessions=60))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Recommender) -> Path:
    """A folder with a published recommender, and titles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HEADRACE_KAFKA_BOOTSTRAP", f"127.0.0.1:{free_port()}")  # nobody listens
    asked = np.zeros((1, 20), np.uint64), np.zeros(1, np.int64)
    publish(tmp_path / "models", Draft(load_schema().hash, recommender=model, sessions=asked), created_ms=1)
    ids = [model.item_id(n) for n in range(model.items)]
    pq.write_table(pa.table({"item_id": ids, "title": [f"Title of {id_}" for id_ in ids]}), tmp_path / "titles.parquet")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_what_comes_after_some_items_is_what_the_published_model_serves(folder: Path, model: Recommender) -> None:
    asked = ["recommend", "--items", "g0-0,g1-1", "--artifacts", "models", "--k", "3"]
    shown = run(*asked, "--titles", "titles.parquet")
    assert shown.exit_code == 0, shown.output
    expected = answers(model, [["g0-0", "g1-1"]], 3)[0]
    rows = [line.split() for line in shown.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == expected and all(f"Title of {row[1]}" in " ".join(row) for row in rows)
    assert "after Title of g0-0, Title of g1-1, model 000001" in shown.output
    assert "often viewed after" in shown.stdout and "What the items topic says is left out of account" in shown.stderr
    told = json.loads(run(*asked, "--json").stdout)
    assert [item["item_id"] for item in told["items"]] == expected
    assert (told["after"], told["unknown"], told["model_version"]) == (["g0-0", "g1-1"], [], "000001")
    assert len(json.loads(run(*asked[:-2], "--json").stdout)["items"]) == model.items - 1  # as many as are served, 20


def test_items_that_the_model_does_not_know_are_named(folder: Path) -> None:
    shown = run("recommend", "--items", "new,g0-0", "--artifacts", "models")
    assert shown.exit_code == 0 and "the model does not know new; the list is from the others" in shown.output


def test_what_a_worker_would_not_show_is_not_shown_and_titles_come_from_the_items_topic(
    folder: Path, broker: RunningBroker
) -> None:
    prefix = fresh_name("lookup")
    names = [name for name in TopicSettings.__slots__ if isinstance(getattr(TopicSettings(), name), str)]
    named: dict[str, Any] = {name: f"{prefix}-{name}" for name in names}
    (folder / "levers.toml").write_text('[exclude]\nitems = ["g0-2"]\n')
    lines = [f'{name} = "{topic}"' for name, topic in named.items()]
    (folder / "headrace.toml").write_text("\n".join(["[worker]", 'levers = "levers.toml"', "[topics]", *lines]))
    kafka = KafkaSettings(bootstrap=broker.bootstrap)
    asyncio.run(create_topics(kafka, TopicSettings(**named)))
    records = [(f"g0-{n}", {"title": f"Named {n}", "hidden": n == 1}) for n in range(5)]
    asyncio.run(send_items(Settings(kafka=kafka, topics=TopicSettings(**named)), *records))
    asked = ["--artifacts", "models", "--kafka", broker.bootstrap, "--json"]
    told = json.loads(run("recommend", "--items", "g0-0", *asked).stdout)
    assert told["filtered"] and sorted(item["item_id"] for item in told["items"]) == ["g0-3", "g0-4"]
    assert all(item["title"] == f"Named {item['item_id'][-1]}" for item in told["items"])
    assert {item["text"] for item in told["items"]} == {"often viewed after Named 0"}
    alike = json.loads(run("similar", "g0-0", *asked).stdout)["items"]
    assert sorted(item["title"] for item in alike) == [f"Named {n}" for n in range(1, 5)]


def test_similar_items_are_those_of_the_same_sessions(folder: Path) -> None:
    told = json.loads(run("similar", "g2-0", "--artifacts", "models", "--json").stdout)
    assert sorted(item["item_id"] for item in told["items"]) == [f"g2-{n}" for n in range(1, 5)]
    shown = run("similar", "g2-0", "--artifacts", "models", "--k", "2", "--titles", "titles.parquet")
    assert "similar to Title of g2-0" in shown.output and shown.output.count("Title of") == 3


def test_similarity_is_the_share_of_sessions_in_common() -> None:
    model = fitted(clicks([["a", "b"], ["a", "b", "a"], ["a", "c"], ["b", "d"], ["d", "e"]]))
    (number,) = model.numbers(["a"]).tolist()
    items, scores = similar(model, number, 10)
    assert {model.item_id(i): round(float(s), 9) for i, s in zip(items, scores, strict=True)} == {
        "b": round(2 / math.sqrt(3 * 3), 9), "c": round(1 / math.sqrt(3 * 1), 9),
    }  # fmt: skip
    assert len(similar(model, number, 1)[0]) == 1
    alone = fitted(clicks([["only"]]))
    assert len(similar(alone, 0, 5)[0]) == 0


def test_an_item_that_no_model_knows_is_one_line_with_the_nearest_id(folder: Path) -> None:
    refused = run("similar", "g2-00", "--artifacts", "models")
    assert refused.exit_code == 2 and "does not know item 'g2-00' (20 items); did you mean 'g2-0'?" in refused.stderr
    none = run("similar", "g2-0", "--artifacts", "elsewhere")
    assert none.exit_code == 2 and "no model is published in elsewhere; run `headrace train`" in none.stderr


@pytest.mark.parametrize("given", [[], ["--session", "a", "--user", "b"], ["--items", "a", "--session", "b"]])
def test_exactly_one_question_can_be_asked(folder: Path, given: list[str]) -> None:
    refused = run("recommend", *given)
    assert refused.exit_code == 2 and "give one of --session ID, --user ID or --items A,B,C" in refused.stderr


def test_the_list_of_a_session_or_user_is_the_one_that_was_published(
    folder: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RedisSettings(url=redis_server.url, namespace=fresh_name("lookup"))
    monkeypatch.setenv("HEADRACE_REDIS_NAMESPACE", settings.namespace)
    monkeypatch.setenv("HEADRACE_REDIS_URL", settings.url)
    value = message("clicks:0:7", "s\x1b[2J", "g0-0")

    async def write() -> None:
        client = redis_client(settings)
        writer = ListWriter(client, settings, 60, Metrics())
        writer.put({"session:ключ": value, "user:u": value})
        await writer.close()
        await client.aclose()

    asyncio.run(write())
    for name, id_ in (("session", "ключ"), ("user", "u")):
        assert run("recommend", f"--{name}", id_, "--json").output == value.decode() + "\n"
        shown = run("recommend", f"--{name}", id_, "--titles", "titles.parquet").output
        assert f"{name} {id_} after Title of g0-0" in shown and "Title of g0-0" in shown.splitlines()[-1]
    refused = run("recommend", "--session", "gone")
    assert refused.exit_code == 2
    assert f"Redis has no list at '{settings.namespace}:list:session:gone'" in refused.stderr
    assert "worker.list_ttl_s" in refused.stderr


def test_no_id_drives_the_terminal(folder: Path) -> None:
    shown = run("recommend", "--items", "\x1b[2J,g0-0", "--artifacts", "models")
    assert shown.exit_code == 0 and "\x1b[2J" not in shown.output and "\\x1b[2J" in shown.output
