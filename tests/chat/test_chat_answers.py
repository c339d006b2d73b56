"""Answers that must have a form: the constraint admits the official text, after free reasoning where there is any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv4_backend.chat import ChatEncoder
from dsv4_backend.errors import ConstraintError, RequestError
from dsv4_backend.grammar import GrammarCompiler
from dsv4_backend.records import Constraint, ConstraintKind, Prompt
from dsv4_backend.text import TextEncoder, Vocabulary

WHOLE = {"type": "integer"}
SCHEMA = {
    "type": "object",
    "properties": {"sku": {"type": "string"}, "sites": {"type": "array", "items": WHOLE}},
    "required": ["sku"],
}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Give me json"}]}
OFF = {"thinking": {"type": "disabled"}}
TOOLS = {"tools": [tool("stock"), tool("price")]}
CALL = (
    '<｜DSML｜invoke name="stock">\n'
    '<｜DSML｜parameter name="sku" string="true">AX-9 < "b"</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="sites" string="false">[3, 7]</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
)
OPEN, CLOSE = "\n\n<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>"
REQUIRED = {"tool_choice": "required"}
NAMED = {"tool_choice": {"type": "function", "function": {"name": "stock"}}}


@pytest.fixture(scope="module")
def encoder(tokenizer_path: Path) -> ChatEncoder:
    return ChatEncoder(tokenizer_path)


@pytest.fixture(scope="module")
def plain(tokenizer_path: Path) -> TextEncoder:
    return TextEncoder(tokenizer_path)


@pytest.fixture(scope="module")
def compiler(tokenizer_path: Path) -> GrammarCompiler:
    return GrammarCompiler(Vocabulary.load(tokenizer_path), 1024, [1])


def asked(encoder: ChatEncoder, *parts: dict[str, Any], protocol: str = "chat") -> Prompt:
    body = {key: value for part in (HELLO, *parts) for key, value in part.items()}
    return encoder.encode(protocol, json.dumps(body))


def constraint_of(encoder: ChatEncoder, *parts: dict[str, Any], protocol: str = "chat") -> Constraint | None:
    return asked(encoder, *parts, protocol=protocol).constraint


@pytest.fixture
def admits(compiler: GrammarCompiler, plain: TextEncoder) -> Any:
    """Whether the text is a whole answer."""

    def check(prompt: Prompt, text: str) -> bool:
        assert prompt.constraint is not None
        matcher = compiler.answer_matcher(prompt.constraint, prompt.token_ids)
        try:
            for token_id in plain.encode_bare(text):
                matcher.accept(token_id)
        except ConstraintError:
            return False
        return matcher.is_completed

    return check


def test_free_answers_are_not_constrained(encoder: ChatEncoder) -> None:
    assert constraint_of(encoder) is None
    assert constraint_of(encoder, TOOLS, {"tool_choice": "none"}) is None


def test_a_call_that_nobody_forced_still_follows_its_schema(encoder: ChatEncoder, admits: Any) -> None:
    found = asked(encoder, TOOLS)
    assert admits(found, "hm</think>only words")
    assert admits(found, f"hm</think>checking{OPEN}{CALL}{CLOSE}")
    assert not admits(found, f"hm</think>checking{OPEN}{CALL.replace('7', 'x')}{CLOSE}")


def test_json_object_asks_for_an_object(encoder: ChatEncoder) -> None:
    found = constraint_of(encoder, OFF, {"response_format": {"type": "json_object"}})
    assert found == Constraint(kind=ConstraintKind.JSON_OBJECT)


FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}


def test_a_schema_is_enforced_without_thinking(encoder: ChatEncoder, admits: Any) -> None:
    found = asked(encoder, OFF, FORMAT)
    assert admits(found, '{"sku": "a", "sites": [1, 2]}')
    assert not admits(found, '{"sites": []}')


@pytest.mark.parametrize("form", [FORMAT, {"response_format": {"type": "json_object"}}], ids=["schema", "object"])
def test_json_is_enforced_after_free_reasoning(encoder: ChatEncoder, admits: Any, form: dict[str, Any]) -> None:
    found = asked(encoder, form)
    assert admits(found, 'Let me think. {"no": 1}</think>{"sku": "a"}')
    assert not admits(found, "Let me think.</think>words")
    assert not admits(found, '{"sku": "a"}')


def test_a_pattern_is_enforced_after_free_reasoning(encoder: ChatEncoder, admits: Any) -> None:
    found = asked(encoder, {"response_format": {"type": "regex", "regex": "[ab]+"}})
    assert admits(found, "hm</think>abba")
    assert not admits(found, "hm</think>c")


@pytest.mark.parametrize("choice", [REQUIRED, NAMED], ids=["required", "named"])
def test_a_forced_call_goes_on_where_the_prompt_opened_it(
    encoder: ChatEncoder, admits: Any, choice: dict[str, Any]
) -> None:
    found = asked(encoder, OFF, TOOLS, choice)
    assert admits(found, CALL + CLOSE)
    assert not admits(found, "no, thanks")


@pytest.mark.parametrize("choice", [REQUIRED, NAMED], ids=["required", "named"])
def test_a_forced_call_is_possible_while_thinking(encoder: ChatEncoder, admits: Any, choice: dict[str, Any]) -> None:
    found = asked(encoder, TOOLS, choice)
    assert admits(found, f"I need the stock.</think>{OPEN}{CALL}{CLOSE}")
    assert not admits(found, "I need nothing.</think>Hello")


def test_a_named_call_admits_no_other_tool(encoder: ChatEncoder, admits: Any) -> None:
    other = CALL.replace("stock", "price")
    assert not admits(asked(encoder, OFF, TOOLS, NAMED), other + CLOSE)
    assert admits(asked(encoder, OFF, TOOLS, REQUIRED), other + CLOSE)


def test_parallel_calls_can_be_switched_off(encoder: ChatEncoder, admits: Any) -> None:
    twice = CALL + CALL + CLOSE
    assert admits(asked(encoder, OFF, TOOLS, REQUIRED), twice)
    assert not admits(asked(encoder, OFF, TOOLS, REQUIRED, {"parallel_tool_calls": False}), twice)


def test_any_in_messages_forces_a_call(encoder: ChatEncoder, admits: Any) -> None:
    tools = {"tools": [{"name": "stock", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}, "max_tokens": 5}
    found = asked(encoder, OFF, tools, protocol="messages")
    assert admits(found, OPEN + CALL + CLOSE)
    assert not admits(found, "words")


WHOLE_SCHEMA = {**SCHEMA, "required": ["sku", "sites"]}  # the converter wants every property of a strict tool
STRICT = {"tools": [tool("stock", strict=True, parameters=WHOLE_SCHEMA)]}


@pytest.mark.parametrize(
    "form", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}]
)
def test_a_form_beside_tools_binds_the_answer_to_a_call_or_json(
    encoder: ChatEncoder, admits: Any, form: dict[str, Any]
) -> None:
    found = asked(encoder, TOOLS, OFF, {"response_format": form})
    assert admits(found, OPEN + CALL + CLOSE)
    assert admits(found, '{"sku": "a"}')
    assert not admits(found, "Hello")
    assert not admits(found, '["sku"]')


def test_strict_tools_bind_calls_but_not_text(encoder: ChatEncoder, admits: Any) -> None:
    found = asked(encoder, OFF, STRICT)
    both = CALL.replace('"b"', "b")
    assert admits(found, "only words")
    assert admits(found, f"checking{OPEN}{both}{CLOSE}")
    assert not admits(found, f"checking{OPEN}{CALL.replace('stock', 'other')}{CLOSE}")
    assert not admits(found, f"checking{OPEN}{CALL.replace('sku', 'skew')}{CLOSE}")


UNIQUE = {"type": "object", "properties": {"a": {"type": "array", "items": WHOLE, "uniqueItems": True}}}


def test_a_strict_tool_that_cannot_be_enforced_is_refused_by_its_place(encoder: ChatEncoder) -> None:
    with pytest.raises(ConstraintError, match=r"tools\[0\]\.parameters\.properties\.a: uniqueItems"):
        constraint_of(encoder, OFF, {"tools": [tool("stock", strict=True, parameters=UNIQUE)]})


SHORT = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 2}}, "required": ["a"],
         "additionalProperties": False}  # fmt: skip
FORMS: list[tuple[str, dict[str, Any]]] = [
    (
        "chat",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SHORT, "strict": True}}},
    ),
    ("responses", {"text": {"format": {"type": "json_schema", "name": "x", "schema": SHORT, "strict": True}}}),
    ("messages", {"output_config": {"format": {"type": "json_schema", "schema": SHORT}}}),
    ("messages", {"output_format": {"type": "json_schema", "schema": SHORT}}),
]


@pytest.mark.parametrize(("protocol", "form"), FORMS, ids=["chat", "responses", "messages", "messages-beta"])
def test_a_strict_schema_keeps_every_keyword(
    encoder: ChatEncoder, admits: Any, protocol: str, form: dict[str, Any]
) -> None:
    found = asked(encoder, {"input": "json", "max_tokens": 9}, form, protocol=protocol)
    assert admits(found, 'hm</think>{"a": "xy"}')
    assert not admits(found, 'hm</think>{"a": "xyz"}')


def test_a_strict_tool_keeps_every_keyword(encoder: ChatEncoder, admits: Any) -> None:
    found = asked(encoder, OFF, {"tools": [tool("stock", strict=True, parameters=SHORT)]}, REQUIRED)
    call = '<｜DSML｜invoke name="stock">\n<｜DSML｜parameter name="a" string="true">{}</｜DSML｜parameter>\n'
    assert admits(found, f"{call.format('xy')}</｜DSML｜invoke>\n{CLOSE}")
    assert not admits(found, f"{call.format('xyz')}</｜DSML｜invoke>\n{CLOSE}")


def test_a_loose_tool_is_enforced_as_far_as_possible(encoder: ChatEncoder, admits: Any) -> None:
    found = asked(encoder, OFF, {"tools": [tool("stock", parameters=UNIQUE)]}, REQUIRED)
    call = (
        CALL.split("<｜DSML｜parameter", maxsplit=1)[0]
        + '<｜DSML｜parameter name="a" string="false">[1, 1]</｜DSML｜parameter>\n'
    )
    assert admits(found, f"{call}</｜DSML｜invoke>\n{CLOSE}")


def test_a_schema_that_cannot_be_enforced_is_refused_by_its_place(encoder: ChatEncoder) -> None:
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": UNIQUE}}}
    with pytest.raises(ConstraintError, match=r"\$\.properties\.a: uniqueItems"):
        constraint_of(encoder, OFF, form)


@pytest.mark.parametrize("thinking", [{}, OFF], ids=["thinking", "plain"])
def test_a_choice_of_an_unknown_tool_is_refused(encoder: ChatEncoder, thinking: dict[str, Any]) -> None:
    choice = {"tool_choice": {"type": "function", "function": {"name": "nothing"}}}
    with pytest.raises(RequestError):
        constraint_of(encoder, thinking, TOOLS, choice)


def test_a_forced_call_without_tools_is_refused(encoder: ChatEncoder) -> None:
    with pytest.raises(RequestError, match="tool"):
        constraint_of(encoder, REQUIRED)
