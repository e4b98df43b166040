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
from features.schema import TransactionSchema
from tests.world import World
from trainer import vectors
from trainer.history import split_by_time
from trainer.state import partition_states
from trainer.vectors import (
    Labels,
    entity_ids,
    fold_all,
    history_vectors,
    table_labels,
    take,
    transaction_operations,
)


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
    catalogue, table = build_catalogue(schema), _with_late_ones_and_repeats(world.payments.slice(0, 2000), schema)
    transactions, labels = transaction_operations(table, schema), _told_again(table_labels(table, schema))
    turns = [(time, 0, n) for n, time in enumerate(np.maximum.accumulate(transactions.time).tolist())]
    turns += [(time, 1, n) for n, time in enumerate(labels.time.tolist())]
    single = _empty(catalogue, transactions)
    x, repeat = np.empty((len(transactions), len(catalogue.features))), np.empty(len(transactions), np.int8)
    for _, kind, n in sorted(turns):
        row = int(labels.row[n]) if kind else n
        one = take(transactions, np.array([row]))
        if kind:
            one.kind[:], one.time[:], one.fraud[:] = LABEL, labels.time[n], labels.fraud[n]
        folded = engine.fold(catalogue, single, one)
        engine.remember(catalogue, single, one, folded, np.zeros(1), np.zeros(1), np.zeros(1, np.int8))
        if not kind:
            x[row], repeat[row] = folded.x[0], folded.repeat[0]
    assert repeat.sum() > 5
    for batch in (64, 1000, 65_536):
        monkeypatch.setattr(vectors, "BATCH", batch)
        tables = _empty(catalogue, transactions)
        found = fold_all(catalogue, tables, transactions, labels)
        assert np.array_equal(found.x.view(np.int64), x.view(np.int64))
        assert np.array_equal(found.repeat, repeat)
        assert [_bytes(rows) for rows in tables] == [_bytes(rows) for rows in single]


def _with_late_ones_and_repeats(table: pa.Table, schema: TransactionSchema) -> pa.Table:
    """Every fiftieth comes late; of some cards the next event has the id of the one before, or of another card's."""
    place = np.arange(table.num_rows)
    place[100:1900:50] -= 30
    table = table.take(pa.array(np.argsort(place, kind="stable")))
    ids, cards = table[schema.id].to_pylist(), table[schema.key.fields[0]].to_pylist()
    for row in range(200, 1800, 100):
        if cards[row] in cards[row + 1 :]:
            ids[cards.index(cards[row], row + 1)] = ids[row]
        ids[row + 50] = ids[row + 49]
    return table.set_column(table.column_names.index(schema.id), schema.id, pa.array(ids))


def _told_again(labels: Labels) -> Labels:
    """Every tenth label comes twice, at once or later, with the same verdict or the other."""
    some = np.arange(0, len(labels.row), 10)
    later = np.where(some % 20 == 0, 0, 3_600_000)
    row = np.concatenate([labels.row, labels.row[some]])
    time = np.concatenate([labels.time, labels.time[some] + later])
    fraud = np.concatenate([labels.fraud, np.where(some % 30 == 0, labels.fraud[some], 1 - labels.fraud[some])])
    order = np.argsort(time, kind="stable")
    return Labels(row[order], time[order], fraud[order].astype(np.int8))


def _bytes(rows: Rows) -> list[bytes]:
    return encode_rows(rows.layout, np.arange(len(rows), dtype=np.int64), rows.ints, rows.floats)


def _empty(catalogue: Catalogue, transactions: Operations) -> tuple[Rows, ...]:
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
