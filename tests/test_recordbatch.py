"""A batch written by compiled code is what aiokafka's own builder would have sent."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from features.recordbatch import HEAD_BYTES, RECORD_BYTES, Columns
from features.texts import Texts
from stream import publisher
from stream.publisher import _Batch, _cut

NOW_MS = 1_700_000_000_000
_texts = st.one_of(st.text(max_size=5), st.integers(0, 20_000).map(lambda n: "x" * n))


def columns(pairs: Sequence[tuple[str, str]]) -> Columns:
    return Columns(Texts.of([key for key, _ in pairs]), Texts.of([value for _, value in pairs]))


def read(data: bytes) -> list[tuple[bytes | None, bytes | None]]:
    """As a consumer reads it, its checksum verified."""
    records, found = MemoryRecords(data), []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        found += [(record.key, record.value) for record in batch]
    return found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(_texts, _texts), min_size=1, max_size=150))
def test_a_batch_has_the_bytes_of_aiokafkas_builder(pairs: list[tuple[str, str]]) -> None:
    builder = DefaultRecordBatchBuilder(
        2, 0, is_transactional=0, producer_id=7, producer_epoch=3, base_sequence=11, batch_size=10_000_000
    )
    for i, (key, value) in enumerate(pairs):
        builder.append(i, NOW_MS, key.encode(), value.encode(), [])
    batch = _Batch(columns(pairs))
    batch._set_producer_state(7, 3, 11)
    most = batch.size()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher, "time", SimpleNamespace(time=lambda: NOW_MS / 1000))
        _ = batch._build()
    assert batch.record_count() == len(pairs)
    assert bytes(batch._build()) == bytes(builder.build())
    assert batch.size() == len(batch._build()) <= most


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(_texts, _texts), min_size=1, max_size=60), st.integers(100, 50_000))
def test_no_message_is_lost_where_batches_are_full(pairs: list[tuple[str, str]], bytes_max: int) -> None:
    messages, found = columns(pairs), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher, "PRODUCE_BATCH_BYTES", bytes_max)
        for part in _cut(messages):
            data = bytes(_Batch(part)._build())
            assert len(data) <= max(bytes_max, HEAD_BYTES + RECORD_BYTES + sum(map(len, part[0])))
            assert len(data) <= bytes_max or len(part) == 1
            found += read(data)
    assert found == list(messages) == [(key.encode(), value.encode()) for key, value in pairs]


def test_messages_beyond_one_batch_become_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.publisher.PRODUCE_BATCH_BYTES", HEAD_BYTES + 100)
    messages = columns([(f"card-{i}", "v" * 40) for i in range(5)])
    batches = [_Batch(part) for part in _cut(messages)]
    assert [batch.record_count() for batch in batches] == [1, 1, 1, 1, 1]
    assert [pair for batch in batches for pair in read(bytes(batch._build()))] == list(messages)


_messages = st.lists(st.lists(st.tuples(_texts, _texts), min_size=1, max_size=5), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(_messages, st.integers(1000, 50_000))
def test_what_waits_is_sent_together_as_long_as_it_fits(cycles: list[list[tuple[str, str]]], bytes_max: int) -> None:
    batches: list[_Batch] = []
    ends = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher, "PRODUCE_BATCH_BYTES", bytes_max)
        for pairs in cycles:
            for part in _cut(Columns.of([(key.encode(), value.encode()) for key, value in pairs])):
                if not (batches and batches[-1].join(part)):
                    batches.append(_Batch(part))
                ends.append((len(batches) - 1, batches[-1].record_count()))
        sizes = [batch.size() for batch in batches]
        sent = [read(bytes(batch._build())) for batch in batches]
        assert not any(batch.join(columns([("k", "v")])) for batch in batches), "a batch that was taken stays as it is"
    assert [pair for found in sent for pair in found] == [(k.encode(), v.encode()) for c in cycles for k, v in c]
    assert [batch.record_count() for batch in batches] == list(map(len, sent)) and ends == sorted(ends)
    assert all(size <= bytes_max or len(found) == 1 for size, found in zip(sizes, sent, strict=True))


def test_a_batch_has_everything_that_aiokafka_asks_of_a_builder() -> None:
    asked: set[str] = {
        name for name, kind in vars(BatchBuilder).items() if callable(kind) and not name.startswith("__")
    }
    ours: Any = _Batch(columns([("k", "v")]))
    assert {name for name in asked if hasattr(ours, name)} == asked - {"append", "_serialize"}
