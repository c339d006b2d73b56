"""Options and prompts as tensors."""

from __future__ import annotations

import json

import pytest
from dsv4_client.options import Options
from dsv4_client.wire import PromptLike, build_request
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from dsv4_backend.errors import RequestError
from dsv4_backend.records import Constraint, ConstraintKind


def tensors(prompt: PromptLike, options: Options | None = None) -> dict[str, tuple[str, list[object]]]:
    """Build a request and return datatype and values by input."""
    message = build_request("dsv4", "r1", prompt, "chat", options or {})
    parsed = service_pb2.ModelInferRequest.FromString(message.SerializeToString())
    return {item.name: (item.datatype, [value for _, values in item.contents.ListFields() for value in values])
            for item in parsed.inputs}  # fmt: skip


def test_text_becomes_text_input_and_is_streamed_by_default() -> None:
    assert tensors("hé") == {"text_input": ("BYTES", ["hé".encode()]), "stream": ("BOOL", [True])}


def test_chat_body_becomes_request_and_protocol() -> None:
    found = tensors({"messages": [{"role": "user", "content": "é"}]})
    assert json.loads(found["request"][1][0]) == {"messages": [{"role": "user", "content": "é"}]}  # type: ignore[arg-type]
    assert found["protocol"] == ("BYTES", [b"chat"])


def test_token_ids_become_input_ids() -> None:
    assert tensors([1, 2, 3])["input_ids"] == ("INT32", [1, 2, 3])


def test_options_take_the_types_of_the_contract() -> None:
    options: Options = {
        "max_tokens": 5, "temperature": 1, "seed": 2**40, "ignore_eos": True, "stop_words": ["a", "b"],
        "logit_bias": {7: -1.5}, "constraint": Constraint(kind=ConstraintKind.REGEX, value="a+"), "cache_salt": "s",
    }  # fmt: skip
    found = tensors("x", options)
    assert found["max_tokens"] == ("INT32", [5])
    assert found["temperature"] == ("FP32", [1.0])
    assert found["seed"] == ("INT64", [2**40])
    assert found["ignore_eos"] == ("BOOL", [True])
    assert found["stop_words"] == ("BYTES", [b"a", b"b"])
    assert found["logit_bias"] == ("BYTES", [b'{"7": -1.5}'])
    assert found["constraint"] == ("BYTES", [b'{"kind": "regex", "value": "a+"}'])
    assert found["cache_salt"] == ("BYTES", [b"s"])


def test_one_stop_word_needs_no_list() -> None:
    assert tensors("x", {"stop_words": "end"})["stop_words"] == ("BYTES", [b"end"])


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"unknown option 'max_token'\. Did you mean max_tokens?"):
        tensors("x", {"max_token": 5})  # type: ignore[typeddict-unknown-key]


def test_value_of_the_wrong_type_is_refused_with_the_type() -> None:
    with pytest.raises(RequestError, match="max_tokens is 'many' but must be of type int"):
        tensors("x", {"max_tokens": "many"})  # type: ignore[typeddict-item]


def test_true_is_no_number() -> None:
    with pytest.raises(RequestError, match="max_tokens is True"):
        tensors("x", {"max_tokens": True})


@given(value=st.integers(min_value=2**31) | st.integers(max_value=-(2**31) - 1))
def test_number_beyond_its_type_is_refused(value: int) -> None:
    with pytest.raises(RequestError, match="must fit INT32"):
        tensors("x", {"top_k": value})


@given(text=st.text())
def test_any_text_survives_the_wire(text: str) -> None:
    assert tensors(text)["text_input"] == ("BYTES", [text.encode("utf-8")])
