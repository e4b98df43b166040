"""Counts what the worker answers: each decision, recommendation and dead letter once, by the record it answers.

In: the four output topics from the moment of :meth:`AnswerCounter.start`. Out: counts, first times, the newest
messages. State owned: one byte for each input record seen. No consumer group, so counting changes nothing. An answer
that is repeated (decisions are at least once) counts in ``repeated`` and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from features.messages import Alert, DeadLetter, Decision, Recommendation
from stream.connections import kafka_consumer, kafka_errors
from stream.offsets import offset_range
from stream.settings import KafkaSettings, TopicSettings

log = logging.getLogger("headrace.up")
Answer = Decision | Alert | Recommendation | DeadLetter
_NEWEST = 50


class Marks:
    """Which records of each partition were answered: a byte each, from the first one that was asked about."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], bytearray] = {}
        self._first: dict[tuple[str, int], int] = {}

    def begin(self, topic: str, partition: int, first: int) -> None:
        """Records below ``first`` do not count."""
        self._first[topic, partition] = first

    def add(self, source: str) -> bool | None:
        """Mark ``topic:partition:offset``; False if it was marked before, None if it does not count."""
        topic, partition, offset = source.rsplit(":", 2)
        place = (topic, int(partition))
        index = int(offset) - self._first.get(place, 0)
        if index < 0:
            return None
        seen = self._seen.setdefault(place, bytearray())
        if index >= len(seen):
            seen.extend(bytes(max(1024, index + 1 - len(seen))))
        new = not seen[index]
        seen[index] = 1
        return new


class AnswerCounter:
    """What was answered since :meth:`start`; all counts are of different input records.

    ``alerts`` and ``recommended`` hold the newest ones, ``first_s`` when each kind came first, on ``clock``.
    """

    def __init__(self, kafka: KafkaSettings, topics: TopicSettings, clock: Callable[[], float]) -> None:
        self._kafka = kafka
        self._topics = topics
        self._clock = clock
        self.counts: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.versions: dict[str, int] = {}
        self.repeated = 0
        self.first_s: dict[str, float] = {}
        self.changed_s = time.monotonic()
        self.alerts: deque[Alert] = deque(maxlen=_NEWEST)
        self.recommended: deque[Recommendation] = deque(maxlen=_NEWEST)
        types: dict[str, tuple[str, str, type[Answer]]] = {
            topics.decisions: ("decisions", "decision_id", Decision),
            topics.alerts: ("alerts", "decision_id", Alert),
            topics.recommendations: ("recommendations", "recommendation_id", Recommendation),
            topics.dead_letters: ("dead_letters", "dead_letter_id", DeadLetter),
        }
        self._kinds: dict[str, tuple[str, str, Callable[[bytes], Answer]]] = {
            topic: (kind, id_, msgspec.json.Decoder(type_).decode) for topic, (kind, id_, type_) in types.items()
        }
        self._marks = {kind: Marks() for kind, _, _ in self._kinds.values()}
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to count answers to records that are appended from now on.

        Raises
        ------
        ServiceUnavailable
            If Kafka cannot be reached.
        """
        topics, partitions = self._topics, self._topics.partitions()
        inputs = [TopicPartition(name, n) for name in (topics.transactions, topics.labels, topics.clicks)
                  for n in range(partitions[name])]  # fmt: skip
        outputs = [TopicPartition(name, n) for name in self._kinds for n in range(partitions[name])]
        ranges = await offset_range(self._kafka, [*inputs, *outputs])
        for place in inputs:
            for marks in self._marks.values():
                marks.begin(place.topic, place.partition, ranges[place][1])
        async with kafka_errors(self._kafka):
            self._consumer = kafka_consumer(self._kafka, fetch_max_wait_ms=100)
            await self._consumer.start()
            self._consumer.assign(outputs)
            for place in outputs:
                self._consumer.seek(place, ranges[place][1])
        self._task = asyncio.create_task(self._count(self._consumer))

    async def _count(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            for place, records in (await consumer.getmany(timeout_ms=200, max_records=2000)).items():
                kind, id_, decode = self._kinds[place.topic]
                for record in records:
                    self._take(kind, id_, decode(record.value))
            await asyncio.sleep(0)

    def _take(self, kind: str, id_: str, answer: Answer) -> None:
        new = self._marks[kind].add(getattr(answer, id_))
        if new is None:
            return
        if not new:
            self.repeated += 1
            return
        self.changed_s = time.monotonic()
        self.counts[kind] += 1
        if kind not in self.first_s:
            self.first_s[kind] = self._clock()
        if isinstance(answer, Decision):
            self.actions[answer.action] += 1
            self.versions[answer.model_version] = self.versions.get(answer.model_version, 0) + 1
        elif isinstance(answer, DeadLetter):
            self.reasons[answer.reason] += 1
        elif isinstance(answer, Alert):
            self.alerts.append(answer)
        else:
            self.recommended.append(answer)

    def check(self) -> None:
        """Raises what ended the counting, if something did."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Stop counting; the counts stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.stop()
