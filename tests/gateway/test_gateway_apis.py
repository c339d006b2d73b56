"""Messages, Responses and Completions: each in its own form, and what they keep between requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dsv4_client.events import Delta, Event, TextSpan
from gateway_rig import CALL, CITY, HELLO, OFF, Call, Gateway, delta, endless, failing, final, wait_until

from dsv4_backend.records import FinishReason, TokenLogprob, Usage

MESSAGES = {"messages": HELLO, "max_tokens": 50}
RESPONSES = "/v1/responses"
TOOL = {"type": "function", "name": "weather", "parameters": CITY}


def text_of(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


@pytest.mark.parametrize("prefix", ["", "/anthropic"])
def test_messages_answer_in_blocks(gateway: Gateway, prefix: str) -> None:
    gateway.says(f"Let me look.</think>One moment.\n\n{CALL}")
    body = {**MESSAGES, "tools": [{"name": "weather", "input_schema": CITY}]}
    found = gateway.post(f"{prefix}/v1/messages", body).json()
    assert [block["type"] for block in found["content"]] == ["thinking", "text", "tool_use"]
    assert (found["content"][2]["input"], found["stop_reason"]) == ({"city": "Oslo"}, "tool_use")
    assert found["content"][2]["id"].isalnum()


def test_streamed_messages_open_and_close_every_block(gateway: Gateway) -> None:
    gateway.says("Hm.</think>Good day")
    names = [name for name, _ in gateway.events("/v1/messages", MESSAGES) if name != "ping"]
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert names.count("content_block_start") == names.count("content_block_stop") == 2


def test_tokens_of_messages_are_counted_as_they_would_be_sent(gateway: Gateway) -> None:
    plain = gateway.post("/v1/messages/count_tokens", {"messages": HELLO, **OFF}).json()
    chat = gateway.post("/tokenize", {"messages": HELLO, **OFF}).json()
    assert plain == {"input_tokens": chat["count"]}
    assert gateway.server.calls == []


def test_errors_of_messages_have_their_own_form(gateway: Gateway) -> None:
    found = gateway.post("/v1/messages", {"messages": HELLO})
    assert (found.status_code, found.json()["type"]) == (400, "error")
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_a_failure_in_a_stream_of_messages_is_an_error_event(gateway: Gateway) -> None:
    gateway.server.script = failing("rank 0 died", after=gateway.ids("Good"))
    name, data = gateway.events("/v1/messages", {**MESSAGES, **OFF})[-1]
    assert (name, data["error"]["type"]) == ("error", "api_error")


def test_a_response_is_read_again_until_it_is_deleted(gateway: Gateway) -> None:
    gateway.says("Hm.</think>Good day")
    made = gateway.post(RESPONSES, {"input": "Hello"}).json()
    assert (made["status"], text_of(made)) == ("completed", "Good day")
    path = f"{RESPONSES}/{made['id']}"
    assert gateway.http.get(path).json() == made
    assert gateway.http.delete(path).json()["deleted"] is True
    assert gateway.http.get(path).status_code == 404


def test_a_response_goes_on_from_the_one_before(gateway: Gateway) -> None:
    gateway.says("Hm.</think>Good day")
    first = gateway.post(RESPONSES, {"input": "Hello"}).json()
    second = gateway.post(RESPONSES, {"input": "And?", "previous_response_id": first["id"]}).json()
    sent = gateway.server.calls[-1].prompt["input"]
    assert [item.get("type") for item in sent] == ["message", "reasoning", "message", "message"]
    assert [sent[0]["content"], sent[-1]["content"]] == ["Hello", "And?"]
    assert second["previous_response_id"] == first["id"]
    items = gateway.http.get(f"{RESPONSES}/{second['id']}/input_items").json()["data"]
    assert len(items) == 4


def test_what_is_not_to_be_stored_is_not(gateway: Gateway) -> None:
    gateway.says("Hm.</think>Good day")
    made = gateway.post(RESPONSES, {"input": "Hello", "store": False}).json()
    assert gateway.http.get(f"{RESPONSES}/{made['id']}").status_code == 404
    missing = gateway.post(RESPONSES, {"input": "And?", "previous_response_id": made["id"]})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "response_not_found")


def test_streamed_responses_end_with_the_whole_one(gateway: Gateway) -> None:
    gateway.says(f"Hm.</think>\n\n{CALL}")
    events = gateway.events(RESPONSES, {"input": "Hello", "tools": [TOOL]})
    name, last = events[-1]
    assert name == last["type"] == "response.completed"
    (call,) = (item for item in last["response"]["output"] if item["type"] == "function_call")
    assert (call["arguments"], call["call_id"].isalnum()) == ('{"city": "Oslo"}', True)
    assert gateway.http.get(f"{RESPONSES}/{last['response']['id']}").json()["output"] == last["response"]["output"]
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))


def test_a_failed_stream_of_responses_says_so_in_its_last_event(gateway: Gateway) -> None:
    gateway.server.script = failing("rank 0 died", after=gateway.ids("Good"))
    name, data = gateway.events(RESPONSES, {"input": "Hello", "reasoning": {"effort": "none"}})[-1]
    assert (name, data["response"]["status"]) == ("response.failed", "failed")


def test_a_background_response_is_cancelled_on_the_server(gateway: Gateway) -> None:
    gateway.server.script = endless(gateway.ids("word "))
    made = gateway.post(RESPONSES, {"input": "Hello", "background": True}).json()
    wait_until(lambda: bool(gateway.server.calls), "the request runs")
    found = gateway.post(f"{RESPONSES}/{made['id']}/cancel", {}).json()
    assert (made["status"], found["status"]) == ("queued", "cancelled")
    assert gateway.server.calls[0].stopped.is_set()


def test_a_background_response_is_found_when_it_is_made(gateway: Gateway) -> None:
    gateway.says("Hm.</think>Good day")
    path = f"{RESPONSES}/{gateway.post(RESPONSES, {'input': 'Hello', 'background': True}).json()['id']}"
    wait_until(lambda: gateway.http.get(path).json()["status"] == "completed", "it is made")
    assert text_of(gateway.http.get(path).json()) == "Good day"


async def echoing(call: Call) -> AsyncIterator[Event]:
    """As the server does: the prompt's logprobs and text first, when they are asked for."""
    usage = Usage(num_input_tokens=3, num_output_tokens=2)
    wants = call.options.get("logprobs", -1) >= 0
    echo = call.options.get("echo", False)
    prompt = tuple(TokenLogprob(token_id=each, logprob=-1.0) for each in (70, 71)) if echo and wants else ()
    tokens = tuple(TokenLogprob(token_id=each, logprob=-0.5) for each in (72, 73)) if wants else ()
    text = "CDEF" if echo else "EF"
    if isinstance(call.prompt, str):
        yield Delta(text=text, token_ids=(72, 73), index=0, logprobs=tokens, prompt_logprobs=prompt, usage=usage)
    else:
        ids = (70, 71, 72, 73) if echo else (72, 73)
        span = TextSpan(token_ids=ids, skip_bytes=0, keep_bytes=len(ids))
        yield Delta(
            text="", token_ids=(72, 73), index=0, logprobs=tokens, prompt_logprobs=prompt, usage=usage, span=span
        )
    yield final(FinishReason.LENGTH, num_output=2)


def test_completions_of_text_and_of_ids_are_the_same(gateway: Gateway) -> None:
    gateway.server.script = echoing
    answers = [
        gateway.post("/v1/completions", {"prompt": prompt, "max_tokens": 2}).json()["choices"][0]
        for prompt in ("CD", [0, 70, 71])
    ]
    assert answers[0] == answers[1] == {"index": 0, "text": "EF", "logprobs": None, "finish_reason": "length"}


def test_a_batch_has_one_choice_per_prompt_and_number(gateway: Gateway) -> None:
    gateway.server.script = echoing
    found = gateway.post("/v1/completions", {"prompt": ["CD", [70]], "n": 2, "seed": 5}).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    seeds = {call.request_id.rsplit("-", 1)[1]: call.options["seed"] for call in gateway.server.calls}
    assert seeds == {"0": 5, "1": 6, "2": 5, "3": 6}
    assert (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]) == (10, 8)


def test_an_echo_brings_the_logprobs_of_the_prompt(gateway: Gateway) -> None:
    gateway.server.script = echoing
    body = {"prompt": [0, 70, 71], "echo": True, "logprobs": 1, "max_tokens": 2}
    found = gateway.post("/v1/completions", body).json()["choices"][0]
    assert found["text"] == "CDEF"
    assert found["logprobs"]["token_logprobs"] == [None, -1.0, -1.0, -0.5, -0.5]
    assert found["logprobs"]["text_offset"] == [0, 0, 1, 2, 3]


def test_no_output_can_be_asked_for_to_score_a_prompt(gateway: Gateway) -> None:
    gateway.server.script = echoing
    body = {"prompt": "CD", "echo": True, "logprobs": 1, "max_tokens": 0}
    found = gateway.post("/v1/completions", body).json()
    assert (found["choices"][0]["text"], found["usage"]["completion_tokens"]) == ("CD", 0)
    assert found["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0, -1.0]
    assert gateway.server.calls[0].options["max_tokens"] == 1


def test_a_suffix_asks_for_the_middle(gateway: Gateway) -> None:
    gateway.server.script = echoing
    gateway.post("/v1/completions", {"prompt": "a", "suffix": "c"})
    assert gateway.server.calls[0].prompt == "<｜fim▁begin｜>a<｜fim▁hole｜>c<｜fim▁end｜>"


def test_streamed_completions_add_up(gateway: Gateway) -> None:
    async def pieces(call: Call) -> AsyncIterator[Event]:
        for number, text in enumerate(("Go", "od")):
            yield delta((70,), text, index=number)
            await asyncio.sleep(0)
        yield final(num_output=2)

    gateway.server.script = pieces
    events = gateway.events("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}})
    choices = [choice for _, data in events[:-1] for choice in data["choices"]]
    assert "".join(choice["text"] for choice in choices) == "Good"
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]
    assert events[-2][1]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": []}, {"prompt": ""}, {"prompt": [[]]}, {"prompt": [-1]}, {"prompt": [10**9]}, {"prompt": [True]},
     {"prompt": "x", "suffix": 5}, {"prompt": [5], "suffix": "x"}, {"prompt": "x", "stop": 5}, {"prompt": "x", "n": 99},
     {"prompt": "x", "logprobs": 21}, {"prompt": ["x"] * 300}],
)  # fmt: skip
def test_a_wrong_completion_is_refused(gateway: Gateway, body: dict[str, Any]) -> None:
    assert gateway.post("/v1/completions", body).status_code == 400
    assert gateway.server.calls == []
