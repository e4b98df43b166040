"""The recommendation lane: each click updates its session and is answered with a list of items.

In: fetched clicks by partition, session state, models. Out: recommendations, dead letters, new state and offsets.
State owned: the cache of sessions. On redelivery: clicks below the applied offset are skipped; a click whose event id
is in the session's memory is answered again but not counted twice.

A session's state is its last ``SESSION_ITEMS`` clicks: one version byte, then per click 8 bytes hash of the event id,
8 bytes hash of the item id and 8 bytes event time in ms, oldest first, little-endian. A session begins anew when its
newest click lies ``worker.session_days`` before a click, or before the watermark (:mod:`features.watermark`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.decode import Bad, ClickBatch, ClickDecoder, Limits
from features.errors import StateMismatch
from features.hashing import hash_strings
from features.messages import Recommendation, RecommendedItem
from features.texts import Texts
from features.watermark import UNMARKED, Watermark, advance
from stream.lane import (
    Answers,
    Held,
    LetterId,
    Message,
    Produced,
    Record,
    Records,
    Tally,
    Target,
    after_sources,
    emitted_before,
    misplaced,
    reached,
    refuse,
    source_id,
)
from stream.settings import Settings

SESSION_ITEMS = 20
SESSION_VERSION = 1
_CLICK = struct.Struct("<QQq")


class _AnswerId(msgspec.Struct, frozen=True):
    """Of a recommendation, its source."""

    recommendation_id: str


@dataclass(slots=True)
class _Session:
    clicks: list[tuple[int, int, int]]
    cycle: int = -1


@dataclass(slots=True)
class _Partition:
    offsets: dict[str, int]
    watermark: Watermark = UNMARKED
    done: set[str] = field(default_factory=set)
    answered: dict[str, int] = field(default_factory=dict)
    sessions: dict[str, _Session] = field(default_factory=dict)


@dataclass(slots=True)
class _Part:
    partition: int
    offsets: dict[str, int]
    answers: Answers
    records: list[Record]
    batch: ClickBatch
    marks: NDArray[np.int64]
    watermark: Watermark


def encode_session(clicks: Sequence[tuple[int, int, int]]) -> bytes:
    """The bytes of a session's clicks (event hash, item hash, time in ms), oldest first."""
    return bytes([SESSION_VERSION]) + b"".join([_CLICK.pack(*click) for click in clicks])


def decode_session(value: bytes | None) -> list[tuple[int, int, int]]:
    """The inverse of :func:`encode_session`; ``None`` is a new session.

    Raises
    ------
    StateMismatch
        If the bytes are of another version or length.
    """
    if value is None:
        return []
    if value[:1] != bytes([SESSION_VERSION]) or (len(value) - 1) % _CLICK.size:
        raise StateMismatch(f"a session's state ({len(value)} bytes) does not fit version {SESSION_VERSION}")
    return [(event, item, time) for event, item, time in _CLICK.iter_unpack(value[1:])]


class RecommendLane:
    """Clicks to recommendations, see the module's text."""

    name = "recommend"

    def __init__(self, settings: Settings) -> None:
        worker, topics = settings.worker, settings.topics
        self.partitions = topics.click_partitions
        self.topics = (topics.clicks,)
        self.outputs = (topics.recommendations, topics.dead_letters)
        self.records_max = 3000
        self._topic_names = topics
        self._worker = worker
        self._session_ms = int(worker.session_days * 86_400_000)
        self._decode = ClickDecoder(Limits(worker.message_bytes_max, int(worker.ahead_max_s * 1000))).decode
        self._partitions: dict[int, _Partition] = {}
        self._hits = self._misses = 0

    def resume(self, partition: int, offsets: Mapping[str, int], watermark: Watermark = UNMARKED) -> None:
        """Start a partition at the applied ``offsets`` and watermark; nothing of it is cached."""
        self._partitions[partition] = _Partition(dict(offsets), watermark)

    def drop(self, partition: int) -> None:
        """Forget a partition: it is lost, or its state ran ahead of what was applied."""
        self._partitions.pop(partition, None)

    def evict(self, settled: int) -> None:
        """Hold the sessions to the cache's capacity, least recently used first; unapplied ones stay."""
        surplus = sum(len(p.sessions) for p in self._partitions.values()) - self._worker.cache_sessions
        for state in self._partitions.values():
            if surplus <= 0:
                break
            for id_ in list(state.sessions)[:surplus]:
                if state.sessions[id_].cycle > settled:
                    break
                del state.sessions[id_]
                surplus -= 1

    def adopt(self, partition: int, emitted: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
        """Take note of outputs beyond the applied state: they are not emitted again.

        Returns the offset after the last input that was answered, by topic.
        """
        state = self._partitions[partition]
        sources: set[str] = set()
        for topic, values in emitted.items():
            kind = LetterId if topic == self._topic_names.dead_letters else _AnswerId
            found = emitted_before(values, kind, self.topics)
            sources |= found.keys()
            state.done.update(f"{topic} {source}" for source in found)
        state.answered = after_sources(sources)
        return state.answered

    def sources(self, work: list[_Part]) -> list[tuple[Target, int]]:
        """The clicks that a cycle counts."""
        return [((self.topics[0], part.partition), record.offset) for part in work for record in part.records]

    def narrow(self, limit: int) -> None:
        """Clicks never wait."""

    def waiting(self) -> dict[int, int]:
        """Clicks never wait."""
        return {}

    def held(self) -> dict[str, Held]:
        """The sessions; ``nbytes`` are those of their clicks."""
        sessions = [session for state in self._partitions.values() for session in state.sessions.values()]
        size = sum(len(session.clicks) for session in sessions) * _CLICK.size
        return {"session": Held(len(sessions), size, self._hits, self._misses)}

    def _is_over(self, clicks: Sequence[tuple[int, int, int]], time: int) -> bool:
        """Whether a session reads as empty, as of an event time."""
        earliest = time - self._session_ms
        return not clicks or (clicks[-1][2] < earliest and max(click[2] for click in clicks) < earliest)

    def past(self, values: Mapping[bytes, bytes], watermark: int) -> list[bytes]:
        """Those of a partition's fields in Redis that read as empty from a watermark on."""
        return [name for name, value in values.items()
                if name.startswith(b"session:") and self._is_over(decode_session(value), watermark)]  # fmt: skip

    def begin(self, fetched: Mapping[int, Records], lagging: Mapping[int, bool], tally: Tally) -> list[_Part]:
        """Skip what is applied, decode, and check the keys."""
        parts = []
        topic = self.topics[0]
        for partition, records in fetched.items():
            state = self._partitions.get(partition)
            applied = state.offsets.get(topic, 0) if state else 0
            fresh = [record for record in records.get(topic, ()) if record.offset >= applied]
            if state is None or not fresh:
                continue
            batch = self._decode([r.value for r in fresh], [r.timestamp for r in fresh])
            wrong = self._wrong_partition(batch, partition)
            answers = Answers(state.done)
            for bad in (*batch.bad, *wrong.values()):
                refuse((topic, partition), fresh[bad.index], bad, self._topic_names.dead_letters, answers, tally)
            if wrong:
                batch = self._without(batch, set(wrong))
            tally.add(tally.events, "clicks", len(fresh))
            tally.unknown_fields += batch.unknown_fields
            state.offsets = state.offsets | {topic: fresh[-1].offset + 1}
            marks, state.watermark = advance(state.watermark, batch.time)
            parts.append(_Part(partition, dict(state.offsets), answers, [fresh[i] for i in batch.rows], batch,
                               marks, state.watermark))  # fmt: skip
        return parts

    def _wrong_partition(self, batch: ClickBatch, partition: int) -> dict[int, Bad]:
        """Position in the batch and reason of each click whose key belongs to another partition."""
        if self._worker.accept_mispartitioned or not batch.rows:
            return {}
        keys = Texts.of([user or session for user, session in zip(batch.user_id, batch.session_id, strict=True)])
        return misplaced(
            keys, batch.rows, np.full(len(keys), partition), self.partitions, "key {!r} (user_id, else session_id)"
        )

    @staticmethod
    def _without(batch: ClickBatch, dropped: set[int]) -> ClickBatch:
        keep = [i for i in range(len(batch.rows)) if i not in dropped]
        columns: dict[str, Any] = {}
        for name in ("rows", "event_id", "session_id", "user_id", "card_id", "item_id"):
            column = getattr(batch, name)
            columns[name] = [column[i] for i in keep]
        return ClickBatch(**columns, time=batch.time[keep], action=batch.action[keep], bad=batch.bad,
                          unknown_fields=batch.unknown_fields)  # fmt: skip

    def wanted(self, work: list[_Part], cycle: int, now_s: float) -> dict[int, list[bytes]]:
        """Redis fields of the sessions that are not cached, by partition."""
        wanted = {part.partition: [b"session:" + id_.encode() for id_ in self._missing(part)] for part in work}
        return {partition: fields for partition, fields in wanted.items() if fields}

    def _missing(self, part: _Part) -> list[str]:
        sessions = self._partitions[part.partition].sessions
        return [id_ for id_ in dict.fromkeys(part.batch.session_id) if id_ not in sessions]

    def fill(self, work: list[_Part], values: Mapping[int, Mapping[bytes, bytes | None]], now_s: float) -> None:
        """Take in what was read for :meth:`wanted`."""
        for part in work:
            sessions = self._partitions[part.partition].sessions
            missing = self._missing(part)
            self._misses += len(missing)
            self._hits += len(part.records) - len(missing)
            for id_ in missing:
                found = values[part.partition][b"session:" + id_.encode()]
                sessions[id_] = _Session(decode_session(found))

    def compute(self, work: list[_Part], models: Any, cycle: int, tally: Tally) -> list[Produced]:
        """Fold each click into its session and answer it; the click itself counts in its answer."""
        total = sum(len(part.records) for part in work)
        hashes, counts = np.zeros((total, SESSION_ITEMS), np.uint64), np.zeros(total, np.int64)
        with tally.stage("features"):
            row = 0
            for part in work:
                row = self._fold(part, cycle, hashes, counts, row)
        with tally.stage("model"):
            items, scores = models.neighbours.recommend_many(hashes, counts, self._worker.recommendations_k)
        with tally.stage("encode"):
            return self._produced(work, models, items, scores, tally)

    def _fold(self, part: _Part, cycle: int, hashes: NDArray[np.uint64], counts: NDArray[np.int64], row: int) -> int:
        sessions = self._partitions[part.partition].sessions
        events = hash_strings(part.batch.event_id).tolist()
        items = hash_strings(part.batch.item_id).tolist()
        columns = (events, items, part.batch.time.tolist(), part.marks.tolist())
        for id_, event, item, time, mark in zip(part.batch.session_id, *columns, strict=True):
            session = sessions[id_] = sessions.pop(id_)
            session.cycle = cycle
            if self._is_over(session.clicks, max(time, mark)):
                session.clicks = []
            if all(event != click[0] for click in session.clicks):
                session.clicks = [*session.clicks[1 - SESSION_ITEMS :], (event, item, time)]
            count = len(session.clicks)
            hashes[row, :count] = [click[1] for click in session.clicks]
            counts[row] = count
            row += 1
        return row

    def _produced(self, work: list[_Part], models: Any, items: NDArray[np.int32], scores: NDArray[np.float32],
                  tally: Tally) -> list[Produced]:  # fmt: skip
        produced, row = [], 0
        for part in work:
            state, batch = self._partitions[part.partition], part.batch
            for i, record in enumerate(part.records):
                source = source_id((self.topics[0], part.partition), record.offset)
                message = self._answer(source, batch, i, models, items[row].tolist(), scores[row].tolist())
                part.answers.add(self._topic_names.recommendations, source, message)
                row += 1
            times = np.array([record.timestamp for record in part.records], np.int64)
            tally.timestamps.setdefault("recommendation", []).append(times)
            if state.done and reached(part.offsets, state.answered):
                state.done = set()
            fields = {b"session:" + id_.encode(): encode_session(state.sessions[id_].clicks)
                      for id_ in dict.fromkeys(batch.session_id)}  # fmt: skip
            produced.append(Produced(part.partition, part.offsets, part.answers.messages, fields, part.watermark))
        return produced

    def _answer(self, source: str, batch: ClickBatch, i: int, models: Any, items: list[int], scores: list[float]
                ) -> Message:  # fmt: skip
        model = models.neighbours
        message = Recommendation(
            recommendation_id=source,
            event_id=batch.event_id[i],
            session_id=batch.session_id[i],
            user_id=batch.user_id[i],
            item_id=batch.item_id[i],
            event_time=int(batch.time[i]),
            items=[RecommendedItem(item_id=model.item_id(number), score=round(score, 6))
                   for number, score in zip(items, scores, strict=True) if number >= 0],
            model_version=models.version,
        )  # fmt: skip
        key = batch.user_id[i] or batch.session_id[i]
        return key.encode(), msgspec.json.encode(message)
