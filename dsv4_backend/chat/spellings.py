"""What clients send and deepseek-recipe refuses, brought into the words that it takes: the one place for that.

Clients of OpenAI's and Anthropic's APIs send more spellings than DeepSeek's own API takes. They are rewritten here;
what is unknown stays in the body, and the converter ignores it.
"""

from __future__ import annotations

import json
import re
from typing import Any

Body = dict[str, Any]
_BUDGETS = ("max_reasoning_tokens", "thinking_token_budget", "thinking_budget", "reasoning_budget")


def respell_chat(body: Body) -> None:
    """Rewrite a chat body in place. Rule: what it says in the API's own words wins over other spellings of the same."""
    if isinstance(body.get("messages"), list):
        body["messages"] = [_message(message) for message in body["messages"]]
    if body.get("max_completion_tokens") is not None:
        body["max_tokens"] = body.pop("max_completion_tokens")
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    _apply_functions(body)
    _apply_template_kwargs(body)
    _apply_reasoning(body)
    _apply_guides(body)
    _apply_json_mode(body)


def _message(message: Any) -> Any:
    """Return a message with known role and fields: developer is system, `reasoning` is reasoning_content."""
    if not isinstance(message, dict):
        return message
    message = dict(message)
    if message.get("role") == "developer":
        message["role"] = "system"
    if message.get("role") == "function":  # the API before tools: its results carry a name instead of an id
        message |= {"role": "tool", "tool_call_id": message.get("name", "")}
    if message.get("content") is None and message.get("role") in ("system", "user", "tool"):
        message["content"] = ""
    if isinstance(message.get("reasoning"), str) and not message.get("reasoning_content"):
        message["reasoning_content"] = message["reasoning"]
    call = message.get("function_call")
    if isinstance(call, dict) and not message.get("tool_calls"):
        message["tool_calls"] = [{"id": call.get("name", ""), "type": "function", "function": call}]
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_call(each) for each in message["tool_calls"]]
    elif "tool_calls" in message and message["tool_calls"] is None:
        del message["tool_calls"]
    return message


def _call(call: Any) -> Any:
    """Return a call of the history with its arguments as JSON text and its type named."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", **call, "function": {**function, "arguments": arguments or "{}"}}


def _apply_functions(body: Body) -> None:
    """`functions` and `function_call`, the API before tools."""
    functions = body.get("functions")
    if isinstance(functions, list) and not body.get("tools"):
        body["tools"] = [{"type": "function", "function": each} for each in functions]
    choice = body.get("function_call")
    if body.get("tools") and body.get("tool_choice") is None and choice is not None:
        body["tool_choice"] = {"type": "function", "function": choice} if isinstance(choice, dict) else choice


def _apply_template_kwargs(body: Body) -> None:
    given = body.get("chat_template_kwargs")
    if not isinstance(given, dict):
        return
    is_thinking = given.get("thinking", given.get("enable_thinking"))
    if isinstance(is_thinking, bool) and body.get("thinking") is None and body.get("reasoning_effort") is None:
        body["thinking"] = {"type": "enabled" if is_thinking else "disabled"}
    if given.get("reasoning_effort") is not None and body.get("reasoning_effort") is None:
        body["reasoning_effort"] = given["reasoning_effort"]


def _apply_reasoning(body: Body) -> None:
    """`reasoning: {effort, enabled, max_tokens}` and `enable_thinking`, as other servers of Chat spell it."""
    given = body.get("reasoning")
    given = given if isinstance(given, dict) else {}
    if given.get("effort") is not None and body.get("reasoning_effort") is None:
        body["reasoning_effort"] = given["effort"]
    if isinstance(given.get("max_tokens"), int) and body.get("max_reasoning_tokens") is None:
        body["max_reasoning_tokens"] = given["max_tokens"]
    is_thinking = given.get("enabled", body.get("enable_thinking"))
    if isinstance(is_thinking, bool) and body.get("thinking") is None and body.get("reasoning_effort") is None:
        body["thinking"] = {"type": "enabled" if is_thinking else "disabled"}


def apply_budget(body: Body) -> None:
    """A bound of the reasoning under its several names."""
    kwargs = body.get("chat_template_kwargs")
    places = (body, kwargs if isinstance(kwargs, dict) else {})
    found = (place[name] for place in places for name in _BUDGETS if place.get(name) is not None)
    budget = next(found, None)
    if budget is not None:
        body["max_reasoning_tokens"] = budget


def _apply_guides(body: Body) -> None:
    """`guided_json`, `guided_regex` and `guided_choice`, in the body or under `nvext`, and `structured_outputs`."""
    if body.get("response_format") is not None:
        return
    places = [body, body.get("nvext"), body.get("structured_outputs")]
    for place in places:
        if not isinstance(place, dict):
            continue
        prefix = "" if place is places[2] else "guided_"
        schema, regex, choice = (place.get(f"{prefix}{name}") for name in ("json", "regex", "choice"))
        if schema is not None:
            schema = json.loads(schema) if isinstance(schema, str) and _is_json(schema) else schema
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "guided", "schema": schema}}
        elif isinstance(regex, str):
            body["response_format"] = {"type": "regex", "regex": regex}
        elif isinstance(choice, list) and choice and all(isinstance(each, str) for each in choice):
            body["response_format"] = {"type": "regex", "regex": "|".join(map(_literal, choice))}


def _apply_json_mode(body: Body) -> None:
    """`json_object` beside tools, or without the word "json" in the messages: the grammar forces JSON anyway."""
    form = body.get("response_format")
    if not isinstance(form, dict) or form.get("type") != "json_object":
        return
    if body.get("tools") or "json" not in str(body.get("messages")).lower():
        schema = {"name": "object", "schema": {"type": "object"}}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}


def _literal(text: str) -> str:
    return re.sub(r"([^\w\s])", r"\\\1", text, flags=re.ASCII) if text.isascii() else re.escape(text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
