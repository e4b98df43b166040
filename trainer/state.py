"""The entity state that a history leaves behind, so that a worker can go on where the history ends.

In: the canonical transactions table. Out: encoded state by partition and entity, as :mod:`features.codec` writes it:
the same kernel folds it that made the training vectors, so live features continue the trained ones. No IO.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from features.catalogue import build_catalogue
from features.codec import encode_rows
from features.engine import Rows
from features.hashing import partitions_of
from features.schema import TransactionSchema
from trainer.vectors import entity_ids, fold_all, table_labels, transaction_operations


def partition_states(
    table: pa.Table, schema: TransactionSchema, partitions: int
) -> Iterator[tuple[int, dict[str, dict[str, bytes]]]]:
    """For each partition, by entity name, the state of every id that its transactions and labels touched.

    Parameters
    ----------
    table : pa.Table
        Canonical transactions, sorted by time; labels are folded when they arrived.
    partitions : int
        Partitions of the transactions topic; a row belongs to that of its key entity.
    """
    catalogue = build_catalogue(schema)
    keys = entity_ids(table, schema.key)
    owners = partitions_of([id_.encode() for id_ in keys.dictionary.to_pylist()], partitions)
    owner = owners[keys.indices.to_numpy(zero_copy_only=False)]
    for partition in range(partitions):
        part = table.filter(pa.array(owner == partition))
        if not part.num_rows:
            continue
        ids = [entity_ids(part, entity).dictionary.to_pylist() for entity in schema.entities]
        tables = tuple(Rows(layout, len(found)) for layout, found in zip(catalogue.layouts, ids, strict=True))
        fold_all(catalogue, tables, transaction_operations(part, schema), table_labels(part, schema))
        states = {}
        for rows, found in zip(tables, ids, strict=True):
            values = encode_rows(rows.layout, np.arange(len(found), dtype=np.int64), rows.ints, rows.floats)
            states[rows.layout.entity.name] = dict(zip(found, values, strict=True))
        yield partition, states
