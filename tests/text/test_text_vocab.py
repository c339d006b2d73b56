"""Token bytes against the tokenizers library's own decode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dsv4_backend.errors import ConfigError
from dsv4_backend.text import Vocabulary, complete_length, decode_chunk, join_bytes
from dsv4_backend.text.vocab import parse_vocabulary

ids = st.lists(st.integers(0, 1100), max_size=40)


@pytest.fixture(scope="module")
def vocab(tokenizer_path: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_path)


@pytest.fixture(scope="module")
def library(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_path))


@given(token_ids=ids)
def test_joined_bytes_decode_as_the_library_does(vocab: Vocabulary, library: Tokenizer, token_ids: list[int]) -> None:
    text = join_bytes(vocab, token_ids).decode("utf-8", "replace")
    assert text == library.decode(token_ids, skip_special_tokens=False)


@given(text=st.text())
def test_text_comes_back_from_its_ids(vocab: Vocabulary, library: Tokenizer, text: str) -> None:
    token_ids = library.encode(text).ids
    assert decode_chunk(vocab, token_ids, 0, len(text.encode())) == text


@given(token_ids=ids)
def test_pieces_cut_at_complete_lengths_join_to_the_whole(vocab: Vocabulary, token_ids: list[int]) -> None:
    pieces, held = [], b""
    for token_id in token_ids:
        held += vocab.token_bytes(token_id)
        cut = complete_length(held)
        pieces.append(held[:cut].decode("utf-8", "replace"))
        held = held[cut:]
    pieces.append(held.decode("utf-8", "replace"))
    assert "".join(pieces) == join_bytes(vocab, token_ids).decode("utf-8", "replace")


def test_every_byte_has_a_token(vocab: Vocabulary) -> None:
    assert {bytes([byte]) for byte in range(256)} <= set(vocab.tokens)


def test_special_tokens_have_their_places(vocab: Vocabulary) -> None:
    assert (vocab.bos_id, vocab.eos_id, vocab.token_bytes(2)) == (0, 1, "<｜▁pad▁｜>".encode())
    assert (vocab.think_open_id, vocab.think_close_id) == (1013, 1014)


def test_special_tokens_are_their_own_text(vocab: Vocabulary) -> None:
    assert vocab.tokens[1011] == "<｜User｜>".encode()


def test_a_folder_may_be_named_instead_of_the_file(vocab: Vocabulary, tokenizer_path: Path) -> None:
    assert Vocabulary.load(tokenizer_path.parent) == vocab


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Vocabulary.load(tmp_path / "tokenizer.json")


def test_broken_json_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="line 1"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize("content", [[], {}, {"model": {"type": "Unigram", "vocab": {}}}, {"model": {"vocab": []}}])
def test_other_tokenizers_are_refused(content: object) -> None:
    with pytest.raises(ConfigError):
        parse_vocabulary(content)


def test_a_gap_in_the_ids_is_empty(tokenizer_path: Path) -> None:
    content = json.loads(tokenizer_path.read_text("utf-8"))
    content["added_tokens"][-1]["id"] = 2000
    assert parse_vocabulary(content).token_bytes(1999) == b""
