"""``headrace explain`` gives a past decision again to the bit, from the archive alone, and says what it came from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.counterfactual import changes, split_values
from features.errors import ArtifactMissing
from stream.embedded import RedisServer
from stream.explain import _differences, _model
from stream.past_vector import PastVector
from stream.settings import Settings
from tests.servers import RunningBroker
from tests.workers import Deployment
from tests.world import World
from trainer.artifacts import load_current


def run(deployment: Deployment, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stream.cli", *words], env=deployment.environment(), timeout=120,
                          capture_output=True, text=True, check=False)  # fmt: skip


@pytest.mark.parametrize("partitions", [1, 2])
def test_any_decision_is_replayed_from_the_archive_and_compared(
    broker: RunningBroker, redis_server: RedisServer, world: World, tmp_path: Path, partitions: int
) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(world.artifacts, artifacts)
    extra = {"ARCHIVE_URL": str(tmp_path / "archive"), "WORKER_VECTOR_SAMPLE": "1.0", "WORKER_REVIEW_SCORE": "0.05"}
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
        assert facts["published"]["action"] == decision["action"] and facts["replayed_records"] > 100
    assert_changes_hold(facts, artifacts, world)
    if partitions == 1:
        said = run(deployment, "explain", alerts[-1]["decision_id"]).stdout
        assert "same to the bit" in said and alerts[-1]["event_id"] in said
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
    past = PastVector(np.array([1.0]), 1, ("c",), repeat=False)
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
