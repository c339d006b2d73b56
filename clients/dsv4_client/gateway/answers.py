"""One answer: a body goes to the ensemble, its tokens come back as the events of the body's API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from dsv4_backend.chat import ApiEvent, Protocol, Reading, ReplyStream
from dsv4_backend.records import FinishReason, Usage
from dsv4_client.errors import BrokenStreamError
from dsv4_client.events import Delta, Final
from dsv4_client.gateway.errors import cancelled, failed
from dsv4_client.gateway.service import Service
from dsv4_client.gateway.trace import trace_headers
from dsv4_client.options import Options

Body = dict[str, Any]
THREAD_BYTES = 65_536  # bodies above this are read on a thread: the event loop serves the other streams meanwhile
_STOPS = ("stop", "stop_sequences")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A body that was understood, under the id of its answer."""

    reading: Reading
    body: Body
    reply_id: str
    options: Options = field(default_factory=Options)


async def read_body(service: Service, protocol: Protocol, body: Body, size: int) -> Reading:
    """Understand a body. Raises: RequestError, ConstraintError."""
    body = service.reasoning.restore(protocol, body)
    if size > THREAD_BYTES:
        return await asyncio.to_thread(service.encoder.read, protocol, body)
    return service.encoder.read(protocol, body)


async def answer(service: Service, question: Question, into: list[Body]) -> AsyncGenerator[ApiEvent, None]:
    """Yield the events of one answer; the whole one is appended to `into` at the end.

    Rule:   closing the generator early stops the request on the server.
    Raises: ApiError, Dsv4Error.
    """
    reply = service.encoder.reply(question.reading, reply_id=question.reply_id, model=service.settings.model_name)
    source = service.client.generate(
        _sent(question, service.call_mark_id),
        protocol=question.reading.protocol.value,
        request_id=question.reply_id,
        timeout_s=service.settings.request_timeout_s,
        headers=trace_headers(),
        **question.options,
    )
    usage: Usage | None = None
    began_s = time.monotonic()
    async with aclosing(source):
        async for event in source:
            for each in _events(reply, event, is_first=usage is None):
                yield each
            if usage is None:
                service.metrics.first_token(time.monotonic() - began_s)
            usage = event.usage or usage
            if reply.is_finished:
                into.append(reply.whole())
                service.metrics.finished(usage)
                service.reasoning.remember(question.reading.protocol, into[-1])
                return
    raise BrokenStreamError(service.settings.triton_url, "it ended without a final event", 0)


def _events(reply: ReplyStream, event: Delta | Final, *, is_first: bool) -> list[ApiEvent]:
    """Return what one event of the server becomes. Raises: ApiError for an answer that failed."""
    if isinstance(event, Final) and event.finish_reason is FinishReason.ERROR:
        raise failed(event.error)
    if isinstance(event, Final) and event.finish_reason is FinishReason.CANCELLED:
        raise cancelled()
    opening = reply.start(event.usage or _NOTHING) if is_first else []
    if isinstance(event, Final):
        return [*opening, *reply.finish(event.finish_reason)]
    return [*opening, *reply.push(event.token_ids, event.logprobs)]


_NOTHING = Usage(num_input_tokens=0, num_output_tokens=0)


def _sent(question: Question, call_mark_id: int | None) -> Body:
    """Return the body for the ensemble.

    Rule: the answer is streamed here whatever the client gets. While thinking the parser alone looks for stop strings:
          they mean the answer, and the runtime cannot tell it from the reasoning. Without tools the mark of V4's tool
          calls is kept away, so that no call is begun that nobody asked for.
    """
    reading = question.reading
    body = {**reading.body, "stream": True}
    if reading.is_thinking:
        body = {name: value for name, value in body.items() if name not in _STOPS}
    if call_mark_id is not None and not reading.has_tools and reading.constraint is None:
        bias = body.get("logit_bias")
        body["logit_bias"] = {**(bias if isinstance(bias, dict) else {}), str(call_mark_id): -100}
    return body
