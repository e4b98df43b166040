"""Feature vectors of historical transactions, from the same kernel that the stream runs.

In: the canonical transactions table (see :mod:`trainer.history`). Out: one vector per row. No state, no IO.

Labels are folded when they arrive, merged with the transactions by time, so that a vector holds only what was known
at its moment. A label that arrives in the same millisecond as a transaction comes after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features import engine
from features.catalogue import Catalogue, build_catalogue
from features.encoding import category_buckets
from features.engine import Operations, Rows
from features.hashing import hash_buffer, hash_strings
from features.kernel import LABEL, TRANSACTION
from features.schema import ID_SEPARATOR, Entity, TransactionSchema
from trainer.ordering import Longs, by_time, row_by_row
from trainer.verdicts import Verdicts

BATCH = 65_536


@dataclass(slots=True)
class Vectors:
    """``x`` float64[rows, features], NaN where missing; ``names`` in column order; ``repeat`` marks repeated ids."""

    x: NDArray[np.float64]
    names: list[str]
    repeat: NDArray[np.int8]


def string_hashes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """64-bit hash of each string, taken from Arrow's buffers without making Python strings; int64[n]."""
    array = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in column.chunks]) if column.num_chunks else None
    if array is None or len(array) == 0:
        return np.zeros(0, np.int64)
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return hash_buffer(np.frombuffer(data or b"", np.uint8), bounds).view(np.int64)


def entity_ids(table: pa.Table, entity: Entity) -> pa.DictionaryArray:
    """The id of each row's entity, as a dense number into the different ids."""
    columns = [table[name].cast(pa.string()) for name in entity.fields]
    ids = columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, ID_SEPARATOR)
    if not isinstance(ids, pa.ChunkedArray):
        ids = pa.chunked_array([ids])
    return ids.combine_chunks().dictionary_encode()


def _entity_codes(table: pa.Table, entity: Entity) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A dense number for each row's entity, and its id's hash."""
    encoded = entity_ids(table, entity)
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, hash_strings(encoded.dictionary.to_pylist()).view(np.int64)[codes]


class Labels(NamedTuple):
    """Labels in order of arrival: int64[m] row of the judged transaction, int64[m] epoch ms, int8[m] 1 for fraud."""

    row: Longs
    time: Longs
    fraud: NDArray[np.int8]


def table_labels(table: pa.Table, schema: TransactionSchema) -> Labels:
    """The labels of a table's own column."""
    judged = pc.and_(pc.is_valid(table[schema.label]), pc.is_valid(table[schema.label_time]))
    row = np.flatnonzero(judged.to_numpy())
    time = pc.fill_null(table[schema.label_time], 0).to_numpy().astype(np.int64)[row]
    order = np.argsort(time, kind="stable")
    row = row[order]
    return Labels(row, time[order], pc.fill_null(table[schema.label], 0).to_numpy().astype(np.int8)[row])


def transaction_operations(table: pa.Table, schema: TransactionSchema) -> Operations:
    """The transactions as operations in row order."""
    n = table.num_rows
    values = np.empty((n, len(schema.numeric)))
    for f, numeric in enumerate(schema.numeric):
        column = table[numeric.name].cast(pa.float64())
        values[:, f] = column.to_numpy()
    categories = np.empty((n, len(schema.categorical)))
    for c, name in enumerate(schema.categorical):
        encoded = table[name].combine_chunks().dictionary_encode()
        buckets = category_buckets([*encoded.dictionary.to_pylist(), None])
        indices = pc.fill_null(encoded.indices, len(encoded.dictionary))
        categories[:, c] = buckets[indices.to_numpy(zero_copy_only=False)]
    coded = [_entity_codes(table, entity) for entity in schema.entities]
    slots = np.stack([codes for codes, _ in coded], axis=1)
    return Operations(
        kind=np.full(n, TRANSACTION, np.int8),
        time=table[schema.time].to_numpy().astype(np.int64),
        event_hash=string_hashes(table[schema.id]),
        values=values,
        categories=categories,
        fraud=np.zeros(n, np.int8),
        entity_hash=np.stack([hashes for _, hashes in coded], axis=1),
        slots=slots,
        views=slots,
    )


def take(operations: Operations, rows: Longs) -> Operations:
    """The operations at ``rows``, in that order, each of which folds into the row that it reads."""
    o = operations
    slots = o.slots.take(rows, 0)
    return Operations(o.kind.take(rows), o.time.take(rows), o.event_hash.take(rows), o.values.take(rows, 0),
                      o.categories.take(rows, 0), o.fraud.take(rows), o.entity_hash.take(rows, 0), slots,
                      slots)  # fmt: skip


def fold_all(catalogue: Catalogue, tables: tuple[Rows, ...], transactions: Operations, labels: Labels,
             progress: Callable[[int, int], None] | None = None) -> Vectors:  # fmt: skip
    """The vectors of all transactions, in order; the tables hold the state after them and their labels.

    Operations go through the kernel in batches, and within a batch those of a row together, while it is near: no row
    knows of another's, so that only the order of its own counts.
    """
    n, width = len(transactions), len(catalogue.features)
    x, repeats = np.empty((n, width)), np.empty(n, np.int8)
    # Of transactions and, after them, labels.
    rows = np.concatenate([np.arange(n), labels.row])
    times = np.concatenate([transactions.time, labels.time])
    frauds = np.concatenate([transactions.fraud, labels.fraud])
    order = by_time(transactions.time, labels.time)
    # What the models would have said is no feature; the memory takes it as 0.
    score, anomaly, action = np.zeros(BATCH), np.zeros(BATCH), np.zeros(BATCH, np.int8)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        row = rows.take(chosen)
        slots = transactions.slots.take(row, 0)
        first, *others = (row_by_row(column, len(table)) for column, table in zip(slots.T, tables, strict=True))
        place = np.empty(len(first), np.int64)
        place[first] = np.arange(len(first))
        chosen, row = chosen.take(first), row.take(first)
        part, is_transaction = take(transactions, row), chosen < n
        part.kind = np.where(is_transaction, np.int8(TRANSACTION), np.int8(LABEL))
        part.time, part.fraud = times.take(chosen), frauds.take(chosen)
        folded = engine.fold(catalogue, tables, part, x=x, places=row * width,
                             orders=tuple(place.take(other) for other in others))  # fmt: skip
        engine.remember(catalogue, tables, part, folded, score, anomaly, action)
        repeats[row[is_transaction]] = folded.repeat[is_transaction]
        if progress is not None:
            progress(min(start + BATCH, len(order)), len(order))
    return Vectors(x, catalogue.names, repeats)


def history_vectors(table: pa.Table, schema: TransactionSchema, *, verdicts: Verdicts | None = None,
                    progress: Callable[[int, int], None] | None = None) -> Vectors:  # fmt: skip
    """The feature vector of every row of a canonical transactions table.

    Parameters
    ----------
    table : pyarrow.Table
        Sorted by time.
    verdicts : Verdicts, optional
        The labels to fold; the table's own when None.
    progress : callable, optional
        Called with (operations done, operations in all).
    """
    catalogue = build_catalogue(schema)
    transactions = transaction_operations(table, schema)
    labels = table_labels(table, schema) if verdicts is None else Labels(verdicts.row, verdicts.time_ms, verdicts.fraud)
    # What is the largest of a column is found ten times as fast where its numbers lie together.
    rows = [int(column.max(initial=-1)) + 1 for column in np.ascontiguousarray(transactions.slots.T)]
    tables = tuple(Rows(layout, count) for layout, count in zip(catalogue.layouts, rows, strict=True))
    return fold_all(catalogue, tables, transactions, labels, progress)
