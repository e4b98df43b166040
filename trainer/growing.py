"""History that grows: what files hold and what arrives since, as the canonical tables that a refit takes.

In: canonical tables, rows and verdicts in order of arrival. Out: tables sorted by time, no longer than a bound. State
owned: those tables, and verdicts whose transaction did not arrive yet. Pure: no clock, no IO.

Labels are joined by event id; of several on one event the last to arrive counts. The moment up to which things are
known is the newest time seen, not the wall clock's, so that history replayed today trains as it would have then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.schema import CLICK_FIELDS, TransactionSchema

_CLICKS = pa.schema([(name, pa.int64() if name == "event_time" else pa.string()) for name in CLICK_FIELDS])


def transaction_columns(schema: TransactionSchema) -> pa.Schema:
    """The columns of a canonical transactions table that training reads."""
    fields = [(schema.id, pa.string()), (schema.time, pa.int64())]
    fields += [(name, pa.string()) for name in schema.id_fields]
    fields += [(numeric.name, pa.float64()) for numeric in schema.numeric]
    fields += [(name, pa.string()) for name in schema.categorical]
    taken = {name for name, _ in fields}
    fields += [(name, pa.string()) for name in ("session_id", "user_id") if name not in taken]
    return pa.schema([*fields, (schema.label, pa.int8()), (schema.label_time, pa.int64())])


class GrowingHistory:
    """Transactions and clicks, of each the newest ``rows_max``.

    Parameters
    ----------
    schema : TransactionSchema
    rows_max : int
        Rows kept of each table, and verdicts kept whose transaction is not there.
    transactions, clicks : pa.Table, optional
        Canonical tables to begin with.
    """

    def __init__(
        self,
        schema: TransactionSchema,
        rows_max: int,
        transactions: pa.Table | None = None,
        clicks: pa.Table | None = None,
    ) -> None:
        self._schema = schema
        self._rows_max = rows_max
        columns = transaction_columns(schema)
        self._transactions = _newest(_cast(transactions, columns), schema.time, rows_max)
        self._clicks = _newest(_cast(clicks, _CLICKS), "event_time", rows_max)
        self._verdicts: dict[str, tuple[int, int]] = {}
        self._label_ms = 0
        self._blocked: dict[str, None] = {}

    @property
    def transactions(self) -> pa.Table:
        """Canonical transactions, sorted by time."""
        return self._transactions

    @property
    def clicks(self) -> pa.Table:
        """Canonical clicks, sorted by time."""
        return self._clicks

    @property
    def as_of_ms(self) -> int:
        """The newest time of a transaction, or of a label that arrived; 0 if there is none."""
        times = self._transactions[self._schema.time]
        return max(self._label_ms, times[-1].as_py() if len(times) else 0)

    @property
    def clicks_as_of_ms(self) -> int:
        """The newest time of a click; 0 if there is none."""
        times = self._clicks["event_time"]
        return int(times[-1].as_py()) if len(times) else 0

    @property
    def blocked(self) -> Collection[str]:
        """Ids of the transactions that were blocked."""
        return self._blocked.keys()

    def add_blocked(self, event_ids: Iterable[str]) -> None:
        """Take note of transactions that were blocked; of the newest ``rows_max``."""
        self._blocked.update(dict.fromkeys(event_ids))
        for event_id in list(self._blocked)[: max(0, len(self._blocked) - self._rows_max)]:
            del self._blocked[event_id]

    def add_transactions(self, rows: Mapping[str, list[object]]) -> None:
        """Take in transactions that arrived, by column; an event id that is there already is left out."""
        schema = self._schema
        columns = transaction_columns(schema)
        blank = [None] * len(rows[schema.id])
        arrived = pa.table({name: rows.get(name, blank) for name in columns.names}, schema=columns)
        self._transactions = self._joined(self._transactions, arrived, schema.id, schema.time)

    def add_labels(self, event_ids: list[str], fraud: list[int], known_ms: list[int]) -> None:
        """Take in verdicts in order of arrival; they are joined by :meth:`join_labels`."""
        for event_id, verdict, known in zip(event_ids, fraud, known_ms, strict=True):
            self._verdicts.pop(event_id, None)
            self._verdicts[event_id] = verdict, known
            self._label_ms = max(self._label_ms, known)
        for event_id in list(self._verdicts)[: max(0, len(self._verdicts) - self._rows_max)]:
            del self._verdicts[event_id]

    def add_clicks(self, rows: Mapping[str, list[object]]) -> None:
        """Take in clicks that arrived, by column; an event id that is there already is left out."""
        self._clicks = self._joined(self._clicks, pa.table(dict(rows), schema=_CLICKS), "event_id", "event_time")

    def join_labels(self) -> None:
        """Write the verdicts that arrived into the transactions they judge; the others wait for theirs."""
        schema, table = self._schema, self._transactions
        if not self._verdicts or not table.num_rows:
            return
        verdicts = list(self._verdicts.values())
        places = pc.index_in(table[schema.id], value_set=pa.array(list(self._verdicts), pa.string()))
        for position, name in enumerate((schema.label, schema.label_time)):
            kind = table.schema.field(name).type
            told = pa.array([verdict[position] for verdict in verdicts], kind).take(places.combine_chunks())
            index = table.column_names.index(name)
            table = table.set_column(index, name, pc.coalesce(told, table[name].combine_chunks()))
        self._transactions = table
        found = set(places.drop_null().to_pylist())
        self._verdicts = {id_: v for i, (id_, v) in enumerate(self._verdicts.items()) if i not in found}

    def _joined(self, table: pa.Table, arrived: pa.Table, id_: str, time: str) -> pa.Table:
        first = np.unique(np.array(arrived[id_].to_pylist(), object), return_index=True)[1]
        arrived = arrived.take(pa.array(np.sort(first)))
        known = pc.is_in(arrived[id_], value_set=table[id_].combine_chunks())
        joined = pa.concat_tables([table, arrived.filter(pc.invert(known))]).combine_chunks()
        return _newest(joined, time, self._rows_max)


def _cast(table: pa.Table | None, columns: pa.Schema) -> pa.Table:
    if table is None:
        return columns.empty_table()
    for name in columns.names:
        if name not in table.column_names:  # ties that a file need not have
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    return table.select(columns.names).cast(columns)


def _newest(table: pa.Table, time: str, rows_max: int) -> pa.Table:
    """Sorted by time (stable), without the oldest rows beyond ``rows_max``."""
    times = table[time].to_numpy()
    if not np.all(times[:-1] <= times[1:]):
        table = table.take(pa.array(np.argsort(times, kind="stable")))
    return table.slice(max(0, table.num_rows - rows_max))
