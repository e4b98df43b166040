"""Feature vectors of historical transactions, from the same kernel that the stream runs.

In: the canonical transactions table (see :mod:`trainer.history`). Out: one vector per row. No state, no IO.

Labels are folded when they arrive, merged with the transactions by time, so that a vector holds only what was known
at its moment. A label that arrives in the same millisecond as a transaction comes after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def transaction_operations(table: pa.Table, schema: TransactionSchema, verdicts: Verdicts | None = None
                           ) -> tuple[Operations, Operations]:  # fmt: skip
    """The transactions as operations in row order, and their labels in order of arrival.

    The labels are the table's own, or ``verdicts``, which has those that lie elsewhere too.
    """
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
    transactions = Operations(
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
    if verdicts is not None:
        rows, arrival, fraud = verdicts.row, verdicts.time_ms, verdicts.fraud
    else:
        judged = pc.and_(pc.is_valid(table[schema.label]), pc.is_valid(table[schema.label_time]))
        rows = np.flatnonzero(judged.to_numpy())
        arrival = pc.fill_null(table[schema.label_time], 0).to_numpy().astype(np.int64)[rows]
        order = np.argsort(arrival, kind="stable")
        rows, arrival = rows[order], arrival[order]
        fraud = pc.fill_null(table[schema.label], 0).to_numpy().astype(np.int8)[rows]
    labels = take(transactions, rows)
    labels.kind, labels.time, labels.fraud = np.full(len(rows), LABEL, np.int8), arrival, fraud
    return transactions, labels


def take(operations: Operations, rows: NDArray[np.int64] | slice) -> Operations:
    """The operations at ``rows``, in that order."""
    o = operations
    slots = o.slots[rows]
    return Operations(o.kind[rows], o.time[rows], o.event_hash[rows], o.values[rows], o.categories[rows],
                      o.fraud[rows], o.entity_hash[rows], slots,
                      slots if o.views is o.slots else o.views[rows])  # fmt: skip


def interleave(transactions: Operations, labels: Operations) -> Operations:
    """Both in order of time; among equal times transactions come first. Transactions keep their own order.

    A transaction is never moved before one that precedes it: a late event keeps its place, and labels are put by
    the newest transaction time so far, as the stream does.
    """
    clock = np.maximum.accumulate(transactions.time) if len(transactions) else transactions.time
    order = np.argsort(np.concatenate([clock, labels.time]), kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    first, second = place[: len(transactions)], place[len(transactions) :]

    def joined(name: str) -> NDArray[Any]:
        ours, theirs = getattr(transactions, name), getattr(labels, name)
        column = np.empty((len(order), *ours.shape[1:]), ours.dtype)
        column[first], column[second] = ours, theirs
        return column

    columns = {name: joined(name) for name in Operations.__slots__ if name != "views"}
    apart = transactions.views is not transactions.slots or labels.views is not labels.slots
    return Operations(**columns, views=joined("views") if apart else columns["slots"])


def fold_all(catalogue: Catalogue, tables: tuple[Rows, ...], operations: Operations,
             progress: Callable[[int, int], None] | None = None) -> Vectors:  # fmt: skip
    """The vectors of all transactions among ``operations``, in order; the tables hold the state after them."""
    wanted = operations.kind == TRANSACTION
    width = len(catalogue.features)
    places = (np.cumsum(wanted) - 1) * width
    x = np.empty((int(wanted.sum()), width))
    repeats = np.empty(len(operations), np.int8)
    # What the models would have said is no feature; the memory takes it as 0.
    score, anomaly, action = np.zeros(BATCH), np.zeros(BATCH), np.zeros(BATCH, np.int8)
    for start in range(0, len(operations), BATCH):
        part = take(operations, slice(start, start + BATCH))
        folded = engine.fold(catalogue, tables, part, x=x, places=places[start : start + BATCH])
        engine.remember(catalogue, tables, part, folded, score, anomaly, action)
        repeats[start : start + BATCH] = folded.repeat
        if progress is not None:
            progress(min(start + BATCH, len(operations)), len(operations))
    return Vectors(x, catalogue.names, repeats[wanted])


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
    transactions, labels = transaction_operations(table, schema, verdicts)
    rows = transactions.slots.max(axis=0) + 1 if len(transactions) else [0] * len(catalogue.layouts)
    tables = tuple(Rows(layout, int(n)) for layout, n in zip(catalogue.layouts, rows, strict=True))
    return fold_all(catalogue, tables, interleave(transactions, labels), progress)
