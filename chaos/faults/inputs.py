"""Input that harms: malformed, a bomb, of another time, sent again; and models that must not be served."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiokafka import AIOKafkaProducer

from chaos.play import Round
from chaos.registry import fault
from chaos.traffic import Input
from stream.malformed import Target, kinds
from stream.processes import Child
from tests.test_bad_input import BAD_MODELS, damaged
from trainer import artifacts

_SPOILT = b"spoilt"  # the key of records that nobody may decide; of a batch that is skipped, only its last one's
_INNER = b"of a batch that is skipped"
_YEAR_MS = 365 * 86_400_000


def _finish(play: Round, spoilt: Callable[[Any], bool] = lambda record: record.key == _SPOILT) -> None:
    """Check the invariants with the knowledge of which records were spoilt: each has one dead letter and no more."""
    evidence = play.evidence

    def known() -> Any:
        found = evidence()
        for role in ("transactions", "labels", "clicks"):
            found.records[role] = [
                SimpleNamespace(topic=r.topic, partition=r.partition, offset=r.offset, value=b"") if spoilt(r) else r
                for r in found.records[role] if r.key != _INNER
            ]  # fmt: skip
        return found

    play.evidence = known  # type: ignore[method-assign]
    play.finish()


def _reasons(play: Round) -> dict[str, int]:
    counts: dict[str, int] = {}
    for letter in play.deployment.decoded(play.deployment.topics.dead_letters):
        counts[letter["reason"]] = counts.get(letter["reason"], 0) + 1
    return counts


@fault(19, short=True)
def malformed(play: Round) -> None:
    """Malformed messages of every kind among good ones."""
    play.begin(1 if play.turn % 2 else 2)
    good = play.source.draw(4000, 300)
    ways = kinds(Target("card_id", "event_time", "amount", 0.0))
    names = sorted(ways)
    mixed: list[Input] = []
    for item in good:
        mixed.append(item)
        if item.topic == "transactions" and (message := _object(item.value)) is not None:
            bad = ways[play.random.choice(names)](message)
            mixed.append(Input("transactions", _SPOILT, bad or b""))
    start = time.monotonic()
    play.send(mixed, None)
    play.settle()
    play.notes.append(f"{len(mixed) / (time.monotonic() - start):.0f} records/s, {len(ways)} kinds")
    _finish(play)


def _object(value: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(value)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "card_id" in found and "event_time" in found else None


async def _bomb(play: Round, codec: str, partition: int) -> None:
    """Twelve megabytes in one batch of a few kilobytes."""
    producer = AIOKafkaProducer(bootstrap_servers=play.kafka.bootstrap, compression_type=codec,
                                max_batch_size=1 << 27, max_request_size=1 << 27)  # fmt: skip
    await producer.start()
    try:
        batch = producer.create_batch()
        for number in range(12):
            key = _SPOILT if number == 11 else _INNER
            batch.append(key=key, value=bytes(1_000_000), timestamp=int(time.time() * 1000))
        await (await producer.send_batch(batch, play.deployment.topics.transactions, partition=partition))
    finally:
        await producer.stop()


@fault(21)
def bombs(play: Round) -> None:
    """Batches that unpack to more than the limit, of every codec."""
    play.begin(2, KAFKA_BATCH_BYTES_MAX="2000000")
    play.feed(4000)
    codecs = ("gzip", "snappy", "lz4", "zstd")
    for number, codec in enumerate(codecs):
        play.pace(400 + 600 * number)
        asyncio.run(_bomb(play, codec, play.random.randrange(play.deployment.partitions)))
    _finish(play)
    found = _reasons(play).get("unreadable_batch", 0)
    play.expect(found == len(codecs), f"{found} batches were skipped, not {len(codecs)}")


@fault(22)
def clocks(play: Round) -> None:
    """Clocks that are years ahead, at zero, or count in other units."""
    play.begin(1 if play.turn % 2 else 2)
    now_ms = int(time.time() * 1000)
    skewed = (now_ms + 10 * _YEAR_MS, 0, now_ms // 1000, now_ms * 1000, -now_ms, now_ms + 7_200_000)
    inputs: list[Input] = []
    for item in play.source.draw(3000, 200):
        inputs.append(item)
        if item.topic == "transactions" and play.random.random() < 0.1 and (message := _object(item.value)):
            late = message | {"event_id": f"skewed-{len(inputs)}", "event_time": play.random.choice(skewed)}
            inputs.append(Input("transactions", _SPOILT, json.dumps(late).encode()))
    play.send(inputs, 900.0)
    _finish(play)
    play.expect(_reasons(play).get("time_out_of_range", 0) > 0, "no skewed record was refused")


@fault(23, short=True)
def sent_again(play: Round) -> None:
    """Event ids that come again at other offsets, over a restart and a takeover."""
    play.begin(2)
    inputs: list[Input] = []
    for item in play.source.draw(4000, 200):
        inputs.append(item)
        if item.topic == "transactions" and play.random.random() < 0.2:
            inputs.append(item)  # a producer's retry, before the card has forgotten it
    play.send(inputs, 700.0)
    play.pace(1200)
    play.kill(play.workers[0])
    injury = play.injury()
    play.start()
    play.recovered(injury)
    play.finish()
    repeats = sum(d["duplicate"] for d in play.deployment.decoded(play.deployment.topics.decisions))
    play.expect(repeats > 0, "nothing was sent again")


def _refusals(worker: Child) -> float:
    """What the worker's metric says."""
    found = [re.search(r"metrics on http://(\S+)/metrics", text) for text in worker.log_tail(400)]
    where = next(match[1] for match in found if match)
    with urllib.request.urlopen(f"http://{where}/metrics", timeout=5) as page:
        match = re.search(rb"^headrace_model_refusals_total (\S+)", page.read(), re.MULTILINE)
    return float(match[1]) if match else 0.0


@fault(24, short=True)
def bad_models(play: Round) -> None:
    """Models that must not be served are pushed while the worker runs."""
    play.deployment.artifacts = Path(shutil.copytree(play.arena.artifacts, play.directory / "artifacts"))
    play.begin()
    play.feed(4000)
    (worker,) = play.workers
    for number, how in enumerate(BAD_MODELS, 1):
        damaged(play.deployment.artifacts, f"{number + 1:06d}", how)
        play.wait(lambda n=number: _refusals(worker) == n, f"{how}: the metric counts it")  # type: ignore[misc]
        play.expect(play.says(worker, f"artifact {number + 1:06d}", "stays in use"), f"{how}: the log says so")
    artifacts.point_to(play.deployment.artifacts, "000001")
    play.finish()
    versions = {d["model_version"] for d in play.deployment.decoded(play.deployment.topics.decisions)}
    play.expect(versions == {"000001"}, f"decisions are of {sorted(versions)}")


def _with_a_bug(play: Round) -> None:
    """Have the round start workers whose kernel raises."""
    whole = play.deployment.worker

    def worker(number: int = 1, point: str = "", **more: str) -> Child:
        child = whole(number, point, **more)
        command = [sys.executable, "-m", "tests.raising_worker", "worker"]
        return Child("worker", command, child.directory, play.deployment.environment())

    play.deployment.worker = worker  # type: ignore[method-assign]


@fault(26)
def poison(play: Round) -> None:
    """Records that make the kernel raise, and a worker that is killed in the search for them."""
    inputs = play.source.draw(3000, 200)
    poisoned = []
    for number in range(3):
        at = play.random.randrange(200, len(inputs))
        event = f"poison-{number}"
        message = {"event_id": event, "event_time": play.source.now_ms, "card_id": "card-1", "merchant_id": "shop-1",
                   "amount": 1}  # fmt: skip
        inputs.insert(at, Input("transactions", b"card-1", json.dumps(message).encode()))
        poisoned.append(event)
    os.environ["RAISES_ON"] = ",".join(poisoned)
    try:
        _with_a_bug(play)
        play.begin()
        play.send(inputs, 900.0)
        play.wait(lambda: play.says(play.workers[0], "looking for the one"), "the search begins")
        play.kill(play.workers[0])
        injury = play.injury()
        play.start()
        play.recovered(injury)
        _finish(play, lambda record: b'"poison-' in (record.value or b""))
    finally:
        del os.environ["RAISES_ON"]
    found = _reasons(play).get("internal", 0)
    play.expect(found == len(poisoned), f"{found} records were set aside, not {len(poisoned)}")
