"""Any tokens, cut anywhere: what is streamed adds up to what is answered at once, and no markup is read as text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.reasoning import ReasoningCache
from dsv4_client.gateway.store import ResponseStore, Stored
from gateway_rig import CALL, HELLO, OFF, TOOLS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tokenizers import Tokenizer

from dsv4_backend.chat import ApiEvent, ChatEncoder, Protocol
from dsv4_backend.records import FinishReason, Usage

USAGE = Usage(num_input_tokens=5, num_output_tokens=0)
CHECKPOINT = Path(__file__).resolve().parents[2] / "build" / "nano" / "checkpoints" / "official"
ENCODER = ChatEncoder(CHECKPOINT)
TOKENIZER = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
MARKUP = [token.content for token in TOKENIZER.get_added_tokens_decoder().values()]
PIECES = ["Hi", " there", "</think>", "<think>", CALL, "\n\n", '{"a": 1}', "é🥊", "<", "｜", *MARKUP]
PIECES += [CALL[:cut] for cut in (5, 20, 44, 70, 100)]
TOOLS_OF = {
    Protocol.CHAT: TOOLS,
    Protocol.MESSAGES: [{"name": "weather", "input_schema": TOOLS[0]["function"]["parameters"]}],
    Protocol.RESPONSES: [{"type": "function", **TOOLS[0]["function"]}],
}


def body_of(protocol: Protocol, *, is_thinking: bool, has_tools: bool) -> dict[str, Any]:
    body: dict[str, Any] = (
        {"input": "Hello"} if protocol is Protocol.RESPONSES else {"messages": HELLO, "max_tokens": 9}
    )
    if not is_thinking:
        body |= {"reasoning": {"effort": "none"}} if protocol is Protocol.RESPONSES else OFF
    return {**body, "tools": TOOLS_OF[protocol]} if has_tools else body


def play(protocol: Protocol, body: dict[str, Any], ids: list[int], cuts: list[int]) -> tuple[list[ApiEvent], Any]:
    """The events, and the whole answer, of these tokens cut at these places."""
    reply = ENCODER.reply(ENCODER.read(protocol, body), reply_id="id", model="nano")
    events = reply.start(USAGE)
    places = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        events += reply.push(ids[start:end])
    events += reply.finish(FinishReason.STOP)
    return events, reply.whole()


def joined_chat(events: list[ApiEvent]) -> dict[str, Any]:
    """A chat message, put together as a client would."""
    found: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": {}, "finish_reason": None}
    for event in events:
        (choice,) = event.data["choices"]
        for name in ("content", "reasoning_content"):
            found[name] += choice["delta"].get(name) or ""
        for call in choice["delta"].get("tool_calls") or ():
            kept = found["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
            for name in kept:
                kept[name] += call["function"].get(name) or ""
        found["finish_reason"] = choice["finish_reason"] or found["finish_reason"]
    return found


def whole_chat(whole: Any) -> dict[str, Any]:
    (choice,) = whole["choices"]
    calls = {each["index"]: dict(each["function"]) for each in choice["message"].get("tool_calls") or ()}
    return {
        "content": choice["message"].get("content") or "",
        "reasoning_content": choice["message"].get("reasoning_content") or "",
        "calls": calls,
        "finish_reason": choice["finish_reason"],
    }


def without_ids(value: Any) -> Any:
    """The same without what is drawn anew each time."""
    if isinstance(value, dict):
        drop = ("created", "created_at", "completed_at", "call_id")
        kept = {key: without_ids(each) for key, each in value.items() if key not in drop}
        return {**kept, "id": ""} if "id" in kept else kept
    return [without_ids(each) for each in value] if isinstance(value, list) else value


tokens = st.lists(st.sampled_from(PIECES), max_size=8).map(
    lambda pieces: [token for piece in pieces for token in TOKENIZER.encode(piece, add_special_tokens=False).ids]
)
cuts = st.lists(st.integers(0, 400), max_size=12)


@settings(max_examples=200)
@given(ids=tokens, one=cuts, other=cuts, is_thinking=st.booleans(), has_tools=st.booleans())
def test_chat_streamed_and_whole_are_the_same_however_it_is_cut(
    ids: list[int], one: list[int], other: list[int], is_thinking: bool, has_tools: bool
) -> None:
    body = body_of(Protocol.CHAT, is_thinking=is_thinking, has_tools=has_tools)
    events, whole = play(Protocol.CHAT, body, ids, one)
    assert joined_chat(events) == whole_chat(whole)
    assert whole_chat(whole) == whole_chat(play(Protocol.CHAT, body, ids, other)[1])


@settings(max_examples=100)
@given(ids=tokens, one=cuts, other=cuts, protocol=st.sampled_from([Protocol.MESSAGES, Protocol.RESPONSES]),
       has_tools=st.booleans())  # fmt: skip
def test_no_other_api_depends_on_the_cuts(
    ids: list[int], one: list[int], other: list[int], protocol: Protocol, has_tools: bool
) -> None:
    body = body_of(protocol, is_thinking=True, has_tools=has_tools)
    assert without_ids(play(protocol, body, ids, one)[1]) == without_ids(play(protocol, body, ids, other)[1])


@settings(max_examples=200)
@given(ids=tokens, one=cuts, is_thinking=st.booleans(), has_tools=st.booleans())
def test_no_markup_is_read_as_text(ids: list[int], one: list[int], is_thinking: bool, has_tools: bool) -> None:
    body = body_of(Protocol.CHAT, is_thinking=is_thinking, has_tools=has_tools)
    found = whole_chat(play(Protocol.CHAT, body, ids, one)[1])
    text = found["content"] + found["reasoning_content"]
    assert [mark for mark in MARKUP if mark in text] == []


@pytest.mark.parametrize("protocol", list(Protocol))
def test_every_call_of_a_stream_has_an_alphanumeric_id(protocol: Protocol) -> None:
    body = body_of(protocol, is_thinking=True, has_tools=True)
    ids = TOKENIZER.encode(f"</think>{CALL}", add_special_tokens=False).ids
    events, whole = play(protocol, body, ids, [7, 20])
    text = json.dumps([event.data for event in events]) + json.dumps(whole)
    assert "call_0" not in text and "call00" in text


class CacheMachine(RuleBasedStateMachine):
    """The reasoning cache against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ReasoningCache(max_bytes=40)
        self.known: dict[str, str] = {}

    @rule(call_id=st.sampled_from("abcde"), text=st.text(min_size=1, max_size=12))
    def remember(self, call_id: str, text: str) -> None:
        message = {"reasoning_content": text, "tool_calls": [{"id": call_id}]}
        self.cache.remember(Protocol.CHAT, {"choices": [{"message": message}]})
        self.known[call_id] = text

    @rule(call_id=st.sampled_from("abcde"))
    def get(self, call_id: str) -> None:
        assert self.cache.get(call_id) in ("", self.known.get(call_id, ""))

    @invariant()
    def holds(self) -> None:
        self.cache.check()


class StoreMachine(RuleBasedStateMachine):
    """The response store keeps within its bounds, and what it gives is what was put."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ResponseStore(max_entries=3, max_bytes=200)
        self.known: dict[str, Any] = {}

    @rule(name=st.sampled_from("abcdef"), text=st.text(max_size=90))
    def put(self, name: str, text: str) -> None:
        self.known[name] = {"text": text}
        self.store.put(name, Stored(response=self.known[name], items=[]))

    @rule(name=st.sampled_from("abcdef"))
    def get(self, name: str) -> None:
        try:
            found = self.store.get(name).response
        except ApiError:
            return
        assert found == self.known[name]

    @rule(name=st.sampled_from("abcdef"))
    def drop(self, name: str) -> None:
        self.store.drop(name)

    @invariant()
    def holds(self) -> None:
        self.store.check()


TestCache = CacheMachine.TestCase
TestStore = StoreMachine.TestCase
TestCache.settings = TestStore.settings = settings(max_examples=30, stateful_step_count=20)
