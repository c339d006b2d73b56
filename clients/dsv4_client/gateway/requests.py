"""Bodies as they arrive: read within the limit, parsed, their simplest fields checked."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import Request

from dsv4_backend.chat import parse_body
from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.middleware import too_large
from dsv4_client.gateway.service import Service

Body = dict[str, Any]


async def read_json(service: Service, request: Request) -> tuple[Body, int]:
    """Return the JSON object of a request and its size in bytes. Raises: ApiError, RequestError."""
    limit = service.settings.max_body_bytes
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > limit:
            raise too_large(limit)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 at byte {error.start}. Send JSON in UTF-8.") from None
    return parse_body(text), len(data)


def fresh_id(prefix: str) -> str:
    """Return a new id."""
    return f"{prefix}{uuid.uuid4().hex}"


def whole_number(body: Body, name: str, default: int, *, low: int, high: int) -> int:
    """Return a whole number of the body within its range. Raises: ApiError."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ApiError(400, f"{name} is {value!r:.60} but must be a whole number from {low} to {high}.", param=name)
    return value


def switch(body: Body, name: str, *, default: bool = False) -> bool:
    """Return a true-or-false field of the body. Raises: ApiError."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} is {value!r:.60} but must be true or false.", param=name)
    return value
