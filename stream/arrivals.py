"""What the topics bring to the trainer: transactions, labels and clicks, from the oldest record that is kept.

In: the archive, if there is one, and the three input topics from where it ends. Out: rows in a
:class:`~trainer.growing.GrowingHistory`. State owned: the positions, in memory only, without a consumer group: a
restarted trainer reads everything again. What the worker makes a dead letter is left out here, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from aiokafka import AIOKafkaConsumer, TopicPartition

from features.decode import ClickDecoder, LabelDecoder, Limits, TransactionDecoder
from features.messages import CLICK_ACTIONS
from features.schema import CLICK_FIELDS, Schema
from stream.archive_store import Kind
from stream.archived import Archive, records_of
from stream.columns import transaction_rows
from stream.connections import kafka_consumer, kafka_errors
from stream.offsets import offset_range
from stream.settings import Settings
from trainer.growing import GrowingHistory

_FETCH_MS = 200
_RECORDS_MAX = 20_000  # of one step, so that the memory of a long topic's first reading is bounded


class Arrivals:
    """Reads the input topics step by step; a topic that is lost on the way is picked up where it was left."""

    def __init__(self, settings: Settings, schema: Schema) -> None:
        limits = Limits(settings.worker.message_bytes_max, int(settings.worker.ahead_max_s * 1000))
        self._kafka = settings.kafka
        self._topics = settings.topics
        self._schema = schema
        self._transactions = TransactionDecoder(schema.transactions, limits)
        self._labels = LabelDecoder(schema.transactions, limits)
        self._clicks = ClickDecoder(limits)
        self._positions: dict[TopicPartition, int] = {}
        counts = settings.topics.partitions()
        names = (settings.topics.transactions, settings.topics.labels, settings.topics.clicks)
        self._places = [TopicPartition(name, number) for name in names for number in range(counts[name])]

    def read_archive(self, archive: Archive, history: GrowingHistory, rows_max: int) -> int:
        """Take in the newest history of an archive; the topics are then read from its end. How many records it were.

        Raises
        ------
        ServiceUnavailable
            If the archive cannot be read.
        """
        topics, count = self._topics, 0
        dates = archive.newest_dates("transactions", topics.transactions, rows_max)
        labelled = [date for date in archive.dates("labels") if dates and date >= dates[0]]
        clicked = archive.newest_dates("clicks", topics.clicks, rows_max)
        sources: tuple[tuple[Kind, str, list[str]], ...] = (
            ("transactions", topics.transactions, dates),
            ("labels", topics.labels, labelled),
            ("clicks", topics.clicks, clicked),
        )
        for kind, topic, found in sources:
            for date in found:
                records = records_of(archive.of_date(kind, topic, date))
                self._take({topic: records}, history)
                count += len(records)
        for date in archive.dates("decisions"):
            if dates and date >= dates[0]:
                table = archive.of_date("decisions", topics.decisions, date, ("event_id", "action"))
                history.add_blocked(table.filter(pc.equal(table["action"], "block"))["event_id"].to_pylist())
        for place in self._places:
            self._positions[place] = archive.end(place.topic, place.partition) or 0
        history.join_labels()
        return count

    async def catch_up(self, history: GrowingHistory) -> int:
        """Read up to what the topics hold at this moment; returns how many records there were.

        Raises
        ------
        ServiceUnavailable
            If Kafka cannot be reached; what was read until then counts.
        """
        ranges = await offset_range(self._kafka, self._places)
        behind: dict[TopicPartition, int] = {}
        for place, (first, end) in ranges.items():
            self._positions[place] = max(self._positions.get(place, first), first)
            if self._positions[place] < end:
                behind[place] = end
        count = 0
        if behind:
            async with kafka_errors(self._kafka):
                consumer = kafka_consumer(self._kafka)
                try:
                    await consumer.start()
                    count = await self._read(consumer, behind, history)
                finally:
                    await consumer.stop()
        history.join_labels()
        return count

    async def _read(
        self, consumer: AIOKafkaConsumer, behind: dict[TopicPartition, int], history: GrowingHistory
    ) -> int:
        count = 0
        consumer.assign(list(behind))
        for place in behind:
            consumer.seek(place, self._positions[place])
        while behind:
            fetched = await consumer.getmany(*behind, timeout_ms=_FETCH_MS, max_records=_RECORDS_MAX)
            records: dict[str, list[Any]] = {}
            for place, found in fetched.items():
                records.setdefault(place.topic, []).extend(found)
                count += len(found)
            self._take(records, history)
            for place in list(behind):
                self._positions[place] = await consumer.position(place)
                if self._positions[place] >= behind[place]:
                    del behind[place]
        return count

    def _take(self, records: Mapping[str, Sequence[Any]], history: GrowingHistory) -> None:
        topics, schema = self._topics, self._schema.transactions
        if fields := _fields(self._transactions, records.get(topics.transactions, ())):
            history.add_transactions(transaction_rows(schema, fields))
        if fields := _fields(self._labels, records.get(topics.labels, ())):
            ids, known_ms, _, _, _, fraud = zip(*fields, strict=True)
            history.add_labels(list(ids), list(fraud), list(known_ms))
        if fields := _fields(self._clicks, records.get(topics.clicks, ())):
            event_id, time, session, user, card, item, action = (list(column) for column in zip(*fields, strict=True))
            columns = (event_id, time, session, user, card, item, [CLICK_ACTIONS[a] for a in action])
            history.add_clicks(dict(zip(CLICK_FIELDS, columns, strict=True)))


def _fields(decoder: TransactionDecoder | LabelDecoder | ClickDecoder, records: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The fields of the good records."""
    if not records:
        return []
    return decoder.rows([record.value for record in records], [record.timestamp for record in records])[1]
