"""Clicks that are tied to fraud: what a defrauded card, or whoever was blocked, has clicked teaches nobody's taste.

In: canonical transactions and clicks. Out: which clicks are tied. Pure.

A transaction is a fraud here if its label says so, or if the worker blocked it. It ties its card (the key entity, by
the clicks' ``card_id``), its session and its user for :data:`features.ties.TIE_DAYS` before and after it. A tied click
ties the whole session that it lies in, and the user's clicks of that time.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.schema import ID_SEPARATOR, TransactionSchema
from features.ties import TIE_MS

Mask = NDArray[np.bool_]


def tied_clicks(clicks: pa.Table, transactions: pa.Table, schema: TransactionSchema, blocked: Collection[str] = ()
                ) -> Mask:  # fmt: skip
    """Which clicks are tied to fraud; bool[clicks].

    Parameters
    ----------
    clicks, transactions : pa.Table
        Canonical tables (:mod:`trainer.history`). A label that is null, or was not known yet, is to be null.
    blocked : collection of str, optional
        Ids of transactions that were blocked, labelled or not.
    """
    fraud = pc.fill_null(pc.equal(transactions[schema.label], 1), False)
    if blocked:
        fraud = pc.or_(fraud, pc.is_in(transactions[schema.id], value_set=pa.array(list(blocked), pa.string())))
    frauds = transactions.filter(fraud)
    times = clicks["event_time"].to_numpy()
    tied = np.zeros(clicks.num_rows, np.bool_)
    if not frauds.num_rows:
        return tied
    when = frauds[schema.time].to_numpy()
    cards = [frauds[name] for name in schema.entities[0].fields]
    card = cards[0] if len(cards) == 1 else pc.binary_join_element_wise(*cards, ID_SEPARATOR)
    named = {name: frauds[name] for name in ("session_id", "user_id") if name in frauds.schema.names}
    for name, ids in {"card_id": card, **named}.items():
        tied |= _near(clicks[name], times, ids, when)
    for name in ("session_id", "user_id"):
        if tied.any():
            rows = pa.array(np.flatnonzero(tied))
            tied |= _near(clicks[name], times, clicks[name].take(rows), times[tied])
    return tied


def _near(column: pa.ChunkedArray, times: NDArray[np.int64], ids: pa.ChunkedArray, when: NDArray[np.int64]) -> Mask:
    """Which values of a column are among ``ids``, at most the time of a tie before the first or after the last."""
    coded = ids.combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    known = coded.dictionary
    if not len(known):
        return np.zeros(len(times), np.bool_)
    codes = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    first, last = np.full(len(known), np.iinfo(np.int64).max), np.full(len(known), np.iinfo(np.int64).min)
    np.minimum.at(first, codes[codes >= 0], when[codes >= 0])
    np.maximum.at(last, codes[codes >= 0], when[codes >= 0])
    at = pc.fill_null(pc.index_in(column, value_set=known), -1).to_numpy()
    held = np.maximum(at, 0)
    inside: Mask = (at >= 0) & (times >= first[held] - TIE_MS) & (times <= last[held] + TIE_MS)
    return inside
