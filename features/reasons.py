"""Why a transaction is suspicious, in words: one sentence for a feature and its value, built by rule.

In: a :class:`~features.catalogue.Feature` and its value. Out: a sentence without a full stop. Pure.

Sentences follow from what a feature is (entity, field, aggregate, window), never from its name, so that a schema of
another world reads as well as card payments do.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from features.catalogue import Feature

_UNITS = ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1_000, "second"))
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def duration(milliseconds: float) -> str:
    """A duration in the largest unit that it fills, rounded to a whole number.

    >>> duration(600_000), duration(86_400_000), duration(400)
    ('10 minutes', '1 day', 'less than a second')
    """
    for size, unit in _UNITS:
        if milliseconds >= size:
            return counted(round(milliseconds / size), unit)
    return "less than a second"


def counted(number: float, noun: str) -> str:
    """A number of things.

    >>> counted(1, "label"), counted(1200, "label")
    ('1 label', '1,200 labels')
    """
    return f"{number:,.0f} {noun}" if number == 1 else f"{number:,.0f} {noun}s"


def amount(value: float) -> str:
    """A number with the digits that a reader needs.

    >>> amount(1234.5), amount(12.0), amount(0.03125)
    ('1,234.50', '12', '0.0312')
    """
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _word(name: str) -> str:
    return name.replace("_", " ")


def _count(f: Feature, value: float) -> str:
    if value < 1:
        return f"no earlier transaction of this {_word(f.entity)} within {duration(f.window_ms)}"
    return f"{counted(value, 'earlier transaction')} of this {_word(f.entity)} within {duration(f.window_ms)}"


def _statistic(phrase: str) -> Callable[[Feature, float], str]:
    def sentence(f: Feature, value: float) -> str:
        text = phrase.format(field=_word(f.field), entity=_word(f.entity))
        return f"{text} over {duration(f.window_ms)} is {amount(value)}"

    return sentence


def _zscore(f: Feature, value: float) -> str:
    side = "below" if value < 0 else "above"
    mean = f"the {_word(f.entity)}'s mean of {duration(f.window_ms)}"
    return f"{_word(f.field)} is {abs(value):.1f} standard deviations {side} {mean}"


def _fraud_count(f: Feature, value: float) -> str:
    verb = "was" if value == 1 else "were"
    return (
        f"{amount(value)} of this {_word(f.entity)}'s transactions {verb} reported as fraud "
        f"in the last {duration(f.window_ms)}"
    )


def _distinct(f: Feature, value: float) -> str:
    return f"{counted(value, f'different {_word(f.field)}')} among this {_word(f.entity)}'s remembered transactions"


def _seen(f: Feature, value: float) -> str:
    if value < 1:
        return f"first remembered transaction of this {_word(f.entity)} with this {_word(f.field)}"
    return f"{counted(value, 'remembered transaction')} of this {_word(f.entity)} with this {_word(f.field)}"


def _fraud_run(f: Feature, value: float) -> str:
    if value < 1:
        return f"the newest label of this {_word(f.entity)} is not fraud"
    newest = "label of" if value == 1 else f"{value:.0f} labels of"
    return f"the newest {newest} this {_word(f.entity)} {'is' if value == 1 else 'are'} fraud"


def _hour(f: Feature, value: float) -> str:
    minutes = int(value * 60) % 1440
    return f"the time of day is {minutes // 60:02d}:{minutes % 60:02d} UTC"


_SENTENCES: dict[str, Callable[[Feature, float], str]] = {
    "value": lambda f, v: f"{_word(f.field)} is {amount(v)}",
    "hour": _hour,
    "weekday": lambda f, v: f"the day of the week is {_WEEKDAYS[int(v) % 7]} (UTC)",
    "category": lambda f, v: f"the {_word(f.field)} of this transaction speaks for fraud (group {v:.0f})",
    "count": _count,
    "sum": _statistic("the {entity}'s total {field}"),
    "mean": _statistic("the {entity}'s mean {field}"),
    "max": _statistic("the {entity}'s largest {field}"),
    "std": _statistic("the {entity}'s standard deviation of {field}"),
    "ratio": lambda f, v: (
        f"{_word(f.field)} is {amount(v) if v < 0.1 else f'{v:,.1f}'} times "
        f"the {_word(f.entity)}'s mean of {duration(f.window_ms)}"
    ),
    "zscore": _zscore,
    "fraud_count": _fraud_count,
    "fraud_rate": lambda f, v: (
        f"{v:.0%} of this {_word(f.entity)}'s judged transactions of the last {duration(f.window_ms)} were fraud"
    ),
    "since_last": lambda f, v: f"{duration(v * 1000)} since this {_word(f.entity)}'s last transaction",
    "since_first": lambda f, v: f"this {_word(f.entity)} was first seen {duration(v * 1000)} ago",
    "seen": _seen,
    "distinct": _distinct,
    "usual_ratio": lambda f, v: (
        f"{_word(f.field)} is {amount(v) if v < 0.1 else f'{v:,.1f}'} times what is usual for this {_word(f.entity)}"
    ),
    "usual_zscore": lambda f, v: (
        f"{_word(f.field)} is {abs(v):.1f} deviations {'below' if v < 0 else 'above'} what is usual for this "
        f"{_word(f.entity)}"
    ),
    "since_unusual": lambda f, v: f"{duration(v * 1000)} since this {_word(f.entity)}'s last unusual {_word(f.field)}",
    "fraud_run": _fraud_run,
    "since_fraud_run": lambda f, v: f"all labels of this {_word(f.entity)} for {duration(v * 1000)} were fraud",
    "since_good_label": lambda f, v: f"{duration(v * 1000)} since a label of this {_word(f.entity)} said good",
    "fraud_run_ratio": lambda f, v: (
        f"each of this {_word(f.entity)}'s latest frauds was at least {v:.1f} times what is usual for its "
        f"{_word(f.field)}"
    ),
}


def _missing(f: Feature) -> str:
    if f.aggregate in ("since_last", "since_first"):
        return f"first transaction of this {_word(f.entity)}"
    if f.aggregate in ("usual_ratio", "usual_zscore"):
        return f"nothing is known of what {_word(f.field)} is usual for this {_word(f.entity)}"
    if f.aggregate == "since_unusual":
        return f"no unusual {_word(f.field)} of this {_word(f.entity)} so far"
    if f.aggregate == "since_good_label":
        return f"no newest label of this {_word(f.entity)} says good"
    if f.aggregate in ("since_fraud_run", "fraud_run_ratio"):
        return f"the newest label of this {_word(f.entity)} is not a known fraud"
    if f.aggregate == "fraud_rate":
        return f"none of this {_word(f.entity)}'s transactions was judged in the last {duration(f.window_ms)}"
    if f.window_ms:
        return f"no earlier {_word(f.field) or 'transaction'} of this {_word(f.entity)} within {duration(f.window_ms)}"
    return f"the {_word(f.field) or f.definition} of this transaction is missing"


def sentence(feature: Feature, value: float) -> str:
    """What ``value`` of ``feature`` says about a transaction, in words.

    >>> sentence(Feature("card_amount_ratio_30d", "card", "amount", "ratio", 30 * 86_400_000, ""), 6.21)
    "amount is 6.2 times the card's mean of 30 days"
    """
    if not math.isfinite(value):
        return _missing(feature)
    rule = _SENTENCES.get(feature.aggregate)
    return f"{feature.definition} is {amount(value)}" if rule is None else rule(feature, value)
