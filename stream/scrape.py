"""Reads a worker's Prometheus page: counts, lag, and latencies from its histograms.

In: the port. Out: :class:`Page`. No state. A quantile is interpolated within its bucket, as Prometheus does it, so it
is as exact as the buckets are fine; the worker's resolve 1 to 100 ms.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from stream.embedded import LOOPBACK

_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_TIMEOUT_S = 2.0

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Page:
    """All samples of one page by name and labels."""

    samples: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` that have these labels; 0 without any."""
        wanted = set(labels.items())
        return sum(value for found, value in self.samples.get(name, {}).items() if wanted <= found)

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums of the samples of ``name`` by the value of one label."""
        sums: dict[str, float] = {}
        for found, value in self.samples.get(name, {}).items():
            key = dict(found).get(label, "")
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def since(self, earlier: Page) -> Page:
        """What was added since an earlier page; meant for counters and histograms."""
        return Page({
            name: {labels: value - earlier.samples.get(name, {}).get(labels, 0.0) for labels, value in found.items()}
            for name, found in self.samples.items()
        })  # fmt: skip

    def quantile(self, histogram: str, q: float, **labels: str) -> float | None:
        """The quantile ``q`` of a histogram in its unit; None where nothing was observed."""
        wanted = set(labels.items())
        counts: dict[float, float] = {}
        for found, value in self.samples.get(f"{histogram}_bucket", {}).items():
            if wanted <= found:
                bound = float(dict(found)["le"])
                counts[bound] = counts.get(bound, 0.0) + value
        total = counts.get(float("inf"), 0.0)
        if total <= 0:
            return None
        low_bound, low_count = 0.0, 0.0
        for bound, count in sorted(counts.items()):
            if count >= q * total:
                if bound == float("inf"):
                    return low_bound
                share = (q * total - low_count) / (count - low_count) if count > low_count else 1.0
                return low_bound + (bound - low_bound) * share
            low_bound, low_count = bound, count
        return low_bound


def parse_page(text: str) -> Page:
    """The samples of a page in Prometheus' text format."""
    samples: dict[str, dict[Labels, float]] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else _SAMPLE.match(line)
        if match is not None:
            labels = frozenset(_LABEL.findall(match["labels"] or ""))
            samples.setdefault(match["name"], {})[labels] = float(match["value"])
    return Page(samples)


def scrape(port: int, host: str = LOOPBACK) -> Page | None:
    """The page that a worker serves now; None where it does not answer. Blocks."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return parse_page(answer.read().decode()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
