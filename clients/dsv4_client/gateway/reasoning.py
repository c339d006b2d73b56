"""Reasoning behind tool calls, kept by tool-call id: clients that drop it from the history get it back.

V4 reads its own reasoning between the calls of one turn. Many clients send only content and calls back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from dsv4_backend.chat import Protocol

Body = dict[str, Any]
MAX_BYTES = 64 * 1024 * 1024


class ReasoningCache:
    """Bounded by size; the least recently used goes first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._num_bytes = 0

    def remember(self, protocol: Protocol, whole: Body) -> None:
        """Keep the reasoning of a whole answer under the ids of its tool calls."""
        text, ids = _FOUND[protocol](whole)
        for call_id in ids if text else ():
            self._put(call_id, text)

    def restore(self, protocol: Protocol, body: Body) -> Body:
        """Return the body with the reasoning that its tool calls came from, where it is missing and known."""
        name = "input" if protocol is Protocol.RESPONSES else "messages"
        items = body.get(name)
        if not self._texts or not isinstance(items, list):
            return body
        restored = _RESTORED[protocol]
        return {**body, name: [each for item in items for each in restored(self, item, items)]}

    def get(self, call_id: object) -> str:
        """Return the reasoning that led to a call; empty when it is not known."""
        if not isinstance(call_id, str) or call_id not in self._texts:
            return ""
        self._texts.move_to_end(call_id)
        return self._texts[call_id]

    def check(self) -> None:
        """Verify that the size is what the texts have. Raises: ValueError."""
        size = sum(map(_size, self._texts.values()))
        if size != self._num_bytes or size > self._max_bytes:
            raise ValueError(f"the cache counts {self._num_bytes} bytes and holds {size} of at most {self._max_bytes}")

    def _put(self, call_id: str, text: str) -> None:
        self._num_bytes -= _size(self._texts.pop(call_id, ""))
        if _size(text) > self._max_bytes:
            return
        self._texts[call_id] = text
        self._num_bytes += _size(text)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= _size(self._texts.popitem(last=False)[1])


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _of_chat(whole: Body) -> tuple[str, list[str]]:
    message = whole["choices"][0]["message"]
    return message.get("reasoning_content") or "", [call["id"] for call in message.get("tool_calls") or ()]


def _of_messages(whole: Body) -> tuple[str, list[str]]:
    text = "".join(block.get("thinking", "") for block in whole["content"] if block["type"] == "thinking")
    return text, [block["id"] for block in whole["content"] if block["type"] == "tool_use"]


def _of_responses(whole: Body) -> tuple[str, list[str]]:
    parts = [part for item in whole["output"] if item["type"] == "reasoning" for part in item.get("content") or ()]
    ids = [item["call_id"] for item in whole["output"] if item["type"] == "function_call"]
    return "".join(part.get("text", "") for part in parts), ids


def _into_chat(cache: ReasoningCache, message: Any, messages: list[Any]) -> Iterator[Any]:
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not calls or not isinstance(calls, list) or message.get("reasoning_content"):
        yield message
        return
    text = next(filter(None, (cache.get(call.get("id")) for call in calls if isinstance(call, dict))), "")
    yield {**message, "reasoning_content": text} if text else message


def _into_messages(cache: ReasoningCache, message: Any, messages: list[Any]) -> Iterator[Any]:
    content = message.get("content") if isinstance(message, dict) else None
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    if any(block.get("type") == "thinking" for block in blocks):
        yield message
        return
    text = next(filter(None, (cache.get(block.get("id")) for block in blocks if block.get("type") == "tool_use")), "")
    thinking = {"type": "thinking", "thinking": text, "signature": "restored"}
    yield {**message, "content": [thinking, *(content or ())]} if text else message


def _into_responses(cache: ReasoningCache, item: Any, items: list[Any]) -> Iterator[Any]:
    """The reasoning goes before the first call of its turn."""
    if isinstance(item, dict) and item.get("type") == "function_call":
        index = next(place for place, each in enumerate(items) if each is item)
        before = next((each for each in reversed(items[:index]) if not _is_message(each)), None)
        kind = before.get("type") if isinstance(before, dict) else None
        text = "" if kind in ("reasoning", "function_call") else cache.get(item.get("call_id"))
        if text:
            part = {"type": "reasoning_text", "text": text}
            yield {"type": "reasoning", "id": "rs_restored", "summary": [], "content": [part]}
    yield item


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and item.get("role") == "assistant"


_FOUND = {Protocol.CHAT: _of_chat, Protocol.MESSAGES: _of_messages, Protocol.RESPONSES: _of_responses}
_RESTORED = {Protocol.CHAT: _into_chat, Protocol.MESSAGES: _into_messages, Protocol.RESPONSES: _into_responses}
