"""Whatever is cut off, and whoever else writes: what is committed is read, each offset once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import ArchiveUnavailable, SettingsError
from features.messages import Decision
from features.schema import load_schema
from stream.archive import RangeWriter
from stream.archive_care import Caretaker
from stream.archive_store import ArchiveStore, Span
from stream.archive_tables import FAULT, Tables, parquet_bytes
from stream.archived import Archive, ArchivedRecord
from stream.metrics import ArchiveMetrics
from stream.settings import ArchiveSettings, Settings
from tests.fakes import SCHEMA
from tests.servers import fresh_name

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
SETTINGS = Settings()


class CrashingStore(ArchiveStore):
    """A store that dies after ``steps`` more changes."""

    steps = 1_000_000

    def _step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise ArchiveUnavailable("killed")

    def put(self, path: str, data: bytes) -> None:
        """As ArchiveStore."""
        self._step()
        super().put(path, data)

    def remove(self, paths: Sequence[str]) -> None:
        """As ArchiveStore, one by one."""
        for path in paths:
            self._step()
            super().remove([path])


def payment(offset: int, day: int) -> ArchivedRecord:
    message = {"event_id": f"t{offset}", "event_time": START_MS + day * DAY_MS + offset, "card_id": "c",
               "merchant_id": "m", "amount": 1.5}  # fmt: skip
    return ArchivedRecord(offset, START_MS + 9 * DAY_MS, b"c", msgspec.json.encode(message))


@pytest.mark.parametrize(("where", "seed"), [*(("object store", seed) for seed in range(4)), ("local", 4)])
def test_crashes_zombies_and_compactions_at_any_step_leave_every_committed_offset_once(
    where: str, seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    url, count = (tmp_path.as_uri(), 120) if where == "local" else (f"memory://{fresh_name('archive')}", 200)
    records = [payment(i, rng.choice([0, 0, 0, 1, 1, 2])) for i in range(count)]
    store = CrashingStore(url)
    metrics = ArchiveMetrics()
    writer = RangeWriter(SETTINGS, SCHEMA, store, metrics)
    care = Caretaker(store, ArchiveSettings(compact_files=3), metrics)
    place, crashes = ("transactions", 0), 0
    while (ends := store.committed().get(place, [(0, 0)]))[-1][1] < len(records):
        end = ends[-1][1]
        first = max(0, end - rng.choice([0, 0, 0, 7]))  # another process, which has not seen the last ranges
        span = Span(*place, first, min(len(records), end + rng.randint(1, 20)))
        store.steps = rng.choice([0, 1, 2, 3, 1000])
        try:
            writer.write("transactions", span, records[span.first : span.end])
            if rng.random() < 0.3:
                care.tend()
        except ArchiveUnavailable:
            crashes += 1
        store.steps = 1_000_000
        archive = Archive(store)
        assert archive.ranges(*place) in ([(0, archive.end(*place))], [])
        if archive.ranges(*place):
            assert archive.records("transactions", *place, 0, 1000) == records[: archive.end(*place)]
    assert crashes > 3
    for _ in range(2):  # the first round puts the large files, the second removes the small ones
        care.tend()
    archive = Archive(store)
    assert archive.records("transactions", *place, 0, 1000) == records
    assert len(store.files("transactions")) <= 6 and len(store.markers()) <= 3


def test_event_dates_before_the_newest_one_less_the_retention_go_and_are_not_archived_again() -> None:
    store, metrics = ArchiveStore(f"memory://{fresh_name('archive')}"), ArchiveMetrics()
    records = [payment(i, day) for i, day in enumerate([0, 1, 5, 6, 6])]
    RangeWriter(SETTINGS, SCHEMA, store, metrics).write("transactions", Span("transactions", 0, 0, 5), records)
    Caretaker(store, ArchiveSettings(retention_days=2.0), metrics).tend()
    archive = Archive(store)
    assert archive.records("transactions", "transactions", 0, 0, 5) == records[2:]
    assert archive.end("transactions", 0) == 5


def test_bad_records_keep_their_bytes_and_reason_under_the_date_of_their_own_timestamp() -> None:
    bad = [ArchivedRecord(1, START_MS, b"k", b"{nonsense"), ArchivedRecord(2, START_MS, None, None)]
    tables = Tables(SETTINGS, SCHEMA).by_date("transactions", 0, [payment(0, 0), *bad])
    assert list(tables) == ["2023-11-14"]
    rows = tables["2023-11-14"].to_pylist()
    assert [row[FAULT] for row in rows] == [None, "malformed_json", "empty"]
    assert [row["record_value"] for row in rows] == [payment(0, 0).value, b"{nonsense", None]
    assert [row["card_id"] for row in rows] == ["c", None, None]
    assert [row["amount"] for row in rows] == [1.5, None, None]


def test_decisions_are_their_columns_and_those_of_a_sample_have_their_vector() -> None:
    values: dict[str, float | None] = {"card_count_1h": 3.0, "card_amount_mean_1h": None}
    facts: dict[str, Any] = {"event_id": "e", "key": "c", "event_time": START_MS, "score": 0.1, "anomaly": 0.2,
                             "action": "review", "reasons": ["because"], "model_version": "000001",
                             "label_position": 7, "duplicate": False, "review_score": 0.05, "rules": ["far"],
                             "shadow_rules": [], "rules_version": None, "degraded": None,
                             "reasons_partial": True}  # fmt: skip
    decisions = [
        Decision(decision_id="transactions:1:40", **facts, values=values),
        Decision(decision_id="transactions:1:41", **facts),
        Decision(decision_id="other:1:42", **facts),
    ]
    records = [ArchivedRecord(i, START_MS, b"c", msgspec.json.encode(d)) for i, d in enumerate(decisions)]
    (table,) = Tables(SETTINGS, SCHEMA).by_date("decisions", 1, records).values()
    rows = table.to_pylist()
    assert [row["source_offset"] for row in rows] == [40, 41, None]
    assert [row["values"] for row in rows] == [list(values.items()), None, None]
    assert {name: rows[0][name] for name in facts if name != "event_time"} == {
        name: value for name, value in facts.items() if name != "event_time"
    }
    assert [row["record_value"] is None for row in rows] == [True, True, False]


def test_a_column_that_an_older_file_lacks_is_null_in_it() -> None:
    store = ArchiveStore(f"memory://{fresh_name('archive')}")
    writer = RangeWriter(SETTINGS, SCHEMA, store, ArchiveMetrics())
    for first in (0, 2):
        span = Span("transactions", 0, first, first + 2)
        writer.write("transactions", span, [payment(first, 0), payment(first + 1, 0)])
    older = store.files("transactions")[0].path
    with store.open(older) as stream:
        table = pq.read_table(stream, partitioning=None)
    store.put(older, parquet_bytes(table.drop_columns(["amount"])))
    found = Archive(store).table("transactions", "transactions", 0, 0, 4, ["amount"])
    assert found["amount"].to_pylist() == [None, None, 1.5, 1.5]


def test_a_schema_that_reads_other_fields_makes_other_columns_of_the_same_records() -> None:
    schema = load_schema()
    columns = Tables(SETTINGS, schema).by_date("labels", 0, [])
    assert columns == {}
    label = {"event_id": "t1", "label_time": START_MS, "card_id": "c", "merchant_id": "m", "is_fraud": True}
    (table,) = (
        Tables(SETTINGS, schema)
        .by_date("labels", 0, [ArchivedRecord(0, START_MS, b"c", msgspec.json.encode(label))])
        .values()
    )
    assert table.schema.field("is_fraud").type == pa.bool_()
    assert table.to_pylist()[0]["merchant_id"] == "m"


def test_a_url_whose_filesystem_is_not_there_is_refused_with_the_way_out() -> None:
    with pytest.raises(SettingsError, match=r"archive.url = 'nonsense://x': expected a URL that fsspec knows"):
        ArchiveStore("nonsense://x")
