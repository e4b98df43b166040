"""A backtest: history walked forward through the live feature kernel, models refitted on what was known, scores.

In: a canonical transactions table, the schema, the protocol. Out: :class:`Scores` of every test transaction, and the
models of each fold. Pure.

All of history goes once through the kernel that serves (:func:`trainer.vectors.history_vectors`), labels at their
arrival, so every vector holds what was known at its moment. A fold tests the days from its start; it trains on the
transactions of ``[start - delay - train, start - delay)`` with the labels that were in at its start, and scores as a
worker does: the same models, the same rounding, the same thresholds, the same reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.catalogue import build_catalogue
from features.errors import TrainingError
from features.hashing import hash_strings
from features.schema import TransactionSchema
from features.scoring import FraudModel
from trainer.acting import Facts, Policy, PolicySettings
from trainer.fraud import FraudSettings, Judged, fit_fraud, gains
from trainer.isolation import fit_isolation
from trainer.vectors import Vectors, entity_ids, history_vectors
from trainer.verdicts import Verdicts, verdicts_of

DAY_MS = 86_400_000
SCORE_DECIMALS = 6  # as a worker publishes and remembers
_ALERTS_AT_ONCE = 4096
Longs = NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How history is walked: times in epoch ms, lengths in days; ``train_days`` None is all mature history.

    ``amount`` is the numeric field that costs weigh, None for the first.

    A card with a fraud among the transactions of the ``known_days`` before ``start - delay``, or since then and
    ``delay`` before a test day, is known to be compromised and left out of that day's figures.
    """

    start_ms: int
    folds: int = 4
    test_days: int = 7
    delay_days: int = 7
    train_days: int | None = 7
    known_days: int = 7
    amount: str | None = None
    policy: PolicySettings = field(default_factory=PolicySettings)


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold: its rows among those tested, its training, and the model."""

    number: int
    start_ms: int
    trained_from_ms: int
    rows: slice
    trained: int
    frauds: int
    model: FraudModel
    gains: dict[str, float]


@dataclass(frozen=True, slots=True)
class Scores:
    """Every test transaction in order: rows of the table ``at`` int64[n], score, anomaly, action, and reasons.

    ``fraud`` int8[n] is -1 where nobody ever judged; ``card`` int64[n] numbers the key entities; ``known`` bool[n] says
    that the card was known to be compromised; ``fold`` int64[n]; ``review_score`` float64[n] the threshold in force.
    """

    at: Longs
    fold: Longs
    day: Longs
    card: Longs
    fraud: NDArray[np.int8]
    known: NDArray[np.bool_]
    score: Floats
    anomaly: Floats
    action: NDArray[np.int8]
    reasons: list[list[str]]
    review_score: Floats


@dataclass(frozen=True, slots=True)
class Backtest:
    """What a backtest gave for one seed."""

    folds: list[Fold]
    scores: Scores


def replayed(table: pa.Table, schema: TransactionSchema, progress: Progress, verdicts: Verdicts | None = None
             ) -> Vectors:  # fmt: skip
    """The vectors of all of history, as the stream would have seen them."""
    return history_vectors(table, schema, verdicts=verdicts,
                           progress=lambda done, total: progress("replay", done, total))  # fmt: skip


def check(table: pa.Table, schema: TransactionSchema, protocol: Protocol, verdicts: Verdicts | None = None) -> None:
    """Refuse what cannot be walked.

    Raises
    ------
    TrainingError
        With what is missing and what would help.
    """
    times, day = table[schema.time].to_numpy(), date_of
    first, last = int(times[0]), int(times[-1])
    label, _ = (verdicts or verdicts_of(table, schema)).as_of()
    judged = int(np.count_nonzero(label >= 0))
    if judged == 0:
        raise TrainingError(
            f"none of the {table.num_rows:,} transactions has a label (column {schema.column(schema.label)!r}); a "
            "backtest needs verdicts to learn from and to be measured by. Map the column under [transactions.columns], "
            "or give --labels FILE."
        )
    frauds = int(np.count_nonzero(label == 1))
    if frauds in (0, judged):
        raise TrainingError(f"all {judged:,} labels say {'fraud' if frauds else 'good'}; a backtest needs both kinds")
    mature = protocol.start_ms - protocol.delay_days * DAY_MS
    wanted = mature - (protocol.train_days or 1) * DAY_MS
    if wanted < first // DAY_MS * DAY_MS:
        raise TrainingError(
            f"training would begin on {day(wanted)}, but history begins on {day(first)}: give a later --test-start "
            f"than {day(protocol.start_ms)}, fewer --train-days, or a longer history"
        )
    end = protocol.start_ms + protocol.folds * protocol.test_days * DAY_MS
    if protocol.start_ms > last or end - DAY_MS > last:
        raise TrainingError(
            f"{protocol.folds} x {protocol.test_days} test days from {day(protocol.start_ms)} end on {day(end - 1)}, "
            f"but history ends on {day(last)}: give an earlier --test-start, fewer --folds or fewer --test-days"
        )


def run(table: pa.Table, schema: TransactionSchema, vectors: Vectors, protocol: Protocol, settings: FraudSettings,
        progress: Progress, verdicts: Verdicts | None = None) -> Backtest:  # fmt: skip
    """Walk the folds; ``verdicts`` are those of the table when None.

    Raises
    ------
    TrainingError
        If the windows do not fit the history, or a fold has too few frauds to train on.
    """
    verdicts = verdicts or verdicts_of(table, schema)
    check(table, schema, protocol, verdicts)
    times = table[schema.time].to_numpy()
    folds, parts, first = [], [], 0
    policy, facts = Policy(protocol.policy), _facts(table, schema, vectors, protocol)
    for number in range(protocol.folds):
        start = protocol.start_ms + number * protocol.test_days * DAY_MS
        low, high = np.searchsorted(times, [start, start + protocol.test_days * DAY_MS])
        rows = np.arange(low, high)
        if not len(rows):
            raise TrainingError(
                f"no transaction lies in the test days from {date_of(start)}; choose another --test-start"
            )
        fold = _fitted(table, schema, vectors, protocol, settings, number, start, progress, verdicts)
        fold = replace(fold, rows=slice(first, first + len(rows)))
        first += len(rows)
        parts.append(_scored(fold.model, vectors.x[rows], policy, facts.take(rows)))
        folds.append(fold)
        progress("folds", number + 1, protocol.folds)
    at = np.concatenate([np.searchsorted(times, f.start_ms) + np.arange(f.rows.stop - f.rows.start) for f in folds])
    label, _ = verdicts.as_of()
    card = entity_ids(table, schema.key).indices.to_numpy(zero_copy_only=False).astype(np.int64)
    known = _known(times, card, label == 1, at, folds, protocol)
    score, anomaly, action, in_force = (np.concatenate([part[i] for part in parts]) for i in (0, 1, 2, 4))
    fold_of = np.concatenate([np.full(f.rows.stop - f.rows.start, f.number) for f in folds])
    reasons = [list(texts) for part in parts for texts in part[3]]
    day = (times[at] - protocol.start_ms) // DAY_MS
    return Backtest(folds, Scores(at, fold_of, day, card[at], label[at], known, score, anomaly, action, reasons,
                                  in_force))  # fmt: skip


def known_at(table: pa.Table, schema: TransactionSchema, vectors: Vectors, protocol: Protocol, start: int,
             verdicts: Verdicts) -> tuple[Longs, Judged]:  # fmt: skip
    """The rows that a fold from ``start`` trains on, each transaction once, and those that were judged by then."""
    times = table[schema.time].to_numpy()
    mature = start - protocol.delay_days * DAY_MS
    begin = int(times[0]) if protocol.train_days is None else mature - protocol.train_days * DAY_MS
    low, high = np.searchsorted(times, [begin, mature])
    rows = np.arange(low, high)[vectors.repeat[low:high] == 0]
    label, known_ms = (column[rows] for column in verdicts.as_of(start))
    sure = label >= 0
    return rows, Judged(vectors.x, label[sure] == 1, times[rows[sure]], known_ms[sure], rows[sure])


def _fitted(table: pa.Table, schema: TransactionSchema, vectors: Vectors, protocol: Protocol, settings: FraudSettings,
            number: int, start: int, progress: Progress, verdicts: Verdicts) -> Fold:  # fmt: skip
    """The models that were known at the start of a fold."""
    times = table[schema.time].to_numpy()
    mature = start - protocol.delay_days * DAY_MS
    begin = int(times[0]) if protocol.train_days is None else mature - protocol.train_days * DAY_MS
    features = build_catalogue(schema).features
    rows, judged = known_at(table, schema, vectors, protocol, start, verdicts)
    try:
        fit = fit_fraud(judged, features, settings, lambda d, t: progress(f"fold {number + 1}", d, t))
    except TrainingError as error:
        raise TrainingError(
            f"fold {number + 1}, trained on {date_of(begin)} to {date_of(mature - 1)}: {error}"
        ) from None
    forest = fit_isolation(vectors.x[rows], features=features, seed=settings.seed, threads=settings.threads)
    model = FraudModel(fit.text, forest, features, fit.thresholds, f"fold-{number + 1}")
    return Fold(number, start, begin, slice(0, 0), len(judged.fraud), int(judged.fraud.sum()), model,
                gains(fit.text, features))  # fmt: skip


def _facts(table: pa.Table, schema: TransactionSchema, vectors: Vectors, protocol: Protocol) -> Facts:
    """What the policy looks at, of every transaction."""
    ids = entity_ids(table, schema.key)
    hashes = hash_strings(ids.dictionary.to_pylist()).view(np.int64)
    amount = protocol.amount or (schema.numeric[0].name if schema.numeric else None)
    lost = np.full(table.num_rows, np.nan) if amount is None else table[amount].to_numpy()
    card = hashes[ids.indices.to_numpy(zero_copy_only=False)]
    return Facts(table[schema.time].to_numpy(), card, lost, vectors.repeat)


def _scored(model: FraudModel, x: Floats, policy: Policy, facts: Facts
            ) -> tuple[Floats, Floats, NDArray[np.int8], list[list[str]], Floats]:  # fmt: skip
    """Score, anomaly, action, reasons and threshold in force, as a worker gives them."""
    score, anomaly = (np.round(part, SCORE_DECIMALS) for part in model.score_many(np.ascontiguousarray(x)))
    action, in_force = policy.act(score, model.thresholds, model.version, facts)
    reasons: list[list[str]] = [[] for _ in range(len(x))]
    alerts = np.flatnonzero(action > 0)
    for start in range(0, len(alerts), _ALERTS_AT_ONCE):
        some = alerts[start : start + _ALERTS_AT_ONCE]
        for row, found in zip(some.tolist(), model.reasons_many(np.ascontiguousarray(x[some])), strict=True):
            reasons[row] = [reason.text for reason in found]
    return score, anomaly, action, reasons, in_force


def _known(times: Longs, card: Longs, fraud: NDArray[np.bool_], at: Longs, folds: list[Fold], protocol: Protocol
           ) -> NDArray[np.bool_]:  # fmt: skip
    """Which test transactions are of a card that was known to be compromised on their day."""
    known = np.zeros(len(at), np.bool_)
    for fold in folds:
        begin = fold.start_ms - (protocol.delay_days + protocol.known_days) * DAY_MS
        for day in range(protocol.test_days):
            start = fold.start_ms + day * DAY_MS
            low, high = np.searchsorted(times, [begin, max(begin, start - protocol.delay_days * DAY_MS)])
            cards = np.unique(card[low:high][fraud[low:high]])
            a, b = np.searchsorted(times[at], [start, start + DAY_MS])
            known[a:b] = np.isin(card[at[a:b]], cards)
    return known


def date_of(time_ms: int) -> str:
    """The day of a time, in UTC."""
    return str(np.datetime64(time_ms, "ms").astype("datetime64[D]"))
