"""``headrace explain`` gives a past decision again to the bit, from the archive alone, and says what it came from."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from features.catalogue import build_catalogue
from features.counterfactual import changes, split_values
from features.errors import ArtifactMissing
from features.rule_program import text_hash
from features.rules import Rules
from features.schema import load_schema
from stream import explain as explaining
from stream.archived import Archive
from stream.embedded import RedisServer
from stream.explain import Explanation, _differences, _find, _model, explain, show
from stream.explain_rules import RulesAgain, rules_again, told
from stream.past_vector import PastVector
from stream.settings import Settings, WorkerSettings
from tests.servers import RunningBroker
from tests.workers import Deployment
from tests.world import World
from trainer.artifacts import load_current

RULES = """
[[rule]]
name = "often"
when = "card_count_30d >= 1 and amount > 20"
action = "review"
reason = "often"
"""


def run(deployment: Deployment, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stream.cli", *words], env=deployment.environment(), timeout=120,
                          capture_output=True, text=True, check=False)  # fmt: skip


@pytest.mark.parametrize("partitions", [1, 2])
def test_any_decision_is_replayed_from_the_archive_and_compared(
    broker: RunningBroker, redis_server: RedisServer, world: World, tmp_path: Path, partitions: int
) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(world.artifacts, artifacts)
    (tmp_path / "rules.toml").write_text(RULES)
    extra = {
        "WORKER_RULES": str(tmp_path / "rules.toml"),
        "ARCHIVE_URL": str(tmp_path / "archive"),
        "WORKER_VECTOR_SAMPLE": "1.0",
        "WORKER_REVIEW_SCORE": "0.05",
    }
    deployment = Deployment(broker, redis_server.url, world.schema, artifacts, tmp_path, partitions, extra=extra)
    deployment.create()
    topics = deployment.topics
    deployment.replay(world.timeline(topics, payments=1200, clicks=0), malformed=0.02)
    worker = deployment.started()
    try:
        deployment.wait_for({topics.decisions: 1200})
        worker.stop()
        assert worker.exit_code() == 0
    finally:
        worker.kill()
    assert run(deployment, "archive", "--once").returncode == 0
    decisions = deployment.decoded(topics.decisions)
    alerts = [d for d in decisions if d["action"] != "allow"]
    late = max(decisions, key=lambda d: (d["label_position"], d["event_time"]))
    assert late["label_position"] > 0 and alerts
    for decision in (late, alerts[-1]):
        done = run(deployment, "explain", decision["event_id"], "--json")
        assert done.returncode in ((0,) if partitions == 1 else (0, 1)), done.stderr
        facts = json.loads(done.stdout)
        assert (
            facts["features"].keys() == decision["values"].keys() and facts["compared"] == len(decision["values"]) + 2
        )
        ours = {name: facts["features"][name] for name in decision["values"]}
        if partitions == 1:
            assert facts["same"] and ours == decision["values"] and facts["score"] == decision["score"]
        cards = {name: value for name, value in ours.items() if name.startswith(("card_", "event_"))}
        assert cards == {name: decision["values"][name] for name in cards}, "the card lies in one partition"
        assert facts["published"]["rules_version"] == decision["rules_version"] == facts["rules"]["version"]
        assert facts["rules"]["same_file"] and facts["rules"]["hit"] == decision["rules"]
        assert facts["rules"]["action"] == decision["action"]
        assert facts["published"]["action"] == decision["action"] and facts["replayed_records"] > 100
    assert_changes_hold(facts, artifacts, world)
    if partitions == 1:
        said = " ".join(run(deployment, "explain", alerts[-1]["decision_id"]).stdout.split())
        hit = ", ".join(alerts[-1]["rules"]) or "none"
        assert any(decision["rules"] for decision in decisions)
        assert "same to the bit" in said and "the same rules hit" in said and f"these hit: {hit}" in said
        assert alerts[-1]["event_id"] in said
        if alerts[-1]["score"] < facts["review_score"]:
            assert "did not make it" in said
        else:
            assert "with one of these alone" in said or "No change of a single feature" in said
        assert_whatif_knows_the_archive(deployment, decisions)
        unknown = run(deployment, "explain", "nowhere")
        assert unknown.returncode == 2 and "no decision about 'nowhere' is in the archive" in unknown.stderr
        shutil.rmtree(artifacts / alerts[-1]["model_version"])
        gone = run(deployment, "explain", alerts[-1]["event_id"])
        assert gone.returncode == 2 and "made this decision and are not in" in gone.stderr


def assert_whatif_knows_the_archive(deployment: Deployment, decisions: list[dict[str, Any]]) -> None:
    """The same archive answers ``headrace whatif``."""
    days = [str(np.datetime64(d["event_time"], "ms").astype("datetime64[D]")) for d in decisions]
    done = run(deployment, "whatif", "--from", min(days), "--to", max(days), "--review-score", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["decided"]["alerts"] == sum(d["action"] != "allow" for d in decisions)
    assert facts["what_if"]["alerts"] == sum(d["score"] >= 0.2 or d["action"] == "block" for d in decisions)
    assert facts["decided"]["frauds"] > 0


def assert_changes_hold(facts: dict[str, Any], artifacts: Path, world: World) -> None:
    """Each change that is told moves the score over the threshold, scored anew."""
    model = load_current(artifacts, world.schema.hash).fraud
    assert model is not None
    names = list(facts["features"])
    level = facts["block_score"] if facts["published"]["action"] == "block" else facts["review_score"]
    for change in facts["would_have_to_differ"]:
        x = np.array([np.nan if v is None else v for v in facts["features"].values()])
        x[names.index(change["feature"])] = change["value"]
        score = round(float(model.score_many(x.reshape(1, -1))[0][0]), 6)
        assert score == change["score"] and score < level


def test_the_nearest_value_that_changes_the_action_is_found_on_the_models_own_splits(world: World) -> None:
    model = load_current(world.artifacts, world.schema.hash).fraud
    assert model is not None
    splits = split_values(model.text)
    assert len(splits) == len(model.features) and any(map(len, splits))
    rng = np.random.default_rng(1)
    x = rng.lognormal(1.0, 2.0, len(splits))
    score = model.probability_many(x.reshape(1, -1))[0]
    for threshold, below in ((score * 0.999999, True), (score * 1.000001, False)):
        for change in changes(splits, x, model.probability_many, threshold, below=below):
            values = splits[change.feature]
            # Nothing between the value and the one that is needed does it.
            low, high = sorted([x[change.feature], change.value])
            between = np.array([v for v in np.concatenate([values, np.nextafter(values, np.inf)]) if low < v < high])
            rows = np.repeat(x[None, :], len(between), axis=0)
            rows[:, change.feature] = between
            scores = model.probability_many(rows) if len(rows) else np.zeros(0)
            assert not (scores < threshold).any() if below else not (scores >= threshold).any()


def test_a_decision_without_a_score_is_not_told_apart_from_the_score_it_never_had() -> None:
    past = PastVector(np.array([1.0]), 1, ("c",), False, np.zeros(0, np.int64))
    published: dict[str, Any] = {"duplicate": False, "score": 0.0, "anomaly": 0.0, "values": [("a", 1.0)]}
    for degraded in ("without_model:failed", "default_action:deadline"):
        assert _differences(published | {"degraded": degraded}, past, 0.3, 0.2, ["a"]) == ([], 1)
    found, compared = _differences(
        published | {"degraded": "without_model:failed", "anomaly": 0.1}, past, 0.3, 0.2, ["a"]
    )
    assert found == ["anomaly: published 0.1, replayed 0.2"] and compared == 2
    for fully in (None, "without_reasons:deadline"):
        assert len(_differences(published | {"degraded": fully}, past, 0.3, 0.2, ["a"])[0]) == 2


def test_a_decision_from_before_any_model_is_said_to_have_none(tmp_path: Path, world: World) -> None:
    published = {"model_version": "none", "degraded": "default_action:missing", "rules": []}
    with pytest.raises(ArtifactMissing, match="no model was published when this decision was made"):
        _model(Settings(artifacts=tmp_path), world.schema, published)


_CATALOGUE = build_catalogue(load_schema().transactions)
_RULES = """
[lists]
stolen = "card"
[[rule]]
name = "large"
when = "amount > 100"
action = "block"
reason = "large"
[[rule]]
name = "trial"
when = "merchant == 'm'"
action = "review"
reason = "trial"
shadow = true
[[rule]]
name = "stolen"
when = "card in stolen"
action = "block"
reason = "stolen"
"""


def asked(folder: Path, text: str, lists: list[str], **published: Any) -> RulesAgain:
    """The rules' file asked about a transaction of 200 at ``m``."""
    file = folder / "rules.toml"
    file.write_text(text)
    x = np.zeros(len(_CATALOGUE.names))
    x[_CATALOGUE.names.index("event_amount")] = 200.0
    facts = {"degraded": None, "duplicate": False, "anomaly": 0.2, "event_time": datetime(2026, 3, 1, tzinfo=UTC),
             "rules": ["large"], "shadow_rules": ["trial"], "action": "block"}  # fmt: skip
    facts["rules_version"] = Rules.parse(_RULES, _CATALOGUE).version
    past = PastVector(x, 1, ("c", "m"), False, np.array([text_hash("c"), text_hash("m")]))
    return rules_again(file, lists, _CATALOGUE, WorkerSettings(), facts | published, past, (0.1, 0.2), (0.5, 0.9))


def test_rules_are_asked_again_and_a_list_that_nobody_says_leaves_out_who_asks_it(tmp_path: Path) -> None:
    again = asked(tmp_path, _RULES, [])
    assert again.same_file and again.differs == [] and again.action is None
    assert (again.hit, again.shadow, again.left_out, again.lists) == (["large"], ["trial"], ["stolen"], ["stolen"])
    (tmp_path / "stolen.txt").write_text("c\n")
    again = asked(tmp_path, _RULES, [f"stolen={tmp_path / 'stolen.txt'}"])
    assert again.hit == ["large", "stolen"] and again.action == "block"
    assert again.differs == ["rules: published large, asked again large, stolen"]
    assert any("with them the action is block" in line for line in told(again))


def test_of_the_file_that_decided_every_other_hit_and_action_is_told(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("")
    lists = [f"stolen={tmp_path / 'none.txt'}"]
    assert asked(tmp_path, _RULES, lists).differs == []
    again = asked(tmp_path, _RULES, lists, rules=[], shadow_rules=["trial", "gone"], action="allow")
    assert again.differs == ["rules: published none, asked again large",
                             "shadow_rules: published trial, gone, asked again trial",
                             "action: published allow, asked again block"]  # fmt: skip
    missing = _RULES.replace("amount > 100", "missing(score) and anomaly > 0.1")
    version = Rules.parse(missing, _CATALOGUE).version
    again = asked(tmp_path, missing, lists, degraded="without_model:failed", rules_version=version)
    assert again.differs == [] and again.hit == ["large"], "rules saw no score then"


def test_another_file_is_said_to_be_another_and_is_no_difference(tmp_path: Path) -> None:
    again = asked(tmp_path, _RULES.replace("> 100", "> 500"), [])
    assert not again.same_file and again.differs == [] and again.hit == []
    assert "NOT the rules that decided" in told(again)[0] and "was made with version" in told(again)[0]
    assert "names no version of rules" in told(asked(tmp_path, _RULES, [], rules_version=None))[0]


_PUBLISHED: dict[str, Any] = {
    "record_partition": 0, "source_offset": 7, "event_id": "a[/]b", "key": "[red]", "score": 0.2, "anomaly": 0.1,
    "event_time": datetime(2026, 1, 1, tzinfo=UTC), "action": "allow", "reasons": [], "model_version": "1",
    "label_position": 0, "duplicate": False, "review_score": 0.5, "rules": [], "shadow_rules": [], "degraded": None,
    "values": None, "record_offset": 7, "rules_version": None,
}  # fmt: skip


def test_the_first_decision_is_found_also_where_its_repeat_has_another_date() -> None:
    rows = {
        "2026-01-01": [_PUBLISHED | {"record_offset": 3}, _PUBLISHED | {"event_id": "c", "record_offset": 2}],
        "2026-01-02": [_PUBLISHED | {"duplicate": True, "source_offset": 9, "record_offset": 9}],
        "2026-01-03": [_PUBLISHED | {"event_id": "d", "duplicate": True, "record_offset": 11}],
    }
    archive = cast(Archive, SimpleNamespace(dates=lambda _: sorted(rows), of_date=lambda kind, topic, date, columns:
                                            pa.Table.from_pylist(rows[date])))  # fmt: skip
    assert _find(Settings(), archive, "a[/]b")["record_offset"] == 3
    assert _find(Settings(), archive, "transactions:0:9")["record_offset"] == 9, "a repeat has a decision of its own"
    assert _find(Settings(), archive, "d")["record_offset"] == 11, "the first one is not in the archive"


def test_what_a_rule_decided_is_not_said_to_follow_from_a_feature(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_current(world.artifacts, world.schema.hash).fraud
    assert model is not None
    past = PastVector(np.full(len(model.features), np.nan), 1, ("c",), False, np.zeros(1, np.int64))
    monkeypatch.setattr(explaining, "Replayer", lambda *_: SimpleNamespace(vector=lambda *_: past))
    monkeypatch.setattr(explaining, "_model", lambda *_: model)
    for action, by_model in (("allow", True), ("review", False), ("block", False)):
        monkeypatch.setattr(explaining, "_find", lambda *_, said=action: _PUBLISHED | {"action": said})
        found = explain(Settings(), world.schema, cast(Archive, None), "a[/]b", None)
        assert found.score < 0.5 and found.by_model == by_model
        assert by_model or not found.changes
        said = io.StringIO()
        show(found, [feature.name for feature in model.features], 1, Console(file=said, width=200))
        assert "a[/]b" in said.getvalue() and "key [red]" in said.getvalue()
        assert by_model == (f"did not make it {action}" not in said.getvalue())


def test_a_repeat_is_said_to_have_the_decision_of_the_first() -> None:
    past = PastVector(np.array([1.0]), 1, ("c",), True, np.zeros(1, np.int64))
    published = _PUBLISHED | {"duplicate": True}
    found = Explanation(published, past, 0.3, 0.1, (0.5, 0.9), [], True, [], [], 0)
    said = io.StringIO()
    show(found, ["amount"], 1, Console(file=said, width=200))
    assert "it repeats a transaction" in said.getvalue() and "whose score is 0.3" in said.getvalue()
