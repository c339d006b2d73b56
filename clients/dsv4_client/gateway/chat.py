"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from dsv4_backend.chat import ApiEvent, Protocol, Reading
from dsv4_client.gateway import schemas
from dsv4_client.gateway.answers import Question, answer, read_body
from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.http import EventStream, JsonReply, sse
from dsv4_client.gateway.requests import Body, fresh_id, read_json, switch, whole_number
from dsv4_client.gateway.service import Service
from dsv4_client.gateway.together import together
from dsv4_client.options import Options

DONE = sse("[DONE]")


def add_chat(router: APIRouter, service: Service) -> None:
    """Declare the endpoint."""

    @router.post("/v1/chat/completions", openapi_extra=schemas.CHAT, response_model=None)
    async def chat_completions(request: Request) -> Response:
        body, size = await read_json(service, request)
        service.check_model(body.get("model"))
        num_choices = whole_number(body, "n", 1, low=1, high=service.settings.max_choices)
        given = {name: value for name, value in body.items() if name != "n"}
        questions = _questions(await read_body(service, Protocol.CHAT, given, size), num_choices)
        if switch(body, "stream"):
            return EventStream(service, _stream(service, questions, body), _failure)
        return JsonReply(service, _whole(service, questions))


def _questions(reading: Reading, num_choices: int) -> list[Question]:
    """Return one question per choice. Rule: with a seed, choice i has seed + i."""
    seed = reading.body.get("seed")
    reply_id = fresh_id("chatcmpl-")
    questions = []
    for index in range(num_choices):
        options = Options(seed=(seed + index) % 2**63) if index and isinstance(seed, int) else Options()
        suffix = f"-{index}" if index else ""
        questions.append(Question(reading=reading, body=reading.body, reply_id=f"{reply_id}{suffix}", options=options))
    return questions


async def _whole(service: Service, questions: list[Question]) -> Body:
    wholes: list[list[Body]] = [[] for _ in questions]
    sources = [answer(service, question, into) for question, into in zip(questions, wholes, strict=True)]
    async with aclosing(together(sources)) as events:
        async for _ in events:
            pass
    found = wholes[0][0]
    for index, (other,) in enumerate(wholes[1:], 1):
        found["choices"].append({**other["choices"][0], "index": index})
        _add_usage(found["usage"], other["usage"])
    found["usage"].setdefault("completion_tokens_details", {"reasoning_tokens": 0})
    return found


async def _stream(service: Service, questions: list[Question], body: Body) -> AsyncGenerator[bytes, None]:
    options = body.get("stream_options")
    options = options if isinstance(options, dict) else {}
    is_counted = bool(options.get("include_usage"))
    reply_id = questions[0].reply_id
    last: Body = {}
    usage: Body = {}
    sources = [answer(service, question, []) for question in questions]
    async with aclosing(together(sources)) as events:
        async for index, event in events:
            last = _chunk(event, reply_id, index)
            counts = last.pop("usage", None)
            if counts:
                _add_usage(usage, counts)
            if is_counted:
                last["usage"] = None
            elif counts and len(questions) == 1:
                last["usage"] = counts
            yield sse(last)
    if is_counted:
        yield sse({**last, "choices": [], "usage": usage})
    yield DONE


def _chunk(event: ApiEvent, reply_id: str, index: int) -> Body:
    data = event.data
    data["id"] = reply_id
    for choice in data["choices"]:
        choice["index"] = index
    return data


def _add_usage(total: Body, more: Body) -> None:
    """Add the output of one more choice; the prompt counts once."""
    if not total:
        total.update(more)
        total.setdefault("completion_tokens_details", {"reasoning_tokens": 0})
        return
    total["completion_tokens"] += more["completion_tokens"]
    total["total_tokens"] += more["completion_tokens"]
    details = total.setdefault("completion_tokens_details", {"reasoning_tokens": 0})
    details["reasoning_tokens"] += (more.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)


def _failure(error: ApiError) -> bytes:
    return sse(error.openai()) + DONE
