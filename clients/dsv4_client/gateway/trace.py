"""One span per request, and the trace that it belongs to, passed on to the server, whose own spans then follow it.

OpenTelemetry's API records nothing and only passes the client's trace on, until somebody sets an SDK up in this
process, such as `opentelemetry-instrument dsv4 gateway …`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, get_tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_HEADERS = ("traceparent", "tracestate")
_w3c = TraceContextTextMapPropagator()
_tracer = get_tracer("dsv4.gateway")


@contextmanager
def request_span(method: str, headers: dict[str, str]) -> Iterator[Span]:
    """Open the span of the request that this task answers, under the client's if its headers are well formed."""
    parent = _w3c.extract({name: headers[name] for name in _HEADERS if name in headers})
    with _tracer.start_as_current_span(method, context=parent, kind=SpanKind.SERVER) as span:
        yield span


def describe(span: Span, method: str, route: str, status: int) -> None:
    """Say what was asked and how it ended; nothing of the request's text. Status 0: the client left before one."""
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def trace_headers() -> dict[str, str]:
    """Return the headers for the server; empty outside of a trace."""
    found: dict[str, str] = {}
    _w3c.inject(found)
    return found
