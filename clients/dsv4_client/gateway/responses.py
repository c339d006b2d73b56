"""POST /v1/responses, and what may be done with a response afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from dsv4_backend.chat import Protocol
from dsv4_client.gateway import schemas
from dsv4_client.gateway.answers import Question, answer, read_body
from dsv4_client.gateway.errors import ApiError, as_api_error
from dsv4_client.gateway.http import EventStream, JsonReply, sse
from dsv4_client.gateway.requests import Body, fresh_id, read_json, switch
from dsv4_client.gateway.service import Service
from dsv4_client.gateway.store import Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One request: the question, its whole input, and what the response repeats of the body."""

    question: Question
    items: list[Any]
    repeated: Body
    is_stored: bool


def add_responses(router: APIRouter, service: Service) -> None:
    """Declare the endpoints."""

    @router.post("/v1/responses", openapi_extra=schemas.RESPONSES, response_model=None)
    async def create(request: Request) -> Response:
        body, size = await read_json(service, request)
        service.check_model(body.get("model"))
        asked = await _read(service, body, size)
        if switch(body, "background"):
            return JSONResponse(_start(service, asked))
        if switch(body, "stream"):
            return EventStream(service, _stream(service, asked), _failing(asked))
        return JsonReply(service, _whole(service, asked))

    @router.get("/v1/responses/{response_id}", response_model=None)
    async def read(response_id: str) -> Response:
        return JSONResponse(service.store.get(response_id).response)

    @router.get("/v1/responses/{response_id}/input_items", response_model=None)
    async def input_items(response_id: str) -> Response:
        stored = service.store.get(response_id)
        num_output = len(stored.response.get("output", ()))
        items = stored.items[: len(stored.items) - num_output]
        return JSONResponse({"object": "list", "data": items, "has_more": False})

    @router.delete("/v1/responses/{response_id}", response_model=None)
    async def delete(response_id: str) -> Response:
        stored = service.store.get(response_id)
        if stored.task is not None:
            stored.task.cancel()
        service.store.drop(response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    @router.post("/v1/responses/{response_id}/cancel", response_model=None)
    async def cancel(response_id: str) -> Response:
        return JSONResponse(await _cancel(service, response_id))


async def _read(service: Service, body: Body, size: int) -> _Asked:
    """Understand a body, after the conversation that it goes on from."""
    given = body.get("input")
    items = [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given
    previous = body.get("previous_response_id")
    if previous is not None:
        if not isinstance(previous, str):
            raise ApiError(400, f"previous_response_id is {previous!r:.60} but must be a string.")
        if not isinstance(items, list):
            raise ApiError(400, f"input is {given!r:.60} but must be a string or a list of items.", param="input")
        stored = service.store.get(previous)
        if stored.is_running:
            raise ApiError(400, f"response {previous} is still being made. Wait until it has ended.")
        items = [*stored.items, *items]
    sent = {name: value for name, value in body.items() if name != "previous_response_id"}
    sent = {**sent, "input": given if previous is None else items}
    is_stored = switch(body, "store", default=True)
    question = Question(
        reading=await read_body(service, Protocol.RESPONSES, sent, size), body=sent, reply_id=fresh_id("resp_")
    )
    metadata = body.get("metadata")
    repeated = {
        "previous_response_id": previous,
        "store": is_stored,
        "metadata": metadata if isinstance(metadata, dict) else {},
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "background": body.get("background") is True,
    }
    return _Asked(question=question, items=items if isinstance(items, list) else [], repeated=repeated,
                  is_stored=is_stored)  # fmt: skip


async def _whole(service: Service, asked: _Asked) -> Body:
    into: list[Body] = []
    async with aclosing(answer(service, asked.question, into)) as events:
        async for _ in events:
            pass
    return _keep(service, asked, into[0])


async def _stream(service: Service, asked: _Asked) -> AsyncGenerator[bytes, None]:
    into: list[Body] = []
    number = 0
    async with aclosing(answer(service, asked.question, into)) as events:
        async for event in events:
            if "response" in event.data:
                event.data["response"].update(asked.repeated)
            number = event.data.get("sequence_number", number)
            yield sse(event.data, event.name)
    _keep(service, asked, into[0])


def _keep(service: Service, asked: _Asked, whole: Body) -> Body:
    whole.update(asked.repeated)
    if asked.is_stored:
        service.store.put(whole["id"], Stored(response=whole, items=[*asked.items, *whole["output"]]))
    return whole


def _start(service: Service, asked: _Asked) -> Body:
    """Begin an answer that nobody waits for; it is found in the store."""
    response = _unfinished(service, asked, "queued")
    response_id = asked.question.reply_id
    task = asyncio.create_task(_work(service, asked))
    service.store.put(response_id, Stored(response=response, items=asked.items, task=task))
    return response


async def _work(service: Service, asked: _Asked) -> None:
    try:
        whole = await _whole(service, asked)
    except Exception as failure:  # the end of the task: who asks for the response is told
        error = as_api_error(failure)
        whole = {**_unfinished(service, asked, "failed"), "error": {"code": error.code, "message": error.message}}
    service.store.put(asked.question.reply_id, Stored(response=whole, items=[*asked.items, *whole["output"]]))


async def _cancel(service: Service, response_id: str) -> Body:
    stored = service.store.get(response_id)
    if not stored.response.get("background"):
        raise ApiError(400, f"response {response_id} was not made in the background, so it cannot be cancelled.")
    if stored.is_running and stored.task is not None:
        stored.task.cancel()
        await asyncio.wait([stored.task])
        stored.response = {**stored.response, "status": "cancelled"}
        stored.task = None
        service.store.put(response_id, stored)
    return service.store.get(response_id).response


def _unfinished(service: Service, asked: _Asked, status: str) -> Body:
    return {
        "id": asked.question.reply_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "model": service.settings.model_name,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
        **asked.repeated,
    }


def _failing(asked: _Asked) -> Any:
    def failure(error: ApiError) -> bytes:
        response: Body = {"id": asked.question.reply_id, "object": "response", "status": "failed", "output": []}
        response["error"] = {"code": error.code or "server_error", "message": error.message}
        return sse({"type": "response.failed", "response": response, "sequence_number": 0}, "response.failed")

    return failure
