"""Decoded transactions as columns, for those who keep them in tables.

In: what :class:`~features.decode.TransactionDecoder` reads. Out: columns under the names of the schema. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from features.schema import ID_SEPARATOR, TransactionSchema

Columns = dict[str, list[Any]]


def transaction_rows(schema: TransactionSchema, fields: Sequence[tuple[Any, ...]]) -> Columns:
    """Decoded transactions by column, under the names of the schema; a combined id is its fields again."""
    ids, times, entities, numbers, categories, _, *ties = zip(*fields, strict=True)
    rows: Columns = {schema.id: list(ids), schema.time: list(times)}
    for entity, column in zip(schema.entities, zip(*entities, strict=True), strict=True):
        # A combined id has as many separators as it has fields less one: inside ids it is refused.
        parts = zip(*(text.split(ID_SEPARATOR) for text in column), strict=True)
        rows |= {name: list(values) for name, values in zip(entity.fields, parts, strict=True)}
    for numeric, column in zip(schema.numeric, zip(*numbers, strict=True), strict=True):
        rows[numeric.name] = [None if math.isnan(value) else value for value in column]
    for name, column in zip(schema.categorical, zip(*categories, strict=True), strict=True):
        rows[name] = list(column)
    for name, column in zip(("session_id", "user_id"), zip(*ties[0], strict=True) if ties else (), strict=False):
        rows.setdefault(name, list(column))
    return rows
