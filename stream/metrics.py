"""Prometheus metrics of a worker, on one loopback port.

In: tallies of cycles. Out: ``/metrics``. Base units; buckets resolve 1 to 100 ms; no entity id is ever a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from features.errors import SettingsError
from stream.lane import Held, Tally

_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5,
            5, 10, 30)  # fmt: skip
_YES = ("no", "yes")
STAGES = ("decode", "read", "features", "model", "encode", "produce", "apply")


class Latencies(Collector):
    """A histogram by ``kind`` that takes all latencies of a cycle at once; prometheus-client's takes one by one."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = np.array(_BUCKETS)
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, kind: str, seconds: NDArray[np.float64]) -> None:
        """Count many values."""
        counts = self._counts.setdefault(kind, np.zeros(len(_BUCKETS) + 1, np.int64))
        counts += np.bincount(np.searchsorted(self._bounds, seconds), minlength=len(counts))
        self._sums[kind] = self._sums.get(kind, 0.0) + float(seconds.sum())

    def collect(self) -> Iterable[Metric]:
        """What a scrape sees."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["kind"])
        names = [*(str(float(bound)) for bound in _BUCKETS), "+Inf"]
        for kind, counts in list(self._counts.items()):
            family.add_metric([kind], list(zip(names, np.cumsum(counts).tolist(), strict=True)), self._sums[kind])
        yield family


class RuleTotals(Collector):
    """What rules have hit since the state began, by partition; ``partitions`` is replaced whole."""

    def __init__(self) -> None:
        self.partitions: Mapping[int, Mapping[tuple[str, bool], tuple[int, int, int]]] = {}

    def collect(self) -> Iterable[Metric]:
        """What a scrape sees."""
        names = ["partition", "rule", "shadow"]
        hits = CounterMetricFamily(
            "headrace_rule_hits", "Transactions that a rule hit, repeats left out.", labels=names
        )
        labels = CounterMetricFamily("headrace_rule_labels", "First labels of what a rule hit, by what they say.",
                                     labels=[*names, "fraud"])  # fmt: skip
        for partition, totals in self.partitions.items():
            for (rule, shadow), (hit, frauds, good) in totals.items():
                where = [str(partition), rule, _YES[shadow]]
                hits.add_metric(where, hit)
                for fraud, count in (("yes", frauds), ("no", good)):
                    labels.add_metric([*where, fraud], count)
        return [hits, labels]


class Metrics:
    """All metrics of one worker process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.stage = Histogram("headrace_stage_seconds", "Time of one cycle in each stage.", ["stage"],
                               buckets=_BUCKETS, registry=r)  # fmt: skip
        self.end_to_end = Latencies("headrace_end_to_end_seconds",
                                    "From a record's Kafka timestamp to its acknowledged answer.")  # fmt: skip
        r.register(self.end_to_end)
        self.events = Counter("headrace_events_total", "Records taken in, good or bad.", ["kind"], registry=r)
        self.decisions = Counter("headrace_decisions_total", "Decisions by action.", ["action"], registry=r)
        self.alerts = Counter("headrace_alerts_total", "Decisions that need a person.", registry=r)
        self.reasons = Counter("headrace_explained_alerts_total", "Alerts by whether there was time for all of their "
                               "reasons (full) or not (partial).", ["reasons"], registry=r)  # fmt: skip
        self.fallbacks = Counter("headrace_degraded_decisions_total", "Decisions made with less than everything.",
                                ["rung", "why"], registry=r)  # fmt: skip
        self.recommendations = Counter("headrace_recommendations_total", "Answered clicks.", registry=r)
        self.degraded = Counter("headrace_degraded_recommendations_total",
                                "Of these, clicks answered in a cheaper way.", ["rung"], registry=r)  # fmt: skip
        self.dead_letters = Counter("headrace_dead_letters_total", "Records that could not be decided.", ["reason"],
                                    registry=r)  # fmt: skip
        self.unknown_fields = Counter("headrace_unknown_field_records_total",
                                      "Records with fields that the schema does not know.", registry=r)  # fmt: skip
        self.duplicates = Counter("headrace_duplicate_transactions_total", "Transactions that repeat an event id.",
                                  registry=r)  # fmt: skip
        self.labels_missed = Counter("headrace_labels_missed_total",
                                     "Labels whose transaction the key entity no longer remembers.",
                                     registry=r)  # fmt: skip
        self.lag = Gauge("headrace_consumer_lag_records", "Records not applied yet.", ["topic", "partition"],
                         registry=r)  # fmt: skip
        self.model = Gauge("headrace_model_info", "1 for the model version in use.", ["version"], registry=r)
        self.models_refused = Counter("headrace_model_refusals_total",
                                      "Model versions that were refused; the one before stays in use.",
                                      registry=r)  # fmt: skip
        self.items = Gauge("headrace_items", "Items that the items topic holds.", registry=r)
        self.item_records = Counter("headrace_item_records_total", "Records of the items topic, by what they say: "
                                    "changed, deleted, or why they cannot be read.", ["kind"], registry=r)  # fmt: skip
        self.levers_refused = Counter("headrace_lever_refusals_total",
                                      "Changes of a file of levers that were refused; those before stay in use.",
                                      registry=r)  # fmt: skip
        self.cache_entities = Gauge("headrace_cache_entities", "Entity rows held in memory.", ["entity"], registry=r)
        self.cache_bytes = Gauge("headrace_cache_bytes", "Memory of the entity rows.", ["entity"], registry=r)
        self.cache_lookups = Counter("headrace_cache_lookups_total", "Entities that a cycle needed, by whether the "
                                     "cache held them.", ["entity", "found"], registry=r)  # fmt: skip
        self._lookups: dict[tuple[str, str], int] = {}
        self.redis_errors = Counter("headrace_redis_errors_total", "Failed exchanges with Redis.", registry=r)
        self.recoveries = Counter("headrace_recoveries_total",
                                  "Times the worker dropped its state and read it again, by cause.", ["cause"],
                                  registry=r)  # fmt: skip
        self.swept = Counter("headrace_swept_rows_total", "Rows removed from Redis because they read as empty.",
                             registry=r)  # fmt: skip
        self.lists_lost = Counter("headrace_lists_lost_total", "Lists for pulling that could not be written to Redis.",
                                  registry=r)  # fmt: skip
        self.rule_totals = RuleTotals()
        r.register(self.rule_totals)
        self.rules = Gauge("headrace_rules_info", "1 for the version of the rules in use.", ["version"], registry=r)
        self.rules_refused = Counter("headrace_rules_refusals_total", "Changes of the rules that were refused; the "
                                     "ones before stay in use.", registry=r)  # fmt: skip
        self.list_entries = Gauge("headrace_rule_list_entries", "Ids in a list that rules ask.", ["list"], registry=r)
        self.rule_list_changes = Counter("headrace_rule_list_changes_total", "Records of the lists' topic, by whether "
                                         "they could be applied.", ["outcome"], registry=r)  # fmt: skip
        self.budget_threshold = Gauge("headrace_review_threshold", "Review threshold of the alert budget.",
                                      ["partition"], registry=r)  # fmt: skip
        self.budget_cases = Gauge("headrace_cases_today", "Cards alerted on the newest day, of the alert budget.",
                                  ["partition"], registry=r)  # fmt: skip
        self.ab = Counter("headrace_ab_total", "What became of the lists of each variant; `headrace ab` is exact.",
                          ["variant", "what"], registry=r)  # fmt: skip
        self.in_flight = Gauge("headrace_cycles_in_flight", "Cycles scored and not yet applied.", registry=r)
        self.ready = Gauge("headrace_ready", "1 once partitions are assigned and models are loaded.", registry=r)

    def serve(self, host: str, port: int) -> int:
        """Serve ``/metrics`` (port 0: any free one) in a thread of its own; returns the port.

        Raises
        ------
        SettingsError
            If the port cannot be bound.
        """
        return _serve(self.registry, host, port, "worker.metrics_port")

    def settled(self, tally: Tally, now_ms: float) -> None:
        """Count a cycle whose answers are acknowledged and applied."""
        for kind, count in tally.events.items():
            self.events.labels(kind).inc(count)
        for action, count in tally.actions.items():
            self.decisions.labels(action).inc(count)
        for reason, count in tally.dead_letters.items():
            self.dead_letters.labels(reason).inc(count)
        self.alerts.inc(tally.alerts)
        for kind, count in tally.reasons.items():
            self.reasons.labels(kind).inc(count)
        for code, count in tally.fallbacks.items():
            self.fallbacks.labels(*code.split(":")).inc(count)
        self.recommendations.inc(sum(map(len, tally.timestamps.get("recommendation", ()))))
        for rung, count in tally.degraded.items():
            self.degraded.labels(rung).inc(count)
        self.unknown_fields.inc(tally.unknown_fields)
        self.duplicates.inc(tally.duplicates)
        self.labels_missed.inc(tally.labels_missed)
        if tally.rules is not None:
            self.rule_totals.partitions = tally.rules
        for partition, (threshold, cases) in tally.budgets.items():
            self.budget_threshold.labels(str(partition)).set(threshold)
            self.budget_cases.labels(str(partition)).set(cases)
        for name, count in tally.ab.items():
            self.ab.labels(*name.split(" ", 1)).inc(count)
        for stage, seconds in tally.seconds.items():
            self.stage.labels(stage).observe(seconds)
        for kind, timestamps in tally.timestamps.items():
            self.end_to_end.observe(kind, np.maximum(now_ms - np.concatenate(timestamps), 0.0) / 1000)

    def set_lag(self, lag: Mapping[tuple[str, int], int]) -> None:
        """Records not applied yet, by topic and partition."""
        for (topic, partition), records in lag.items():
            self.lag.labels(topic, str(partition)).set(records)

    def set_caches(self, held: Mapping[str, Held]) -> None:
        """What each cache holds, and its look-ups, by entity."""
        for entity, cache in held.items():
            self.cache_entities.labels(entity).set(cache.entries)
            self.cache_bytes.labels(entity).set(cache.nbytes)
            for found, count in (("yes", cache.hits), ("no", cache.misses)):
                before = self._lookups.get((entity, found), 0)
                self.cache_lookups.labels(entity, found).inc(count - before)
                self._lookups[entity, found] = count

    def set_rules(self, version: str) -> None:
        """The version of the rules in use; the earlier one disappears."""
        self.rules.clear()
        self.rules.labels(version).set(1)

    def set_lists(self, entries: Mapping[str, int]) -> None:
        """How many ids each list holds."""
        self.list_entries.clear()
        for name, count in entries.items():
            self.list_entries.labels(name).set(count)

    def set_model(self, version: str) -> None:
        """The model version in use; the earlier one disappears."""
        self.model.clear()
        self.model.labels(version).set(1)


class ArchiveMetrics:
    """All metrics of ``headrace archive``, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.records = Counter("headrace_archived_records_total", "Records written and committed, good or bad.",
                               ["kind"], registry=r)  # fmt: skip
        self.faulty = Counter("headrace_archived_faulty_records_total", "Of these, records that cannot be decoded.",
                              ["kind"], registry=r)  # fmt: skip
        self.files = Counter("headrace_archive_files_total", "Files written, by what wrote them.", ["by"], registry=r)
        self.nbytes = Counter("headrace_archive_bytes_total", "Bytes written, by what wrote them.", ["by"], registry=r)
        self.removed = Counter("headrace_archive_removed_files_total", "Files removed, by why.", ["why"], registry=r)
        self.lag = Gauge("headrace_archive_lag_records", "Records not committed to the archive yet.",
                         ["topic", "partition"], registry=r)  # fmt: skip
        self.write = Histogram("headrace_archive_write_seconds", "Time to write and commit one range of offsets.",
                               buckets=_BUCKETS, registry=r)  # fmt: skip
        self.errors = Counter("headrace_archive_errors_total", "Failed exchanges with Kafka or the filesystem.",
                              registry=r)  # fmt: skip
        self.ready = Gauge("headrace_archive_ready", "1 once the covered ranges are known.", registry=r)

    def serve(self, host: str, port: int) -> int:
        """As :meth:`Metrics.serve`."""
        return _serve(self.registry, host, port, "archive.metrics_port")


def _serve(registry: CollectorRegistry, host: str, port: int, setting: str) -> int:
    try:
        server, _ = start_http_server(port, host, registry=registry)
    except OSError as error:
        problem = f"{setting}: {host}:{port} cannot be bound ({error}); set another port, or 0 for any"
        raise SettingsError([problem]) from None
    return int(server.server_port)
