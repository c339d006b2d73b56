"""Names of the metrics, and the sink that the engine reports to. The server side maps a sink onto Triton's /metrics."""

from __future__ import annotations

from typing import Protocol

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

# name → help text. Labels in braces are given with each report.
COUNTERS = {
    "dsv4_requests_total": "Requests ended, by outcome {outcome}",
    "dsv4_prompt_tokens_total": "Prompt tokens of admitted requests",
    "dsv4_output_tokens_total": "Tokens generated",
    "dsv4_cached_tokens_total": "Prompt tokens found in the prefix cache",
    "dsv4_drafted_tokens_total": "Tokens computed on trial, by drafter {drafter}",
    "dsv4_accepted_tokens_total": "Tokens of them that were right, by drafter {drafter}",
    "dsv4_draft_rows_total": "Rows with drafts, by drafter {drafter}: 1 + accepted per row is the mean accepted length",
    "dsv4_preemptions_total": "Sequences preempted for want of pages",
    "dsv4_rank_restarts_total": "Times that the ranks were restarted",
}
GAUGES = {
    "dsv4_running_requests": "Requests with pages",
    "dsv4_waiting_requests": "Requests in the queue",
    "dsv4_pages_used": "Cache places held by running requests, by kind {kind}",
    "dsv4_pages_kept": "Cache places that only the prefix cache holds, host memory included, by kind {kind}",
    "dsv4_pages_total": "Cache places on the device in all, by kind {kind}",
}
HISTOGRAMS = {
    "dsv4_time_to_first_token_seconds": ("Admission to first token", LATENCY_BUCKETS_S),
    "dsv4_inter_token_seconds": ("Between two tokens of a request", LATENCY_BUCKETS_S),
    "dsv4_queue_seconds": ("Admission to first step", LATENCY_BUCKETS_S),
    "dsv4_batch_size": ("Rows of a step", BATCH_BUCKETS),
}


class MetricsSink(Protocol):
    """Where reports go. Every call must be cheap and must not block: it is made on the step loop's thread."""

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float) -> None:
        """Add an observation to a histogram."""


class NullMetrics:
    """A sink for library use and tests: forgets everything."""

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Ignore."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Ignore."""

    def observe(self, name: str, value: float) -> None:
        """Ignore."""
