"""Two kinds of answers that notice at once when their client is gone: a stream of events, and one JSON object."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from dsv4_client.gateway.errors import ApiError, as_api_error
from dsv4_client.gateway.outbox import Outbox
from dsv4_client.gateway.service import Service

Body = dict[str, Any]
KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
_log = logging.getLogger("dsv4.gateway")
_closing: set[asyncio.Task[None]] = set()  # the loop keeps no reference to a task; these stop requests


def dump(value: object) -> str:
    """Return compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def sse(data: object, name: str = "") -> bytes:
    """Return one server-sent event."""
    head = f"event: {name}\n" if name else ""
    text = f"{head}data: {data if isinstance(data, str) else dump(data)}\n\n"
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair has no UTF-8


class EventStream(Response):
    """Server-sent events from a generator of encoded messages.

    Rule: the status waits for the first message, so that a refusal has its own; when that takes long, the stream opens
          with a keep-alive and a later failure is an event. A client that leaves closes the source at once.
    """

    def __init__(
        self, service: Service, source: AsyncGenerator[bytes, None], on_failure: Callable[[ApiError], bytes]
    ) -> None:
        super().__init__()
        self._service = service
        self._source = source
        self._on_failure = on_failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        settings = self._service.settings
        outbox = Outbox(
            self._source,
            max_events=settings.max_unsent_events,
            stall_s=settings.stall_timeout_s,
            on_stall=self._service.metrics.stalled,
        )
        try:
            await _while_connected(self._service, receive, self._send(outbox, scope, send))
        finally:
            _keep(outbox.close())

    async def _send(self, outbox: Outbox, scope: Scope, send: Send) -> None:
        keep_alive_s = self._service.settings.keep_alive_s
        try:
            piece = await outbox.take(keep_alive_s)
        except Exception as failure:  # the end of the request: whatever it was, the client is answered
            await _send_json(scope, send, logged(scope, failure))
            return
        await send({"type": "http.response.start", "status": 200, "headers": _encoded(_HEADERS)})
        while piece is not None:
            await send({"type": "http.response.body", "body": piece or KEEP_ALIVE, "more_body": True})
            try:
                piece = await outbox.take(keep_alive_s)
            except Exception as failure:  # as above, in mid-stream
                body = self._on_failure(logged(scope, failure))
                await send({"type": "http.response.body", "body": body, "more_body": True})
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class JsonReply(Response):
    """One JSON object, made by a coroutine that is cancelled when the client leaves."""

    def __init__(self, service: Service, work: Awaitable[Body]) -> None:
        super().__init__()
        self._service = service
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the object."""
        await _while_connected(self._service, receive, self._send(scope, send))

    async def _send(self, scope: Scope, send: Send) -> None:
        try:
            await _send_json(scope, send, await self._work)
        except Exception as failure:  # the end of the request: whatever it was, the client is answered
            await _send_json(scope, send, logged(scope, failure))


def logged(scope: Scope, failure: Exception) -> ApiError:
    """Return the error for the client; a bug of ours goes to the log with its traceback."""
    error = as_api_error(failure)
    if error.code == "internal":
        _log.error("request %s failed", scope.get("state", {}).get("request_id", ""), exc_info=failure)
    return error


async def _while_connected(service: Service, receive: Receive, work: Any) -> None:
    """Run the work until it ends or the client is gone. A cancelled work is not waited for: it stops its request."""
    sender = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if sender.done():
            sender.result()
        else:
            service.metrics.left()
    finally:
        watcher.cancel()
        if not sender.done():
            sender.cancel()
            _keep(sender)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _keep(task: asyncio.Future[Any]) -> None:
    if isinstance(task, asyncio.Task) and not task.done():
        _closing.add(task)
        task.add_done_callback(_closing.discard)


async def _send_json(scope: Scope, send: Send, value: Body | ApiError) -> None:
    status, headers = (value.status, value.headers) if isinstance(value, ApiError) else (200, {})
    body = dump(value.body(scope["path"]) if isinstance(value, ApiError) else value).encode("utf-8", "backslashreplace")
    headers = {**headers, "content-type": "application/json", "content-length": str(len(body))}
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
