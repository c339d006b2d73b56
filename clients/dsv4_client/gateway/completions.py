"""POST /v1/completions: raw prompts, as text or as token ids."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from dsv4_backend.records import FinishReason, Usage
from dsv4_backend.text import decode_chunk
from dsv4_client.events import Delta, Final
from dsv4_client.gateway import schemas
from dsv4_client.gateway.errors import ApiError, cancelled, failed
from dsv4_client.gateway.http import EventStream, JsonReply, sse
from dsv4_client.gateway.prompts import Raw, read_prompts
from dsv4_client.gateway.requests import Body, fresh_id, read_json, switch, whole_number
from dsv4_client.gateway.service import Service
from dsv4_client.gateway.together import together
from dsv4_client.gateway.tokens import LogprobWriter
from dsv4_client.gateway.trace import trace_headers
from dsv4_client.options import Options

_PASSED = (
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "min_tokens", "ignore_eos", "priority", "cache_salt",
)  # fmt: skip
DEFAULT_MAX_TOKENS = 16  # as in OpenAI's API
DONE = sse("[DONE]")


@dataclass(slots=True, kw_only=True)
class _Choice:
    """One answer to one prompt. has_output False: only the prompt is wanted, and the one token that is made is cut."""

    index: int
    raw: Raw
    options: Options
    request_id: str
    writer: LogprobWriter | None
    has_output: bool = True
    text: str = ""
    reason: str = ""
    usage: Usage = field(default_factory=lambda: Usage(num_input_tokens=0, num_output_tokens=0))


def add_completions(router: APIRouter, service: Service) -> None:
    """Declare the endpoint."""

    @router.post("/v1/completions", openapi_extra=schemas.COMPLETIONS, response_model=None)
    async def completions(request: Request) -> Response:
        body, _ = await read_json(service, request)
        service.check_model(body.get("model"))
        reply_id = fresh_id("cmpl-")
        choices = _choices(service, body, reply_id)
        if switch(body, "stream"):
            return EventStream(service, _stream(service, choices, body, reply_id), _failure)
        return JsonReply(service, _whole(service, choices, reply_id))


def _choices(service: Service, body: Body, reply_id: str) -> list[_Choice]:
    num_choices = whole_number(body, "n", 1, low=1, high=service.settings.max_choices)
    num_top = whole_number(body, "logprobs", -1, low=-1, high=20)
    max_tokens = whole_number(body, "max_tokens", DEFAULT_MAX_TOKENS, low=0, high=2**31 - 1)
    is_echo = switch(body, "echo")
    raws = read_prompts(service, body)
    options = _options(body, max(max_tokens, 1), num_top, is_echo=is_echo)
    choices = []
    for index in range(len(raws) * num_choices):
        raw, number = raws[index // num_choices], index % num_choices
        mine = cast(Options, dict(options))
        if number and "seed" in mine:
            mine["seed"] = (mine["seed"] + number) % 2**63
        writer = LogprobWriter(service.vocabulary, raw.token_ids if is_echo else ()) if num_top >= 0 else None
        choices.append(_Choice(index=index, raw=raw, options=mine, request_id=f"{reply_id}-{index}", writer=writer,
                               has_output=max_tokens > 0))  # fmt: skip
    return choices


def _options(body: Body, max_tokens: int, num_top: int, *, is_echo: bool) -> Options:
    found: dict[str, Any] = {name: body[name] for name in _PASSED if body.get(name) is not None}
    if found.get("top_k") == -1:
        found["top_k"] = 0
    found["max_tokens"] = max_tokens
    if num_top >= 0:
        found["logprobs"] = num_top
    if is_echo:
        found["echo"] = True
    if body.get("stop"):
        found["stop_words"] = _stop(body["stop"])
    if body.get("logit_bias"):
        found["logit_bias"] = body["logit_bias"]
    return cast(Options, found)


def _stop(value: object) -> list[str]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ApiError(400, f"stop is {value!r:.60} but must be a string or a list of strings.", param="stop")
    return words


async def _run(service: Service, choice: _Choice) -> AsyncGenerator[Body, None]:
    """Yield the choice object of each new piece of text, the last one with its finish reason."""
    timeout_s = service.settings.request_timeout_s
    source = service.client.generate(
        choice.raw.prompt,
        request_id=choice.request_id,
        timeout_s=timeout_s,
        headers=trace_headers(),
        **choice.options,
    )
    async with aclosing(source):
        async for event in source:
            if isinstance(event, Final):
                choice.usage = event.usage
                choice.reason = _reason(event)
                yield _piece(choice, "", None)
                continue
            text, logprobs = _read(service, choice, event)
            choice.text += text
            if text or logprobs:
                yield _piece(choice, text, logprobs)
    service.metrics.finished(choice.usage)


def _read(service: Service, choice: _Choice, delta: Delta) -> tuple[str, Body | None]:
    text = delta.text
    if delta.span is not None:
        span = delta.span
        text = decode_chunk(service.vocabulary, span.token_ids, span.skip_bytes, span.keep_bytes)
    if not choice.has_output:
        text = choice.raw.text if not choice.text else ""
    if choice.writer is None:
        return text, None
    shown = delta.logprobs if choice.has_output else ()
    return text, choice.writer.write(delta.prompt_logprobs, shown)


def _reason(final: Final) -> str:
    if final.finish_reason is FinishReason.ERROR:
        raise failed(final.error)
    if final.finish_reason is FinishReason.CANCELLED:
        raise cancelled()
    return "stop" if final.finish_reason is FinishReason.STOP else "length"


def _piece(choice: _Choice, text: str, logprobs: Body | None) -> Body:
    return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.reason or None}


async def _whole(service: Service, choices: list[_Choice], reply_id: str) -> Body:
    async with aclosing(together([_run(service, choice) for choice in choices])) as pieces:
        async for _ in pieces:
            pass
    found = [_piece(choice, choice.text, choice.writer.whole() if choice.writer else None) for choice in choices]
    return {**_head(service, reply_id), "choices": found, "usage": _usage(choices)}


async def _stream(service: Service, choices: list[_Choice], body: Body, reply_id: str) -> AsyncGenerator[bytes, None]:
    options = body.get("stream_options")
    is_counted = isinstance(options, dict) and bool(options.get("include_usage"))
    head = _head(service, reply_id)
    async with aclosing(together([_run(service, choice) for choice in choices])) as pieces:
        async for _, piece in pieces:
            yield sse({**head, "choices": [piece]})
    if is_counted:
        yield sse({**head, "choices": [], "usage": _usage(choices)})
    yield DONE


def _head(service: Service, reply_id: str) -> Body:
    name = service.settings.model_name
    return {"id": reply_id, "object": "text_completion", "created": int(time.time()), "model": name}


def _usage(choices: list[_Choice]) -> Body:
    """Prompts count once, however many answers they have."""
    prompts = {id(choice.raw): choice.usage for choice in choices}
    num_input = sum(usage.num_input_tokens for usage in prompts.values())
    num_cached = sum(usage.num_cached_tokens for usage in prompts.values())
    num_output = sum(choice.usage.num_output_tokens for choice in choices if choice.has_output)
    return {
        "prompt_tokens": num_input,
        "completion_tokens": num_output,
        "total_tokens": num_input + num_output,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def _failure(error: ApiError) -> bytes:
    return sse(error.openai()) + DONE
