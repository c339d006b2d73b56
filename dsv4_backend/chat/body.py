"""An API request body as a dict: parsed, normalised, and what it says about tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dsv4_backend.chat.spellings import apply_budget, respell_chat
from dsv4_backend.errors import RequestError

MODEL = "DeepSeek-V4-Pro"

Body = dict[str, Any]


class Protocol(str, Enum):
    """Whose API the body follows."""

    CHAT = "chat"
    RESPONSES = "responses"
    MESSAGES = "messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedTool:
    """A tool choice that forces a call. name None means any of the tools."""

    name: str | None = None


def parse_protocol(name: str) -> Protocol:
    """Return the protocol of that name. Raises: RequestError listing the known ones."""
    try:
        return Protocol(name)
    except ValueError as error:
        known = ", ".join(item.value for item in Protocol)
        raise RequestError(f"protocol is {name!r:.60} but must be one of {known}.") from error


def parse_body(text: str) -> Body:
    """Return the JSON object in `text`. Raises: RequestError with the place of the first fault."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"request is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. Send a JSON object."
        ) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"request is JSON that cannot be read: {error}.") from error
    if not isinstance(body, dict):
        raise RequestError(f"request is a JSON {type(body).__name__} but must be an object. Send the API body.")
    return body


def normalise(protocol: Protocol, body: Body) -> Body:
    """Return the body as the converter wants it; the given one is not changed.

    Rule: any model name is accepted, because a runtime serves one checkpoint.
    """
    body = {**body, "model": MODEL}
    apply_budget(body)
    if protocol is Protocol.CHAT:
        respell_chat(body)
    return body


def forced_tool(body: Body) -> ForcedTool | None:
    """Return the tool call that `tool_choice` forces, or None.

    Rule: required (Chat, Responses) and any (Messages) force some tool; function and tool force the one named.
    """
    choice = body.get("tool_choice")
    if choice == "required":
        return ForcedTool()
    if not isinstance(choice, dict):
        return None
    if choice.get("type") == "any":
        return ForcedTool()
    if choice.get("type") not in ("function", "tool"):
        return None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    return ForcedTool(name=name) if isinstance(name, str) else None


def with_free_choice(protocol: Protocol, body: Body) -> Body:
    """Return the body with `tool_choice` left to the model."""
    return {**body, "tool_choice": {"type": "auto"} if protocol is Protocol.MESSAGES else "auto"}


def without_form_of_tools(protocol: Protocol, body: Body) -> Body:
    """Return the body without a JSON form beside tools, which the library refuses; `answer_schema` still knows it."""
    if protocol is not Protocol.CHAT or not body.get("tools") or answer_schema(protocol, body) is None:
        return body
    return {name: value for name, value in body.items() if name != "response_format"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSchema:
    """The schema of one tool's arguments as the body has it, and where."""

    name: str
    place: str
    schema: object
    is_strict: bool


def tool_schemas(body: Body) -> Iterator[ToolSchema]:
    """Yield the argument schema of every tool; the converter leaves keywords out of those of strict tools."""
    tools = body.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else []):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            continue
        key = next((key for key in ("parameters", "input_schema") if function.get(key) is not None), None)
        if key:
            yield ToolSchema(name=str(function.get("name")), place=f"tools[{index}].{key}", schema=function[key],
                             is_strict=function.get("strict") is True)  # fmt: skip


def answer_schema(protocol: Protocol, body: Body) -> object:
    """Return the JSON schema that the answer must fit, as the body has it, or None.

    The converter leaves keywords out of strict ones, and knows none in Messages.
    """
    if protocol is Protocol.CHAT:
        return _inside(body, "response_format", "json_schema", "schema")
    if protocol is Protocol.RESPONSES:
        return _inside(body, "text", "format", "schema")
    found = _inside(body, "output_config", "format", "schema")
    return _inside(body, "output_format", "schema") if found is None else found


def _inside(value: object, *names: str) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def allows_parallel_calls(body: Body) -> bool:
    """Whether the answer may hold more than one tool call."""
    choice = body.get("tool_choice")
    is_single = isinstance(choice, dict) and choice.get("disable_parallel_tool_use") is True
    return body.get("parallel_tool_calls") is not False and not is_single
