"""A metrics sink that writes to Triton's /metrics: reports are summed up at once and written later, on another thread.

One write is a call of up to 65 µs into the server, so histograms are kept here and exported as the three families that
Prometheus reads (`_bucket{le}`, `_sum`, `_count`): a native one would need a call for every observation.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from typing import Protocol

from dsv4_backend.metrics import COUNTERS, GAUGES, HISTOGRAMS

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]


class MetricWriter(Protocol):
    """Triton's side of one metric family and its label sets."""

    def increment(self, name: str, labels: Labels, amount: float) -> None:
        """Add to a counter."""

    def set(self, name: str, labels: Labels, value: float) -> None:
        """Set a gauge."""


def counter_families() -> dict[str, str]:
    """Return help text by name of every counter family, the histograms' three each included."""
    families = dict(COUNTERS)
    for name, (about, _) in HISTOGRAMS.items():
        families[f"{name}_bucket"] = f"{about}: observations up to {{le}}"
        families[f"{name}_sum"] = f"{about}: sum"
        families[f"{name}_count"] = f"{about}: number of observations"
    return families


def gauge_families() -> dict[str, str]:
    """Return help text by name of every gauge family."""
    return dict(GAUGES)


class TritonMetrics:
    """Collects reports from any thread; `flush` writes what has changed."""

    def __init__(self, writer: MetricWriter) -> None:
        self._writer = writer
        self._lock = threading.Lock()
        self._added: defaultdict[Key, float] = defaultdict(float)
        self._gauges: dict[Key, float] = {}
        for name in COUNTERS:
            if "{" not in COUNTERS[name]:
                self._added[name, ()] = 0.0  # shown as 0 from the start
        for name in HISTOGRAMS:
            self._spread(name, [0] * (len(HISTOGRAMS[name][1]) + 1), 0.0, self._added)
        self._observed: dict[str, tuple[list[int], float]] = {}

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._added[name, tuple(sorted(labels.items()))] += amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges[name, tuple(sorted(labels.items()))] = value

    def observe(self, name: str, value: float) -> None:
        """Add an observation to a histogram."""
        bounds = HISTOGRAMS[name][1]
        with self._lock:
            counts, total = self._observed.get(name, ([0] * (len(bounds) + 1), 0.0))
            counts[bisect_left(bounds, value)] += 1
            self._observed[name] = counts, total + value

    def flush(self) -> None:
        """Write everything reported since the last flush. One thread at a time."""
        with self._lock:
            added, self._added = self._added, defaultdict(float)
            gauges, self._gauges = self._gauges, {}
            observed, self._observed = self._observed, {}
        for name, (counts, total) in observed.items():
            self._spread(name, counts, total, added)
        for (name, labels), amount in added.items():
            self._writer.increment(name, labels, amount)
        for (name, labels), value in gauges.items():
            self._writer.set(name, labels, value)

    @staticmethod
    def _spread(name: str, counts: list[int], total: float, added: defaultdict[Key, float]) -> None:
        """Add a histogram's observations to its counters; buckets count everything up to their bound."""
        num_seen = 0
        bounds = [f"{bound:g}" for bound in HISTOGRAMS[name][1]]
        for bound, num in zip([*bounds, "+Inf"], counts, strict=True):
            num_seen += num
            added[f"{name}_bucket", (("le", bound),)] += num_seen
        added[f"{name}_sum", ()] += total
        added[f"{name}_count", ()] += num_seen
