"""What every request passes before its endpoint: an id, the log, the key, the limits."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.http import dump
from dsv4_client.gateway.service import Service
from dsv4_client.gateway.settings import digest
from dsv4_client.gateway.trace import describe, request_span

OPEN_PATHS = frozenset(("/health", "/v1/health/live", "/v1/health/ready"))
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_access = logging.getLogger("dsv4.gateway.access")


class Gate:
    """Gives a request its id, refuses what may not pass, writes one line of JSON about it without any of its text."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers.get("x-request-id", "")
        request_id = request_id if _SAFE_ID.fullmatch(request_id) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        watch = _Watch(send, request_id)
        metrics = self._service.metrics
        metrics.num_running += 1
        with request_span(scope["method"], headers) as span:
            try:
                await self._pass(scope, headers, receive, watch.send)
            finally:
                metrics.num_running -= 1
                self._log(scope, watch, request_id)
                describe(span, scope["method"], _route(scope), watch.status)

    async def _pass(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Any) -> None:
        error = self._refusal(scope, headers)
        if error is None:
            await self._app(scope, receive, send)
            return
        body = dump(error.body(scope["path"])).encode()
        found = {**error.headers, "content-type": "application/json", "content-length": str(len(body))}
        pairs = [(name.encode(), value.encode()) for name, value in found.items()]
        await send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> ApiError | None:
        settings = self._service.settings
        is_open = scope["path"] in OPEN_PATHS
        if not is_open and settings.key_digests and not _has_key(headers, settings.key_digests):
            return ApiError(401, "the API key is missing or wrong. Send `Authorization: Bearer KEY` or `x-api-key`.",
                            "invalid_api_key")  # fmt: skip
        size = headers.get("content-length", "0")
        if not size.isdigit() or int(size[:19]) > settings.max_body_bytes:
            return too_large(settings.max_body_bytes)
        if not is_open and self._service.metrics.num_running > settings.max_requests:
            text = f"{settings.max_requests} requests are running, which is the limit of this gateway."
            return ApiError(503, f"{text} Try again soon.", "overloaded", retry_after_s=1.0)
        return None

    def _log(self, scope: Scope, watch: _Watch, request_id: str) -> None:
        path = _route(scope)
        self._service.metrics.request(path, watch.status)
        line = {
            "request_id": request_id,
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "route": path,
            "status": watch.status,
            "duration_s": round(time.monotonic() - watch.began_s, 4),
            "sent_bytes": watch.num_bytes,
        }
        _access.info("%s", json.dumps(line))


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "unknown"))


class _Watch:
    """Sees what is sent: the status, the size; adds the request id to the headers."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.began_s = time.monotonic()
        self.status = 0  # the client left before there was one
        self.num_bytes = 0

    async def send(self, message: Message) -> None:
        """Pass one message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode())]
        elif message["type"] == "http.response.body":
            self.num_bytes += len(message.get("body", b""))
        await self._send(message)


def too_large(limit: int) -> ApiError:
    """Return the refusal of a body that is too large."""
    return ApiError(413, f"the body is larger than {limit} bytes, or its length is not a number. Send less.",
                    "request_too_large")  # fmt: skip


def _has_key(headers: dict[str, str], digests: tuple[bytes, ...]) -> bool:
    """Compare with every key, whichever fits, in a time that does not depend on them."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    sent = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    found = digest(sent)
    return sum(hmac.compare_digest(found, each) for each in digests) > 0
