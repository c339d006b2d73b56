"""dsv4_tokenizer and dsv4_detokenizer without Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_rig import DTYPES

from dsv4_backend.errors import RequestError
from dsv4_backend.records import Limits, Prompt, SamplingParams
from dsv4_backend.server.detokenizer import make_text
from dsv4_backend.server.prepared import STOP, load_prompt
from dsv4_backend.server.tokenizer import PromptMaker
from dsv4_backend.text import TextEncoder, Vocabulary


class FakeChat:
    """Remembers the body; answers with a prompt of its own."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def encode(self, protocol: str, body: str) -> Prompt:
        self.seen.append((protocol, body))
        return Prompt(token_ids=(9,), sampling=SamplingParams(temperature=0.25, top_p=0.5), stream=False)


@pytest.fixture
def chat() -> FakeChat:
    return FakeChat()


@pytest.fixture
def maker(tokenizer_path: Path, vocabulary: Vocabulary, chat: FakeChat) -> PromptMaker:
    return PromptMaker(TextEncoder(tokenizer_path), chat, vocab_size=vocabulary.size)


def tensors_of(**values: Any) -> dict[str, Any]:
    return {
        name: np.array([value.encode() if isinstance(value, str) else value], DTYPES[name].numpy)
        for name, value in values.items()
    }


def make(maker: PromptMaker, **values: Any) -> Prompt | None:
    arrays = maker.make(tensors_of(**values))
    return load_prompt(arrays["prepared"][0].decode(), tuple(arrays["input_ids"].tolist()))


def test_text_becomes_ids_with_the_options_beside_them(maker: PromptMaker, tokenizer_path: Path) -> None:
    prompt = make(maker, text_input="hallo", max_tokens=3)
    assert prompt == Prompt(token_ids=TextEncoder(tokenizer_path).encode("hallo"), limits=Limits(max_tokens=3))


def test_a_body_goes_to_the_chat_encoder_and_tensors_win_over_it(maker: PromptMaker, chat: FakeChat) -> None:
    prompt = make(maker, request='{"messages": []}', protocol="messages", temperature=0.75)
    assert chat.seen == [("messages", '{"messages": []}')]
    assert prompt and prompt.token_ids == (9,) and not prompt.stream
    assert (prompt.sampling.temperature, prompt.sampling.top_p) == (0.75, 0.5)


def test_a_body_without_protocol_is_chat(maker: PromptMaker, chat: FakeChat) -> None:
    make(maker, request="{}")
    assert chat.seen[0][0] == "chat"


def test_stop_needs_no_prompt(maker: PromptMaker) -> None:
    assert maker.make(tensors_of(stop=True))["prepared"][0].decode() == STOP


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "there is no prompt"),
        ({"max_tokens": 3}, "there is no prompt"),
        ({"text_input": ""}, "text_input is empty"),
        ({"text_input": "a", "request": "{}"}, "text_input and request"),
        ({"text_input": "a", "protocol": "chat"}, "request is missing"),
        ({"text_input": b"\xff"}, "text_input is not valid UTF-8"),
        ({"text_input": "a", "top_p": 3.0}, "top_p is 3"),
    ],
)
def test_a_request_that_is_no_request_is_refused(maker: PromptMaker, values: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        make(maker, **values)


@given(text=st.text(max_size=40))
def test_text_of_ids_is_the_text_that_they_came_from(tokenizer_path: Path, vocabulary: Vocabulary, text: str) -> None:
    ids = TextEncoder(tokenizer_path).encode_bare(text.encode("utf-8", "replace").decode())
    size = sum(len(vocabulary.token_bytes(token)) for token in ids)
    arrays = {
        "text_ids": np.array(ids, np.int32),
        "skip_bytes": np.array([0], np.int32),
        "keep_bytes": np.array([size], np.int32),
    }
    assert make_text(vocabulary, arrays)["text_output"][0].decode() == text.encode("utf-8", "replace").decode()


def test_byte_ranges_that_no_runtime_sends_are_refused(vocabulary: Vocabulary) -> None:
    arrays = {
        name: np.array([value], np.int32) for name, value in zip(("skip_bytes", "keep_bytes"), (3, 1), strict=True)
    }
    with pytest.raises(RequestError, match="skip_bytes is 3"):
        make_text(vocabulary, arrays | {"text_ids": np.array([5], np.int32)})
