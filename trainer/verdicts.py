"""Verdicts about the transactions of a table: which one counts, as of a moment, where several were given.

In: a canonical table, and a table of labels beside it where there is one. Out: :class:`Verdicts`. Pure.

A transaction is its event id. A verdict that came later replaces the earlier one, in what a model learns from and in
what it is measured by; the feature kernel gets all of them, each when it came, as a worker does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.schema import TransactionSchema

Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Verdicts in the order in which they came.

    ``row`` int64[m] is the first row of the transaction that is judged, ``time_ms`` int64[m] when it became known,
    ``fraud`` int8[m]. ``first`` int64[n] is for each row of the table the first one with the same event id.
    ``unknown`` counts labels of transactions that the table has not, ``contradicted`` transactions with verdicts of
    both kinds.
    """

    row: Longs
    time_ms: Longs
    fraud: NDArray[np.int8]
    first: Longs
    unknown: int = 0
    contradicted: int = 0

    def as_of(self, time_ms: int | None = None) -> tuple[NDArray[np.int8], Longs]:
        """The newest verdict on each row of what was known before a moment, and when it came.

        Parameters
        ----------
        time_ms : int, optional
            Verdicts from here on are not known yet; all are without it.

        Returns
        -------
        label : int8[n]
            1 fraud, 0 good, -1 nobody judged it.
        known_ms : int64[n]
            0 where nobody did.
        """
        count = len(self.row) if time_ms is None else int(np.searchsorted(self.time_ms, time_ms))
        label, known = np.full(len(self.first), -1, np.int8), np.zeros(len(self.first), np.int64)
        row = self.row[:count]
        label[row], known[row] = self.fraud[:count], self.time_ms[:count]  # of equal rows the last one holds
        return label[self.first], known[self.first]


def counts_told(unknown: int, contradicted: int) -> list[str]:
    """A sentence each about labels that judge nothing, and that contradict each other, if there are any.

    >>> counts_told(0, 2)
    ['2 transactions have contradicting labels: the latest wins.']
    """
    told = {
        f"{unknown:,} labels judge transactions that the history has not.": unknown,
        f"{contradicted:,} transactions have contradicting labels: the latest wins.": contradicted,
    }
    return [sentence for sentence, count in told.items() if count]


def verdicts_of(table: pa.Table, schema: TransactionSchema, labels: pa.Table | None = None) -> Verdicts:
    """The verdicts in a table's own label column, and those of ``labels`` (:func:`trainer.history.read_labels`)."""
    ids = table[schema.id].combine_chunks().dictionary_encode()
    code = ids.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    first_of = np.full(len(ids.dictionary), len(code), np.int64)
    np.minimum.at(first_of, code, np.arange(len(code)))
    first = first_of[code] if len(code) else code
    own = pc.and_(pc.is_valid(table[schema.label]), pc.is_valid(table[schema.label_time]))
    at = np.flatnonzero(own.to_numpy())
    row, unknown = first[at], 0
    time_ms = pc.fill_null(table[schema.label_time], 0).to_numpy().astype(np.int64)[at]
    fraud = pc.fill_null(table[schema.label], 0).to_numpy().astype(np.int8)[at]
    if labels is not None:
        place = pc.fill_null(pc.index_in(labels[schema.id].combine_chunks(), ids.dictionary), -1).to_numpy()
        there = place >= 0
        unknown = int(np.count_nonzero(~there))
        judged = first_of[place[there]]
        told = labels[schema.label_time].to_numpy()[there]
        row = np.concatenate([row, judged])
        # As in the table's own column, no verdict is older than what it judges.
        time_ms = np.concatenate([time_ms, np.maximum(told, table[schema.time].to_numpy()[judged])])
        fraud = np.concatenate([fraud, labels[schema.label].to_numpy()[there].astype(np.int8)])
    order = np.argsort(time_ms, kind="stable")
    row, time_ms, fraud = row[order], time_ms[order], fraud[order]
    return Verdicts(row, time_ms, fraud, first, unknown, _contradicted(row, fraud, len(code)))


def _contradicted(row: Longs, fraud: NDArray[np.int8], rows: int) -> int:
    kinds = np.zeros((rows, 2), np.bool_)
    kinds[row, fraud] = True
    return int(np.count_nonzero(kinds.all(axis=1)))
