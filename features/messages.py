"""The contract: every message that Headrace reads or writes, as types. ``docs/contract.md`` says it in words.

In: nothing. Out: msgspec types whose JSON Schema ``headrace schema`` prints. No state, no IO.

Transactions and labels have the fields that the schema names, so their types are made from it
(:func:`transaction_type`, :func:`label_type`); all other messages are fixed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from features.schema import TransactionSchema

ID_BYTES_MAX = 256
Id = str | int
OptionalId = str | int | None
Time = str | int

Action = Literal["allow", "review", "block"]
ACTIONS: tuple[Action, ...] = ("allow", "review", "block")
ClickAction = Literal["view", "cart", "buy"]
CLICK_ACTIONS: tuple[ClickAction, ...] = ("view", "cart", "buy")
Degraded = Literal["fewer", "neighbours", "popular"]  # rungs below the full answer

RecommendationReason = Literal[
    "viewed_after",
    "in_session",
    "trending",
    "popular",
    "popular_in",
    "new_in",
    "boosted",
    "demoted",
    "fresh",
    "offered",
]
Variant = Literal["A", "B"]

DeadLetterReason = Literal[
    "malformed_json",
    "wrong_type",
    "missing_field",
    "number_out_of_range",
    "time_out_of_range",
    "invalid_id",
    "oversized",
    "empty",
    "wrong_partition",
    "unreadable_batch",
    "internal",
]


class Click(msgspec.Struct, kw_only=True):
    """A click as read. Keyed by ``user_id`` where there is one, else by ``session_id``."""

    event_id: Id
    event_time: Time
    session_id: Id
    item_id: Id
    action: ClickAction = "view"
    user_id: OptionalId = None
    card_id: OptionalId = None


class StrictClick(Click, kw_only=True, forbid_unknown_fields=True):
    """A click that has no field beyond the contract; tried first, so that unknown fields can be counted."""


class Item(msgspec.Struct, kw_only=True):
    """What is known of an item, as read: the newest record of a key replaces all earlier ones of it."""

    item_id: Id
    title: str | None = None
    category: OptionalId = None
    seller: OptionalId = None
    price: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None
    available_from: Time | None = None
    available_until: Time | None = None
    hidden: bool | Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    stock: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None


class StrictItem(Item, kw_only=True, forbid_unknown_fields=True):
    """An item that has no field beyond the contract; tried first, so that unknown fields can be counted."""


class Reason(msgspec.Struct, kw_only=True):
    """One kind of thing that pushed a score up, by its code; the feature that did so most, and a sentence about it.

    ``contribution`` is the share of the score (log-odds) of all features of the code, None where it was not computed;
    ``usual`` what the sentence compares with.
    """

    feature: str
    value: float | None
    contribution: float | None
    text: str
    code: str = ""
    usual: float | None = None


class Decision(msgspec.Struct, kw_only=True):
    """What was decided about one transaction. ``decision_id`` is ``topic:partition:offset`` of the transaction.

    ``key`` is the id of the key entity, ``score`` the probability of fraud and ``anomaly`` how unusual the vector is,
    both in 0..1. ``label_position`` is the next offset of the label partition of the same number: all labels below it
    were known. ``duplicate`` marks a transaction whose event id was decided before; it repeats that decision.
    ``review_score`` is the review threshold that was in force; None where no score was compared. ``rules`` hit,
    ``shadow_rules`` hit too and only watch, ``rules_version`` is that of the rules' file (None: there are no rules).
    ``degraded`` says why it was made with less than everything.
    ``reasons_partial``: there was no time for all reasons. ``values`` are all features by name, of a sample of the
    decisions (``worker.vector_sample``).
    """

    decision_id: str
    event_id: str
    key: str
    event_time: int
    score: float
    anomaly: float
    action: Action
    reasons: list[str]
    model_version: str
    label_position: int
    duplicate: bool = False
    review_score: float | None = None
    rules: list[str] = []
    shadow_rules: list[str] = []
    rules_version: str | None = None
    degraded: str | None = None
    reasons_partial: bool = False
    values: dict[str, float | None] | msgspec.UnsetType = msgspec.UNSET


class Alert(msgspec.Struct, kw_only=True):
    """A decision that needs a person, with its reasons and the feature values behind them."""

    decision_id: str
    event_id: str
    key: str
    event_time: int
    score: float
    anomaly: float
    action: Action
    reasons: list[Reason]
    entities: dict[str, str]
    values: dict[str, float | None]
    model_version: str
    label_position: int
    duplicate: bool = False
    review_score: float | None = None
    rules: list[str] = []
    shadow_rules: list[str] = []
    rules_version: str | None = None
    degraded: str | None = None
    reasons_partial: bool = False


class RecommendedItem(msgspec.Struct, gc=False):
    """One item of a recommendation; higher scores come first and compare only within one list.

    ``because`` is what the reason stands on: an item of the session, or a category. ``text`` says both in words.
    """

    item_id: str
    score: float
    reason: RecommendationReason = "viewed_after"
    because: str | None = None
    text: str = ""
    title: str | msgspec.UnsetType = msgspec.UNSET


class LeftOut(msgspec.Struct, kw_only=True):
    """An item that a business lever kept out of a list."""

    item_id: str
    reason: Literal["capped"]


class Recommendation(msgspec.Struct, kw_only=True):
    """What to show a session after one click. ``recommendation_id`` is ``topic:partition:offset`` of the click.

    ``long_session`` marks a session of more clicks than a person makes, and ``degraded`` a list that was made in a
    cheaper way, since clicks came faster than full answers are made.
    """

    recommendation_id: str
    event_id: str
    session_id: str
    user_id: str | None
    item_id: str
    event_time: int
    items: list[RecommendedItem]
    model_version: str
    long_session: bool = False
    experiment: str | msgspec.UnsetType = msgspec.UNSET
    variant: Variant | msgspec.UnsetType = msgspec.UNSET
    degraded: Degraded | None = None
    left_out: list[LeftOut] | msgspec.UnsetType = msgspec.UNSET


class ListChange(msgspec.Struct, kw_only=True):
    """An id that comes into a list of the rules, or leaves it; of an entity of several fields, their ids in order.

    From ``expires_at`` on, in event time, the entry no longer holds.
    """

    name: str = msgspec.field(name="list")
    id: str | int | list[str | int]
    action: Literal["add", "remove"] = "add"
    expires_at: str | int | None = None


class DeadLetter(msgspec.Struct, kw_only=True):
    """An input record that could not be decided: why, where it came from, and its first 64 KiB in base64.

    One with a ``first_offset`` stands for a batch that could not be unpacked: all records from there to ``offset``.
    """

    dead_letter_id: str
    reason: DeadLetterReason
    sentence: str
    topic: str
    partition: int
    offset: int
    length: int
    sha256: str
    value: str
    key: str | None = None
    first_offset: int | None = None


def transaction_type(schema: TransactionSchema, *, strict: bool = False) -> type[msgspec.Struct]:
    """The type of a transaction message of ``schema``; a ``strict`` one refuses fields that it does not know."""
    fields: list[Any] = [(schema.id, Id), (schema.time, Time)]
    fields += [(name, Id) for name in schema.id_fields]
    fields += [(n.name, float) for n in schema.numeric if n.required]
    fields += [(n.name, float | None, None) for n in schema.numeric if not n.required]
    fields += [(name, OptionalId, None) for name in schema.categorical]
    taken = {field[0] for field in fields}
    fields += [(name, OptionalId, None) for name in ("session_id", "user_id") if name not in taken]
    return msgspec.defstruct("Transaction", fields, kw_only=True, forbid_unknown_fields=strict)


def label_type(schema: TransactionSchema, *, strict: bool = False) -> type[msgspec.Struct]:
    """The type of a label message of ``schema``: the verdict on one transaction, keyed as the transaction is."""
    fields: list[Any] = [(schema.id, Id), (schema.label_time, Time)]
    fields += [(name, Id) for name in schema.id_fields]
    fields += [(schema.label, bool | Annotated[int, msgspec.Meta(ge=0, le=1)])]
    fields += [(schema.time, Time | None, None)]
    fields += [(n.name, float | None, None) for n in schema.numeric]
    return msgspec.defstruct("Label", fields, kw_only=True, forbid_unknown_fields=strict)
