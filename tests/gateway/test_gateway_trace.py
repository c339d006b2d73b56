"""The gateway's own span lies between the client's and the server's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from dsv4_client.gateway import trace
from gateway_rig import HELLO, Gateway, wait_until
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, use_span

CHAT = "/v1/chat/completions"
TRACE_ID, CLIENT_ID, OWN_ID = 0xA << 124, 0xB << 60, 0xC << 60


class Remembering(NonRecordingSpan):
    """A span that keeps what is said of it."""

    def __init__(self, context: SpanContext) -> None:
        super().__init__(context)
        self.said: dict[str, Any] = {}

    def update_name(self, name: str) -> None:
        self.said["name"] = name

    def set_attributes(self, attributes: Any) -> None:
        self.said |= attributes


class Tracer:
    """Stands in for an SDK's: each span gets OWN_ID in the trace of its parent."""

    def __init__(self) -> None:
        self.spans: list[Remembering] = []

    @contextmanager
    def start_as_current_span(self, name: str, context: Any, kind: Any) -> Iterator[Remembering]:
        parent = get_current_span(context).get_span_context()
        assert (parent.trace_id, parent.span_id) == (TRACE_ID, CLIENT_ID)
        span = Remembering(SpanContext(TRACE_ID, OWN_ID, is_remote=False, trace_flags=TraceFlags(1)))
        self.spans.append(span)
        with use_span(span):
            yield span


def test_the_server_gets_the_gateways_span(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = Tracer()
    monkeypatch.setattr(trace, "_tracer", tracer)
    gateway.says("Good day")
    gateway.post(CHAT, {"messages": HELLO}, headers={"traceparent": f"00-{TRACE_ID:032x}-{CLIENT_ID:016x}-01"})
    (call,) = gateway.server.calls
    assert call.headers == {"traceparent": f"00-{TRACE_ID:032x}-{OWN_ID:016x}-01"}
    (span,) = tracer.spans
    wait_until(lambda: len(span.said) == 4, "the span is described, which follows the answer")
    assert span.said == {
        "name": f"POST {CHAT}",
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
    }
