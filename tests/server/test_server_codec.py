"""Tensors ↔ records: what a client may send, and what each mistake is answered with."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_rig import make_chunk

from dsv4_backend.errors import RequestError
from dsv4_backend.records import ConstraintKind, FinishReason, Prompt, TokenLogprob
from dsv4_backend.server.codec import (
    apply_options,
    check_prompt,
    decode_inputs,
    encode_chunk,
    merge_chunks,
    text_array,
)
from dsv4_backend.server.wire import CLIENT_INPUTS, OPTIONS, RUNTIME_INPUTS, Dtype

VOCAB = 100
NUMBERS = [item for item in OPTIONS if item.bounds]


def array_of(name: str, value: Any) -> np.ndarray[Any, Any]:
    (item,) = [item for item in (*CLIENT_INPUTS, *RUNTIME_INPUTS[:2]) if item.name == name]
    values = value if isinstance(value, list) else [value]
    return np.array([v.encode() if isinstance(v, str) else v for v in values], item.dtype.numpy)


def prompt_of(**values: Any) -> Prompt:
    tensors = {name: array_of(name, value) for name, value in values.items()}
    prompt = apply_options(Prompt(token_ids=(5,)), decode_inputs(tensors, OPTIONS))
    check_prompt(prompt, VOCAB)
    return prompt


def test_no_option_leaves_the_prompt_as_it_is() -> None:
    assert prompt_of() == Prompt(token_ids=(5,))


def test_options_land_where_the_table_says() -> None:
    prompt = prompt_of(max_tokens=7, top_k=3, seed=2**40, priority=-4, ignore_eos=True, stream=False, cache_salt="u")
    assert (prompt.limits.max_tokens, prompt.sampling.top_k, prompt.sampling.seed) == (7, 3, 2**40)
    assert (prompt.priority, prompt.limits.ignore_eos, prompt.stream, prompt.cache_salt) == (-4, True, False, "u")


def test_stop_words_become_bytes() -> None:
    assert prompt_of(stop_words=["ende", "停"]).limits.stop == (b"ende", "停".encode())


def test_logit_bias_is_read_from_json() -> None:
    assert prompt_of(logit_bias='{"7": -1.5, "99": 2}').sampling.logit_bias == ((7, -1.5), (99, 2.0))


def test_constraint_takes_a_schema_as_object_or_as_text() -> None:
    schema = {"type": "object"}
    as_object = prompt_of(constraint=json.dumps({"kind": "json_schema", "value": schema})).constraint
    as_text = prompt_of(constraint=json.dumps({"kind": "json_schema", "value": json.dumps(schema)})).constraint
    assert as_object == as_text
    assert as_object is not None and as_object.kind is ConstraintKind.JSON_SCHEMA


def test_echo_asks_for_text_and_for_prompt_logprobs_where_logprobs_are_asked_for() -> None:
    assert prompt_of(echo=True).echo and not prompt_of(echo=True).sampling.prompt_logprobs
    assert prompt_of(echo=True, logprobs=0).sampling.prompt_logprobs


def test_input_is_echoed_when_it_is_not_excluded() -> None:
    assert prompt_of(exclude_input_in_output=False).echo
    assert not prompt_of(exclude_input_in_output=True).echo


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_tokens", 0, "max_tokens is 0"),
        ("temperature", float("nan"), "temperature is nan"),
        ("temperature", float("inf"), "temperature is inf"),
        ("temperature", -0.5, "from 0 to 100"),
        ("top_p", 0.0, "above 0 to 1"),
        ("top_p", 1.5, "top_p is 1.5"),
        ("repetition_penalty", 0.0, "repetition_penalty is 0"),
        ("seed", -1, "seed is -1"),
        ("logprobs", 21, "from -1 to 20"),
        ("stop_words", [""], r"stop_words\[0\] has 0 bytes"),
        ("stop_words", ["x"] * 65, "65 entries"),
        ("stop_words", ["x" * 2000], "2000 bytes"),
        ("logit_bias", "{", "logit_bias is not JSON"),
        ("logit_bias", "[1]", "must be an object"),
        ("logit_bias", '{"x": 1}', "names token 'x'"),
        ("logit_bias", '{"1": "a"}', "must be a number"),
        ("logit_bias", '{"1": true}', "must be a number"),
        ("logit_bias", '{"1": NaN}', "from -100 to 100"),
        ("logit_bias", '{"1": 1e999}', "from -100 to 100"),
        ("logit_bias", '{"100": 1}', "ids go from 0 to 99"),
        ("logit_bias", "[" * 100_000, "logit_bias is"),
        ("constraint", "no", "constraint is not JSON"),
        ("constraint", '{"kind": "poem"}', "kind is 'poem'"),
        ("constraint", '{"kind": "regex", "size": 1}', "unknown key 'size'"),
        ("constraint", '{"kind": "regex", "value": "\\ud800"}', "surrogate"),
        ("cache_salt", "x" * 300, "300 characters"),
        ("cache_salt", b"\xff\xfe", "not valid UTF-8 at byte 0"),
        ("stop_words", [b"ok", b"\xc3"], "not valid UTF-8"),
    ],
)
def test_a_wrong_value_is_refused_by_name_value_and_limit(name: str, value: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        prompt_of(**{name: value})


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="min_tokens is 9"):
        prompt_of(min_tokens=9, max_tokens=3)


@pytest.mark.parametrize("item", [*CLIENT_INPUTS, *RUNTIME_INPUTS[:2]], ids=lambda item: item.name)
def test_every_input_refuses_another_type(item: Any) -> None:
    wrong = np.array([1.5], np.float64)
    with pytest.raises(RequestError, match=f"{item.name} has type float64"):
        decode_inputs({item.name: wrong}, [item])


@pytest.mark.parametrize("item", [item for item in CLIENT_INPUTS if not item.is_list], ids=lambda item: item.name)
def test_every_single_input_refuses_two_values(item: Any) -> None:
    wrong = np.array([b"a", b"b"] if item.dtype is Dtype.STRING else [0, 1], item.dtype.numpy)
    with pytest.raises(RequestError, match=r"has shape \[2\]"):
        decode_inputs({item.name: wrong}, [item])


@given(st.data())
def test_any_number_is_taken_inside_its_bounds_and_refused_outside(data: st.DataObject) -> None:
    item = data.draw(st.sampled_from(NUMBERS))
    assert item.bounds
    if item.dtype is Dtype.FP32:
        value: float = data.draw(st.floats(width=32))
    else:
        bits = 64 if item.dtype is Dtype.INT64 else 32
        value = data.draw(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    if item.name == "min_tokens":
        value = min(value, 0)
    if item.bounds.holds(value):
        prompt_of(**{item.name: value})
    else:
        with pytest.raises(RequestError, match=item.name):
            prompt_of(**{item.name: value})


def test_merged_chunks_say_what_each_said_in_order() -> None:
    chunks = [make_chunk(index, index=index) for index in range(9)] + [make_chunk(9, reason=FinishReason.STOP)]
    merged = merge_chunks(chunks)
    assert merged.token_ids == merged.text_ids == tuple(range(10))
    assert (merged.skip_bytes, merged.keep_bytes, merged.finish_reason) == (0, 10, FinishReason.STOP)


def test_a_chunk_becomes_one_array_per_declared_output() -> None:
    arrays = encode_chunk(make_chunk(4, 5), 3, wants_logprobs=False)
    assert arrays["token_ids"].tolist() == [4, 5]
    assert arrays["index"].tolist() == [3]
    assert arrays["finish_reason"].tolist() == [b""]
    assert all(value.size == 1 for name, value in arrays.items() if name not in ("token_ids", "text_ids"))


def test_logprobs_are_json_even_where_they_are_infinite() -> None:
    chunk = make_chunk(4)
    entry = TokenLogprob(token_id=4, logprob=float("-inf"), top=((4, -0.5), (9, float("-inf"))))
    chunk = type(chunk)(**{name: getattr(chunk, name) for name in chunk.__slots__} | {"logprobs": (entry,)})
    found = json.loads(encode_chunk(chunk, 0, wants_logprobs=True)["output_logprobs"][0])
    assert found["tokens"][0]["token_id"] == 4
    assert found["tokens"][0]["logprob"] < -1e38
    assert found["tokens"][0]["top"][0] == [4, -0.5]


def test_text_array_holds_utf8() -> None:
    assert text_array("停").tolist() == ["停".encode()]
