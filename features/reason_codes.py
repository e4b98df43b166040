"""Reasons by code: which features say the same kind of thing, what is usual for it, and which reasons a vector has.

In: the features of a catalogue, vectors, their contributions to a score. Out: :class:`~features.messages.Reason`, at
most one for each code. Pure.

A code follows from what a feature is, as its sentence does: the same schema always gives the same codes. Contributions
of the features of a code add up (TreeSHAP's are additive); its sentence is that of the feature with the largest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from features.catalogue import Feature
from features.messages import Reason
from features.reasons import sentence

Floats = NDArray[np.float64]
_Usual = Callable[[Floats], float]
_FAMILIES = {
    "{entity}_{field}_unusual": ("ratio", "zscore", "usual_ratio", "usual_zscore", "since_unusual"),
    "{entity}_{field}_level": ("sum", "mean", "max", "std"),
    "{entity}_activity": ("count", "since_last"),
    "{entity}_age": ("since_first",),
    "{entity}_{field}_novelty": ("seen", "distinct"),
    "{entity}_fraud_history": ("fraud_count", "fraud_rate", "fraud_run", "since_fraud_run", "since_good_label",
                               "fraud_run_ratio"),
    "event_time": ("hour", "weekday"),
    "event_{field}": ("value", "category"),
}  # fmt: skip
_CODES = {aggregate: code for code, aggregates in _FAMILIES.items() for aggregate in aggregates}
# How far a feature is from usual, without a model: its distance in deviations, or what amounts to it.
_SEVERITY: dict[str, Callable[[Floats], Floats]] = {
    "zscore": np.abs,
    "usual_zscore": np.abs,
    "ratio": lambda v: 1.5 * np.abs(np.log2(np.maximum(v, 1e-9))),
    "usual_ratio": lambda v: 1.5 * np.abs(np.log2(np.maximum(v, 1e-9))),
    "fraud_rate": lambda v: 10.0 * v,
    "fraud_run": lambda v: 3.0 * v,
}
_FAR = 2.0  # deviations from which on something is worth telling


def reason_code(feature: Feature) -> str:
    """The code of the reasons that ``feature`` belongs to.

    >>> reason_code(Feature("card_amount_ratio_30d", "card", "amount", "ratio", 1, ""))
    'card_amount_unusual'
    """
    code = _CODES.get(feature.aggregate, "{entity}_" + feature.aggregate)
    return code.format(entity=feature.entity, field=feature.field)


class Reasoner:
    """Makes the reasons of vectors with these features."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = tuple(features)
        self._codes = [reason_code(feature) for feature in features]
        names = list(dict.fromkeys(self._codes))
        self._code_of = np.array([names.index(code) for code in self._codes], np.int64)
        self._members = self._code_of == np.arange(len(names))[:, None]
        self._at = {(f.entity, f.field, f.aggregate, f.window_ms): i for i, f in enumerate(features)}
        self._given = [self._at.get(("event", f.field, "value", 0), -1) for f in features]
        self._usual = [self._usual_of(i, f) for i, f in enumerate(features)]
        self._telling = [(i, _SEVERITY[f.aggregate]) for i, f in enumerate(features) if f.aggregate in _SEVERITY]

    def by_contribution(self, rows: Floats, shares: Floats, limit: int) -> list[list[Reason]]:
        """The codes that raised each score most, at most ``limit`` of each row, the largest contribution first.

        ``rows`` and ``shares`` (log-odds) float64[n, F].
        """
        sums = np.zeros((len(self._members), len(shares)))
        np.add.at(sums, self._code_of, shares.T)  # a BLAS product's last bits depend on how many rows it is given
        sums = sums.T
        best = np.argsort(-sums, axis=1, kind="stable")[:, :limit]
        leading = np.where(self._members[None], shares[:, None, :], -np.inf).argmax(axis=2)
        return [
            [self._reason(int(lead[c]), row, float(total[c])) for c in codes if total[c] > 0.0]
            for row, total, lead, codes in zip(rows, sums, leading, best.tolist(), strict=True)
        ]

    def by_deviation(self, rows: Floats, limit: int) -> list[list[Reason]]:
        """What is furthest from usual in each row, whatever the model made of it: needs no contributions.

        At least one reason, and others only if they lie at least two deviations out; their contribution is None.
        """
        if not self._telling:
            return [[self._reason(0, row, None)] for row in rows]
        columns = np.array([column for column, _ in self._telling])
        far = np.stack([severity(rows[:, column]) for column, severity in self._telling], axis=1)
        far[np.isnan(far)] = -1.0
        found = []
        for row, distances, order in zip(rows, far, np.argsort(-far, axis=1, kind="stable"), strict=True):
            chosen: dict[int, int] = {}
            for place in order.tolist():
                if len(chosen) == limit or (chosen and distances[place] < _FAR):
                    break
                chosen.setdefault(int(self._code_of[columns[place]]), int(columns[place]))
            found.append([self._reason(column, row, None) for column in chosen.values()])
        return found

    def _reason(self, column: int, row: Floats, share: float | None) -> Reason:
        feature, value, usual = self._features[column], float(row[column]), self._usual[column](row)
        given = math.nan if self._given[column] < 0 else float(row[self._given[column]])
        return Reason(
            code=self._codes[column],
            feature=feature.name,
            value=value if math.isfinite(value) else None,
            usual=usual if math.isfinite(usual) else None,
            contribution=share,
            text=sentence(feature, value, given, usual),
        )

    # -- what is usual ------------------------------------------------------------------------------------------

    def _usual_of(self, column: int, f: Feature) -> _Usual:
        """How to read from a vector what is usual for a feature: NaN where it cannot be told."""
        at, given = self._at, self._at.get(("event", f.field, "value", 0), -1)
        if f.aggregate in ("ratio", "usual_ratio"):
            return _mean_behind(given, column)
        if f.aggregate == "zscore":
            mean = at.get((f.entity, f.field, "mean", f.window_ms), -1)
            ratio = at.get((f.entity, f.field, "ratio", f.window_ms), -1)
            return (lambda row: float(row[mean])) if mean >= 0 else _mean_behind(given, ratio)
        if f.aggregate in ("usual_zscore", "value", "mean", "max"):
            key = next((g.entity for g in self._features if g.aggregate == "usual_ratio" and g.field == f.field), "")
            known = f.entity in (key, "event")
            return _mean_behind(given, at.get((key, f.field, "usual_ratio", 0), -1) if known else -1)
        if f.aggregate in ("count", "sum", "fraud_count", "since_last"):
            return self._rate(f)
        return _unknown

    def _rate(self, f: Feature) -> _Usual:
        """What an even spread over the longest window, or over the time since the first event, would give."""
        counted = "count" if f.aggregate == "since_last" else f.aggregate
        field = f.field if counted == "sum" else ""
        longest = max(
            (g.window_ms for g in self._features if g.entity == f.entity and g.aggregate == counted), default=0
        )
        column = self._at.get((f.entity, field, counted, longest), -1)
        first = self._at.get((f.entity, "", "since_first", 0), -1)
        if column < 0 or longest == f.window_ms:
            return _unknown

        def usual(row: Floats) -> float:
            since = float(row[first]) * 1000 if first >= 0 else math.nan
            span = min(longest, since) if math.isfinite(since) else longest
            if f.aggregate == "since_last":
                return span / 1000 / float(row[column]) if row[column] > 0 else math.nan
            return float(row[column]) * f.window_ms / span if span > f.window_ms else math.nan

        return usual


def _unknown(_: Floats) -> float:
    return math.nan


def _mean_behind(given: int, ratio: int) -> _Usual:
    """The mean that a value was divided by."""
    if given < 0 or ratio < 0:
        return _unknown
    return lambda row: float(row[given] / row[ratio]) if row[ratio] != 0.0 else math.nan
