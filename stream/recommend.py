"""The recommendation lane: each click updates its session and is answered with a list of items.

In: fetched clicks by partition, session state, models. Out: recommendations, dead letters, new state and offsets.
State owned: the cache of sessions and users (:mod:`stream.sessions`). On redelivery: clicks below the applied offset
are skipped; a click whose event id is in the session's memory is answered again but not counted twice.

A list is answered from the last items of the session; where the model knows none of them, from those of the user over
all sessions. What must not be shown is left out of it as the last step (:mod:`features.last_filter`); where
``worker.repeat_buying`` is off, also what was bought.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from heapq import merge
from itertools import islice, takewhile
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.decode import Bad, ClickBatch, ClickDecoder, Limits
from features.listing import Clicked, Lister, Lists
from features.messages import CLICK_ACTIONS, Degraded
from features.shelf import Shelf
from features.texts import Texts
from features.watermark import UNMARKED, Watermark, advance
from stream.click_answers import newest, one_by_one, together
from stream.click_parts import Ids, Part, Queries
from stream.ladder import Ladder
from stream.lane import (
    Answers,
    Held,
    LetterId,
    Produced,
    Records,
    Tally,
    Target,
    after_sources,
    emitted_values,
    misplaced,
    reached,
    refuse,
)
from stream.models import NO_VERSION, answering
from stream.sessions import (
    CLICK_BYTES,
    ITEM_BYTES,
    Session,
    User,
    decode_session,
    decode_user,
    encode_session,
    encode_user,
    fold,
    start_from_earlier,
)
from stream.settings import Settings
from stream.store import FIELDS_MAX
from stream.suspects import Suspects
from stream.trending import viewed_before
from stream.variants import Experiment
from stream.ways import Way

_BUY = CLICK_ACTIONS.index("buy")
_SESSION, _USER = b"session:", b"user:"  # of fields in Redis


class _AnswerId(msgspec.Struct, frozen=True):
    """Of a recommendation, its source."""

    recommendation_id: str


@dataclass(slots=True)
class _Partition:
    offsets: dict[str, int]
    watermark: Watermark = UNMARKED
    done: set[str] = field(default_factory=set)
    answered: dict[str, int] = field(default_factory=dict)
    emitted: dict[str, bytes] = field(default_factory=dict)  # where lists can be pulled, by source what was answered
    sessions: dict[str, Session] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)


class RecommendLane:
    """Clicks to recommendations, see the module's text."""

    name = "recommend"
    own_fields = ()

    def __init__(self, settings: Settings, lister: Lister | None = None) -> None:
        worker, topics = settings.worker, settings.topics
        self.lister = lister or Lister(Shelf(hide_unlisted=worker.unlisted_items == "hide"), worker.viewed_item)
        self.partitions = topics.click_partitions
        self.topics = (topics.clicks,)
        self.outputs = (topics.recommendations, topics.dead_letters)
        self.records_max = FIELDS_MAX // 2  # a click's session and its user
        self._topic_names = topics
        self._worker = worker
        self._session_ms, self._user_ms = int(worker.session_days * 86_400_000), int(worker.user_days * 86_400_000)
        self._decode = ClickDecoder(Limits(worker.message_bytes_max, int(worker.ahead_max_s * 1000))).decode
        self._partitions: dict[int, _Partition] = {}
        self._hits = self._misses = 0
        self._ladder = Ladder(worker)
        self.suspects = Suspects()
        self._way = Way.of(worker, self.lister)
        self._experiment = Experiment(settings, self._way) if settings.ab.share else None
        self._beside = ThreadPoolExecutor(1, "headrace-beside-clicks")

    def resume(self, partition: int, offsets: Mapping[str, int], watermark: Watermark = UNMARKED,
               own: Sequence[bytes | None] = ()) -> None:  # fmt: skip
        """Start a partition at the applied ``offsets`` and watermark; nothing of it is cached."""
        self._partitions[partition] = _Partition(dict(offsets), watermark)

    def drop(self, partition: int) -> None:
        """Forget a partition: it is lost, or its state ran ahead of what was applied."""
        self._partitions.pop(partition, None)

    def evict(self, settled: int) -> None:
        """Hold sessions and users to the cache's capacity, least recently used first; unapplied ones stay."""
        held = sum(len(p.sessions) + len(p.users) for p in self._partitions.values())
        surplus = held - self._worker.cache_sessions
        for state in self._partitions.values():
            if surplus <= 0:
                break
            caches: tuple[dict[str, Any], dict[str, Any]] = state.sessions, state.users
            # Each is in the order of its use.
            used = merge(*([(entry.cycle, n, id_) for id_, entry in caches[n].items()] for n in (0, 1)))
            for _, n, id_ in islice(takewhile(lambda entry: entry[0] <= settled, used), surplus):
                del caches[n][id_]
                surplus -= 1

    def adopt(self, partition: int, emitted: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
        """Take note of outputs beyond the applied state: they are not emitted again.

        Returns the offset after the last input that was answered, by topic.
        """
        state = self._partitions[partition]
        sources: set[str] = set()
        for topic, values in emitted.items():
            kind = LetterId if topic == self._topic_names.dead_letters else _AnswerId
            found = {source: value for source, _, value in emitted_values(values, kind, self.topics)}
            sources |= found.keys()
            state.done.update(f"{topic} {source}" for source in found)
            if kind is _AnswerId and self._worker.list_ttl_s:
                state.emitted |= found
        state.answered = after_sources(sources)
        return state.answered

    def sources(self, work: list[Part]) -> list[tuple[Target, int]]:
        """The clicks that a cycle counts."""
        return [((self.topics[0], part.partition), record.offset) for part in work for record in part.records]

    def narrow(self, limit: int) -> None:
        """Clicks never wait."""

    def waiting(self) -> dict[int, int]:
        """Clicks never wait."""
        return {}

    def held(self) -> dict[str, Held]:
        """Sessions and users; ``nbytes`` are those of their clicks and items."""
        partitions = self._partitions.values()
        sessions = [session for state in partitions for session in state.sessions.values()]
        users = [user for state in partitions for user in state.users.values()]
        clicks, items = sum(len(s.clicks) for s in sessions), sum(len(u.items) + len(u.bought) for u in users)
        return {"session": Held(len(sessions) + len(users), clicks * CLICK_BYTES + items * ITEM_BYTES, self._hits,
                                self._misses)}  # fmt: skip

    def past(self, values: Mapping[bytes, bytes], watermark: int) -> list[bytes]:
        """Those of a partition's fields in Redis that read as empty from a watermark on."""
        session, user = watermark - self._session_ms, watermark - self._user_ms
        return [name for name, value in values.items()
                if (name.startswith(_SESSION) and decode_session(value).is_over(session))
                or (name.startswith(_USER) and decode_user(value).time < user)]  # fmt: skip

    def begin(self, fetched: Mapping[int, Records], lagging: Mapping[int, bool], tally: Tally) -> list[Part]:
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
            ids = Ids.of(batch)
            wrong = self._wrong_partition(batch, partition, ids.keys)
            answers = Answers(state.done)
            for bad in (*batch.bad, *wrong.values()):
                refuse((topic, partition), fresh[bad.index], bad, self._topic_names.dead_letters, answers, tally)
            if wrong:
                batch = self._without(batch, set(wrong))
                ids = Ids.of(batch)
            tally.add(tally.events, "clicks", len(fresh))
            tally.unknown_fields += batch.unknown_fields
            state.offsets = state.offsets | {topic: fresh[-1].offset + 1}
            marks, state.watermark = advance(state.watermark, batch.time)
            parts.append(Part(partition, dict(state.offsets), answers, [fresh[i] for i in batch.rows], batch,
                               marks, state.watermark, ids.items, ids.events, ids.visitors))  # fmt: skip
        return parts

    def _wrong_partition(self, batch: ClickBatch, partition: int, keys: Texts) -> dict[int, Bad]:
        """Position in the batch and reason of each click whose key belongs to another partition."""
        if self._worker.accept_mispartitioned or not batch.rows:
            return {}
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

    def wanted(self, work: list[Part], cycle: int, now_s: float) -> dict[int, list[bytes]]:
        """Redis fields of the sessions and users that are not cached, by partition."""
        wanted = {part.partition: [kind + id_.encode() for kind, id_ in self._missing(part)] for part in work}
        return {partition: fields for partition, fields in wanted.items() if fields}

    def _missing(self, part: Part) -> list[tuple[bytes, str]]:
        state = self._partitions[part.partition]
        missing = [(_SESSION, id_) for id_ in dict.fromkeys(part.batch.session_id) if id_ not in state.sessions]
        return missing + [(_USER, id_) for id_ in part.users if id_ not in state.users]

    def fill(self, work: list[Part], values: Mapping[int, Mapping[bytes, bytes | None]], now_s: float) -> None:
        """Take in what was read for :meth:`wanted`."""
        for part in work:
            state, missing = self._partitions[part.partition], self._missing(part)
            self._misses += len(missing)
            self._hits += max(len(part.records) - len(missing), 0)
            for kind, id_ in missing:
                found = values[part.partition][kind + id_.encode()]
                if kind is _SESSION:
                    state.sessions[id_] = decode_session(found)
                else:
                    state.users[id_] = decode_user(found)

    def compute(self, work: list[Part], models: Any, cycle: int, tally: Tally) -> list[Produced]:
        """Fold each click into its session and answer it; the click itself counts in its answer."""
        if not work:
            return []
        models = answering(models)
        cold = models.version == NO_VERSION
        start, total = perf_counter(), sum(len(part.records) for part in work)
        rung = self._ladder.choose([record.timestamp for part in work for record in part.records])
        with tally.stage("features"):
            queries = Queries()
            for part in work:
                self._fold(part, cycle, queries)
            hashes, counts = queries.arrays()
        with tally.stage("model"):
            batches = [part.batch for part in work]
            clicked = Clicked(
                hashes, counts, np.concatenate([batch.time for batch in batches]),
                np.concatenate([part.items for part in work]),
                [own for part in work for own in part.bought],
            )  # fmt: skip
            before = viewed_before(hashes, counts, clicked.viewed)  # in its session, whatever it is answered from
            if cold:  # then even the first click of all knows of an item: its own
                self._learn(work, before)
            lists = partial(Way.lists, rung=rung, beside=self._beside)
            earlier = {row: items for part in work for row, items in part.earlier.items()}
            if self._experiment is None:
                start_from_earlier(earlier, models.recommender, hashes, counts)
                found = lists(self._way, models.recommender, clicked)
            else:
                found = self._experiment.lists(work, models, clicked, earlier, lists)
        with tally.stage("encode"):
            produced = self._produced(work, models, found, tally, rung.label)
        if not cold:
            self._learn(work, before)
        self._ladder.learn(rung, total, perf_counter() - start)
        if rung.label is not None:
            tally.add(tally.degraded, rung.label, total)
        return produced

    def _learn(self, work: list[Part], before: NDArray[np.uint64]) -> None:
        """Have the clicks of a cycle count for what is wanted now."""
        for way in (self._way,) if self._experiment is None else (self._way, self._experiment.b):
            way.learn(work, before, self.suspects)

    def _fold(self, part: Part, cycle: int, queries: Queries) -> None:
        state, worker = self._partitions[part.partition], self._worker
        sessions, users = state.sessions, state.users
        events, items = part.events.tolist(), part.items.tolist()
        bought = (part.batch.action == _BUY).tolist()
        ids = (part.batch.session_id, part.batch.user_id)
        columns = (events, items, part.batch.time.tolist(), part.marks.tolist(), bought)
        for id_, user_id, event, item, time, mark, buy in zip(*ids, *columns, strict=True):
            session = sessions[id_] = sessions.pop(id_)
            session.cycle, now = cycle, max(time, mark)
            if session.is_over(now - self._session_ms):
                session.clicks, session.count, session.bought, session.shown = [], 0, [], None
            user = None
            if user_id is not None:
                user = users[user_id] = users.pop(user_id)
                user.cycle = cycle
                if user.time < now - self._user_ms:
                    user.items, user.bought = [], []
            fold(session, user, (event, item, time), bought=buy)
            part.long_session.append(session.count > worker.session_clicks_max)
            if not worker.repeat_buying:
                part.bought.append(session.bought if user is None else session.bought + user.bought)
            if user is not None and len(user.items) > session.count:
                part.earlier[len(queries.counts)] = user.items
            queries.add(session)

    def _produced(self, work: list[Part], models: Any, found: Lists, tally: Tally, degraded: Degraded | None
                  ) -> list[Produced]:  # fmt: skip
        produced, row = [], 0
        for part in work:
            state, batch = self._partitions[part.partition], part.batch
            value = self._written(part, row, models, found, tally, degraded)
            row += len(part.records)
            lists = newest(batch, value) if self._worker.list_ttl_s else {}
            times = np.array([record.timestamp for record in part.records], np.int64)
            tally.timestamps.setdefault("recommendation", []).append(times)
            if state.done and reached(part.offsets, state.answered):
                state.done, state.emitted = set(), {}
            fields = {_SESSION + id_.encode(): encode_session(state.sessions[id_])
                      for id_ in dict.fromkeys(batch.session_id)}  # fmt: skip
            fields |= {_USER + id_.encode(): encode_user(state.users[id_]) for id_ in part.users}
            produced.append(Produced(part.partition, part.offsets, part.answers.messages, fields, part.watermark,
                                     lists))  # fmt: skip
        return produced

    def _written(self, part: Part, row: int, models: Any, found: Lists, tally: Tally, degraded: Degraded | None
                 ) -> Callable[[int], bytes]:  # fmt: skip
        """Put the messages of a partition among its answers; what reads each one's value."""
        state, topic = self._partitions[part.partition], self._topic_names.recommendations
        if found.same is not None and self._experiment is None and not state.done and part.records:
            messages = together(self.topics[0], part, row, found, found.same, models.version, degraded)
            part.answers.messages[topic] = messages
            return messages.values.raw
        values = []
        answers = one_by_one(self.topics[0], part, row, found, models.version, degraded)
        for n, answer in enumerate(answers, row):
            if self._experiment is not None:
                self._experiment.mark(answer, models, n, state.sessions[answer.session_id], tally)
            source, value = answer.recommendation_id, msgspec.json.encode(answer)
            part.answers.add(topic, source, ((answer.user_id or answer.session_id).encode(), value))
            values.append(state.emitted.get(source, value))
        return values.__getitem__
