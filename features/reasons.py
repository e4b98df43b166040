"""Why a transaction is suspicious, in words: one sentence for a feature and its value, built by rule.

In: a :class:`~features.catalogue.Feature`, its value, and what is usual. Out: a sentence without a full stop. Pure.

Sentences follow from what a feature is (entity, field, aggregate, window), never from its name, so that a schema of
another world reads as well as card payments do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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


def money(value: float) -> str:
    """A number as it stands beside what is usual for it.

    >>> money(412.0)
    '412.00'
    """
    return f"{value:,.2f}"


def _span(milliseconds: float) -> str:
    """A duration before a noun.

    >>> _span(30 * 86_400_000)
    '30-day'
    """
    number, _, unit = duration(milliseconds).partition(" ")
    return f"{number}-{unit.removesuffix('s')}"


def _word(name: str) -> str:
    return name.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Said:
    """A feature as a sentence says it.

    ``value`` is the feature's, ``given`` that of its field in this transaction, and ``usual`` what it is compared with;
    NaN where that is not known.
    """

    feature: Feature
    value: float
    given: float = math.nan
    usual: float = math.nan

    @property
    def field(self) -> str:
        """The field, with its value where it is known."""
        word = _word(self.feature.field)
        return f"{word} {money(self.given)}" if math.isfinite(self.given) else word

    @property
    def entity(self) -> str:
        """The entity, in words."""
        return _word(self.feature.entity)

    @property
    def window(self) -> str:
        """The window, as a duration."""
        return duration(self.feature.window_ms)

    def beside(self, before: str, told: Callable[[float], str] = amount) -> str:
        """What is usual, behind some words; nothing where it is not known."""
        return f"{before}{told(self.usual)}" if math.isfinite(self.usual) else ""


def _times(value: float) -> str:
    return amount(value) if value < 0.1 else f"{value:,.1f}"


def _usual(said: Said) -> str:
    return said.beside(", where ") and f"{said.beside(', where ')} is usual"


def _count(s: Said) -> str:
    where = f"of this {s.entity} within {s.window}"
    if s.value < 1:
        return f"no earlier transaction {where}"
    return f"{counted(s.value, 'earlier transaction')} {where}{_usual(s)}"


def _statistic(phrase: str) -> Callable[[Said], str]:
    def sentence(s: Said) -> str:
        text = phrase.format(field=_word(s.feature.field), entity=s.entity)
        return f"{text} over {s.window} is {amount(s.value)}{_usual(s)}"

    return sentence


def _deviations(s: Said, unit: str, mean: str) -> str:
    side = "below" if s.value < 0 else "above"
    return f"{s.field} is {abs(s.value):.1f} {unit} {side} {mean}"


def _fraud_count(s: Said) -> str:
    verb = "was" if s.value == 1 else "were"
    told = f"{amount(s.value)} of this {s.entity}'s transactions {verb} reported as fraud"
    return f"{told} in the last {s.window}{_usual(s)}"


def _distinct(s: Said) -> str:
    named = counted(s.value, f"different {_word(s.feature.field)}")
    return f"{named} among this {s.entity}'s remembered transactions"


def _seen(s: Said) -> str:
    if s.value < 1:
        return f"first remembered transaction of this {s.entity} with this {_word(s.feature.field)}"
    return f"{counted(s.value, 'remembered transaction')} of this {s.entity} with this {_word(s.feature.field)}"


def _fraud_run(s: Said) -> str:
    if s.value < 1:
        return f"the newest label of this {s.entity} is not fraud"
    newest = "label of" if s.value == 1 else f"{s.value:.0f} labels of"
    return f"the newest {newest} this {s.entity} {'is' if s.value == 1 else 'are'} fraud"


def _hour(s: Said) -> str:
    minutes = int(s.value * 60) % 1440
    return f"the time of day is {minutes // 60:02d}:{minutes % 60:02d} UTC"


def _since_last(s: Said) -> str:
    return f"{duration(s.value * 1000)} since this {s.entity}'s last transaction" + s.beside(
        "; the mean between two is ", lambda seconds: duration(seconds * 1000)
    )


_SENTENCES: dict[str, Callable[[Said], str]] = {
    "value": lambda s: f"{_word(s.feature.field)} is {amount(s.value)}{_usual(s)}",
    "hour": _hour,
    "weekday": lambda s: f"the day of the week is {_WEEKDAYS[int(s.value) % 7]} (UTC)",
    "category": lambda s: f"the {_word(s.feature.field)} of this transaction speaks for fraud (group {s.value:.0f})",
    "count": _count,
    "sum": _statistic("the {entity}'s total {field}"),
    "mean": _statistic("the {entity}'s mean {field}"),
    "max": _statistic("the {entity}'s largest {field}"),
    "std": _statistic("the {entity}'s standard deviation of {field}"),
    "ratio": lambda s: (
        f"{s.field} is {_times(s.value)} times this {s.entity}'s {_span(s.feature.window_ms)} mean"
        f"{s.beside(' of ', money)}"
    ),
    "zscore": lambda s: _deviations(
        s, "standard deviations",
        f"this {s.entity}'s {_span(s.feature.window_ms)} mean{s.beside(' of ', money)}",
    ),
    "fraud_count": _fraud_count,
    "fraud_rate": lambda s: (
        f"{s.value:.0%} of this {s.entity}'s judged transactions of the last {s.window} were fraud"
    ),
    "since_last": _since_last,
    "since_first": lambda s: f"this {s.entity} was first seen {duration(s.value * 1000)} ago",
    "seen": _seen,
    "distinct": _distinct,
    "usual_ratio": lambda s: (
        f"{s.field} is {_times(s.value)} times what is usual for this {s.entity}{s.beside(', ', money)}"
    ),
    "usual_zscore": lambda s: _deviations(
        s, "deviations", f"what is usual for this {s.entity}{s.beside(', ', money)}"
    ),
    "since_unusual": lambda s: (
        f"{duration(s.value * 1000)} since this {s.entity}'s last unusual {_word(s.feature.field)}"
    ),
    "fraud_run": _fraud_run,
    "since_fraud_run": lambda s: f"all labels of this {s.entity} for {duration(s.value * 1000)} were fraud",
    "since_good_label": lambda s: f"{duration(s.value * 1000)} since a label of this {s.entity} said good",
    "fraud_run_ratio": lambda s: (
        f"each of this {s.entity}'s latest frauds was at least {s.value:.1f} times what is usual for its "
        f"{_word(s.feature.field)}"
    ),
}  # fmt: skip


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


def sentence(feature: Feature, value: float, given: float = math.nan, usual: float = math.nan) -> str:
    """What ``value`` of ``feature`` says about a transaction, in words; ``given`` and ``usual`` as in :class:`Said`.

    >>> sentence(Feature("card_amount_ratio_30d", "card", "amount", "ratio", 30 * 86_400_000, ""), 9.1, 412.0, 45.27)
    "amount 412.00 is 9.1 times this card's 30-day mean of 45.27"
    """
    if not math.isfinite(value):
        return _missing(feature)
    rule = _SENTENCES.get(feature.aggregate)
    if rule is None:
        return f"{feature.definition} is {amount(value)}"
    return rule(Said(feature, value, given, usual))
