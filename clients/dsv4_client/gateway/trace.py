"""The trace that a request belongs to, passed on to the server, whose own spans then belong to it too."""

from __future__ import annotations

import re
from contextvars import ContextVar

_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_STATE = re.compile(r"[ -~]{1,512}")
_current: ContextVar[dict[str, str] | None] = ContextVar("dsv4_gateway_trace", default=None)


def enter_trace(headers: dict[str, str]) -> None:
    """Note the W3C trace headers of the request that this task answers; what is not well formed is left out."""
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not _PARENT.fullmatch(parent):
        _current.set(None)
        return
    _current.set({"traceparent": parent, **({"tracestate": state} if _STATE.fullmatch(state) else {})})


def trace_headers() -> dict[str, str]:
    """Return the headers for the server; empty outside of a trace."""
    return dict(_current.get() or {})
