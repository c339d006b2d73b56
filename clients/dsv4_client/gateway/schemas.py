"""The bodies of the endpoints, for /openapi.json: what is needed and what is commonly sent."""

from __future__ import annotations

from typing import Any

_WHOLE = {"type": "integer", "minimum": 1}
_SHARED: dict[str, Any] = {
    "model": {"type": "string"},
    "stream": {"type": "boolean"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": 0},
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"type": "string", "enum": ["user", "assistant"]}, "content": {"type": "string"}},
}
_MESSAGES = {"type": "array", "minItems": 1, "items": _MESSAGE}
_TOOLS = {"type": "array", "items": {"type": "object"}}


def _body(required: list[str], **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


CHAT = _body(
    ["messages"], **_SHARED, messages=_MESSAGES, n=_WHOLE, max_tokens=_WHOLE, tools=_TOOLS,
    stop={"type": ["string", "array"]}, response_format={"type": "object"}, stream_options={"type": "object"},
)  # fmt: skip
COMPLETIONS = _body(
    ["prompt"], **_SHARED, prompt={"type": ["string", "array"]}, n=_WHOLE, echo={"type": "boolean"},
    max_tokens={"type": "integer", "minimum": 0}, logprobs={"type": "integer", "minimum": 0, "maximum": 20},
    suffix={"type": "string"}, stop={"type": ["string", "array"]},
)  # fmt: skip
MESSAGES = _body(["messages", "max_tokens"], **_SHARED, messages=_MESSAGES, max_tokens=_WHOLE, tools=_TOOLS)
COUNT_TOKENS = _body(["messages"], model={"type": "string"}, messages=_MESSAGES, tools=_TOOLS)
RESPONSES = _body(
    ["input"], **_SHARED, input={"type": ["string", "array"]}, max_output_tokens=_WHOLE, tools=_TOOLS,
    previous_response_id={"type": ["string", "null"]}, store={"type": "boolean"}, background={"type": "boolean"},
)  # fmt: skip
TOKENIZE = _body([], prompt={"type": "string"}, messages=_MESSAGES, add_special_tokens={"type": "boolean"})
DETOKENIZE = _body(["tokens"], tokens={"type": "array", "items": {"type": "integer", "minimum": 0}})
