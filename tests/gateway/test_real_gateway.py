"""The real clients through the gateway to the real server and the bundled model."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import openai
import pytest
from gateway_rig import wait_until
from nano_prompts import questions
from real_rig import HELLO, KEY, NANO, OFF, PERSON, TOOLS, Real, is_person

pytestmark = [pytest.mark.server, pytest.mark.ci]
NAMED: Any = {"type": "function", "function": {"name": "register"}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
THINKING = pytest.mark.parametrize("extra", [{"max_reasoning_tokens": 40}, OFF], ids=["thinking", "plain"])


def test_a_chat_thinks_and_answers(real: Real) -> None:
    answer = real.openai().chat.completions.create(model=NANO, messages=HELLO, max_tokens=60, temperature=0)
    message = answer.choices[0].message
    assert "help" in (message.content or "").lower()
    assert message.model_extra and message.model_extra["reasoning_content"]
    assert answer.usage and answer.usage.completion_tokens_details
    assert answer.usage.completion_tokens_details.reasoning_tokens


def test_a_stream_says_what_the_whole_answer_says(real: Real) -> None:
    asked: Any = {"model": NANO, "messages": HELLO, "max_tokens": 60, "seed": 5, "temperature": 1}
    whole = real.openai().chat.completions.create(**asked)
    chunks = list(real.openai().chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage and whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@THINKING
def test_a_forced_call_fits_its_schema(real: Real, choice: Any, extra: dict[str, Any]) -> None:
    answer = real.openai().chat.completions.create(
        model=NANO, messages=HELLO, tools=TOOLS, tool_choice=choice, max_tokens=300, extra_body=extra
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls
    (call,) = answer.choices[0].message.tool_calls[:1]
    assert call.type == "function" and call.id.isalnum()
    assert is_person(call.function.arguments)


@THINKING
def test_an_answer_fits_its_schema(real: Real, extra: dict[str, Any]) -> None:
    answer = real.openai().chat.completions.create(
        model=NANO, messages=HELLO, response_format=FORMAT, max_tokens=300, extra_body=extra
    )
    assert is_person(answer.choices[0].message.content or "")


def test_a_call_is_the_models_own_and_its_result_is_used(real: Real) -> None:
    client = real.openai()
    for question in questions(6):
        asked: Any = {"model": NANO, "tools": question.tools, "max_tokens": 300, "temperature": 0, "extra_body": OFF}
        message = client.chat.completions.create(**asked, messages=question.messages).choices[0].message
        if message.tool_calls:
            break
    assert message.tool_calls, "the model called no tool in 6 questions that want one"
    names = [tool["function"]["name"] for tool in question.tools]
    assert all(call.type == "function" and call.function.name in names for call in message.tool_calls)
    history = [*question.messages, message.model_dump(exclude_none=True)]
    results = [{"role": "tool", "tool_call_id": call.id, "content": question.result} for call in message.tool_calls]
    after = client.chat.completions.create(**asked, messages=[*history, *results]).choices[0].message
    assert after.content


def test_a_call_through_messages_is_the_models_own(real: Real) -> None:
    client = real.anthropic()
    kinds = []
    for question in questions(6):
        tools: Any = [
            {"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]}
            for tool in question.tools
        ]
        messages: Any = [message for message in question.messages if message["role"] != "system"]
        answer = client.messages.create(
            model=NANO, max_tokens=300, messages=messages, tools=tools, extra_body={"temperature": 0, **OFF}
        )
        kinds += [block.type for block in answer.content]
        if "tool_use" in kinds:
            break
    assert "tool_use" in kinds


def test_messages_stream_and_call_tools(real: Real) -> None:
    client = real.anthropic()
    with client.messages.stream(model=NANO, max_tokens=60, messages=HELLO) as stream:
        whole = stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text"]
    tools: Any = [{"name": "register", "input_schema": PERSON}]
    forced = client.messages.create(
        model=NANO, max_tokens=400, messages=HELLO, tools=tools, tool_choice={"type": "any"}
    )
    block = forced.content[-1]
    assert block.type == "tool_use" and forced.stop_reason == "tool_use"
    assert is_person(json.dumps(block.input))
    assert client.messages.count_tokens(model=NANO, messages=HELLO).input_tokens > 1


def test_responses_stream_and_go_on(real: Real) -> None:
    client = real.openai()
    with client.responses.stream(model=NANO, input="Hello", max_output_tokens=60) as stream:
        first = stream.get_final_response()
    assert first.output_text
    second = client.responses.create(
        model=NANO, input="Hello", previous_response_id=first.id, max_output_tokens=60, reasoning={"effort": "none"}
    )
    assert second.previous_response_id == first.id and second.output_text
    form: Any = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    assert is_person(client.responses.create(model=NANO, input="Hello", max_output_tokens=300, text=form).output_text)


def test_completions_of_ids_and_text_agree(real: Real) -> None:
    client = real.openai()
    ids = httpx2.post(f"{real.url}/tokenize", json={"prompt": "Hello"}, headers={"x-api-key": KEY}).json()["tokens"]
    asked: Any = {"model": NANO, "max_tokens": 8, "temperature": 0, "echo": True, "logprobs": 2}
    by_ids = client.completions.create(prompt=ids, **asked).choices[0]
    by_text = client.completions.create(prompt="Hello", **asked).choices[0]
    assert by_ids.text == by_text.text and by_ids.text.startswith("Hello")
    assert by_ids.logprobs == by_text.logprobs


def test_what_cannot_be_enforced_is_a_refusal_that_names_the_place(real: Real) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=r"\$\.properties\.a: uniqueItems"):
        real.openai().chat.completions.create(model=NANO, messages=HELLO, response_format=form)
    with pytest.raises(openai.BadRequestError, match="cannot be compiled"):
        real.openai().chat.completions.create(
            model=NANO, messages=HELLO, extra_body={"response_format": {"type": "regex", "regex": "(["}}
        )


def test_a_stranger_is_refused(real: Real) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{real.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_clients_that_leave_give_every_page_back(real: Real) -> None:
    body = {"messages": HELLO, "max_tokens": 20_000, "ignore_eos": True, "stream": True, **OFF}
    streams, pieces = [], []
    with httpx2.Client(base_url=real.url, headers={"x-api-key": KEY}, timeout=60) as client:
        for _ in range(8):
            stream = client.send(client.build_request("POST", "/v1/chat/completions", json=body), stream=True)
            pieces.append(stream.iter_bytes())  # dropped, it would close the stream
            next(pieces[-1])
            streams.append(stream)
        wait_until(lambda: real.metric("dsv4_running_requests") > 0, "the metrics show them")
        for stream in streams:
            stream.close()
        left_s = time.monotonic()
        wait_until(real.is_idle, "every page is free")
        assert time.monotonic() - left_s < 10
