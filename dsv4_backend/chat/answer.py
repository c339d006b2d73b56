"""The form that an answer must have, as a Constraint: JSON, or tool calls in V4's DSML.

Reasoning is not part of it: the runtime leaves an open thinking part free (grammar/answer.py).

The shapes are xgrammar's structural tags, written here as plain JSON so that this side needs no torch.
Source: facts on V4's prompt format, section 4.2 (tool calls).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dsv4_backend.errors import RequestError
from dsv4_backend.records import Constraint, ConstraintKind
from dsv4_backend.text.constraint import check_schema, drop_unenforceable, spell_out

Tag = dict[str, Any]
_THINK_TOKENS = ["<think>", "</think>"]
_CALLS_OPEN = "<｜DSML｜tool_calls>"
_CALLS_CLOSE = "</｜DSML｜tool_calls>"
_INVOKE_CLOSE = "</｜DSML｜invoke>\n"


def json_answer(schema_text: str) -> Constraint:
    """Constrain the answer to JSON. An empty schema_text means any object.

    Raises: ConstraintError naming the place of what cannot be enforced.
    """
    if not schema_text:
        return Constraint(kind=ConstraintKind.JSON_OBJECT)
    check_schema(json.loads(schema_text))
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, value=schema_text)


def regex_answer(pattern: str) -> Constraint:
    """Constrain the answer to a regular expression."""
    return Constraint(kind=ConstraintKind.REGEX, value=pattern)


def free_tools(tools: Sequence[Tag], *, is_parallel: bool) -> Constraint | None:
    """Constrain the calls that the model may make: once begun, one is whole and fits its schema. Text stays free."""
    if not tools:
        return None
    calls = {
        "type": "tag",
        "begin": f"{_CALLS_OPEN}\n",
        "content": _calls(tools, is_parallel=is_parallel),
        "end": _CALLS_CLOSE,
    }
    text = {"type": "triggered_tags", "triggers": [_CALLS_OPEN], "tags": [calls], "excludes": _THINK_TOKENS}
    return _structural(text)


def forced_tools(tools: Sequence[Tag], *, is_parallel: bool, is_open: bool) -> Constraint:
    """Constrain the answer to tool calls. is_open says that the prompt has opened the block already.

    Raises: RequestError without tools.
    """
    if not tools:
        raise RequestError("tool_choice forces a call but names none of the tools. Name one of `tools`.")
    return _structural(_block(tools, is_parallel=is_parallel, is_open=is_open))


def tools_or_json(tools: Sequence[Tag], schema: object, *, is_parallel: bool) -> Constraint:
    """Constrain the answer to tool calls or to JSON; the model decides between them.

    Raises: ConstraintError naming the place of what cannot be enforced.
    """
    check_schema(schema)
    json_form = {"type": "json_schema", "json_schema": spell_out(schema)}
    return _structural({"type": "or", "elements": [_block(tools, is_parallel=is_parallel, is_open=False), json_form]})


def _block(tools: Sequence[Tag], *, is_parallel: bool, is_open: bool) -> Tag:
    opening = [] if is_open else [_text(f"\n\n{_CALLS_OPEN}\n")]
    elements = [*opening, _calls(tools, is_parallel=is_parallel), _text(_CALLS_CLOSE)]
    return {"type": "sequence", "elements": elements}


def _calls(tools: Sequence[Tag], *, is_parallel: bool) -> Tag:
    return {
        "type": "tags_with_separator",
        "tags": [_invoke(tool["function"]) for tool in tools],
        "separator": "",
        "at_least_one": True,
        "stop_after_first": not is_parallel,
    }


def _invoke(function: Tag) -> Tag:
    return {
        "type": "tag",
        "begin": f'<｜DSML｜invoke name="{function["name"]}">\n',
        "content": {"type": "json_schema", "json_schema": _parameters(function), "style": "deepseek_xml"},
        "end": _INVOKE_CLOSE,
    }


def _parameters(function: Tag) -> object:
    """Return the schema of a tool's arguments: enforced whole if strict, as far as possible otherwise."""
    schema = function.get("parameters") or {"type": "object"}
    if not function.get("strict"):
        schema = drop_unenforceable(schema)
    return spell_out(schema) or {"type": "object"}


def _structural(form: Tag) -> Constraint:
    tag = {"type": "structural_tag", "format": form}
    return Constraint(kind=ConstraintKind.STRUCTURAL_TAG, value=json.dumps(tag, ensure_ascii=False))


def _text(value: str) -> Tag:
    return {"type": "const_string", "value": value}
