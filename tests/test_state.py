"""A worker that begins with the state of a history goes on exactly where the training vectors end."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from features.catalogue import build_catalogue
from features.codec import decode_rows
from features.engine import Rows
from features.hashing import partitions_of
from tests.world import World
from trainer.history import split_by_time
from trainer.state import partition_states
from trainer.vectors import entity_ids, fold_all, history_vectors, table_labels, transaction_operations


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
