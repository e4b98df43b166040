"""Compiles every kernel once, so that no event waits for a compiler. ``make setup`` runs it; a worker does at start.

The compiled code is cached beside the source (or in ``NUMBA_CACHE_DIR``), so the second time costs a load only. One
run serves every schema: the kernels take shapes as values, not as types.
"""

from __future__ import annotations

import numpy as np
from msgspec import UNSET

from features import engine, list_messages
from features.answers import allowed
from features.budget import Budget
from features.budget_kernel import DAY_MS, OPEN
from features.catalogue import Catalogue, build_catalogue
from features.codec import decode_rows, encode_rows
from features.decode import ClickDecoder, Limits, TransactionDecoder
from features.described import FACTS
from features.engine import Operations, Rows
from features.forest import FlatForest
from features.hashing import hash_strings, partitions_of
from features.kernel import LABEL, TRANSACTION
from features.listing import Clicked, Lister
from features.model_text import Model, Tree
from features.recommender import Recommender
from features.recordbatch import Columns, record_batch
from features.rowindex import RowIndex, merge_all
from features.rule_machine import Columns as RuleColumns
from features.rules import Rules
from features.rungs import Asking, Rung
from features.schema import load_schema
from features.shap import Explainer
from features.shelf import Shelf
from features.sources import REACH, TASTE, VARIANTS
from features.texts import Texts
from features.trees import FlatTrees
from features.trends import Counts, blend, count_clicks, scale_down


def warm() -> None:
    """Run a transaction and its label through everything that is compiled."""
    catalogue = build_catalogue(load_schema().transactions)
    tables = tuple(Rows(layout, 2) for layout in catalogue.layouts)
    entities = len(tables)
    hashes = hash_strings(["a", "a"]).view(np.int64)
    slots = np.zeros((2, entities), np.int64)
    operations = Operations(
        kind=np.array([TRANSACTION, LABEL], np.int8),
        time=np.array([1_600_000_000_000, 1_600_000_000_001], np.int64),
        event_hash=hashes,
        values=np.ones((2, len(catalogue.schema.numeric))),
        categories=np.ones((2, len(catalogue.schema.categorical))),
        fraud=np.array([0, 1], np.int8),
        entity_hash=np.stack([hashes] * entities, axis=1),
        slots=slots,
        views=slots,
    )
    folded = engine.fold(catalogue, tables, operations)
    engine.remember(catalogue, tables, operations, folded, np.zeros(2), np.zeros(2), np.zeros(2, np.int8))
    rows = np.zeros(1, np.int64)
    for table in tables:
        values = encode_rows(table.layout, rows, table.ints, table.floats)
        decode_rows(table.layout, values, rows + 1, table.ints, table.floats)
        table.merge(rows, 1)
    partitions_of([b"a"], 1)
    _warm_texts(tables[0])
    _warm_models()
    _warm_budget()
    _warm_rules(catalogue)


def _warm_texts(table: Rows) -> None:
    """What turns bytes into columns, finds rows, and writes answers."""
    ids, one, zero = Texts.of(["a"]), np.zeros(1, np.int64), np.zeros(1, np.int64)
    hashes = Texts.joined([ids, ids], ",").hashes()
    ids.partitions(1)
    for decoder in (TransactionDecoder(load_schema().transactions, Limits()), ClickDecoder(Limits())):
        decoder.decode([b'{"event_id":"a"}'], [0])
    index = RowIndex()
    found, missing = index.find(0, ids, hashes)
    index.add(0, ids, hashes, found, table.spare(missing))
    index.arguments(b"a:", found, np.zeros(1, np.uint8), one)
    index.remove(found)
    layout = table.layout
    merge_all(*table.flat, zero.reshape(1, 1), zero + 1, layout.dims)
    decisions = allowed("a", 0, one, ids, ids, one, one, one, "a", one, np.zeros(1, np.int8), one, [b"}"])
    record_batch([Columns(ids, decisions)], 0)
    clicks = list_messages.Clicks("a", 0, one, ids, ids, ids, ids, one, np.zeros(1, np.int8))
    list_messages.spliced(clicks, [([], UNSET)], zero, "a", None)


def _warm_models() -> None:
    """Trees of one split, a forest of one leaf, and a recommender of one session with one item."""
    zero, one = np.zeros(1), np.ones(1)
    node, yes = np.zeros(1, np.int32), np.ones(1, np.bool_)
    tree = Tree(node, zero, node - 1, node - 2, yes, np.zeros(1, np.int8), one, np.zeros(2), np.ones(2), {})
    trees = Model(("a",), 1.0, (tree,))
    FlatTrees(trees).probability(np.zeros((1, 1)))
    Explainer(trees).contributions(np.zeros((1, 1)))
    roots, leaf = np.array([0, 1], np.int32), np.zeros(1, np.int32)
    forest = FlatForest(roots, leaf - 1, zero, leaf, leaf, one, one, np.zeros(1, np.float32), np.array([0.0, 1.0]))
    forest.anomaly(np.zeros((1, 1)))
    _warm_recommender()


def _warm_rules(catalogue: Catalogue) -> None:
    """One rule, asked of one transaction."""
    text = "[[rule]]\nname = 'a'\nwhen = \"score > 1 or %s in ['a']\"\naction = 'allow'\nreason = 'a'"
    rules, one = Rules.parse(text % catalogue.schema.key.name, catalogue), np.zeros(1)
    columns = RuleColumns(np.zeros((1, 1)), one, one, np.zeros(1, np.int64), np.zeros((1, 1), np.int64))
    rules.evaluate(columns, rules.sets())


def _warm_recommender() -> None:
    """A recommender of one session with one item."""
    bounds, none = np.array([0, 1]), np.array([0, 0])
    single, zero, nothing = np.ones(1, np.float32), np.zeros(1, np.int32), np.zeros(0, np.int32)
    arrays = {
        "item_bytes": np.frombuffer(b"a", np.uint8), "item_offsets": bounds, "rarity": single, "popularity": single,
        "facts": np.zeros((1, len(FACTS)), np.float32), "posting_offsets": bounds, "posting_sessions": zero,
        "posting_places": zero, "next_offsets": none, "next_places": nothing, "session_offsets": np.array([1, 3]),
        "sequence": np.array([-1, 0, -1], np.int32), "recency": np.ones((1, VARIANTS), np.float32),
        "place_weights": np.ones((VARIANTS, 2 * REACH + 1), np.float32), "linear_offsets": bounds,
        "linear_items": zero, "linear_weights": single, "transition_offsets": none, "transition_items": nothing,
        "transition_weights": np.zeros(0, np.float32), "tastes": np.zeros((1, TASTE), np.float32),
        "variants": np.ones((VARIANTS, 2)), "settings": np.ones(7),
    }  # fmt: skip
    model = Recommender.from_arrays(arrays)
    one, weights = hash_strings(["a"]), np.ones(1, np.float32)
    for rung in Rung:
        model.recommend_many(one.reshape(1, 1), np.ones(1, np.int64), 1, Asking(rung))
    counts = Counts.empty()
    count_clicks(one, one, one, np.ones(1), counts, np.zeros(1, np.int64))
    scale_down(0.5, counts)
    places, room = np.full(len(counts.items), -1, np.int32), np.zeros((1, 1), np.int32)
    blend(one, zero, counts, places, 1.0, 1.0, zero, weights, zero, weights, room, np.zeros((1, 1), np.float32),
          np.ones(1, np.int32), room.copy())  # fmt: skip
    asked = Clicked(one.reshape(1, 1), np.ones(1, np.int64), np.zeros(1, np.int64), one)
    for rung in Rung:
        Lister(Shelf()).lists(model, asked, 1, Asking(rung))


def _warm_budget() -> None:
    """Two days of the alert budget."""
    days = np.array([1, 2], np.int64) * DAY_MS
    card = np.arange(2, dtype=np.int64)
    _ = Budget(1.0).decide(days, days, card, np.ones(2), card + 1, np.full(2, OPEN, np.int8), 0.5, 0.9)


if __name__ == "__main__":
    warm()
