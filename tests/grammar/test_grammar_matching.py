"""Every kind of constraint admits what it should and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.sampling import num_words, unpack_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv4_backend.chat.answer import forced_tools
from dsv4_backend.errors import ConstraintError
from dsv4_backend.grammar import GrammarCompiler, GrammarMatcher
from dsv4_backend.records import Constraint, ConstraintKind, SamplingParams, SequenceStart
from dsv4_backend.sampling import Choosing, SequenceSampling, sample
from dsv4_backend.text import TextEncoder, Vocabulary, join_bytes

OPS = bind("cpu")
EOS, VOCAB_SIZE = 1, 1056  # the head is wider than the vocabulary, as padded checkpoints are
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": "integer"}, "tags": {"type": "array"}},
    "required": ["name"],
}


@pytest.fixture(scope="module")
def vocab(tokenizer_path: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_path)


@pytest.fixture(scope="module")
def encoder(tokenizer_path: Path) -> TextEncoder:
    return TextEncoder(tokenizer_path)


@pytest.fixture(scope="module")
def compiler(vocab: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocab, VOCAB_SIZE, [EOS])


def schema_constraint(schema: object) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, value=json.dumps(schema))


def filled(matcher: GrammarMatcher) -> torch.Tensor:
    """What may come next, one bit per token. Shapes: int32 [1, W]."""
    words = torch.zeros(1, num_words(VOCAB_SIZE), dtype=torch.int32)
    matcher.fill(words, 0)
    return words


def allowed_by(matcher: GrammarMatcher) -> torch.Tensor:
    """What may come next. Shapes: bool [V]."""
    return unpack_bits(filled(matcher)[0], VOCAB_SIZE)


def replay(matcher: GrammarMatcher, token_ids: tuple[int, ...]) -> None:
    for token_id in token_ids:
        matcher.accept(token_id)


def is_accepted(matcher: GrammarMatcher, token_id: int) -> bool:
    try:
        matcher.accept(token_id)
    except ConstraintError:
        return False
    return True


def walk(matcher: GrammarMatcher, token_ids: tuple[int, ...]) -> bool:
    """Move over tokens, checking that the mask and `accept` agree on each."""
    for token_id in token_ids:
        is_allowed = bool(allowed_by(matcher)[token_id])
        assert is_accepted(matcher, token_id) == is_allowed
        if not is_allowed:
            return False
    return True


CASES = [
    (Constraint(kind=ConstraintKind.JSON_OBJECT), '{"a": [1, null]}', "[1]"),
    (schema_constraint(SCHEMA), '{"name": "x", "count": 3}', '{"count": 3}'),
    (schema_constraint(SCHEMA), '{"name": "x", "tags": [1, "y"]}', '{"name": 5}'),
    (Constraint(kind=ConstraintKind.REGEX, value=r"[a-c]+\d{2}"), "abc42", "abd42"),
    (Constraint(kind=ConstraintKind.GRAMMAR, value='root ::= "yes" | "no" "!"?'), "no!", "maybe"),
    (
        Constraint(
            kind=ConstraintKind.STRUCTURAL_TAG,
            value=json.dumps({"type": "structural_tag", "format": {"type": "const_string", "value": "<think>"}}),
        ),
        "<think>",
        "think",
    ),
]


@pytest.mark.parametrize(("constraint", "good", "bad"), CASES, ids=[case[0].kind.value for case in CASES])
def test_an_answer_is_matched_and_another_is_not(
    compiler: GrammarCompiler, encoder: TextEncoder, constraint: Constraint, good: str, bad: str
) -> None:
    matcher = compiler.matcher(constraint)
    assert walk(matcher, encoder.encode_bare(good)) and matcher.is_completed
    matcher = compiler.matcher(constraint)
    assert not (walk(matcher, encoder.encode_bare(bad)) and matcher.is_completed)


def test_the_end_is_allowed_only_when_the_answer_is_whole(compiler: GrammarCompiler, encoder: TextEncoder) -> None:
    matcher = compiler.matcher(Constraint(kind=ConstraintKind.REGEX, value="ab"))
    assert not allowed_by(matcher)[EOS]
    replay(matcher, encoder.encode_bare("ab"))
    assert allowed_by(matcher).nonzero().flatten().tolist() == [EOS]


def test_after_the_end_only_the_end_is_allowed(compiler: GrammarCompiler, encoder: TextEncoder) -> None:
    matcher = compiler.matcher(Constraint(kind=ConstraintKind.REGEX, value="ab"))
    replay(matcher, (*encoder.encode_bare("ab"), EOS, EOS))
    assert matcher.is_terminated
    assert allowed_by(matcher).nonzero().flatten().tolist() == [EOS]
    assert not is_accepted(matcher, 5)


def test_turn_tokens_are_never_allowed(compiler: GrammarCompiler, vocab: Vocabulary) -> None:
    free = json.dumps({"type": "structural_tag", "format": {"type": "any_text"}})
    allowed = allowed_by(compiler.matcher(Constraint(kind=ConstraintKind.STRUCTURAL_TAG, value=free)))
    banned = {token_id for token_id in vocab.special_ids if not allowed[token_id]}
    assert vocab.special_ids - banned == {EOS, vocab.think_open_id, vocab.think_close_id, 1015}
    assert not allowed[vocab.size :].any()


@given(cut=st.integers(0, 30), again=st.integers(0, 30))
def test_rollback_restores_the_mask(compiler: GrammarCompiler, encoder: TextEncoder, cut: int, again: int) -> None:
    token_ids = (*encoder.encode_bare('{"name": "some words", "count": 12}'), EOS, EOS)
    first, second = sorted((min(cut, len(token_ids)), min(again, len(token_ids))))
    matcher, straight = (compiler.matcher(schema_constraint(SCHEMA)) for _ in range(2))
    replay(matcher, token_ids[:second])
    replay(straight, token_ids[:first])
    matcher.rollback(second - first)
    assert torch.equal(allowed_by(matcher), allowed_by(straight))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_a_model_of_noise_writes_a_valid_object(compiler: GrammarCompiler, vocab: Vocabulary, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["kind", "size"],
    }
    matcher = compiler.matcher(schema_constraint(schema))
    start = SequenceStart(
        sequence_id=1, token_ids=(0,), num_prompt_tokens=1, sampling=SamplingParams(seed=seed), min_tokens=0
    )
    state, noise = SequenceSampling(start, VOCAB_SIZE, [EOS]), torch.Generator().manual_seed(seed)
    token_ids: list[int] = []
    while not matcher.is_terminated and len(token_ids) < 200:
        choice = sample(torch.randn(1, VOCAB_SIZE, generator=noise), [Choosing(state=state)], OPS, filled(matcher))
        matcher.accept(choice[0].token_id)
        state.append(choice[0].token_id)
        token_ids.append(choice[0].token_id)
    if matcher.is_terminated:
        answer = json.loads(join_bytes(vocab, token_ids[:-1]))
        assert answer["kind"] in ("a", "b") and 0 <= answer["size"] <= 99


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (ConstraintKind.REGEX, "a(?=b)", "Lookahead"),
        (ConstraintKind.REGEX, "[", "Unclosed"),
        (ConstraintKind.GRAMMAR, "root ::= missing", '"missing" is not defined'),
        (ConstraintKind.JSON_SCHEMA, '{"type": "banana"}', "banana"),
        (ConstraintKind.JSON_SCHEMA, '{"type": "array", "uniqueItems": true}', r"at \$: uniqueItems"),
        (ConstraintKind.JSON_SCHEMA, '{"type": "string", "pattern": "^x{200}$"}', "more than 128 times"),
        (ConstraintKind.STRUCTURAL_TAG, '{"format": {"type": "banana"}}', "banana"),
    ],
)
def test_what_cannot_be_compiled_says_why(
    compiler: GrammarCompiler, kind: ConstraintKind, value: str, reason: str
) -> None:
    with pytest.raises(ConstraintError, match=reason) as caught:
        compiler.matcher(Constraint(kind=kind, value=value))
    assert ".cc" not in str(caught.value)


@pytest.mark.parametrize("limits", [{"maxLength": 5}, {"minLength": 1}, {"minLength": 2, "maxLength": 5}])
def test_a_bounded_string_is_still_json(
    compiler: GrammarCompiler, encoder: TextEncoder, limits: dict[str, int]
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", **limits}}, "required": ["a"]}

    def admits(text: str) -> bool:
        matcher = compiler.matcher(schema_constraint(schema))
        whole = encoder.encode_bare(f'{{"a": "{text}"}}')
        return all(is_accepted(matcher, token_id) for token_id in whole) and matcher.is_completed

    assert admits("abü")
    assert [
        text
        for text in ("a\0b", "a\tb", "a\x13b", "a\nb", 'a"b', "x" * 6 if "maxLength" in limits else "")
        if admits(text)
    ] == []


@pytest.mark.parametrize("most", [3, 600])
@pytest.mark.parametrize(
    "raw", [b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf"]
)
def test_a_bounded_string_holds_only_characters(
    compiler: GrammarCompiler, vocab: Vocabulary, most: int, raw: bytes
) -> None:
    """Bytes that are no text would be shown as several characters each, and break the bound."""
    matcher = compiler.matcher(schema_constraint({"type": "string", "maxLength": most}))
    assert not walk(matcher, tuple(vocab.tokens.index(bytes([value])) for value in b'"' + raw))


@pytest.mark.parametrize("limits", [{"maxLength": 600}, {"minLength": 200}, {"minLength": 1, "maxLength": 100_000}])
def test_a_long_bounded_string_is_compiled(
    compiler: GrammarCompiler, encoder: TextEncoder, limits: dict[str, int]
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": ["string", "null"], **limits}}, "required": ["a"]}
    matcher = compiler.matcher(schema_constraint(schema))
    assert walk(matcher, encoder.encode_bare(f'{{"a": "{"word " * 50}"}}')) and matcher.is_completed
    assert not walk(compiler.matcher(schema_constraint(schema)), encoder.encode_bare('{"a": "tab\t"}'))


def test_a_bounded_string_inside_a_tools_argument_is_json(compiler: GrammarCompiler, encoder: TextEncoder) -> None:
    inner = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 600}}, "required": ["a"]}
    tools = [{"function": {"name": "f", "parameters": {"type": "object", "properties": {"x": inner}}}}]
    matcher = compiler.matcher(forced_tools(tools, is_parallel=False, is_open=True))
    begin = '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">{"a": "'
    assert walk(matcher, encoder.encode_bare(begin))
    assert walk(matcher, encoder.encode_bare("long text " * 20))
    assert not walk(matcher, encoder.encode_bare("\t"))


def test_a_constant_that_looks_like_the_librarys_class_stays(compiler: GrammarCompiler, encoder: TextEncoder) -> None:
    value = '[^"\\\r\n]'
    matcher = compiler.matcher(schema_constraint({"const": value}))
    assert walk(matcher, encoder.encode_bare(json.dumps(value))) and matcher.is_completed


@pytest.mark.parametrize("limits", [{}, {"maxLength": 6}, {"maxLength": 600}])
def test_names_of_any_letters_stay_beside_any_string(
    compiler: GrammarCompiler, encoder: TextEncoder, limits: dict[str, int]
) -> None:
    text = {"type": "string", **limits}
    schema = {"type": "object", "properties": {"Größe": text, "\\xe9": {"const": "\xdf1\0001\\u00"}}}
    answer = json.dumps({"Größe": "ü", "\\xe9": "\xdf1\0001\\u00"}, ensure_ascii=False)
    matcher = compiler.matcher(schema_constraint({**schema, "required": ["Größe", "\\xe9"]}))
    assert walk(matcher, encoder.encode_bare(answer)) and matcher.is_completed
