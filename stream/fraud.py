"""The fraud lane: transactions and labels of one partition number share state and become decisions and alerts.

In: fetched records by partition, entity state, models. Out: decisions, alerts, dead letters, new state and offsets.
State owned: the caches of entity rows (:mod:`stream.intake` puts the records in order). On redelivery: records below
the applied offset are skipped; what was emitted but not applied is folded again with the decision that was emitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import engine
from features.catalogue import Catalogue
from features.engine import Operations
from features.kernel import LABEL, TRANSACTION
from features.messages import ACTIONS
from features.texts import Texts
from features.watermark import UNMARKED, Watermark
from stream.budgets import Budgets
from stream.deciding import Decided, Policy, Seen, adopt_emitted
from stream.entities import EntityCache, evict
from stream.explaining import Explaining
from stream.fallback import DEGRADED
from stream.intake import Emitted, Intake, Part, Progress
from stream.lane import (
    Fields,
    Held,
    LetterId,
    Produced,
    Record,
    Records,
    Tally,
    Target,
    after_sources,
    emitted_before,
    reached,
    source_id,
)
from stream.resp import Wired
from stream.rule_books import RuleBooks
from stream.rules import RulesHolder
from stream.settings import Settings
from stream.store import FIELDS_MAX, HEAD, head_watermark
from stream.vectors import VectorLog

_FOREIGN_SHARE = 0.25  # shards of other workers that a worker that lags reads anew for each event
_BESIDE_FROM = 256  # transactions of a cycle from which on a second thread gives more than it costs


class FraudLane:
    """Transactions and labels to decisions, see the module's text."""

    name = "fraud"

    def __init__(self, settings: Settings, catalogue: Catalogue, log: VectorLog | None = None,
                 rules: RulesHolder | None = None) -> None:  # fmt: skip
        worker, topics = settings.worker, settings.topics
        schema = catalogue.schema
        self.catalogue = catalogue
        self.partitions = topics.transaction_partitions
        self.topics = (topics.transactions, topics.labels)
        self.outputs = (topics.decisions, topics.alerts, topics.dead_letters)
        self.records_max = FIELDS_MAX // (2 * len(schema.entities)) - 1  # transactions and labels, each its entities
        self.cache_bytes = worker.cache_mb * 1_000_000
        self._topic_names = topics
        self._policy = Policy(worker, schema, rules)
        self._budgets = None
        if worker.cases_per_day is not None:
            self._budgets = Budgets(worker.cases_per_day, self.partitions, topics.transactions)
        self._books = None
        if rules is not None or worker.rules is not None:
            self._books = RuleBooks(topics.transactions)
        self._budget_fields = Budgets.fields if self._budgets is not None else ()
        self.own_fields = (*self._budget_fields, *(RuleBooks.fields if self._books is not None else ()))
        self._explaining = Explaining(settings, catalogue, self._policy.fallback)
        self.suspects = self._explaining.suspects
        self._intake = Intake(settings, schema, self.records_max)
        self.caches = tuple(
            EntityCache(layout, partitions=self.partitions, merged=e > 0 and self.partitions > 1,
                        refresh_s=worker.foreign_refresh_ms / 1000)
            for e, layout in enumerate(catalogue.layouts)
        )  # fmt: skip
        self._tables = tuple(cache.rows for cache in self.caches)
        self._log = log
        self._lags = False
        self._beside = ThreadPoolExecutor(1, "headrace-beside")
        self._encodings: list[Future[Fields]] = []

    def resume(self, partition: int, offsets: Mapping[str, int], watermark: Watermark = UNMARKED,
               own: Sequence[bytes | None] = ()) -> None:  # fmt: skip
        """Start a partition at the applied ``offsets`` and watermark; nothing of it is cached."""
        self.drop(partition)
        if self._budgets is not None:
            self._budgets.resume(partition, own[: len(self._budget_fields)])
        if self._books is not None:
            self._books.resume(partition, own[len(self._budget_fields) :])
        self._intake.partitions[partition] = Progress(dict(offsets), watermark)

    def drop(self, partition: int) -> None:
        """Forget a partition: it is lost, or its state ran ahead of what was applied."""
        self._settle_rows()
        self._intake.partitions.pop(partition, None)
        if self._budgets is not None:
            self._budgets.drop(partition)
        if self._books is not None:
            self._books.drop(partition)
        for cache in self.caches:
            cache.drop(partition)

    def evict(self, settled: int) -> None:
        """Hold the caches to their budget; cycles up to ``settled`` are applied."""
        evict(self.caches, self.cache_bytes, settled)

    def adopt(self, partition: int, emitted: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
        """Take note of outputs beyond the applied state: they are not emitted again, their decisions hold.

        Returns the offset after the last input that was answered, by topic.
        """
        state = self._intake.partitions[partition]
        sources: set[str] = set()
        for topic, values in emitted.items():
            letters = topic == self._topic_names.dead_letters
            found: Mapping[str, Any] = emitted_before(values, LetterId if letters else Emitted, self.topics)
            state.done.update(f"{topic} {source}" for source in found)
            state.emitted |= {} if letters else found
            sources |= found.keys()
        state.answered = after_sources(sources)
        return state.answered

    def decide_as(self, partition: int, emitted: Mapping[str, Emitted]) -> None:
        """Have the next cycle decide transactions (by source) as they were decided, after the labels they had seen."""
        self._intake.partitions[partition].emitted = dict(emitted)

    def decidable(self, partition: int, records: Sequence[Record]) -> list[Record]:
        """Those that become decisions, not dead letters."""
        return self._intake.good(partition, records)

    def sources(self, work: list[Part]) -> list[tuple[Target, int]]:
        """The labels and transactions that a cycle counts, labels first: a label waits for a transaction's time."""
        labels = [((self.topics[1], part.partition), offset) for part in work for offset in part.labels.offset.tolist()]
        return labels + [((self.topics[0], part.partition), r.offset) for part in work for r in part.records]

    def narrow(self, limit: int) -> None:
        """Take up at most so many transactions and labels of a partition that wait; 0 for as many as ever."""
        self._intake.limit = limit or self.records_max

    def waiting(self) -> dict[int, int]:
        """How many labels wait, by partition."""
        held = {partition: len(state.labels) for partition, state in self._intake.partitions.items()}
        return {partition: count for partition, count in held.items() if count}

    def held(self) -> dict[str, Held]:
        """Each entity's cache."""
        return {cache.layout.entity.name: Held(len(cache), cache.nbytes, cache.hits, cache.misses)
                for cache in self.caches}  # fmt: skip

    def past(self, values: Mapping[bytes, bytes], watermark: int) -> list[bytes]:
        """Those of a partition's fields in Redis that read as empty from a watermark on."""
        return [name for cache in self.caches for name in cache.past(values, watermark)]

    def begin(self, fetched: Mapping[int, Records], lagging: Mapping[int, bool], tally: Tally) -> list[Part]:
        """Skip what is applied, decode, check the keys, and put transactions and labels in order."""
        self._lags = any(lagging.values())
        return self._intake.take(fetched, lagging, tally)

    def wanted(self, work: list[Part], cycle: int, now_s: float) -> dict[int, list[bytes]]:
        """Give every entity of the cycle its row; Redis fields that the caches lack, by partition."""
        for part in work:
            part.hashes = [ids.hashes() for ids in part.entities]
            pairs = zip(part.entities, part.hashes, strict=True)
            part.slots = [
                cache.claim(part.partition, *pair, cycle) for cache, pair in zip(self.caches, pairs, strict=True)
            ]
            part.views = list(part.slots)
        wanted: dict[int, list[bytes]] = {}
        foreign, rebuilt_max = self.partitions - len(self._intake.partitions), None
        if self._lags and foreign:
            # Catching up comes first: reading other workers' shards takes a share of it that does not grow with them.
            rebuilt_max = int(_FOREIGN_SHARE * sum(len(part.order) for part in work) / foreign) + 1
        for e, cache in enumerate(self.caches):
            if cache.merged and work:
                ids = Texts.concat([part.entities[e] for part in work])
                views = cache.claim_views(ids, np.concatenate([part.hashes[e] for part in work]), cycle, now_s,
                                          rebuilt_max)  # fmt: skip
                ends = np.cumsum([len(part.order) for part in work])
                for part, found in zip(work, np.split(views, ends[:-1]), strict=True):
                    part.views[e] = found
            for partition, fields in cache.wanted().items():
                # Of a partition that another worker holds, its watermark says what of it reads as empty.
                wanted.setdefault(partition, [] if partition in self._intake.partitions else [HEAD]).extend(fields)
        return wanted

    def fill(self, work: list[Part], values: Mapping[int, Mapping[bytes, bytes | None]], now_s: float) -> None:
        """Take in what was read for :meth:`wanted`, asked with the same ``now_s``."""
        # Nobody else writes while this worker holds every partition: a view stays right until one is lost.
        alone = len(self._intake.partitions) == self.partitions
        marks = np.array([head_watermark(values.get(p, {}).get(HEAD)) for p in range(self.partitions)], np.int64)
        for p, state in self._intake.partitions.items():
            marks[p] = state.watermark.time
        for cache in self.caches:
            cache.fill(values, math.inf if alone else now_s + cache.refresh_s, marks)

    def compute(self, work: list[Part], models: Any, cycle: int, tally: Tally) -> list[Produced]:
        """Fold and score everything, then decide; returns what each partition has to write."""
        if not work:
            return []
        operations, rows, marks = self._operations(work)
        self._settle_rows()
        with tally.stage("features"):
            folded = engine.fold(self.catalogue, self._tables, operations, marks)
        x = np.ascontiguousarray(folded.x[rows])
        seen = Seen(work, x)
        with tally.stage("model"):
            beside = self._beside if len(x) >= _BESIDE_FROM else None
            decided = self._policy.decide(seen, models.fraud, beside, sum(tally.seconds.values()))
            emitted = [self._intake.partitions[part.partition].emitted for part in work]
            if any(emitted):
                adopt_emitted(seen, decided, emitted, self.topics[0])
            if self._budgets is not None:
                thresholds = self._policy.thresholds(models.fraud)
                self._budgets.decide(seen, decided, folded.repeat[rows], emitted, models.version, thresholds)
            self._remember(operations, folded, rows, decided)
        if self._books is not None:
            self._books.count(work, decided, folded.repeat[rows], emitted)
            tally.rules = self._books.standing()
        tally.labels_missed += int(folded.missed.sum())
        tally.duplicates += int(folded.repeat.sum())
        if self._log is not None:
            sources = [self._source(part, record.offset) for part in work for record in part.records]
            self._log.append(sources, np.concatenate([part.positions for part in work]), x)
        with tally.stage("encode"):
            return self._produced(seen, decided, folded.repeat[rows], models, tally)

    def _remember(self, operations: Operations, folded: engine.Folded, rows: NDArray[np.int64], decided: Decided
                  ) -> None:  # fmt: skip
        """Put the decisions into the key entities' memory; a repeat gets the decision of the first."""
        n = len(operations)
        score, anomaly, action = np.zeros(n), np.zeros(n), np.zeros(n, np.int8)
        score[rows], anomaly[rows], action[rows] = decided.score, decided.anomaly, decided.action
        engine.remember(self.catalogue, self._tables, operations, folded, score, anomaly, action)
        decided.score, decided.anomaly, decided.action = score[rows], anomaly[rows], action[rows]

    def _operations(self, work: list[Part]) -> tuple[Operations, NDArray[np.int64], NDArray[np.int64]]:
        """The columns of all partitions merged by time, where each one's transactions lie among them, and watermarks.

        Each partition keeps its own order. Merging matters to entities that several partitions share: one partition
        after the other, the second would see the hours of the first as its past.
        """
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in Operations.__slots__}
        for part in work:
            labels, batch = part.labels, part.batch
            n, extra = len(part.records), len(labels)
            columns: dict[str, NDArray[Any]] = {
                "kind": np.full(n, TRANSACTION, np.int8),
                "time": batch.time,
                "event_hash": batch.event_id.hashes(),
                "values": batch.values,
                "categories": batch.categories,
                "fraud": batch.fraud,
            }
            if extra:
                confirmed = np.flatnonzero(labels.fraud == 1)
                cards = part.entities[0].take(n + confirmed)
                self.suspects.add([(card, None, None) for card in cards], labels.time[confirmed].tolist())
                missing = [np.full((extra, column.shape[1]), np.nan) for column in (batch.values, batch.categories)]
                kind, hashes = np.full(extra, LABEL, np.int8), labels.event_id.hashes()
                more: list[NDArray[Any]] = [kind, labels.time, hashes, *missing, labels.fraud]
                pairs = zip(columns.items(), more, strict=True)
                columns = {name: np.concatenate((column, added)) for (name, column), added in pairs}
            columns |= {
                "entity_hash": np.stack(part.hashes, axis=1),
                "slots": np.stack(part.slots, axis=1),
                "views": np.stack(part.views, axis=1),
            }
            for name, column in columns.items():
                parts[name].append(column[part.order] if extra else column)
        clocks = np.concatenate([np.maximum.accumulate(time) for time in parts["time"]])
        order = np.argsort(clocks, kind="stable")
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        rows = places[np.flatnonzero(np.concatenate(parts["kind"]) == TRANSACTION)]
        operations = Operations(**{name: np.concatenate(columns)[order] for name, columns in parts.items()})
        return operations, rows, np.concatenate([part.marks for part in work])[order]

    def _source(self, part: Part, offset: int) -> str:
        return source_id((self.topics[0], part.partition), offset)

    def _produced(self, seen: Seen, decided: Decided, repeat: NDArray[np.int8], models: Any, tally: Tally
                  ) -> list[Produced]:  # fmt: skip
        produced, work = [], list(seen.parts)
        encoding = self._encoding(work, beside=len(seen) >= _BESIDE_FROM)
        states = [self._intake.partitions[part.partition] for part in work]
        self._explaining.answer(seen, decided, repeat, states, models, tally)
        self._count(work, decided, tally)
        if self._budgets is not None:
            tally.budgets |= {part.partition: self._budgets.standing(part.partition) for part in work}
        for part, state, fields in zip(work, states, encoding, strict=True):
            if state.done and reached(part.offsets, state.answered):
                state.done = set()
                state.emitted = {}
            produced.append(Produced(part.partition, part.offsets, part.answers.messages, fields, part.watermark))
        return produced

    def _encoding(self, work: list[Part], *, beside: bool) -> Sequence[Fields | Future[Fields]]:
        """The new state of each part for Redis; that of a large cycle is encoded in another thread meanwhile.

        It may take until the next cycle changes rows, see :meth:`_settle_rows`; until then that one only adds rows.
        """

        own = [self._own_fields(part.partition) for part in work]

        def encode(part: Part, more: Fields) -> Wired:
            pairs = zip(self.caches, part.slots, strict=True)
            rows = [cache.encode(slots if len(slots) == 1 else np.unique(slots)) for cache, slots in pairs]
            return Wired.of([*rows, Wired.plain(more)] if more else rows)

        if not beside:
            return [encode(*pair) for pair in zip(work, own, strict=True)]
        self._encodings = [self._beside.submit(encode, *pair) for pair in zip(work, own, strict=True)]
        return self._encodings

    def _own_fields(self, partition: int) -> Fields:
        """What has changed of a partition's alert budget and of the counts of its rules."""
        found: dict[bytes, bytes] = {}
        for kept in (self._budgets, self._books):
            if kept is not None:
                found |= kept.changed(partition)
        return found

    def _settle_rows(self) -> None:
        """Wait until the rows are encoded as the last cycle left them; from then on they may be changed."""
        wait(self._encodings)
        self._encodings = []

    @staticmethod
    def _count(work: list[Part], decided: Decided, tally: Tally) -> None:
        for action, count in zip(ACTIONS, np.bincount(decided.action, minlength=len(ACTIONS)).tolist(), strict=True):
            tally.add(tally.actions, action, count)
            tally.alerts += count if action != "allow" else 0
        if decided.degraded.any():
            for code, count in enumerate(np.bincount(decided.degraded).tolist()):
                tally.add(tally.fallbacks, DEGRADED[code] or "", count if code else 0)
        for part in work:
            if part.records:
                times = np.array([record.timestamp for record in part.records], np.int64)
                tally.timestamps.setdefault("decision", []).append(times)
