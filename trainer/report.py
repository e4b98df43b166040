"""What a backtest showed: figures as plain values, a page in Markdown, and plots.

In: backtests of one protocol, one for each seed. Out: :func:`figures` (fit for JSON: finite numbers and ``None``), a
directory with ``report.md``, ``report.json`` and SVG plots.

Figures of a fold leave out transactions nobody judged and cards known to be compromised (:class:`trainer.backtest.
Protocol`); what holds for the whole is the mean of the folds, then of the seeds. Plots and intervals are of the first
seed, all folds together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.catalogue import Feature
from trainer import metrics
from trainer.backtest import Backtest, Protocol, date_of
from trainer.metrics import Scored
from trainer.plots import line_plot
from trainer.verdicts import counts_told

CASES = (1, 5, 10, 25, 50, 100, 200, 400)
_NAMES = {"auc": "AUC", "average_precision": "average precision"}
_NOT_TOLD = "cannot be told"


def scored_of(backtest: Backtest, amount: NDArray[np.float64]) -> Scored:
    """The test transactions that figures are made of."""
    s = backtest.scores
    wanted = (s.fraud >= 0) & ~s.known
    return Scored(s.score, s.fraud == 1, s.day, s.card, amount).take(wanted)


def _fold_figures(backtest: Backtest, protocol: Protocol, k: int, score: NDArray[np.float64]) -> list[dict[str, Any]]:
    s, found = backtest.scores, []
    for fold in backtest.folds:
        rows = np.arange(fold.rows.start, fold.rows.stop)
        rows = rows[(s.fraud[rows] >= 0) & ~s.known[rows]]
        part = Scored(score[rows], s.fraud[rows] == 1, s.day[rows], s.card[rows], np.zeros(len(rows)))
        auc, precision = metrics.ranking(part)
        days = np.arange(protocol.test_days) + fold.number * protocol.test_days
        shares = metrics.card_precision(part, days, k) if len(rows) else []
        found.append({
            "fold": fold.number + 1, "from": date_of(fold.start_ms), "trained_from": date_of(fold.trained_from_ms),
            "trained": fold.trained, "training_frauds": fold.frauds, "transactions": len(rows),
            "frauds": int(part.fraud.sum()), "auc": auc, "average_precision": precision,
            "card_precision": _mean(shares), "card_precision_by_day": shares,
        })  # fmt: skip
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if told else None


def figures(backtests: Sequence[tuple[int, Backtest]], protocol: Protocol, amount: NDArray[np.float64], k: int,
            features: Sequence[Feature]) -> dict[str, Any]:  # fmt: skip
    """All figures.

    Parameters
    ----------
    backtests : sequence of (seed, Backtest)
    amount : float64[n]
        Money at stake of each test transaction, NaN where there is none to tell.
    k : int
        Cards looked at a day.
    """
    seeds = [seed for seed, _ in backtests]
    per_seed: list[dict[str, Any]] = []
    for seed, backtest in backtests:
        folds = _fold_figures(backtest, protocol, k, backtest.scores.score)
        means = {name: _mean([fold[name] for fold in folds]) for name in (*_NAMES, "card_precision")}
        anomaly = _fold_figures(backtest, protocol, k, backtest.scores.anomaly)
        unlabelled = {name: _mean([fold[name] for fold in anomaly]) for name in means}
        per_seed.append({"seed": seed, **means, "anomaly": unlabelled, "folds": folds})
    names = (*_NAMES, "card_precision")
    first = scored_of(backtests[0][1], amount)
    curve, error = metrics.calibration(first)
    days = [share for fold in per_seed[0]["folds"] for share in fold["card_precision_by_day"]]
    gains: dict[str, float] = {}
    for fold in backtests[0][1].folds:
        for name, gain in fold.gains.items():
            gains[name] = gains.get(name, 0.0) + gain / len(backtests[0][1].folds)
    return {
        "protocol": asdict(protocol) | {"start": date_of(protocol.start_ms), "cards_a_day": k, "seeds": seeds},
        "mean": {name: _mean([one[name] for one in per_seed]) for name in names},
        "anomaly": {name: _mean([one["anomaly"][name] for one in per_seed]) for name in names},
        "intervals": metrics.ranking_intervals(first, seeds[0]) | {"card_precision": metrics.interval(days, seeds[0])},
        "seeds": per_seed,
        "calibration_error": error,
        "calibration": curve,
        "precision_recall": metrics.precision_recall(first),
        "money": [
            {"cases_per_day": cases, "money_caught": money, "frauds_caught": frauds}
            for cases, money, frauds in metrics.money_caught(first, list(CASES))
        ],
        "left_out": {
            "of_known_cards": int(backtests[0][1].scores.known.sum()),
            "never_judged": int((backtests[0][1].scores.fraud < 0).sum()),
        },
        "importance": dict(sorted(gains.items(), key=lambda item: -item[1])),
        "features": {feature.name: feature.definition for feature in features},
    }


def told(value: float | None) -> str:
    """A figure with three decimals.

    >>> told(0.88049), told(None)
    ('0.880', 'cannot be told')
    """
    return _NOT_TOLD if value is None else f"{value:.3f}"


def input_told(facts: dict[str, Any]) -> str:
    """What was read, in one sentence or two."""
    text = f"{facts['transactions']:,} transactions with {facts['labels']:,} labels"
    dropped = facts["dropped"] | {f"label {reason}": count for reason, count in facts["labels_dropped"].items()}
    if dropped:
        text += f"; left out: {', '.join(f'{reason} {count:,}' for reason, count in sorted(dropped.items()))}"
    counted = counts_told(facts["labels_of_unknown_transactions"], facts["contradicted_transactions"])
    return " ".join([f"{text}.", *counted])


def resources_told(facts: dict[str, Any]) -> str:
    """Speed and memory, in one sentence."""
    return (
        f"{facts['replayed_transactions']:,} transactions and {facts['replayed_labels']:,} labels replayed in "
        f"{facts['replay_seconds']:.1f} s, {facts['replay_events_per_second']:,} events/s; "
        f"{facts['total_seconds']:.0f} s in all, peak memory {facts['peak_memory_mb']:,} MB."
    )


def alerts_told(facts: dict[str, Any]) -> str:
    """How many cards were alerted a day, in one sentence."""
    wanted = "" if facts["cases_per_day"] is None else f" of {facts['cases_per_day']} wanted"
    return (
        f"cards alerted a day, after the first: {facts['mean']:.1f}{wanted}, least {facts['least']}, most "
        f"{facts['most']}; precision against the best cards of each day in hindsight: "
        f"{told(facts['precision_to_best'])}, on the worst day {told(facts['precision_to_best_least'])}"
    )


def _between(interval: tuple[float, float] | None) -> str:
    return _NOT_TOLD if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
        "",
    ]


def _by_day(folds: Sequence[dict[str, Any]]) -> list[list[Any]]:
    rows = []
    for fold in folds:
        first = date.fromisoformat(fold["from"])
        rows += [[first + timedelta(days=n), told(share)] for n, share in enumerate(fold["card_precision_by_day"])]
    return rows


def _alerts(alerts: dict[str, Any] | None) -> list[str]:
    """The part about a budget or costs, if there is one."""
    if alerts is None:
        return []
    rows = [
        [day["date"], day["cases"], told(day["precision"]), told(day["best_precision"]), f"{day['review_score']:.6f}"]
        for day in alerts["days"]
    ]
    heads = ["day", "cards alerted", "precision", "of the best in hindsight", "threshold in force (median)"]
    return ["## Cards alerted a day", "", alerts_told(alerts)[0].upper() + alerts_told(alerts)[1:] + ".", "",
            *_table(heads, rows), "![Cards alerted](alerts.svg)", ""]  # fmt: skip


def markdown(facts: dict[str, Any]) -> str:
    """The page of :func:`figures`."""
    p, k, names = facts["protocol"], facts["protocol"]["cards_a_day"], (*_NAMES, "card_precision")
    heads = [*_NAMES.values(), f"card precision@{k}"]
    train = "all mature history" if p["train_days"] is None else f"{p['train_days']} days"
    error, left_out = facts["calibration_error"], facts["left_out"]
    intro = (
        f"{p['folds']} folds of {p['test_days']} days from {p['start']}, labels {p['delay_days']} days late, trained "
        f"on {train}. Left out are {left_out['of_known_cards']:,} transactions of cards known to be compromised and "
        f"{left_out['never_judged']:,} that nobody judged."
    )
    calibration = (
        f"Expected calibration error: {_NOT_TOLD if error is None else f'{error:.5f}'}, the mean distance between the "
        "predicted and the true share of frauds in bins of score."
    )
    lines = [
        "# Backtest", "",
        *([input_told(facts["input"]), ""] if "input" in facts else []),
        intro, "",
        *_table(["", *heads], [
            ["mean of folds and seeds", *(told(facts["mean"][name]) for name in names)],
            ["95 % interval, days drawn anew", *(_between(facts["intervals"][name]) for name in names)],
            *([f"seed {one['seed']}", *(told(one[name]) for name in names)] for one in facts["seeds"]),
            ["anomaly alone, without labels in training", *(told(facts["anomaly"][name]) for name in names)],
        ]),
        "## By fold", "", f"Seed {facts['seeds'][0]['seed']}.", "",
        *_table(["fold", "from", "trained on", "frauds in it", "tested", "frauds in it", *heads], [
            [fold["fold"], fold["from"], f"{fold['trained']:,}", f"{fold['training_frauds']:,}",
             f"{fold['transactions']:,}", f"{fold['frauds']:,}", *(told(fold[name]) for name in names)]
            for fold in facts["seeds"][0]["folds"]
        ]),
        "![Precision and recall](precision_recall.svg)", "",
        "## By day", "", f"Seed {facts['seeds'][0]['seed']}.", "",
        *_table(["day", heads[-1]], _by_day(facts["seeds"][0]["folds"])),
        "## Calibration", "",
        calibration, "",
        "![Calibration](calibration.svg)", "",
        "## Money against cases", "",
        *_table(["cards a day", "money caught", "frauds caught"], [
            [one["cases_per_day"], told(one["money_caught"]), told(one["frauds_caught"])] for one in facts["money"]
        ]),
        "![Money caught](money.svg)", "",
        *_alerts(facts.get("alerts")),
        "## What the models look at", "", "Share of the gain of all splits, mean of the folds.", "",
        *_table(["feature", "share", "definition"], [
            [f"`{name}`", told(gain), facts["features"][name]] for name, gain in list(facts["importance"].items())[:20]
        ]),
        "## All features", "",
        *_table(["feature", "definition"], [[f"`{name}`", what] for name, what in facts["features"].items()]),
        *(["## What it took", "", resources_told(facts["resources"]), ""] if "resources" in facts else []),
    ]  # fmt: skip
    return "\n".join(lines)


def write(directory: Path, facts: dict[str, Any]) -> None:
    """``report.md``, ``report.json`` and the plots; a directory that is there is written into."""
    directory.mkdir(parents=True, exist_ok=True)
    curve = [(predicted, true) for predicted, true, _ in facts["calibration"]]
    top = max((max(point) for point in curve), default=1.0) or 1.0
    money = [(one["cases_per_day"], one["money_caught"]) for one in facts["money"] if one["money_caught"] is not None]
    plots = {
        "precision_recall.svg": line_plot("recall", "precision", facts["precision_recall"]),
        "calibration.svg": line_plot(
            "predicted share of frauds", "true share", curve, limits=(top, top), diagonal=True
        ),
        "money.svg": line_plot("cards looked at a day", "share of money caught", money, limits=(float(CASES[-1]), 1.0)),
    }
    if alerts := facts.get("alerts"):
        cases = [(float(i + 1), float(day["cases"])) for i, day in enumerate(alerts["days"])]
        wanted = alerts["cases_per_day"]
        levels = () if wanted is None else (wanted, 1.5 * wanted)
        highest = max([*levels, *(count for _, count in cases), 1.0])
        plots["alerts.svg"] = line_plot(
            "day", "cards alerted", cases, limits=(float(len(cases)), highest), levels=levels
        )
    for name, text in plots.items():
        (directory / name).write_text(text, encoding="utf-8")
    (directory / "report.md").write_text(markdown(facts), encoding="utf-8")
    text = json.dumps(facts, indent=1, allow_nan=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")
