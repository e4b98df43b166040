"""An entity seen from several partitions: its shards, merged, say what one row would have said.

Within two hours: an entity that pauses for long starts anew, and shards do so each at a time of its own.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import engine
from features.catalogue import LABELS_KEPT, NEVER
from features.codec import encode_rows
from features.kernel import TRANSACTION
from tests.streams import CATALOGUE, SCHEMA, Op, Run, operations, streams

RUN = ("fraud_run", "since_fraud_run", "since_good_label", "fraud_run_ratio")
EXACT = ("count", "max", "fraud_count", "fraud_rate", "since_last", "since_first", "seen", "distinct")


@settings(max_examples=80, deadline=None)
@given(ops=streams(leaps=False), partitions=st.sampled_from([1, 2, 3, 5]), data=st.data())
def test_merged_shards_give_the_vectors_of_one_row(ops: list[Op], partitions: int, data: st.DataObject) -> None:
    single = Run()
    wanted, _, _ = single.feed(ops)
    run = Run()
    shards = [zlib.crc32(op.ids[0].encode()) % partitions for op in ops]
    rebuilt = data.draw(st.sets(st.integers(0, len(ops))))
    rows = run.rows
    row = 0
    corrected = False
    for i, op in enumerate(ops):
        verdicts = {op.fraud} | {other.fraud for other in ops[:i] if other.id == op.id} - {None}
        corrected |= op.fraud is not None and len(verdicts) > 1
        many = sum(other.fraud is not None for other in ops[:i]) > LABELS_KEPT
        columns = operations([op], rows, shards[i])
        for e, table in enumerate(run.tables[1:], 1):
            view = int(columns.views[0, e])
            if i in rebuilt:
                parts = [rows[e][p, op.ids[e]] for p in range(partitions) if (p, op.ids[e]) in rows[e]]
                table.merge(np.array(parts, np.int64), view)
        folded = engine.fold(CATALOGUE, run.tables, columns)
        zero = np.zeros(1)
        engine.remember(CATALOGUE, run.tables, columns, folded, zero, zero, np.zeros(1, np.int8))
        if columns.kind[0] == TRANSACTION:
            for j, feature in enumerate(CATALOGUE.features):
                found, value = folded.x[0, j], wanted[row, j]
                if feature.aggregate in RUN and (corrected or many):
                    continue  # one row and several shards may then know different ones of the labels before
                if feature.aggregate in (*EXACT, *RUN) or feature.entity == SCHEMA.key.name:
                    assert found == value or (np.isnan(found) and np.isnan(value)), feature.name
                else:
                    assert found == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), feature.name
            row += 1


def test_a_merge_of_nothing_reads_as_an_entity_without_events() -> None:
    table = Run().tables[1]
    table.floats[3] = 7.0
    table.ints[3, :3] = 5
    table.merge(np.zeros(0, np.int64), 3)
    assert table.ints[3, :3].tolist() == [NEVER] * 3
    nothing, empty = encode_rows(table.layout, np.array([3, 4]), table.ints, table.floats)
    assert nothing == empty


@settings(max_examples=40, deadline=None)
@given(ops=streams())
def test_the_same_shards_always_merge_to_the_same_bits(ops: list[Op]) -> None:
    run = Run()
    run.feed([op._replace(ids=(op.ids[0], f"{op.ids[0]}{op.ids[1]}", op.ids[2])) for op in ops])
    table = run.tables[1]
    parts = np.array(list(run.rows[1].values()), np.int64)
    table.merge(parts, 10)
    table.merge(parts, 11)
    assert table.floats[10].tobytes() == table.floats[11].tobytes()
    assert table.ints[10].tobytes() == table.ints[11].tobytes()
