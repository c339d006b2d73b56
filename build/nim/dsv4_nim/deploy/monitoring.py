"""Recording rule, alerts and a Grafana dashboard over the metrics that `dsv4_backend/metrics.py` names."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_nim.deploy.options import Manifest

QUEUE_RECORD = "dsv4_queue_seconds_p90"
BY_POD = "namespace, pod"


def quantile(share: float, name: str, *, by: str = "") -> str:
    """Return the PromQL of a quantile of one of our histograms."""
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({groups}) (rate({name}_bucket[5m])))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert: when, for how long, how bad, and what to do."""

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str
    action: str


ALERTS = (
    Alert(
        name="Dsv4RanksRestart", expression="increase(dsv4_rank_restarts_total[15m]) > 0", lasts="0m",
        severity="warning", summary="The model's processes were restarted",
        action="Read the container's log before the restart; a request that kills them is ended after max_restarts.",
    ),
    Alert(
        name="Dsv4RequestsFail", lasts="5m", severity="critical",
        expression='sum(rate(dsv4_requests_total{outcome="error"}[5m])) / sum(rate(dsv4_requests_total[5m])) > 0.01',
        summary="More than 1 % of the requests end with an error",
        action="Look for `error` in the answers and in the log.",
    ),
    Alert(
        name="Dsv4QueueIsLong", expression=f"{quantile(0.9, 'dsv4_queue_seconds')} > 10", lasts="10m",
        severity="warning", summary="One request in ten waits longer than 10 s",
        action="Raise the autoscaler's maxReplicas, or lower max_sequences' share of long prompts.",
    ),
    Alert(
        name="Dsv4FirstTokenIsLate", expression=f"{quantile(0.99, 'dsv4_time_to_first_token_seconds')} > 30",
        lasts="10m", severity="warning", summary="One first token in a hundred takes longer than 30 s",
        action="Look at queue time and at prompt lengths.",
    ),
    Alert(
        name="Dsv4PagesRunOut", expression="dsv4_pages_used / dsv4_pages_total > 0.95", lasts="10m",
        severity="warning", summary="Running requests hold nearly all cache pages",
        action="Requests are being preempted: raise cache_tokens or add replicas.",
    ),
    Alert(
        name="Dsv4Preempts", expression="rate(dsv4_preemptions_total[5m]) > 0.1", lasts="10m", severity="warning",
        summary="Sequences are preempted for want of pages", action="Raise cache_tokens, or lower max_sequences.",
    ),
    Alert(
        name="Dsv4IsSilent", expression="absent(dsv4_running_requests)", lasts="5m", severity="critical",
        summary="No pod reports", action="Look at the pods: are they ready, do they start?",
    ),
)  # fmt: skip


def rules() -> Manifest:
    """Return the groups of a PrometheusRule, or of a file that Prometheus reads."""
    record = {"record": QUEUE_RECORD, "expr": quantile(0.9, "dsv4_queue_seconds", by=BY_POD)}
    alerts = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.lasts,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.action},
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": "dsv4.records", "rules": [record]}, {"name": "dsv4.alerts", "rules": alerts}]}


# title, unit, (legend, expression) …
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Requests ended", "reqps", (("{{outcome}}", "sum by (outcome) (rate(dsv4_requests_total[5m]))"),)),
    ("Requests now", "short", (("running", "sum(dsv4_running_requests)"), ("waiting", "sum(dsv4_waiting_requests)"))),
    ("Tokens", "short", (
        ("prompt", "sum(rate(dsv4_prompt_tokens_total[5m]))"), ("output", "sum(rate(dsv4_output_tokens_total[5m]))"),
        ("cached", "sum(rate(dsv4_cached_tokens_total[5m]))"),
    )),
    ("Drafts", "short", (
        ("drafted, {{drafter}}", "sum by (drafter) (rate(dsv4_drafted_tokens_total[5m]))"),
        ("accepted, {{drafter}}", "sum by (drafter) (rate(dsv4_accepted_tokens_total[5m]))"),
    )),
    ("Accepted length", "short", (
        ("{{drafter}}", "1 + sum by (drafter) (rate(dsv4_accepted_tokens_total[5m]))"
                        " / sum by (drafter) (rate(dsv4_draft_rows_total[5m]))"),
    )),
    ("Time to first token", "s", (
        ("p50", quantile(0.5, "dsv4_time_to_first_token_seconds")),
        ("p99", quantile(0.99, "dsv4_time_to_first_token_seconds")),
    )),
    ("Between tokens", "s", (
        ("p50", quantile(0.5, "dsv4_inter_token_seconds")), ("p99", quantile(0.99, "dsv4_inter_token_seconds")),
    )),
    ("Queue", "s", (("p90", quantile(0.9, "dsv4_queue_seconds")),)),
    ("Pages used", "percentunit", (
        ("{{kind}}", "sum by (kind) (dsv4_pages_used) / sum by (kind) (dsv4_pages_total)"),
    )),
    ("Pages kept", "percentunit", (
        ("{{kind}}", "sum by (kind) (dsv4_pages_kept) / sum by (kind) (dsv4_pages_total)"),
    )),
    ("Rows of a step", "short", (("p50", quantile(0.5, "dsv4_batch_size")),)),
    ("Restarts and preemptions", "short", (
        ("restarts", "sum(increase(dsv4_rank_restarts_total[5m]))"),
        ("preemptions", "sum(increase(dsv4_preemptions_total[5m]))"),
    )),
)  # fmt: skip


def dashboard() -> Manifest:
    """Return a Grafana dashboard, two panels a row."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = [
        {
            "id": number + 1,
            "title": title,
            "type": "timeseries",
            "datasource": source,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": source}
                for index, (legend, expression) in enumerate(lines)
            ],
        }
        for number, (title, unit, lines) in enumerate(PANELS)
    ]
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "title": "DeepSeek-V4 on Triton", "uid": "dsv4", "schemaVersion": 39, "version": 1, "editable": True,
        "time": {"from": "now-1h", "to": "now"}, "refresh": "30s", "templating": {"list": [variable]},
        "panels": panels,
    }  # fmt: skip
