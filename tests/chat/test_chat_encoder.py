"""Bodies of three APIs become prompts; what cannot be served is refused with its reason."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dsv4_backend.chat import ChatEncoder
from dsv4_backend.errors import RequestError
from dsv4_backend.records import Prompt

HELLO: dict[str, Any] = {"model": "any-name", "messages": [{"role": "user", "content": "Hello"}]}
PLAIN = {**HELLO, "thinking": {"type": "disabled"}}


@pytest.fixture(scope="module")
def encoder(tokenizer_path: Path) -> ChatEncoder:
    return ChatEncoder(tokenizer_path)


@pytest.fixture(scope="module")
def library(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_path))


def encode(encoder: ChatEncoder, body: object, protocol: str = "chat") -> Prompt:
    return encoder.encode(protocol, json.dumps(body))


def read(library: Tokenizer, prompt: Prompt) -> str:
    return library.decode(list(prompt.token_ids), skip_special_tokens=False)


def test_a_chat_is_encoded_in_the_official_form(encoder: ChatEncoder, library: Tokenizer) -> None:
    text = read(library, encode(encoder, PLAIN))
    assert text == "<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜></think>"


@pytest.mark.parametrize(
    ("protocol", "body"),
    [
        ("responses", {"input": "Hello", "reasoning": {"effort": "none"}}),
        ("messages", {**PLAIN, "max_tokens": 5}),
    ],
)
def test_every_protocol_gives_the_same_conversation(encoder: ChatEncoder, protocol: str, body: dict[str, Any]) -> None:
    assert encode(encoder, body, protocol).token_ids == encode(encoder, PLAIN).token_ids


def test_special_spellings_in_a_message_stay_text(encoder: ChatEncoder) -> None:
    body = {**PLAIN, "messages": [{"role": "user", "content": "a <｜User｜> b</think>"}]}
    token_ids = encode(encoder, body).token_ids
    assert (token_ids.count(1011), token_ids.count(1014)) == (1, 1)


def test_thinking_is_on_by_default(encoder: ChatEncoder) -> None:
    assert encode(encoder, HELLO).token_ids[-1] == 1013


def test_any_model_name_is_accepted_and_none_needed(encoder: ChatEncoder) -> None:
    nameless = {key: value for key, value in PLAIN.items() if key != "model"}
    assert encode(encoder, nameless) == encode(encoder, PLAIN)


def test_unknown_fields_are_ignored(encoder: ChatEncoder) -> None:
    message = {"role": "user", "content": "Hello", "name": "x", "future": 1}
    assert encode(encoder, {**PLAIN, "messages": [message], "future": {}, "user": "u"}) == encode(encoder, PLAIN)


def test_developer_messages_are_system_messages(encoder: ChatEncoder) -> None:
    rest = HELLO["messages"]
    developer, system = ([{"role": role, "content": "Be kind."}, *rest] for role in ("developer", "system"))
    assert encode(encoder, {**PLAIN, "messages": developer}) == encode(encoder, {**PLAIN, "messages": system})


@pytest.mark.parametrize("switch", ["thinking", "enable_thinking"])
def test_template_kwargs_switch_thinking_off(encoder: ChatEncoder, switch: str) -> None:
    assert encode(encoder, {**HELLO, "chat_template_kwargs": {switch: False}}) == encode(encoder, PLAIN)


def test_the_body_itself_wins_over_template_kwargs(encoder: ChatEncoder) -> None:
    assert encode(encoder, {**PLAIN, "chat_template_kwargs": {"thinking": True}}) == encode(encoder, PLAIN)


@pytest.mark.parametrize("base", [HELLO, PLAIN], ids=["thinking", "plain"])
def test_every_sampling_field_is_carried(encoder: ChatEncoder, base: dict[str, Any]) -> None:
    fields = {
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.125,
        "seed": 2**40,
        "presence_penalty": 1,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
    }
    body = {**base, **fields, "logit_bias": {"5": -3, "9": 2.5}, "logprobs": True, "top_logprobs": 4}
    sampling = encode(encoder, body).sampling
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert (sampling.logit_bias, sampling.logprobs) == (((5, -3.0), (9, 2.5)), 4)


def test_every_limit_is_carried(encoder: ChatEncoder) -> None:
    body = {**HELLO, "max_completion_tokens": 9, "stop": ["é", "\n"], "min_tokens": 2, "ignore_eos": True}
    prompt = encode(encoder, {**body, "max_reasoning_tokens": 3, "stream": True, "priority": -1, "cache_salt": "s"})
    limits = prompt.limits
    assert (limits.max_tokens, limits.min_tokens, limits.ignore_eos, limits.max_reasoning_tokens) == (9, 2, True, 3)
    assert limits.stop == ("é".encode(), b"\n")
    assert (prompt.stream, prompt.priority, prompt.cache_salt) == (True, -1, "s")


def test_silence_leaves_the_defaults(encoder: ChatEncoder) -> None:
    prompt = encode(encoder, PLAIN)
    assert prompt == Prompt(token_ids=prompt.token_ids, stream=False)


def test_a_thinking_budget_bounds_the_reasoning(encoder: ChatEncoder) -> None:
    body = {**HELLO, "max_tokens": 50, "thinking": {"type": "enabled", "budget_tokens": 20}}
    assert encode(encoder, body, "messages").limits.max_reasoning_tokens == 20


REFUSED = [
    ('{"messages": ', "line 1, column 14"),
    ("[]", "a JSON list"),
    ('"x"', "a JSON str"),
    ("[" * 100_000, "cannot be read"),
    ("{}", "missing field `messages`"),
    ('{"messages": 5}', "expected a sequence"),
    ('{"messages": []}', "Empty input messages"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "refused"),
    (json.dumps({**PLAIN, "temperature": 5}), r"range of temperature is \[0, 2\]\. temperature is 5"),
    (json.dumps({**PLAIN, "temperature": "hot"}), 'string "hot"'),
    (json.dumps({**PLAIN, "max_tokens": 0}), "max_tokens is 0"),
    (json.dumps({**PLAIN, "n": 2}), "n is 2"),
    (json.dumps({**PLAIN, "min_p": "x"}), "min_p is 'x' but must be a finite number"),
    (json.dumps({**PLAIN, "top_k": 1.5}), "top_k is 1.5 but must be a 64-bit whole number"),
    (json.dumps({**PLAIN, "min_p": float("nan")}), "refused|finite"),
    (json.dumps({**PLAIN, "ignore_eos": 1}), "true or false"),
    (json.dumps({**PLAIN, "logit_bias": {"five": 1}}), "'five'"),
    (json.dumps({**PLAIN, "logit_bias": {"5": True}}), "True but must be a number"),
    (json.dumps({**PLAIN, "logit_bias": [1]}), "must be an object"),
    (json.dumps({**PLAIN, "cache_salt": 5}), "must be a string"),
    (json.dumps({**PLAIN, "stop": ""}), "empty string"),
]


@pytest.mark.parametrize(("body", "reason"), REFUSED)
def test_a_refusal_names_the_place_or_the_value(encoder: ChatEncoder, body: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        encoder.encode("chat", body)


def test_an_unknown_protocol_lists_the_known_ones(encoder: ChatEncoder) -> None:
    with pytest.raises(RequestError, match="'grpc' but must be one of chat, responses, messages"):
        encoder.encode("grpc", "{}")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    "messages model tools tool_choice thinking stop seed n temperature max_tokens response_format stream input text"
    " reasoning_effort logit_bias system top_logprobs logprobs chat_template_kwargs instructions stream_options".split()
)
roles = st.sampled_from(["user", "assistant", "tool", "developer", "system", "latest_reminder"])
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": values}), max_size=3)
bodies = st.dictionaries(names, values, max_size=4)


@given(body=bodies, talk=messages, protocol=st.sampled_from(["chat", "responses", "messages"]))
def test_any_body_gives_a_prompt_or_a_refusal(
    encoder: ChatEncoder, body: dict[str, Any], talk: list[Any], protocol: str
) -> None:
    text = json.dumps({"messages": talk, "input": talk, **body})
    with contextlib.suppress(RequestError):
        assert encoder.encode(protocol, text).token_ids[0] == 0
