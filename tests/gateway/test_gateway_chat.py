"""Chat completions: what a client reads, and what the server is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from dsv4_client.errors import ServerUnreachableError
from dsv4_client.events import Event
from gateway_rig import CALL, HELLO, OFF, TOOLS, Call, Gateway, answering, delta, endless, failing, final

from dsv4_backend.errors import OverloadedError, RequestError
from dsv4_backend.records import FinishReason

CHAT = "/v1/chat/completions"


def message_of(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["choices"][0]["message"]
    return found


def chunks_of(gateway: Gateway, **body: Any) -> list[dict[str, Any]]:
    events = gateway.events(CHAT, {"messages": HELLO, **body})
    assert events[-1] == ("", "[DONE]")
    return [data for _, data in events[:-1]]


def test_reasoning_and_answer_come_apart(gateway: Gateway) -> None:
    gateway.says("I think.</think>Good day<｜end▁of▁sentence｜>")
    found = message_of(gateway.chat())
    assert (found["role"], found["reasoning_content"], found["content"]) == ("assistant", "I think.", "Good day")


def test_usage_counts_every_token_and_what_was_cached(gateway: Gateway) -> None:
    gateway.says("I think.</think>Good day<｜end▁of▁sentence｜>")
    usage = gateway.chat().json()["usage"]
    num_tokens = len(gateway.ids("I think.</think>Good day<｜end▁of▁sentence｜>"))
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, num_tokens)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len(gateway.ids("I think."))


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(gateway: Gateway) -> None:
    gateway.says("Good day", reason=FinishReason.LENGTH)
    choices = [chunk["choices"][0] for chunk in chunks_of(gateway, **OFF)]
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Good day"


def test_usage_has_a_chunk_of_its_own_when_it_is_asked_for(gateway: Gateway) -> None:
    gateway.says("Good day")
    chunks = chunks_of(gateway, stream_options={"include_usage": True}, **OFF)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["prompt_tokens"]) == ([], 5)


def test_a_tool_call_has_index_id_type_and_its_arguments_as_text(gateway: Gateway) -> None:
    gateway.says(f"Let me look.</think>\n\n{CALL}")
    response = gateway.chat(tools=TOOLS)
    (call,) = message_of(response)["tool_calls"]
    assert (call["index"], call["type"], call["function"]) == (
        0,
        "function",
        {"name": "weather", "arguments": '{"city": "Oslo"}'},
    )
    assert call["id"].isalnum() and call["id"].startswith("call")
    assert response.json()["choices"][0]["finish_reason"] == "tool_calls"


def test_a_streamed_call_keeps_one_id(gateway: Gateway) -> None:
    gateway.says(f"Let me look.</think>\n\n{CALL}", cut=1)
    chunks = chunks_of(gateway, tools=TOOLS)
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls") or ()]
    assert {call["index"] for call in calls} == {0}
    assert [call["id"].isalnum() for call in calls if "id" in call] == [True]
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"city": "Oslo"}'


def test_choices_have_seeds_of_their_own_and_share_the_prompt(gateway: Gateway) -> None:
    gateway.says("Good day")
    response = gateway.chat(n=3, seed=7, **OFF).json()
    assert [choice["index"] for choice in response["choices"]] == [0, 1, 2]
    assert [call.options.get("seed") or call.prompt["seed"] for call in gateway.server.calls] == [7, 8, 9]
    assert response["usage"]["prompt_tokens"] == 5
    assert response["usage"]["completion_tokens"] == 3 * len(gateway.ids("Good day"))


def test_further_choices_begin_once_the_first_has_a_token(gateway: Gateway) -> None:
    order: list[str] = []

    async def script(call: Call) -> AsyncIterator[Event]:
        order.append("start")
        await asyncio.sleep(0)
        order.append("token")
        yield delta(gateway.ids("x"))
        yield final()

    gateway.server.script = script
    assert gateway.chat(n=2, **OFF).status_code == 200
    assert order == ["start", "token", "start", "token"]


def test_a_streamed_choice_is_named_in_each_chunk(gateway: Gateway) -> None:
    gateway.says("Good day", cut=1)
    chunks = chunks_of(gateway, n=2, **OFF)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == {0: "Good day", 1: "Good day"}
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_logprobs_stand_beside_their_tokens(gateway: Gateway) -> None:
    gateway.says("Good day")
    found = gateway.chat(logprobs=True, top_logprobs=1, **OFF).json()["choices"][0]["logprobs"]["content"]
    assert "".join(item["token"] for item in found) == "Good day"
    assert {item["logprob"] for item in found} == {-0.5}


def test_a_stop_string_counts_in_the_answer_only_and_ends_the_request(gateway: Gateway) -> None:
    gateway.server.script = endless(gateway.ids("the end</think>a end b"))
    found = message_of(gateway.chat(stop="end"))
    assert (found["reasoning_content"], found["content"]) == ("the end", "a ")
    assert gateway.server.calls[0].stopped.wait(5)
    assert "stop" not in gateway.server.calls[0].prompt


def test_without_tools_the_mark_of_calls_is_kept_away(gateway: Gateway) -> None:
    gateway.says("Good day")
    gateway.chat(logit_bias={"5": 1})
    (mark,) = gateway.ids("｜DSML｜")
    assert gateway.server.calls[0].prompt["logit_bias"] == {"5": 1, str(mark): -100}


def test_the_body_goes_on_as_it_came(gateway: Gateway) -> None:
    gateway.says("Good day")
    gateway.chat(temperature=0.25, max_completion_tokens=9, min_p=0.5, n=1, user="u", tools=TOOLS, **OFF)
    sent = gateway.server.calls[0].prompt
    assert (sent["temperature"], sent["max_tokens"], sent["min_p"], sent["stream"]) == (0.25, 9, 0.5, True)
    assert "n" not in sent and "logit_bias" not in sent


def test_dropped_reasoning_comes_back_with_its_call(gateway: Gateway) -> None:
    gateway.says(f"Let me look.</think>\n\n{CALL}")
    answer = message_of(gateway.chat(tools=TOOLS))
    history = {"role": "assistant", "content": None, "tool_calls": answer["tool_calls"]}
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "cold"}
    gateway.chat(messages=[*HELLO, history, result], tools=TOOLS)
    assert gateway.server.calls[-1].prompt["messages"][1]["reasoning_content"] == "Let me look."


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (RequestError("top_k is -3"), 400, "invalid_request_error"),
        (OverloadedError("the queue is full.", retry_after_s=3), 503, "service_unavailable_error"),
        (ServerUnreachableError("10.0.0.1:8001", "refused"), 503, "service_unavailable_error"),
        ("the regex constraint cannot be compiled: (", 400, "invalid_request_error"),
        ("rank 0 died: Traceback /secret/path.py", 500, "server_error"),
        (KeyError("/secret/path.py"), 500, "server_error"),
    ],
    ids=["request", "overload", "unreachable", "constraint", "rank", "bug"],
)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_a_failure_before_the_first_token_is_a_status(
    gateway: Gateway, failure: Exception | str, status: int, kind: str, is_streamed: bool
) -> None:
    gateway.server.script = failing(failure)
    response = gateway.chat(stream=is_streamed)
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    assert "secret" not in response.text and "10.0.0.1" not in response.text


def test_overload_says_when_to_come_back(gateway: Gateway) -> None:
    gateway.server.script = failing(OverloadedError("the queue is full.", retry_after_s=3))
    assert gateway.chat().headers["retry-after"] == "3"


def test_a_failure_in_mid_stream_is_an_event(gateway: Gateway) -> None:
    gateway.server.script = failing("rank 0 died", after=gateway.ids("Good"))
    events = gateway.events(CHAT, {"messages": HELLO, **OFF})
    assert events[-2][1]["error"]["type"] == "server_error"
    assert events[-1] == ("", "[DONE]")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 5}, "from 1 to 4"),
        ({"stream": "yes"}, "expected a boolean"),
        ({"messages": "x"}, "expected a sequence"),
        ({"model": "other"}, "not served"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}, r"$: not"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_refused_before_the_server_sees_it(gateway: Gateway, body: dict[str, Any], word: str) -> None:
    response = gateway.chat(**body)
    assert response.status_code in (400, 404) and word in response.json()["error"]["message"]
    assert gateway.server.calls == []


def test_a_client_that_leaves_stops_its_request_within_50_ms(gateway: Gateway) -> None:
    """The best of ten: a shared machine may be busy at any one of them."""
    delays = []
    for _ in range(10):
        gateway.server.calls.clear()
        gateway.server.script = endless(gateway.ids("word "))
        with gateway.http.stream("POST", CHAT, json={"messages": HELLO, "stream": True, **OFF}) as response:
            next(response.iter_bytes())
            left_s = time.monotonic()
        call = gateway.server.calls[0]
        assert call.stopped.wait(5)
        delays.append(call.stopped_s - left_s)
    assert min(delays) < 0.05


def test_a_trace_goes_on_to_the_server(gateway: Gateway) -> None:
    gateway.says("Good day")
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    gateway.post(CHAT, {"messages": HELLO}, headers={"traceparent": parent})
    gateway.post(CHAT, {"messages": HELLO}, headers={"traceparent": "junk"})
    assert [call.headers for call in gateway.server.calls] == [{"traceparent": parent}, {}]


def test_a_client_that_leaves_before_the_first_token_stops_its_request_too(gateway: Gateway) -> None:
    async def silent(call: Call) -> AsyncIterator[Event]:
        await asyncio.sleep(60)
        yield final()

    gateway.server.script = silent
    for is_streamed in (False, True):
        with pytest.raises(httpx2.ReadTimeout):
            gateway.http.post(CHAT, json={"messages": HELLO, "stream": is_streamed}, timeout=0.2)
        assert gateway.server.calls[-1].stopped.wait(5)


def test_unknown_fields_change_nothing(gateway: Gateway) -> None:
    gateway.server.script = answering(gateway.ids("Good day"))
    message = {"role": "user", "content": [{"type": "text", "text": "Hi"}], "future": 1}
    assert message_of(gateway.chat(messages=[message], future={"a": 1}, **OFF))["content"] == "Good day"
