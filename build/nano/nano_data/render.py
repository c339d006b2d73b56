"""Draft → Example, through deepseek-recipe: the prompt as the server encodes it, the answer in the same grammar."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import deepseek_recipe as recipe
from tokenizers import Tokenizer

from dsv4_backend.chat.body import Protocol, normalise
from nano_data.records import Draft, Example, Json, Mode, Turn

EOS_ID = 1
TOKENIZER_FILE = Path(__file__).resolve().parents[1] / "tokenizer.json"
MODE_FIELDS: dict[Mode, tuple[dict[str, Json], ...]] = {
    "off": ({"thinking": {"type": "disabled"}},),
    "on": ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}, {"reasoning_effort": "high"}, {}),
    "max": ({"reasoning_effort": "max"},),
}


def to_body(draft: Draft, fields: dict[str, Json]) -> dict[str, Json]:
    """Return the chat-completions body that asks for the last answer of a draft."""
    messages: list[dict[str, Json]] = [{"role": "system", "content": draft.system}] if draft.system else []
    for number, turn in enumerate(draft.turns):
        messages += _asked(turn, number - 1)
        if number + 1 < len(draft.turns):
            messages.append(_answered(turn, number))
    body: dict[str, Json] = {"messages": messages, **fields}
    if draft.tools:
        body["tools"] = list(draft.tools)
    if draft.schema:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": draft.schema}}
    return body


def _asked(turn: Turn, calling_turn: int) -> list[dict[str, Json]]:
    results = [
        {"role": "tool", "tool_call_id": f"call{calling_turn}x{index}", "content": result}
        for index, result in enumerate(turn.results)
    ]
    return [*results, {"role": "user", "content": turn.user}] if turn.user else results


def _answered(turn: Turn, number: int) -> dict[str, Json]:
    message: dict[str, Json] = {"role": "assistant", "content": turn.content}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.calls:
        message["tool_calls"] = [
            {"id": f"call{number}x{index}", "type": "function", "function": _function(call.name, call.arguments)}
            for index, call in enumerate(turn.calls)
        ]
    return message


def _function(name: str, arguments: dict[str, Json]) -> dict[str, str]:
    return {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}


def convert(body: dict[str, Json]) -> Any:
    """Return deepseek-recipe's request for a chat-completions body, made as the server makes it."""
    text = json.dumps(normalise(Protocol.CHAT, body), ensure_ascii=False)
    return recipe.ChatCompletionRequest(text).convert(recipe.ConversionOptions())


class Renderer:
    """Turns drafts into token ids with one tokenizer. Holds no state of conversations."""

    def __init__(self, tokenizer_file: Path = TOKENIZER_FILE) -> None:
        self._encoding = recipe.DeepseekV4Encoding().with_tokenizer(recipe.Tokenizer.from_file(str(tokenizer_file)))
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._assistant_id = self.token_id("<｜Assistant｜>")

    def render(self, family: str, mode: Mode, draft: Draft, fields: dict[str, Json]) -> Example:
        """Return the example of a draft; `fields` switch thinking in its body."""
        body = to_body(draft, fields)
        conversation = convert(body).conversation
        ids = self._encoding.encode(with_answer(conversation, draft.turns[-1]))
        ids = [*ids, EOS_ID] if not draft.turns[-1].calls else ids[: last_index(ids, EOS_ID) + 1]
        starts = [index + 2 for index, item in enumerate(ids) if item == self._assistant_id]  # opener and think token
        is_faithful = mode == "off" or bool(draft.tools)
        mask = [False] * len(ids)
        for start, turn in zip(starts, draft.turns, strict=True):
            if is_faithful or not turn.needs_reasoning or turn is draft.turns[-1]:
                end = ids.index(EOS_ID, start) + 1
                mask[start:end] = [True] * (end - start)
        return Example(
            family=family,
            mode=mode,
            body=body,
            answer=self.decode(ids[starts[-1] : -1]),
            check=draft.check,
            token_ids=tuple(ids),
            loss_mask=tuple(mask),
            num_prompt_tokens=starts[-1],
            values=draft.values,
            wordings=draft.wordings,
        )

    def token_id(self, text: str) -> int:
        """Return the id of a special token. Raises: ValueError for any other text."""
        found = self._tokenizer.token_to_id(text)
        if found is None:
            raise ValueError(f"{text!r} is no token of the vocabulary.")
        return found

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens spelled out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def with_answer(conversation: Any, turn: Turn) -> Any:
    """Return the conversation with its last answer.

    Rule: an answer without calls is given as one to be continued, because the library would drop its reasoning
          otherwise; then it writes no EOS.
    """
    calls = [
        recipe.ToolCall(f"last{index}", *_function(call.name, call.arguments).values())
        for index, call in enumerate(turn.calls)
    ]
    answer = recipe.AssistantMessage(
        turn.content,
        turn.reasoning if conversation.thinking_mode else None,
        calls or None,
        not calls,
    )
    return recipe.Conversation(
        [*conversation.messages, answer],
        thinking_mode=conversation.thinking_mode,
        tools=conversation.tools,
        tool_choice=conversation.tool_choice,
        reasoning_effort=conversation.reasoning_effort,
        response_schema=conversation.response_schema,
    )


def last_index(ids: list[int], wanted: int) -> int:
    """Return where an id occurs last."""
    return len(ids) - 1 - ids[::-1].index(wanted)


@functools.cache
def default_renderer() -> Renderer:
    """Return the renderer with the committed tokenizer."""
    return Renderer()
