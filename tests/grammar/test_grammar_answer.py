"""Reasoning is free, the answer is not, and both can be taken back."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from dsv4_kernels.sampling import num_words, pack_bits, unpack_bits

from dsv4_backend.errors import ConstraintError
from dsv4_backend.grammar import AnswerMatcher, GrammarCompiler, GrammarMatcher
from dsv4_backend.records import Constraint, ConstraintKind
from dsv4_backend.text import TextEncoder, Vocabulary

DIGIT = Constraint(kind=ConstraintKind.REGEX, value="[0-9]+")


@pytest.fixture(scope="module")
def vocabulary(tokenizer_path: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_path)


@pytest.fixture(scope="module")
def ids(tokenizer_path: Path) -> TextEncoder:
    return TextEncoder(tokenizer_path)


@pytest.fixture
def thinking(vocabulary: Vocabulary, ids: TextEncoder) -> AnswerMatcher:
    compiler = GrammarCompiler(vocabulary, vocabulary.size, [1])
    return compiler.answer_matcher(DIGIT, ids.encode_bare("hi<think>"))


def _accept(matcher: AnswerMatcher, tokens: tuple[int, ...]) -> None:
    for token in tokens:
        matcher.accept(token)


def _allowed(matcher: AnswerMatcher, vocab_size: int) -> torch.Tensor:
    words = torch.zeros(2, num_words(vocab_size), dtype=torch.int32)
    matcher.fill(words, 1)
    assert not words[0].any()
    return unpack_bits(words[1], vocab_size)


def test_the_end_cannot_come_while_thinking(thinking: AnswerMatcher, vocabulary: Vocabulary) -> None:
    allowed = _allowed(thinking, vocabulary.size)
    assert not allowed[1] and allowed.sum() == vocabulary.size - 1


def test_the_grammar_begins_after_thinking(thinking: AnswerMatcher, ids: TextEncoder) -> None:
    _accept(thinking, ids.encode_bare("words</think>"))
    with pytest.raises(ConstraintError):
        _accept(thinking, ids.encode_bare("x"))


@pytest.mark.parametrize(("prompt", "needs"), [("hi<think>", False), ("hi</think>", True)])
def test_a_grammar_that_is_not_there_is_waited_for_outside_thinking_only(
    vocabulary: Vocabulary, ids: TextEncoder, prompt: str, needs: bool
) -> None:
    compiling: Future[GrammarMatcher] = Future()
    free = torch.full((num_words(vocabulary.size),), -1, dtype=torch.int32)
    matcher = AnswerMatcher(compiling, free, vocabulary, ids.encode_bare(prompt))
    assert matcher.is_compiling is needs
    if not needs:
        _accept(matcher, ids.encode_bare("w</think>"))
        assert matcher.is_compiling
    compiling.set_exception(ConstraintError("broken"))
    assert not matcher.is_compiling


def test_a_rollback_over_the_end_of_thinking_opens_it_again(thinking: AnswerMatcher, ids: TextEncoder) -> None:
    _accept(thinking, ids.encode_bare("w</think>"))
    _accept(thinking, ids.encode_bare("4"))
    thinking.rollback(2)
    _accept(thinking, ids.encode_bare("still words</think>"))
    _accept(thinking, ids.encode_bare("7"))
    assert thinking.is_completed


def test_a_closed_prompt_leaves_nothing_free(vocabulary: Vocabulary, ids: TextEncoder) -> None:
    compiler = GrammarCompiler(vocabulary, vocabulary.size, [1])
    matcher = compiler.answer_matcher(DIGIT, ids.encode_bare("<think>a</think>"))
    with pytest.raises(ConstraintError):
        _accept(matcher, ids.encode_bare("a"))


def test_reasoning_does_not_wait_for_the_grammar(vocabulary: Vocabulary, ids: TextEncoder) -> None:
    compiling: Future[GrammarMatcher] = Future()
    free = pack_bits(torch.ones(vocabulary.size, dtype=torch.bool))
    matcher = AnswerMatcher(compiling, free, vocabulary, ids.encode_bare("<think>"))
    assert _allowed(matcher, vocabulary.size).all()
    _accept(matcher, ids.encode_bare("words"))
    compiling.set_result(GrammarCompiler(vocabulary, vocabulary.size, [1]).matcher(DIGIT))
    _accept(matcher, ids.encode_bare("</think>7"))
    assert matcher.is_completed


@pytest.mark.parametrize("prompt", ["<think>", "<think>a</think>"])
def test_a_grammar_that_cannot_be_compiled_is_told_by_accept(
    vocabulary: Vocabulary, ids: TextEncoder, prompt: str
) -> None:
    compiler = GrammarCompiler(vocabulary, vocabulary.size, [1])
    matcher = compiler.answer_matcher(Constraint(kind=ConstraintKind.REGEX, value="(["), ids.encode_bare(prompt))
    assert _allowed(matcher, vocabulary.size).any()
    with pytest.raises(ConstraintError, match="cannot be compiled"):
        _accept(matcher, ids.encode_bare("words</think>a"))
