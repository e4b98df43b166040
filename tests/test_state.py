"""A worker that begins with the state of a history goes on exactly where the training vectors end."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from features import engine
from features.catalogue import Catalogue, build_catalogue
from features.codec import decode_rows, encode_rows
from features.engine import Operations, Rows
from features.hashing import partitions_of
from features.kernel import LABEL
from tests.world import World
from trainer import vectors
from trainer.history import split_by_time
from trainer.state import partition_states
from trainer.vectors import entity_ids, fold_all, history_vectors, table_labels, take, transaction_operations


def test_vectors_after_a_history_continue_its_training_vectors_bit_for_bit(world: World) -> None:
    schema = world.schema.transactions
    whole = world.payments.slice(0, 3000)
    names = [schema.label, schema.label_time]
    unlabelled = whole
    for name in names:  # labels that come after the split would have to be folded by both
        column = pa.nulls(whole.num_rows, whole.schema.field(name).type)
        unlabelled = unlabelled.set_column(unlabelled.column_names.index(name), name, column)
    expected = history_vectors(unlabelled, schema).x
    early, later = split_by_time(unlabelled, schema.time, fraction=0.7)
    ((partition, states),) = partition_states(early, schema, 1)
    assert partition == 0
    tables = []
    for layout in build_catalogue(schema).layouts:
        ids = entity_ids(later, layout.entity).dictionary.to_pylist()
        rows = Rows(layout, len(ids))
        held = states[layout.entity.name]
        values = [held.get(id_, b"") for id_ in ids]
        decode_rows(layout, values, np.arange(len(ids), dtype=np.int64), rows.ints, rows.floats)
        tables.append(rows)
    transactions, labels = transaction_operations(later, schema), table_labels(later, schema)
    continued = fold_all(build_catalogue(schema), tuple(tables), transactions, labels).x
    assert np.array_equal(continued.view(np.int64), expected[early.num_rows :].view(np.int64))


def test_a_history_row_by_row_gives_the_bits_of_one_operation_after_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = world.schema.transactions
    catalogue, table = build_catalogue(schema), world.payments.slice(0, 2000)
    late = np.arange(table.num_rows)
    late[100:1900:50] -= 30  # events that come after newer ones keep their place
    table = table.take(pa.array(np.argsort(late, kind="stable")))
    transactions, labels = transaction_operations(table, schema), table_labels(table, schema)
    clock = np.maximum.accumulate(transactions.time)
    turns = [(time, 0, n) for n, time in enumerate(clock.tolist())]
    turns += [(time, 1, n) for n, time in enumerate(labels.time.tolist())]
    expected, single = np.empty((table.num_rows, len(catalogue.features))), _rows(catalogue, transactions)
    for _, kind, n in sorted(turns):
        row = int(labels.row[n]) if kind else n
        one = take(transactions, np.array([row]))
        if kind:
            one.kind[:], one.time[:], one.fraud[:] = LABEL, labels.time[n], labels.fraud[n]
        folded = engine.fold(catalogue, single, one)
        engine.remember(catalogue, single, one, folded, np.zeros(1), np.zeros(1), np.zeros(1, np.int8))
        if not kind:
            expected[row] = folded.x[0]
    assert labels.fraud.any()
    for batch in (64, 1000, 65_536):
        monkeypatch.setattr(vectors, "BATCH", batch)
        tables = _rows(catalogue, transactions)
        found = fold_all(catalogue, tables, transactions, labels)
        assert np.array_equal(found.x.view(np.int64), expected.view(np.int64))
        for ours, theirs in zip(tables, single, strict=True):
            places = np.arange(len(ours), dtype=np.int64)
            layout = ours.layout
            assert encode_rows(layout, places, ours.ints, ours.floats) == encode_rows(
                layout, places, theirs.ints, theirs.floats
            )


def _rows(catalogue: Catalogue, transactions: Operations) -> tuple[Rows, ...]:
    counts = transactions.slots.max(axis=0) + 1
    return tuple(Rows(layout, int(count)) for layout, count in zip(catalogue.layouts, counts, strict=True))


def test_each_card_lies_in_the_partition_that_its_transactions_go_to(world: World) -> None:
    schema = world.schema.transactions
    found = dict(partition_states(world.payments.slice(0, 2000), schema, 4))
    cards = {id_: partition for partition, states in found.items() for id_ in states["card"]}
    assert set(cards) == set(world.payments.slice(0, 2000)["card_id"].to_pylist())
    owners = partitions_of([id_.encode() for id_ in cards], 4)
    assert owners.tolist() == list(cards.values())
    assert sum(len(states["merchant"]) for states in found.values()) > len(
        set(world.payments.slice(0, 2000)["merchant_id"].to_pylist())
    )
