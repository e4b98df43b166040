"""Records of the items topic to facts: what is known of an item, that nothing is, or why a record cannot be read.

In: keys and values (JSON) of the topic. Out: an :class:`ItemFacts`, a :class:`Gone` or a :class:`Faulty` for each.
Pure. The record's key is the item's id, since the topic is compacted by key. A faulty record says that something about
the item of its key has changed, but not what: the caller must not show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from features.checks import FOREVER_MS, clean_id, parse_bound_ms
from features.decode import Decoder, Limits
from features.errors import BadEvent
from features.messages import Item, StrictItem

TITLE_CHARACTERS_MAX = 300


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """One item: shown from ``from_ms`` up to but not at ``until_ms``, where it is not hidden and not out of stock."""

    item_id: str
    title: str | None = None
    category: str | None = None
    seller: str | None = None
    from_ms: int = -FOREVER_MS
    until_ms: int = FOREVER_MS
    hidden: bool = False
    sold_out: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """The item of this key was deleted."""

    item_id: str


@dataclass(frozen=True, slots=True)
class Faulty:
    """The record of this key (None where it names no item) cannot be read: a reason code and a sentence."""

    item_id: str | None
    code: str
    sentence: str


class ItemDecoder(Decoder):
    """Decodes items by the rules of every input, but that their times may lie ahead."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(StrictItem, Item, limits, [(name, 0, False) for name in StrictItem.__struct_fields__])

    def decode(self, key: bytes | None, value: bytes | None) -> ItemFacts | Gone | Faulty:
        """What one record says."""
        item_id = None
        try:
            item_id = _key(key)
            if value is None:
                return Gone(item_id)
            message, _ = self._message(value)
            facts = _facts(message)
            if facts.item_id != item_id:
                raise BadEvent("invalid_id", f"the key {item_id!r} is not the item_id {facts.item_id!r}")
        except BadEvent as error:
            return Faulty(item_id, error.code, str(error))
        return facts


def _key(key: bytes | None) -> str:
    try:
        return clean_id("the key", (key or b"").decode())
    except UnicodeDecodeError:
        raise BadEvent("invalid_id", f"the key {key!r} is not UTF-8") from None


def _facts(message: Any) -> ItemFacts:
    def id_(name: str) -> str | None:
        value = getattr(message, name)
        return None if value is None else clean_id(name, value)

    def time(name: str, absent: int) -> int:
        value = getattr(message, name)
        return absent if value is None else parse_bound_ms(value)

    return ItemFacts(
        item_id=clean_id("item_id", message.item_id),
        title=_title(message.title),
        category=id_("category"),
        seller=id_("seller"),
        from_ms=time("available_from", -FOREVER_MS),
        until_ms=time("available_until", FOREVER_MS),
        hidden=bool(message.hidden),
        sold_out=message.stock == 0,
    )


def _title(text: str | None) -> str | None:
    """A title on one line: it is for people, and no reason to refuse what else is known."""
    if text is None:
        return None
    line = "".join([c if c.isprintable() else " " for c in text])
    return " ".join(line.split())[:TITLE_CHARACTERS_MAX].encode("utf-8", "ignore").decode() or None
