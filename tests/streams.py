"""Random streams of transactions and labels, how they are fed to the kernel, and a naive memory of recent events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from features import engine
from features.catalogue import Catalogue, Feature, build_catalogue
from features.engine import Operations, Rows
from features.hashing import hash_strings
from features.kernel import LABEL, TRANSACTION
from features.schema import TransactionSchema, parse_schema
from tests.oracle import Oracle

START_MS = 1_600_000_000_000
SCHEMA_TEXT = """
[transactions]
numeric = ["amount", { name = "tip", minimum = -100, required = false }]
memory = 3
[[transactions.entities]]
name = "card"
fields = ["card_id"]
windows = ["7s", "10m", "1d"]
aggregates = ["count", "sum", "mean", "max", "std", "ratio", "zscore"]
label_windows = ["1h", "1d"]
[[transactions.entities]]
name = "merchant"
fields = ["merchant_id"]
windows = ["1m", "1h"]
aggregates = ["count", "mean", "max"]
label_windows = ["1h"]
[[transactions.entities]]
name = "place"
fields = ["merchant_id", "city"]
windows = ["1h"]
aggregates = ["sum"]
label_windows = ["10m"]
"""


class Op(NamedTuple):
    """A transaction, or (``fraud`` is not None) the verdict on the transaction ``id``. One id for each entity."""

    id: str
    time: int
    ids: tuple[str, ...]
    values: tuple[float, ...] = ()
    fraud: int | None = None


def small_schema(memory: int = 3) -> TransactionSchema:
    """The schema of the random streams."""
    schema = parse_schema(SCHEMA_TEXT.replace("memory = 3", f"memory = {memory}"))["transactions"]
    assert isinstance(schema, TransactionSchema)
    return schema


SCHEMA = small_schema()
CATALOGUE = build_catalogue(SCHEMA)

_STEPS_MS = (0, 0, 0, 1, 583, 584, 999, 5_000, 49_999, 50_000, 60_000, 600_000, 3_600_000, 43_200_000, 90_000_000,
             172_800_001, 400_000_000)  # fmt: skip
_LATE_MS = (0, 0, 0, 0, 0, 1, 584, 1_752, 1_753, 15_000, 150_000, 900_000, 21_600_000, 200_000_000)
_AMOUNTS = (0.0, 0.01, 1.0, 9.99, 100.0, 1234.56, 0.1 + 0.2, 1e6)


@st.composite
def streams(draw: st.DrawFn, *, late: bool = True, leaps: bool = True) -> list[Op]:
    """Transactions and labels in the order in which they count.

    Times stand still, creep and leap; with ``late`` some are behind the newest. Ids repeat, amounts are missing, labels
    judge known and unknown transactions, and again, and differently. Without ``leaps`` it all happens within two hours.
    """
    time = START_MS
    ops: list[Op] = []
    steps = [step for step in _STEPS_MS if leaps or step <= 60_000]
    lags = [lag for lag in _LATE_MS if leaps or lag <= 900_000] if late else [0]
    for number in range(draw(st.integers(1, 40))):
        time += draw(st.sampled_from(steps))
        at = time - draw(st.sampled_from(lags))
        earlier = [op for op in ops if op.fraud is None]
        kind = draw(st.sampled_from(("new", "new", "new", "label", "label", "again")))
        if kind == "label":
            judged = draw(st.sampled_from(earlier)) if earlier else Op("unknown", 0, ("a", "m", "m\x1fx"))
            ops.append(Op(judged.id, at, judged.ids, fraud=draw(st.integers(0, 1))))
        elif kind == "again" and earlier:
            ops.append(draw(st.sampled_from(earlier))._replace(time=at))
        else:
            card, merchant = draw(st.sampled_from("aab")), draw(st.sampled_from("mmn"))
            ids = (card, merchant, f"{merchant}\x1f{draw(st.sampled_from('xxy'))}")
            tip = draw(st.sampled_from((math.nan, -1.5, 0.0, 2.0)))
            ops.append(Op(f"e{number}", at, ids, (draw(st.sampled_from(_AMOUNTS)), tip)))
    return ops


def operations(ops: Sequence[Op], rows: Sequence[dict[Any, int]] | None = None, shard: int | None = None) -> Operations:
    """The columns of ``ops``. ``rows`` maps each entity's ids to state rows and grows with new ids.

    With a ``shard`` the rows of all entities but the key are those of (shard, id), and the views those of the id.
    """
    entities = len(SCHEMA.entities)
    rows = [{} for _ in range(entities)] if rows is None else rows
    slots = np.zeros((len(ops), entities), np.int64)
    views = np.zeros((len(ops), entities), np.int64)
    for i, op in enumerate(ops):
        for e, id_ in enumerate(op.ids):
            name = id_ if shard is None or e == 0 else (shard, id_)
            slots[i, e] = rows[e].setdefault(name, len(rows[e]))
            views[i, e] = slots[i, e] if shard is None or e == 0 else rows[e].setdefault(id_, len(rows[e]))
    missing = (math.nan,) * len(SCHEMA.numeric)
    hashes = [hash_strings([op.ids[e] for op in ops]).view(np.int64) for e in range(entities)]
    return Operations(
        kind=np.array([TRANSACTION if op.fraud is None else LABEL for op in ops], np.int8),
        time=np.array([op.time for op in ops], np.int64),
        event_hash=hash_strings([op.id for op in ops]).view(np.int64),
        values=np.array([op.values or missing for op in ops]).reshape(len(ops), len(missing)),
        categories=np.zeros((len(ops), 0)),
        fraud=np.array([op.fraud or 0 for op in ops], np.int8),
        entity_hash=np.stack(hashes, axis=1),
        slots=slots,
        views=views,
    )  # fmt: skip


def new_tables(catalogue: Catalogue, rows: int = 12) -> tuple[Rows, ...]:
    """Empty state tables; ``rows`` are enough for every id of :func:`streams`."""
    return tuple(Rows(layout, rows) for layout in catalogue.layouts)


class Run:
    """The kernel fed with operations batch by batch, with decisions that depend on the vectors as a model's do."""

    def __init__(self, catalogue: Catalogue = CATALOGUE) -> None:
        self.catalogue = catalogue
        self.tables = new_tables(catalogue)
        self.rows: list[dict[Any, int]] = [{} for _ in catalogue.layouts]

    def feed(self, ops: Sequence[Op], marks: Sequence[int] | None = None
             ) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:  # fmt: skip
        """The vectors and the decisions (score, anomaly, action) of the transactions of one batch, and repeats."""
        columns = operations(ops, self.rows)
        folded = engine.fold(self.catalogue, self.tables, columns,
                             None if marks is None else np.array(marks, np.int64))  # fmt: skip
        names = self.catalogue.names
        score = folded.x[:, names.index("card_count_1d")] * 0.1371 + folded.x[:, names.index("event_hour")]
        score = np.round(np.nan_to_num(score, nan=0.5) % 1.0, 6)
        anomaly, action = np.round(1.0 - score, 6), (score * 2.99).astype(np.int8)
        engine.remember(self.catalogue, self.tables, columns, folded, score, anomaly, action)
        wanted = columns.kind == TRANSACTION
        decided = np.stack([score, anomaly, action], axis=1)[wanted]
        return folded.x[wanted], decided, folded.repeat[wanted].tolist()


class Recall:
    """The naive memory: what a key entity knows of its last ``memory`` transactions."""

    def __init__(self, schema: TransactionSchema) -> None:
        self.size = schema.memory
        self.expiry_ms = 2 * max(schema.key.windows_ms + schema.key.label_windows_ms)
        self.others = [entity.name for entity in schema.entities[1:]]
        self.key = schema.key.name
        self.known: dict[str, list[list[Any]]] = {}  # key id: [event id, time, ids, verdict, its time, level]
        self.fields = [numeric.name for numeric in schema.numeric]
        self.past: dict[tuple[str, str], tuple[list[float], int]] = {}  # values as they count, time of an unusual one

    def usual(self, op: Op, *, fold: bool) -> tuple[int, dict[Any, float]]:
        """The level of a transaction, and its features against what is usual for its key."""
        level, out = 0, {}
        for field, value in zip(self.fields, op.values, strict=True):
            past, unusual_at = self.past.get((op.ids[0], field), ([], 0))
            name, counts = (self.key, field), value
            if past:
                mean = math.fsum(past) / len(past)
                deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in past) / len(past))
                spread = deviation + 0.1 * abs(mean)
                room = 1.75 * abs(mean) if abs(mean) >= deviation else 3 * deviation
                ratio = value / mean if mean else math.nan
                out[*name, "usual_ratio"] = ratio
                out[*name, "usual_zscore"] = (value - mean) / spread if spread else math.nan
                level = max(level, 0 if math.isnan(ratio) else 1 + int(min(max(ratio, 0) * 32, 254)))
                if len(past) >= 3 and room and not math.isnan(value):
                    counts = min(max(value, mean - room), mean + room)
            if unusual_at:
                out[*name, "since_unusual"] = max(op.time - unusual_at, 0) / 1000
            if fold and not math.isnan(value):
                at = unusual_at if counts == value else max(unusual_at, op.time)
                self.past[op.ids[0], field] = [*past, counts], at
        return level, out

    def step(self, op: Op) -> tuple[bool, list[tuple[int, int, int, int]], dict[Any, float]]:
        """Whether it is a repeat, the moves (time, labels, frauds, level) of a label, a transaction's features."""
        known = self.known.get(op.ids[0], [])
        if known and op.time - max(event[1] for event in known) > self.expiry_ms:
            known = []
        if not known:
            self.past = {name: past for name, past in self.past.items() if name[0] != op.ids[0]}
        found = next((event for event in known if event[0] == op.id), None)
        out = {(self.key, other, "seen"): sum(event[2][o] == op.ids[o] for event in known)
               for o, other in enumerate(self.others, 1)}  # fmt: skip
        out |= {(self.key, other, "distinct"): len({event[2][o] for event in known})
                for o, other in enumerate(self.others, 1)}  # fmt: skip
        moves: list[tuple[int, int, int, int]] = []
        judged = found[5] if found else 0
        if op.fraud is None:
            level, usual = self.usual(op, fold=found is None)
            out |= usual
            known = known if found else [*known, [op.id, op.time, op.ids, None, 0, level]][-self.size :]
        elif found is None or found[3] is None:
            moves = [(op.time, 1, op.fraud, judged)]
        elif found[3] != op.fraud:
            moves = [(found[4], -1, -found[3], judged), (op.time, 1, op.fraud, judged)]
        if found and moves:
            found[3:5] = [op.fraud, op.time]
        self.known[op.ids[0]] = known
        return found is not None, moves, out


def expected(schema: TransactionSchema, ops: Sequence[Op], span: Any) -> list[dict[Any, float]]:
    """The features of every transaction among ``ops`` by the naive oracle and the naive memory."""
    oracle, recall = Oracle(schema, span), Recall(schema)
    found = []
    for op in ops:
        repeat, moves, remembered = recall.step(op)
        features = oracle.step(op, fold=op.fraud is None and not repeat, moves=moves)
        if op.fraud is None:
            found.append(features | remembered)
    return found


def key_of(feature: Feature) -> tuple[Any, ...]:
    """How the oracles name a feature."""
    if feature.window_ms == 0:
        return (feature.entity, *([feature.field] if feature.field else []), feature.aggregate)
    return (feature.entity, *([feature.field] if feature.field else []), feature.aggregate, feature.window_ms)
