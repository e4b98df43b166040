"""Dead letters always fit, whatever was sent; a wrong partitioner is refused, or accepted where that is set."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace

import msgspec
import pytest

from features.catalogue import build_catalogue
from features.decode import Bad
from features.messages import DeadLetter
from features.partitioner import partition_of
from features.schema import load_schema
from stream.fraud import FraudLane
from stream.lane import DEAD_LETTER_BYTES, Lane, Tally, dead_letter
from stream.recommend import RecommendLane
from stream.settings import Settings

NOW_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Sent:
    """A record as Kafka gives it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = NOW_MS


def test_a_dead_letter_of_a_huge_record_keeps_its_beginning_its_length_and_its_hash() -> None:
    value = bytes(range(256)) * 4096
    key, sent = dead_letter(
        ("clicks", 3), Sent("clicks", 3, 7, b"k" * 10_000, value), Bad(0, "oversized", "s" * 10_000)
    )
    letter = msgspec.json.decode(sent, type=DeadLetter)
    assert base64.b64decode(letter.value) == value[:DEAD_LETTER_BYTES]
    assert (letter.length, letter.sha256) == (len(value), hashlib.sha256(value).hexdigest())
    assert (letter.dead_letter_id, letter.reason, key) == ("clicks:3:7", "oversized", b"clicks:3:7")
    assert len(sent) + len(key) < 131_072  # far below every broker's default of 1 MiB


def test_a_dead_letter_of_nothing_says_so() -> None:
    letter = msgspec.json.decode(dead_letter(("t", 0), Sent("t", 0, 1, None, None), Bad(0, "empty", "no"))[1])
    assert (letter["length"], letter["value"], letter["key"]) == (0, "", None)


def _misplaced(lane_name: str, partitions: int) -> tuple[Sent, int]:
    body = {
        "transactions": {"event_id": "e", "event_time": NOW_MS, "card_id": "c-1", "merchant_id": "m", "amount": 1.0},
        "clicks": {"event_id": "e", "event_time": NOW_MS, "session_id": "c-1", "item_id": "i"},
    }[lane_name]
    wrong = (partition_of(b"c-1", partitions) + 1) % partitions
    return Sent(lane_name, wrong, 0, b"c-1", msgspec.json.encode(body)), wrong


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("topic", ["transactions", "clicks"])
def test_an_event_in_the_wrong_partition_is_refused_unless_that_is_accepted(topic: str, accept: bool) -> None:
    settings = Settings()
    settings = replace(settings, worker=replace(settings.worker, accept_mispartitioned=accept))
    lane: Lane
    if topic == "transactions":
        lane = FraudLane(settings, build_catalogue(load_schema().transactions))
    else:
        lane = RecommendLane(settings)
    record, partition = _misplaced(topic, lane.partitions)
    lane.resume(partition, {topic: 0})
    tally = Tally()
    (part,) = lane.begin({partition: {topic: [record]}}, {partition: False}, tally)
    assert tally.dead_letters == ({} if accept else {"wrong_partition": 1})
    assert len(part.batch.rows) == (1 if accept else 0)
