"""Business levers: what the shop wants of every list, whatever the model says.

In: a TOML document. Out: :class:`Levers`, or every problem. Pure; who reads the file and watches it is
:mod:`stream.lever_file`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from features.errors import SettingsError
from features.toml_text import read_toml

DAY_MS = 86_400_000
NO_CAP = 2**31 - 1
_Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]
_Factor = Annotated[float, msgspec.Meta(gt=0, le=1000)]
_Name = Annotated[str, msgspec.Meta(min_length=1)]


class _Exclude(msgspec.Struct, forbid_unknown_fields=True):
    items: list[_Name] = []
    categories: list[_Name] = []
    sellers: list[_Name] = []


class _Boost(msgspec.Struct, forbid_unknown_fields=True):
    category: _Name
    factor: _Factor


class _Cap(msgspec.Struct, forbid_unknown_fields=True):
    at_most: _Count
    category: _Name | None = None
    seller: _Name | None = None


class _Limits(msgspec.Struct, forbid_unknown_fields=True):
    per_category: _Count | None = None
    per_seller: _Count | None = None


class _Freshness(msgspec.Struct, forbid_unknown_fields=True):
    days: Annotated[float, msgspec.Meta(gt=0, le=3650)]
    factor: _Factor


class _NewItems(msgspec.Struct, forbid_unknown_fields=True):
    at_most: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    exclude: _Exclude = msgspec.field(default_factory=_Exclude)
    boost: list[_Boost] = []
    cap: list[_Cap] = []
    limits: _Limits = msgspec.field(default_factory=_Limits)
    freshness: _Freshness | None = None
    new_items: _NewItems = msgspec.field(default_factory=_NewItems)


@dataclass(frozen=True, slots=True)
class Levers:
    """What holds for every list.

    ``items``, ``categories`` and ``sellers`` are never shown. A score is multiplied by the ``factors`` of its category,
    and by ``fresh_factor`` where its item became available at most ``fresh_ms`` before the click. A list holds at most
    ``category_caps`` items of a category, ``seller_caps`` of a seller, ``per_category`` and ``per_seller`` of any
    other, and ``new_max`` of those that nobody has clicked yet, where others could stand.
    """

    items: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()
    sellers: frozenset[str] = frozenset()
    factors: Mapping[str, float] = field(default_factory=dict)
    category_caps: Mapping[str, int] = field(default_factory=dict)
    seller_caps: Mapping[str, int] = field(default_factory=dict)
    per_category: int = NO_CAP
    per_seller: int = NO_CAP
    fresh_ms: int = 0
    fresh_factor: float = 1.0
    new_max: int = 1

    @property
    def idle(self) -> bool:
        """Whether no score and no order of a list depends on them."""
        caps = self.category_caps or self.seller_caps or min(self.per_category, self.per_seller) < NO_CAP
        return not (self.factors or caps or self.fresh_ms)


def parse_levers(data: bytes, where: str) -> Levers:
    """The levers of a TOML document.

    Raises
    ------
    SettingsError
        With every problem, each naming the lever, its value and what is expected. ``where`` begins each.
    """
    try:
        tree = read_toml(data.decode("utf-8-sig"))
    except ValueError as error:
        raise SettingsError([f"{where}: not TOML: {error}"]) from None
    document, problems = _convert(tree)
    if document is not None:
        problems += _contradictions(document)
    if document is None or problems:
        raise SettingsError([f"{where}: {problem}" for problem in problems])
    fresh, limits = document.freshness, document.limits
    return Levers(
        items=frozenset(document.exclude.items),
        categories=frozenset(document.exclude.categories),
        sellers=frozenset(document.exclude.sellers),
        factors={boost.category: boost.factor for boost in document.boost},
        category_caps={cap.category: cap.at_most for cap in document.cap if cap.category is not None},
        seller_caps={cap.seller: cap.at_most for cap in document.cap if cap.seller is not None},
        per_category=limits.per_category or NO_CAP,
        per_seller=limits.per_seller or NO_CAP,
        fresh_ms=int(fresh.days * DAY_MS) if fresh else 0,
        fresh_factor=fresh.factor if fresh else 1.0,
        new_max=document.new_items.at_most,
    )


def _convert(tree: dict[str, Any]) -> tuple[_Document | None, list[str]]:
    """The document, or the problem of each table that is wrong."""
    problems = []
    for name, value in tree.items():
        try:
            msgspec.convert({name: value}, _Document)
        except msgspec.ValidationError as error:
            problems.append(str(error))
    return (None if problems else msgspec.convert(tree, _Document)), problems


def _contradictions(document: _Document) -> Iterator[str]:
    """What no single table shows."""
    for place, cap in enumerate(document.cap, 1):
        if (cap.category is None) == (cap.seller is None):
            yield f"cap {place}: expected either category or seller"
    boosted = [boost.category for boost in document.boost]
    capped = [(cap.category, cap.seller) for cap in document.cap]
    for name in sorted({name for name in boosted if boosted.count(name) > 1}):
        yield f"boost: category {name!r} stands twice; expected one factor"
    for category, seller in dict.fromkeys(pair for pair in capped if capped.count(pair) > 1):
        yield f"cap: {category or seller!r} stands twice; expected one number"
