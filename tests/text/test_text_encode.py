"""Raw prompts, and the script that makes the small tokenizer."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from dsv4_backend.errors import RequestError
from dsv4_backend.text import TextEncoder
from tests.conftest import MAKE_TOKENIZER


@pytest.fixture(scope="module")
def encoder(tokenizer_path: Path) -> TextEncoder:
    return TextEncoder(tokenizer_path)


def test_a_raw_prompt_gets_the_begin_token(encoder: TextEncoder) -> None:
    assert encoder.encode("Hello") == (0, *encoder.encode_bare("Hello"))


def test_a_begin_token_is_not_doubled(encoder: TextEncoder) -> None:
    assert encoder.encode("<｜begin▁of▁sentence｜>Hello") == encoder.encode("Hello")


def test_an_empty_prompt_is_the_begin_token(encoder: TextEncoder) -> None:
    assert encoder.encode("") == (0,)


def test_special_spellings_in_a_raw_prompt_are_tokens(encoder: TextEncoder) -> None:
    assert encoder.encode("<｜User｜>Hi<｜Assistant｜><think>")[-2:] == (1012, 1013)


def test_lone_surrogates_are_refused_with_their_place(encoder: TextEncoder) -> None:
    with pytest.raises(RequestError, match="character 2"):
        encoder.encode("ab\ud800")


def test_the_small_tokenizer_is_the_same_each_time(tokenizer_path: Path) -> None:
    script = runpy.run_path(str(MAKE_TOKENIZER))
    text = MAKE_TOKENIZER.with_name("corpus.txt").read_text("utf-8")
    again = script["make_tokenizer"](text)
    assert script["json"].loads(tokenizer_path.read_text("utf-8")) == again


def test_a_size_below_the_alphabet_is_refused() -> None:
    script = runpy.run_path(str(MAKE_TOKENIZER))
    with pytest.raises(ValueError, match="--size is 100"):
        script["make_tokenizer"]("text", 100)
