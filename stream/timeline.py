"""History tables as one timeline of messages, in the form of the contract.

In: canonical tables. Out: keys and JSON values, in the order in which the world would have sent them. Pure: a label
stands where its ``label_time`` falls, and one that falls after the last event is not on the timeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.schema import CLICK_FIELDS, ID_SEPARATOR, Schema, TransactionSchema
from stream.malformed import Target
from stream.settings import TopicSettings

Message = tuple[bytes, bytes]
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Feed:
    """The messages of one topic, sorted by ``times`` (int64 epoch ms). The first present ``keys`` group keys a row."""

    topic: str
    table: pa.Table
    times: NDArray[np.int64]
    keys: tuple[tuple[str, ...], ...]
    target: Target

    def messages(self, start: int, stop: int) -> list[Message]:
        """Key and JSON value of the rows in ``[start, stop)``; what is null is left out."""
        names = self.table.column_names
        columns = [column.to_pylist() for column in self.table.slice(start, stop - start).columns]
        rows = [
            {name: value for name, value in zip(names, row, strict=True) if value is not None}
            for row in zip(*columns, strict=True)
        ]
        return [(self._key(row), _encode(row)) for row in rows]

    def _key(self, row: dict[str, object]) -> bytes:
        fields = next(fields for fields in self.keys if fields[0] in row)
        return ID_SEPARATOR.join([str(row[name]) for name in fields]).encode()


@dataclass(frozen=True, slots=True)
class RecordedFeed(Feed):
    """Messages as they were: ``table`` has the columns ``key`` and ``value``, ``times`` are those of the records."""

    def messages(self, start: int, stop: int) -> list[Message]:
        """Key and value of the rows in ``[start, stop)``."""
        part = self.table.slice(start, stop - start)
        keys = [key or b"" for key in part.column("key").to_pylist()]
        return list(zip(keys, part.column("value").to_pylist(), strict=True))


@dataclass(frozen=True, slots=True)
class Timeline:
    """Messages of several topics in one order. ``order`` int8[n] says which feed has the next message."""

    feeds: tuple[Feed, ...]
    order: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.order)

    def first(self, n: int | None) -> Timeline:
        """The first ``n`` messages; all for None."""
        return self if n is None else Timeline(self.feeds, self.order[:n])


def build_timeline(
    schema: Schema,
    topics: TopicSettings,
    *,
    transactions: pa.Table | None = None,
    labels: pa.Table | None = None,
    clicks: pa.Table | None = None,
    labels_from_ms: int | None = None,
) -> Timeline:
    """One timeline out of what is given.

    Parameters
    ----------
    transactions, clicks : pyarrow.Table, optional
        Canonical tables of :mod:`trainer.history`, sent row by row.
    labels : pyarrow.Table, optional
        A canonical transactions table whose labels are sent; it may reach further back than ``transactions``.
    labels_from_ms : int, optional
        Labels known before this time are left out: the models were trained on them.
    """
    feeds = []
    if transactions is not None:
        feeds.append(_transactions(schema.transactions, topics.transactions, transactions))
    if clicks is not None:
        feeds.append(_clicks(schema.transactions, topics.clicks, clicks))
    if labels is not None:
        until_ms = max((int(feed.times[-1]) for feed in feeds if len(feed.times)), default=None)
        # Before clicks and after transactions: at one and the same time a transaction comes before any label.
        feeds.insert(
            transactions is not None, _labels(schema.transactions, topics.labels, labels, labels_from_ms, until_ms)
        )
    source = np.repeat(np.arange(len(feeds), dtype=np.int8), [len(feed.times) for feed in feeds])
    times = np.concatenate([feed.times for feed in feeds]) if feeds else np.empty(0, np.int64)
    return Timeline(tuple(feeds), source[np.argsort(times, kind="stable")])


def _times(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(table.column(name).to_numpy(), np.int64)


def _transactions(schema: TransactionSchema, topic: str, table: pa.Table) -> Feed:
    numeric = [n.name for n in schema.numeric]
    wanted = [schema.id, schema.time, *schema.id_fields, *numeric, *schema.categorical, "session_id", "user_id"]
    target = spoil_target(schema, "transactions")
    return Feed(topic, _only(table, wanted), _times(table, schema.time), (schema.key.fields,), target)


def _labels(schema: TransactionSchema, topic: str, table: pa.Table, from_ms: int | None, until_ms: int | None) -> Feed:
    keep = pc.is_valid(table.column(schema.label))
    if from_ms is not None:
        keep = pc.and_(keep, pc.greater_equal(table.column(schema.label_time), from_ms))
    if until_ms is not None:
        keep = pc.and_(keep, pc.less_equal(table.column(schema.label_time), until_ms))
    table = table.filter(keep)
    table = table.take(pa.array(np.argsort(_times(table, schema.label_time), kind="stable")))
    verdict = table.column(schema.label).cast(pa.bool_())
    table = table.set_column(table.column_names.index(schema.label), schema.label, verdict)
    numeric = [n.name for n in schema.numeric]
    wanted = [schema.id, schema.label_time, *schema.id_fields, schema.label, schema.time, *numeric]
    target = spoil_target(schema, "labels")
    return Feed(topic, _only(table, wanted), _times(table, schema.label_time), (schema.key.fields,), target)


def _clicks(schema: TransactionSchema, topic: str, table: pa.Table) -> Feed:
    target, keys = spoil_target(schema, "clicks"), (("user_id",), ("session_id",))
    return Feed(topic, _only(table, CLICK_FIELDS), _times(table, "event_time"), keys, target)


def spoil_target(schema: TransactionSchema, kind: str) -> Target:
    """Which fields of a message of ``kind`` can be broken, and how."""
    if kind == "clicks":
        return Target("event_id", "event_time", "event_time", 0.0)
    if kind == "labels":
        return Target(schema.id, schema.label_time, schema.label_time, 0.0)
    number, minimum = (schema.numeric[0].name, schema.numeric[0].minimum) if schema.numeric else (schema.time, 0.0)
    return Target(schema.id, schema.time, number, minimum)


def _only(table: pa.Table, wanted: list[str] | tuple[str, ...]) -> pa.Table:
    return table.select([name for name in dict.fromkeys(wanted) if name in table.column_names])


class Cursor:
    """Reads a feed from its start, encoding ``ahead`` rows at a time, so that no step takes long."""

    def __init__(self, feed: Feed, ahead: int) -> None:
        self._rows = _rows(feed, ahead)

    def take(self, n: int) -> list[Message]:
        """The next ``n`` messages."""
        rows = self._rows
        return [next(rows) for _ in range(n)]


def _rows(feed: Feed, ahead: int) -> Iterator[Message]:
    for start in range(0, len(feed.times), ahead):
        yield from feed.messages(start, min(start + ahead, len(feed.times)))
