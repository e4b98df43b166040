"""What rules are asked about, of a history: columns as a worker has them.

In: a canonical transactions table and its vectors. Out: :class:`features.rule_machine.Columns`. Pure.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.encoding import category_hashes
from features.hashing import hash_strings
from features.rule_machine import Columns
from features.schema import TransactionSchema
from trainer.vectors import entity_ids

Floats = NDArray[np.float64]


def rule_columns(table: pa.Table, schema: TransactionSchema, x: Floats, score: Floats, anomaly: Floats) -> Columns:
    """The columns of every row of a table.

    Parameters
    ----------
    table : pyarrow.Table
        n transactions.
    x : float64[n, F]
        Their vectors.
    score, anomaly : float64[n]
        What the models said; NaN where they said nothing.
    """
    texts = np.empty((table.num_rows, len(schema.entities) + len(schema.categorical)), np.int64)
    for e, entity in enumerate(schema.entities):
        encoded = entity_ids(table, entity)
        hashes = hash_strings(encoded.dictionary.to_pylist()).view(np.int64)
        texts[:, e] = hashes[encoded.indices.to_numpy(zero_copy_only=False)]
    for c, name in enumerate(schema.categorical):
        encoded = table[name].combine_chunks().dictionary_encode()
        hashes = category_hashes([*encoded.dictionary.to_pylist(), None])
        indices = pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy(zero_copy_only=False)
        texts[:, len(schema.entities) + c] = hashes[indices]
    times = table[schema.time].to_numpy().astype(np.int64)
    return Columns(np.ascontiguousarray(x), score, anomaly, times, texts)
