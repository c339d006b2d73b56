"""The metrics sink: everything reported is written once."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from dsv4_backend.metrics import HISTOGRAMS
from dsv4_backend.server.metrics import Labels, TritonMetrics, counter_families, gauge_families


class Written:
    """A writer that adds up, as /metrics does."""

    def __init__(self) -> None:
        self.counters: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self.gauges: dict[tuple[str, Labels], float] = {}
        self.num_calls = 0

    def increment(self, name: str, labels: Labels, amount: float) -> None:
        assert name in counter_families()
        self.counters[name, labels] += amount
        self.num_calls += 1

    def set(self, name: str, labels: Labels, value: float) -> None:
        assert name in gauge_families()
        self.gauges[name, labels] = value
        self.num_calls += 1


def test_counters_add_up_over_flushes_by_label() -> None:
    written = Written()
    metrics = TritonMetrics(written)
    for outcome in ("stop", "length", "stop"):
        metrics.count("dsv4_requests_total", outcome=outcome)
        metrics.flush()
    assert written.counters["dsv4_requests_total", (("outcome", "stop"),)] == 2
    assert written.counters["dsv4_requests_total", (("outcome", "length"),)] == 1


def test_a_gauge_shows_its_last_value() -> None:
    written = Written()
    metrics = TritonMetrics(written)
    for value in (3.0, 9.0, 4.0):
        metrics.set("dsv4_pages_used", value, kind="csa")
    metrics.flush()
    assert written.gauges == {("dsv4_pages_used", (("kind", "csa"),)): 4.0}


def test_many_reports_cost_few_writes() -> None:
    written = Written()
    metrics = TritonMetrics(written)
    metrics.flush()
    written.num_calls = 0
    for _ in range(1000):
        metrics.observe("dsv4_inter_token_seconds", 0.02)
        metrics.count("dsv4_output_tokens_total")
    metrics.flush()
    assert written.num_calls <= len(HISTOGRAMS["dsv4_inter_token_seconds"][1]) + 4


def test_nothing_new_costs_nothing() -> None:
    written = Written()
    metrics = TritonMetrics(written)
    metrics.flush()
    written.num_calls = 0
    metrics.flush()
    assert written.num_calls == 0


def test_every_unlabelled_series_is_there_from_the_start() -> None:
    written = Written()
    TritonMetrics(written).flush()
    assert written.counters["dsv4_output_tokens_total", ()] == 0
    assert ("dsv4_batch_size_count", ()) in written.counters


@given(st.lists(st.lists(st.floats(0, 1000), max_size=6), max_size=4))
def test_buckets_count_everything_up_to_their_bound(rounds: list[list[float]]) -> None:
    written = Written()
    metrics = TritonMetrics(written)
    for values in rounds:
        for value in values:
            metrics.observe("dsv4_queue_seconds", value)
        metrics.flush()
    seen = [value for values in rounds for value in values]
    for bound in HISTOGRAMS["dsv4_queue_seconds"][1]:
        found = written.counters["dsv4_queue_seconds_bucket", (("le", f"{bound:g}"),)]
        assert found == sum(value <= bound for value in seen)
    assert written.counters["dsv4_queue_seconds_bucket", (("le", "+Inf"),)] == len(seen)
    assert written.counters["dsv4_queue_seconds_count", ()] == len(seen)
