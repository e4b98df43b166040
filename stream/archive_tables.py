"""Records of one topic as Arrow tables: what Kafka held, as it was, and beside it what the decoders read in it.

In: records. Out: a table by event date. Pure. A record that cannot be decoded keeps its bytes and the reason, and lies
under the date of its own timestamp.

``record_value`` has the bytes of every input, so that what reads the archive decodes them as the worker did, and a
schema that reads more in them finds it there. A decision is its columns; only one that is not of this contract or of
another topic's transactions keeps its bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.decode import ClickDecoder, LabelDecoder, Limits, TransactionDecoder
from features.messages import CLICK_ACTIONS, Decision
from features.schema import CLICK_FIELDS, Schema
from stream.archive_store import Kind
from stream.columns import Columns, transaction_rows
from stream.lane import Record
from stream.settings import Settings

OFFSET, VALUE, KEY, TIME, FAULT = "record_offset", "record_value", "record_key", "record_time", "record_fault"
_TIMES = pa.timestamp("ms", "UTC")
_RECORD = pa.schema([("record_partition", pa.int32()), (OFFSET, pa.int64()), (TIME, _TIMES), (KEY, pa.binary()),
                     (VALUE, pa.binary()), (FAULT, pa.string())])  # fmt: skip
_DECISION = pa.schema([
    ("source_offset", pa.int64()), ("event_id", pa.string()), ("key", pa.string()), ("event_time", _TIMES),
    ("score", pa.float64()), ("anomaly", pa.float64()), ("action", pa.string()), ("reasons", pa.list_(pa.string())),
    ("model_version", pa.string()), ("label_position", pa.int64()), ("duplicate", pa.bool_()),
    ("review_score", pa.float64()), ("rules", pa.list_(pa.string())), ("shadow_rules", pa.list_(pa.string())),
    ("rules_version", pa.string()), ("degraded", pa.string()), ("reasons_partial", pa.bool_()),
    ("values", pa.map_(pa.string(), pa.float64())),
])  # fmt: skip
_CLICK = pa.schema([(name, _TIMES if name == "event_time" else pa.string()) for name in CLICK_FIELDS])
_ROW_GROUP = 50_000


class Tables:
    """Makes the tables of each kind."""

    def __init__(self, settings: Settings, schema: Schema) -> None:
        limits = Limits(settings.worker.message_bytes_max, int(settings.worker.ahead_max_s * 1000))
        self._source = settings.topics.transactions
        self._schema = schema.transactions
        self._transactions = TransactionDecoder(schema.transactions, limits)
        self._labels = LabelDecoder(schema.transactions, limits)
        self._clicks = ClickDecoder(limits)
        self._decision = msgspec.json.Decoder(Decision)
        plain = schema.transactions
        ids = [(plain.id, pa.string()), *((name, pa.string()) for name in plain.id_fields)]
        numbers = [(numeric.name, pa.float64()) for numeric in plain.numeric]
        texts = [(name, pa.string()) for name in plain.categorical]
        self._columns = {
            "transactions": (pa.schema([*ids, (plain.time, _TIMES), *numbers, *texts]), plain.time),
            "labels": (pa.schema([*ids, (plain.label_time, _TIMES), (plain.label, pa.bool_())]), plain.label_time),
            "clicks": (_CLICK, "event_time"),
            "decisions": (_DECISION, "event_time"),
        }

    def by_date(self, kind: Kind, partition: int, records: Sequence[Record]) -> dict[str, pa.Table]:
        """The table of each event date (ISO) among ``records``, in the order of their offsets."""
        rows, columns, faults = getattr(self, f"_{kind}_rows")(partition, records)
        kinds, time = self._columns[kind]
        table = _table(partition, records, faults, keep_values=kind != "decisions")
        place = np.full(len(records), -1, np.int64)
        place[rows] = np.arange(len(rows))
        places = pa.array(place, mask=place < 0)
        for field in kinds:
            values = pa.array(columns.get(field.name, [None] * len(rows)), field.type)
            table = table.append_column(field, values.take(places))
        dates = pc.strftime(pc.coalesce(table[time], table[TIME]), format="%Y-%m-%d").combine_chunks()
        return {date: table.filter(pc.equal(dates, date)) for date in sorted(set(dates.to_pylist()))}

    def _transactions_rows(self, _: int, records: Sequence[Record]) -> tuple[list[int], Columns, dict[int, str]]:
        rows, fields, bad, _unknown = self._transactions.rows(*_given(records))
        return rows, transaction_rows(self._schema, fields) if fields else {}, {b.index: b.code for b in bad}

    def _labels_rows(self, _: int, records: Sequence[Record]) -> tuple[list[int], Columns, dict[int, str]]:
        rows, fields, bad, _unknown = self._labels.rows(*_given(records))
        schema = self._schema
        # Of a label's fields those that a transaction has too are read in the same way.
        columns = transaction_rows(schema, fields) if fields else {}
        columns[schema.label_time] = [row[1] for row in fields]
        columns[schema.label] = [bool(row[5]) for row in fields]
        return rows, columns, {b.index: b.code for b in bad}

    def _clicks_rows(self, _: int, records: Sequence[Record]) -> tuple[list[int], Columns, dict[int, str]]:
        rows, fields, bad, _unknown = self._clicks.rows(*_given(records))
        event_id, time, session, user, card, item, action = zip(*fields, strict=True) if fields else ((),) * 7
        named = (event_id, time, session, user, card, item, [CLICK_ACTIONS[a] for a in action])
        columns = {name: list(column) for name, column in zip(CLICK_FIELDS, named, strict=True)}
        return rows, columns, {b.index: b.code for b in bad}

    def _decisions_rows(self, partition: int, records: Sequence[Record]) -> tuple[list[int], Columns, dict[int, str]]:
        rows: list[int] = []
        found: list[Decision] = []
        faults: dict[int, str] = {}
        source = f"{self._source}:{partition}:"
        for i, record in enumerate(records):
            try:
                decision = self._decision.decode(record.value or b"")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                faults[i] = "malformed_json"
                continue
            if decision.decision_id.startswith(source) and decision.decision_id[len(source) :].isdecimal():
                rows.append(i)
                found.append(decision)
            else:
                faults[i] = "foreign"
        columns: Columns = {name: [getattr(d, name) for d in found] for name in _DECISION.names[1:-1]}
        columns["source_offset"] = [int(d.decision_id[len(source) :]) for d in found]
        columns["values"] = [None if d.values is msgspec.UNSET else
                             list(d.values.items()) for d in found]  # fmt: skip
        return rows, columns, faults


def _given(records: Sequence[Record]) -> tuple[list[bytes | None], list[int]]:
    return [record.value for record in records], [record.timestamp for record in records]


def _table(partition: int, records: Sequence[Record], faults: dict[int, str], *, keep_values: bool) -> pa.Table:
    """What Kafka held; a value that its columns say in full is left out."""
    values = [record.value if keep_values or i in faults else None for i, record in enumerate(records)]
    columns = [
        np.full(len(records), partition, np.int32),
        [record.offset for record in records],
        [max(record.timestamp, 0) for record in records],
        [record.key for record in records],
        values,
        [faults.get(i) for i in range(len(records))],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _RECORD, strict=True)]
    return pa.Table.from_arrays(arrays, schema=_RECORD)


def parquet_bytes(table: pa.Table) -> bytes:
    """The bytes of a Parquet file, whose row groups tell their offsets."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
    return sink.getvalue()
