"""Which message stands on which topic, and the JSON Schema of each.

In: schema and topic names. Out: msgspec types and JSON Schema. Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from features.messages import (
    Alert,
    Click,
    DeadLetter,
    Decision,
    Item,
    ListChange,
    Recommendation,
    label_type,
    transaction_type,
)
from features.schema import Schema
from stream.settings import TopicSettings

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def message_types(schema: Schema, topics: TopicSettings) -> dict[str, type[msgspec.Struct]]:
    """The type of the messages of each topic, by topic name."""
    return {
        topics.transactions: transaction_type(schema.transactions),
        topics.labels: label_type(schema.transactions),
        topics.clicks: Click,
        topics.items: Item,
        topics.decisions: Decision,
        topics.alerts: Alert,
        topics.recommendations: Recommendation,
        topics.dead_letters: DeadLetter,
        **({} if topics.lists is None else {topics.lists: ListChange}),
    }


def json_schemas(schema: Schema, topics: TopicSettings) -> dict[str, Any]:
    """The JSON Schema of each topic's messages, by topic name; each stands by itself."""
    types = message_types(schema, topics)
    return {topic: {"$schema": _DIALECT} | msgspec.json.schema(kind) for topic, kind in types.items()}
