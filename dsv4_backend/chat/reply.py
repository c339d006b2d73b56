"""Tokens of an answer → events of the API that asked, through deepseek-recipe's stream parser."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import deepseek_recipe as recipe

from dsv4_backend.chat.body import Body, Protocol
from dsv4_backend.records import FinishReason, TokenLogprob, Usage
from dsv4_backend.text.vocab import Vocabulary

REQUESTS: dict[Protocol, Any] = {
    Protocol.CHAT: recipe.ChatCompletionRequest,
    Protocol.RESPONSES: recipe.ResponsesRequest,
    Protocol.MESSAGES: recipe.MessagesRequest,
}
_REPLIES: dict[Protocol, Any] = {
    Protocol.CHAT: recipe.ChatCompletionResponse,
    Protocol.RESPONSES: recipe.ResponsesResponse,
    Protocol.MESSAGES: recipe.MessagesResponse,
}
_FINISHES = {
    FinishReason.STOP: recipe.InferenceFinishReason.Stop,
    FinishReason.LENGTH: recipe.InferenceFinishReason.Length,
    FinishReason.TIME_LIMIT: recipe.InferenceFinishReason.Length,  # cut short; no API has a reason of its own for it
}
CALL_MARK = "｜DSML｜"
_TEXTS = ("content", "reasoning_content", "text", "thinking", "delta")
_NO_TEXTS = ("tools", "tool_calls", "input")


@dataclass(frozen=True, slots=True)
class ApiEvent:
    """One event of a stream. name is the SSE event name; empty where the API has none."""

    name: str
    data: Body


class ReplyStream:
    """Turns the tokens of one answer into events, and keeps the whole answer that they add up to.

    Rule: special tokens that mean nothing to the parser are counted but never become text, so no markup is left in
          what a client reads: ends and roles always, the thinking tags outside of thinking, DSML where no tool was
          offered. A DSML mark that the parser leaves in a text, because no call came of it, is taken out.
          Tool-call ids are alphanumeric, because some agents rewrite others. Events of one reply come from one thread.
    """

    def __init__(
        self,
        protocol: Protocol,
        request: recipe.ConversationRequest,
        echo: recipe.ResponsesEcho | None,
        *,
        tokenizer: recipe.Tokenizer,
        vocabulary: Vocabulary,
        names: tuple[str, str],
    ) -> None:
        generator = REQUESTS[protocol].chunk_generator(request, *names)
        if echo is not None:
            generator = generator.with_echo(echo)
        parsing = request.parsing_options
        self._protocol = protocol
        self._names = names
        self._hidden = _hidden_ids(vocabulary, parsing)
        self._processor = recipe.StreamProcessor(generator, parsing, tokenizer)
        self._whole: Any = None
        self._has_strays = False
        self.created = int(time.time())

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete: a stop string came, or `finish` was called."""
        return bool(self._processor.finished)

    def start(self, usage: Usage) -> list[ApiEvent]:
        """Return the events that open the answer; usage is that of the prompt."""
        counts = (usage.num_input_tokens, usage.num_cached_tokens)
        self._whole = _REPLIES[self._protocol](*self._names, self.created, *counts)
        prompt = recipe.PromptUsage(prompt_tokens=counts[0], prompt_cache_hit_tokens=counts[1])
        return self._take(self._processor.push(recipe.InferenceChunk.ready(prompt_usage=prompt)))

    def push(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> list[ApiEvent]:
        """Return the events of the next tokens; none once the answer is complete."""
        events: list[ApiEvent] = []
        for chunk in self._chunks(token_ids, logprobs):
            if self.is_finished:
                break
            events += self._take(self._processor.push(chunk))
        return events

    def finish(self, reason: FinishReason) -> list[ApiEvent]:
        """Return the events that end the answer; none when a stop string has ended it."""
        if self.is_finished:
            return []
        closing = self._processor.push(recipe.InferenceChunk.finish(_FINISHES[reason]))
        return self._take([*closing, *self._processor.finish()])

    def whole(self) -> Body:
        """Return the answer so far in the form of an unstreamed response."""
        found: Body = json.loads(self._whole.to_json())
        plain_ids(self._protocol, found)
        if self._has_strays:
            _drop_marks(found)
        return found

    def _chunks(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> Iterator[recipe.InferenceChunk]:
        """Cut the tokens into runs that the parser sees and single tokens that are only counted."""
        start = 0
        for index, token_id in enumerate(token_ids):
            if token_id in self._hidden:
                yield from self._seen(token_ids[start:index], logprobs[start:index])
                yield recipe.InferenceChunk.text("", 1)
                start = index + 1
        yield from self._seen(token_ids[start:], logprobs[start:])

    def _seen(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> Iterator[recipe.InferenceChunk]:
        if token_ids:
            found = [(item.logprob, list(item.top)) for item in logprobs] or None
            yield recipe.InferenceChunk.tokens(list(token_ids), found)

    def _take(self, chunks: Sequence[Any]) -> list[ApiEvent]:
        events = []
        for chunk in chunks:
            text = chunk.to_json()
            data = json.loads(text)
            plain_ids(self._protocol, data)
            if CALL_MARK in text:
                self._has_strays = True
                _drop_marks(data)
            events.append(ApiEvent(type(self._whole).sse_event_name(chunk) or "", data))
            self._whole.accumulate(chunk)
        return events


def _hidden_ids(vocabulary: Vocabulary, parsing: recipe.ParsingOptions) -> frozenset[int]:
    """Return the special tokens that the parser must not see as text."""
    seen = set()
    if parsing.thinking_initial_stage is not None:
        seen.add("</think>")
    if parsing.parse_tool_calls:
        seen.add(CALL_MARK)
    return frozenset(
        token_id for token_id in vocabulary.special_ids if vocabulary.tokens[token_id].decode("utf-8") not in seen
    )


def plain_ids(protocol: Protocol, data: Body) -> None:
    """Take what is not alphanumeric out of the tool-call ids of an event or a whole answer."""
    for call, name in _calls(protocol, data):
        if isinstance(call.get(name), str):
            call[name] = "".join(filter(str.isalnum, call[name]))


def _drop_marks(value: Any) -> None:
    """Take DSML marks out of the texts of an event or an answer, not out of the arguments of calls."""
    if isinstance(value, list):
        for each in value:
            _drop_marks(each)
    elif isinstance(value, dict) and not str(value.get("type")).startswith("response.function_call"):
        for name, each in value.items():
            if name in _TEXTS and isinstance(each, str):
                value[name] = each.replace(CALL_MARK, "")
            elif name not in _NO_TEXTS:
                _drop_marks(each)


def _calls(protocol: Protocol, data: Body) -> Iterator[tuple[Body, str]]:
    """Yield each tool call in an event or an answer, and the key of its id."""
    if protocol is Protocol.CHAT:
        for choice in data.get("choices") or ():
            part = choice.get("delta") or choice.get("message") or {}
            yield from ((call, "id") for call in part.get("tool_calls") or ())
    elif protocol is Protocol.MESSAGES:
        blocks = [data.get("content_block") or {}, *(data.get("content") or ())]
        yield from ((block, "id") for block in blocks if block.get("type") == "tool_use")
    else:
        items = [data.get("item") or {}, *(data.get("response") or data).get("output", ())]
        yield from ((item, "call_id") for item in items if item.get("type") == "function_call")
