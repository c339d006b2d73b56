"""POST /v1/messages and /v1/messages/count_tokens, Anthropic's API; also under /anthropic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from dsv4_backend.chat import Protocol
from dsv4_client.gateway import schemas
from dsv4_client.gateway.answers import Question, answer, read_body
from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.http import EventStream, JsonReply, sse
from dsv4_client.gateway.requests import Body, fresh_id, read_json, switch
from dsv4_client.gateway.service import Service


def add_messages(router: APIRouter, service: Service) -> None:
    """Declare the endpoints."""

    async def messages(request: Request) -> Response:
        body, size = await read_json(service, request)
        service.check_model(body.get("model"))
        if body.get("max_tokens") is None:
            raise ApiError(400, "max_tokens is missing. Send how many tokens the answer may have.", param="max_tokens")
        reading = await read_body(service, Protocol.MESSAGES, body, size)
        question = Question(reading=reading, body=body, reply_id=fresh_id("msg_"))
        if switch(body, "stream"):
            return EventStream(service, _stream(service, question), _failure)
        return JsonReply(service, _whole(service, question))

    async def count_tokens(request: Request) -> Response:
        body, size = await read_json(service, request)
        service.check_model(body.get("model"))
        return JsonReply(service, _count(service, body, size))

    for prefix in ("", "/anthropic"):
        router.post(f"{prefix}/v1/messages", openapi_extra=schemas.MESSAGES, response_model=None)(messages)
        path = f"{prefix}/v1/messages/count_tokens"
        router.post(path, openapi_extra=schemas.COUNT_TOKENS, response_model=None)(count_tokens)


async def _whole(service: Service, question: Question) -> Body:
    into: list[Body] = []
    async with aclosing(answer(service, question, into)) as events:
        async for _ in events:
            pass
    return into[0]


async def _stream(service: Service, question: Question) -> AsyncGenerator[bytes, None]:
    async with aclosing(answer(service, question, [])) as events:
        async for event in events:
            yield sse(event.data, event.name)


async def _count(service: Service, body: Body, size: int) -> Body:
    reading = await read_body(service, Protocol.MESSAGES, {"max_tokens": 1, **body}, size)
    prompt = await asyncio.to_thread(service.encoder.prompt, reading)
    return {"input_tokens": len(prompt.token_ids)}


def _failure(error: ApiError) -> bytes:
    return sse(error.anthropic(), "error")
