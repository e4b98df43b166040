"""Bad input at a real worker on real servers: it is told apart, nobody beside it is harmed, and the stream goes on."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from aiokafka.errors import InvalidTimestampError, KafkaError

from features.messages import DeadLetter
from stream.embedded import RedisServer
from stream.malformed import Target, kinds
from stream.processes import Child
from tests.servers import KafkaServer, RunningBroker, produce
from tests.test_artifacts import reseal
from tests.test_worker import START_MS, payment, says, send
from tests.workers import Deployment, assert_state_is_exact, by_source, wait_until
from tests.world import World
from trainer import artifacts, manifest

DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS
MALFORMED, GOOD = 10_000, 10_000
REASONS = {
    "bad JSON": "malformed_json", "NaN": "malformed_json", "infinite number": "number_out_of_range",
    "5,000-digit integer": "number_out_of_range", "deep nesting": "wrong_type", "invalid UTF-8": "malformed_json",
    "lone surrogate": "malformed_json", "bool for a number": "wrong_type",
    "number below the minimum": "number_out_of_range", "missing field": "missing_field",
    "time in seconds": "time_out_of_range", "time in words": "wrong_type", "over-long id": "invalid_id",
    "empty id": "invalid_id", "control character in the id": "invalid_id", "null": "wrong_type", "array": "wrong_type",
    "empty value": "empty", "no value": "empty", "field twice": "malformed_json", "field twice by an escape":
    "malformed_json", "nested 2,000 deep in an unknown field": "malformed_json", "more than a megabyte": "oversized",
}  # fmt: skip


@pytest.fixture
def deployment(kafka: KafkaServer, redis_server: RedisServer, world: World, tmp_path: Path) -> Deployment:
    broker = RunningBroker("kafka", kafka.bootstrap, idempotence=True)
    root = Path(shutil.copytree(world.artifacts, tmp_path / "artifacts"))
    found = Deployment(broker, redis_server.url, world.schema, root, tmp_path, partitions=1)
    found.create()
    return found


@contextmanager
def running(worker: Child) -> Iterator[Child]:
    """A worker that is stopped in order at the end, and killed whatever happened."""
    try:
        yield worker
        worker.stop()
        assert worker.exit_code() == 0, worker.log_tail(50)
    finally:
        worker.kill()


def ways() -> dict[str, Any]:
    """Every way to break a transaction, by name."""
    found: dict[str, Any] = dict(kinds(Target("card_id", "event_time", "amount", 0.0)))

    def before_the_end(text: bytes) -> Any:
        return lambda message: json.dumps(message).encode()[:-1] + text + b"}"

    return found | {
        "nested 2,000 deep in an unknown field": before_the_end(b', "x": ' + b"[" * 2000 + b"]" * 2000),
        "more than a megabyte": before_the_end(b', "x": "' + b"y" * 1_000_000 + b'"'),
    }


def seconds_for(deployment: Deployment, worker: int, records: list[Any]) -> float:
    """Produce everything, and only then start a worker: from its first answer to its last."""
    topics = deployment.topics
    send(deployment, topics.transactions, records)
    with running(deployment.started(worker)):
        start = time.monotonic()
        deployment.wait_for({topics.decisions: GOOD, topics.dead_letters: len(records) - GOOD})
        return time.monotonic() - start


def test_ten_thousand_malformed_messages_are_dead_letters_and_the_good_ones_beside_them_are_unharmed(
    deployment: Deployment, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, breaking, topics = Random(19), ways(), deployment.topics
    assert breaking.keys() == REASONS.keys() and len(breaking) >= 20
    good = [json.dumps(payment(f"g{i}", i * 1000, card_id="card", amount=i % 500 + 1)).encode() for i in range(GOOD)]
    rare = "more than a megabyte"  # ten thousand kilobytes of these are enough
    names = [rare] * 10 + rng.choices([name for name in breaking if name != rare], k=MALFORMED - 10)
    rng.shuffle(names)
    mixed: list[tuple[str, bytes | None]] = []
    for i, (value, name) in enumerate(zip(good, names, strict=True)):
        bad = breaking[name](payment(f"b{i}", i * 1000, card_id="card"))
        mixed += [("", value), (name, bad)] if rng.random() < 0.5 else [(name, bad), ("", value)]
    clean = Deployment(deployment.broker, deployment.redis_url, world.schema, world.artifacts, tmp_path / "clean",
                       partitions=1)  # fmt: skip
    clean.create()
    clean.extra = deployment.extra = {"WORKER_REASONS_SHARE": "1"}  # how many get all reasons is a matter of time
    clean_s, mixed_s = seconds_for(clean, 1, good), seconds_for(deployment, 2, [value for _, value in mixed])
    with capsys.disabled():
        print("\n" + json.dumps({"fault": 19, "good": GOOD, "malformed": MALFORMED, "kinds": len(breaking),
              "clean_per_s": round(GOOD / clean_s), "mixed_good_per_s": round(GOOD / mixed_s),
              "mixed_all_per_s": round(len(mixed) / mixed_s)}))  # fmt: skip
    letters = [msgspec.json.decode(record.value, type=DeadLetter) for record in deployment.read(topics.dead_letters)]
    found = {letter.offset: letter.reason for letter in letters}
    assert len(letters) == MALFORMED
    assert found == {offset: REASONS[name] for offset, (name, _) in enumerate(mixed) if name}

    def decided(of: Deployment) -> list[dict[str, Any]]:
        hidden = {"decision_id"}
        return [{k: v for k, v in d.items() if k not in hidden} for d in of.decoded(of.topics.decisions)]

    assert decided(deployment) == decided(clean)
    assert deployment.state() == clean.state()


def test_clocks_that_are_years_off_wipe_nothing_that_is_known_of_a_card(deployment: Deployment) -> None:
    topics = deployment.topics
    deployment.extra = {"WORKER_REVIEW_SCORE": "0"}  # an alert for every decision shows what the models saw
    last = 40 * 60_000

    def history(card: str) -> list[Any]:
        return [payment(f"{card}-{i}", i * 60_000, card_id=card, merchant_id=f"shop-{card}") for i in range(40)]

    def at(name: str, time_ms: int) -> Any:
        return payment(name, card_id="skewed", merchant_id="shop-skewed") | {"event_time": time_ms}

    refused = [at("ahead", START_MS + 10 * YEAR_MS), at("zero", 0), at("seconds", START_MS // 1000),
               at("micros", START_MS * 1000), at("text", 0) | {"event_time": "2120-01-01T00:00:00Z"},
               at("hours", START_MS + 10**9 + 3_600_001)]  # fmt: skip
    late = [at("behind", START_MS - 10 * YEAR_MS), at("first", 946_684_800_000)]
    with running(deployment.started()):
        send(deployment, topics.transactions, [*history("skewed"), *history("steady")])
        send(deployment, topics.transactions, [*refused, *late])
        probes = [payment(f"probe-{card}", last, card_id=card, merchant_id=f"shop-{card}")
                  for card in ("skewed", "steady")]  # fmt: skip
        send(deployment, topics.transactions, probes)
        deployment.wait_for({topics.decisions: 84, topics.alerts: 84, topics.dead_letters: len(refused)})
    letters = deployment.decoded(topics.dead_letters)
    assert [letter["reason"] for letter in letters] == ["time_out_of_range"] * len(refused)
    values = {alert["event_id"]: alert["values"] for alert in deployment.decoded(topics.alerts)}
    skewed, steady = values["probe-skewed"], values["probe-steady"]
    assert steady["card_count_1h"] == 40.0
    # The two late ones count where they belong, ten and twenty years ago: the card is that old, and forgets nothing.
    differing = {name for name in steady if skewed[name] != steady[name]}
    assert differing <= {"card_seconds_since_first", "merchant_seconds_since_first", "card_merchant_seen"}, differing
    assert skewed["card_merchant_seen"] == steady["card_merchant_seen"] == 32.0


def test_a_producer_with_a_clock_ten_years_ahead_is_refused_by_the_broker(deployment: Deployment) -> None:
    ahead_ms = int(time.time() * 1000) + 10 * YEAR_MS
    record = (b"card", json.dumps(payment("e", card_id="card") | {"event_time": ahead_ms}).encode())
    topic = deployment.topics.transactions
    with pytest.raises(KafkaError) as refused:
        asyncio.run(produce(deployment.broker.bootstrap, topic, [record], timestamp_ms=ahead_ms))
    assert isinstance(refused.value, InvalidTimestampError)


def test_an_event_id_that_comes_again_counts_once_across_restarts_and_takeovers_for_as_long_as_its_card_remembers(
    deployment: Deployment,
) -> None:
    topics = deployment.topics
    deployment.extra = {"WORKER_REVIEW_SCORE": "0"}

    def again(number: int) -> Any:
        return payment("same", 1000 * number, amount=5 + 100 * number)

    worker = deployment.started(1)
    try:
        send(deployment, topics.transactions, [again(0), again(1)])
        deployment.wait_for({topics.decisions: 2})
        send(deployment, topics.transactions, [again(2)])
        deployment.wait_for({topics.decisions: 3})
        worker.stop()
        send(deployment, topics.transactions, [again(3)])
        worker = deployment.started(2)
        deployment.wait_for({topics.decisions: 4})
        heir = deployment.worker(3)
        heir.start()
        worker.kill()
        send(deployment, topics.transactions, [again(4)])
        deployment.wait_for({topics.decisions: 5})
        worker = heir
        others = [payment(f"other-{i}", 10_000 + i) for i in range(32)]
        send(deployment, topics.transactions, [payment("probe", 9000), *others, again(5)])
        deployment.wait_for({topics.decisions: 39, topics.alerts: 39})
        worker.stop()
    finally:
        worker.kill()
    decisions = [d for d in by_source(deployment.decoded(topics.decisions)).values() if d["event_id"] == "same"]
    first, *repeats, forgotten = decisions
    assert not first["duplicate"] and [r["duplicate"] for r in repeats] == [True] * 4
    assert not forgotten["duplicate"]  # 32 others lie between: the card has forgotten it, as the contract says
    for repeat in repeats:
        assert [repeat[k] for k in ("score", "anomaly", "action")] == [first[k] for k in ("score", "anomaly", "action")]
    values = {alert["event_id"]: alert["values"] for alert in deployment.decoded(topics.alerts)}
    assert values["probe"]["card_count_1h"] == 1.0
    assert_state_is_exact(deployment, by_source(deployment.decoded(topics.decisions)))


def damaged(root: Path, version: str, how: str) -> None:
    """A version made from the first one that must not be served, and the pointer to it."""
    folder = Path(shutil.copytree(root / "000001", root / version))
    path, model = folder / "manifest.json", folder / "fraud.txt"
    old = path.read_text().replace('"version": "000001"', f'"version": "{version}"')
    fields = msgspec.json.decode(old.encode(), type=manifest.Manifest)
    text = model.read_text()
    if how == "wrong features":
        features = list(fields.features)
        features[0], features[1] = features[1], features[0]
        names = " ".join(feature.name for feature in fields.features)
        swapped = " ".join(feature.name for feature in features)
        text = text.replace(f"feature_names={names}", f"feature_names={swapped}")
        fields = msgspec.structs.replace(fields, features=tuple(features))
    elif how == "NaN leaves":
        text = re.sub(r"leaf_value=\S+", "leaf_value=nan", text, count=1)
    elif how == "golden mismatch":  # every leaf: a single one may be one that no golden answer passes through
        text = re.sub(r"(?m)^leaf_value=(.*)$",
                      lambda m: "leaf_value=" + " ".join(str(float(v) + 0.5) for v in m[1].split()), text)  # fmt: skip
    elif how == "truncated and resealed":
        text = text[: len(text) // 2]
    elif how == "another schema":
        fields = msgspec.structs.replace(fields, schema_hash="0" * 16)
    model.write_text(text)
    path.write_bytes(manifest.encode(fields))
    reseal(folder)
    if how == "mutated":
        whole = bytearray(model.read_bytes())
        whole[len(whole) // 2] ^= 0x10
        model.write_bytes(whole)
    elif how == "truncated":
        model.write_bytes(model.read_bytes()[:-100])
    artifacts.point_to(root, version)


BAD_MODELS = ("mutated", "truncated", "truncated and resealed", "wrong features", "NaN leaves", "golden mismatch",
              "another schema")  # fmt: skip


def test_a_bad_model_leaves_the_old_one_in_use_and_a_metric_and_a_log_line_say_so(deployment: Deployment) -> None:
    topics = deployment.topics

    def scraped(name: str) -> float:
        port = next(line for line in worker.log_tail(500) if "metrics on http" in line).split(":")[-1].split("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            (value,) = re.findall(rf"^{name} (\S+)$", page.read().decode(), re.MULTILINE)
        return float(value)

    with running(deployment.started()) as worker:
        for number, how in enumerate(BAD_MODELS):
            version = f"{number + 2:06d}"
            damaged(deployment.artifacts, version, how)
            wait_until(lambda n=number: scraped("headrace_model_refusals_total") == n + 1, how)  # type: ignore[misc]
            says(worker, f"artifact {version}", "version 000001 stays in use")
            send(deployment, topics.transactions, [payment(how, number)])
            deployment.wait_for({topics.decisions: number + 1})
        artifacts.point_to(deployment.artifacts, "000099")  # a pointer to nowhere
        wait_until(lambda: scraped("headrace_model_refusals_total") == len(BAD_MODELS) + 1, "nowhere")
        damaged(deployment.artifacts, "000050", "nothing")  # resealed as it was, a version like any other
        says(worker, "version 000050 is in use")
        lines = [line for line in worker.log_tail(500) if "stays in use" in line]
        assert len(lines) == len(BAD_MODELS) + 1, lines
    assert [d["model_version"] for d in deployment.decoded(topics.decisions)] == ["000001"] * len(BAD_MODELS)


def test_a_record_that_makes_the_kernel_raise_is_set_aside_and_the_next_owner_leaves_it_alone(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAISES_ON", "poison-1,poison-2")
    topics = deployment.topics
    deployment.module = "tests.raising_worker"
    records = [payment(f"e{i}", i * 1000, amount=i % 90 + 1) for i in range(3000)]
    records[700] = payment("poison-1", 700_000)
    records[2999] = payment("poison-2", 2_999_000)
    send(deployment, topics.transactions, records)
    with running(deployment.started(1)) as worker:
        deployment.wait_for({topics.decisions: 2998, topics.dead_letters: 2})
        says(worker, "becomes a dead letter with the reason internal", "FloatingPointError: a bug of ours")
        lines = worker.log_tail(2000)
    assert any("Traceback" in line for line in lines) and any("raising_worker.py" in line for line in lines)
    with running(deployment.started(2)):
        send(deployment, topics.transactions, [payment("after", 4_000_000)])
        deployment.wait_for({topics.decisions: 2999})
    letters = deployment.decoded(topics.dead_letters)
    assert [(letter["reason"], letter["offset"]) for letter in letters] == [("internal", 700), ("internal", 2999)]
    decisions = by_source(deployment.decoded(topics.decisions))
    assert Counter(d["event_id"] for d in decisions.values()).most_common(1)[0][1] == 1
    assert len(decisions) == 2999 == deployment.count(topics.decisions)
    # The naive fold reads the input, in which the two are as good as any other: here they count for nothing.
    read = deployment.read
    monkeypatch.setattr(Deployment, "read", lambda self, topic: [
        r for r in read(topic) if topic != topics.transactions or r.offset not in (700, 2999)])  # fmt: skip
    assert_state_is_exact(deployment, decisions)
