"""Constraints are checked before admission, by their place."""

from __future__ import annotations

import json

import pytest

from dsv4_backend.errors import ConstraintError
from dsv4_backend.records import Constraint, ConstraintKind
from dsv4_backend.text.constraint import (
    MAX_CONSTRAINT_BYTES,
    MAX_SCHEMA_DEPTH,
    check_constraint,
    check_schema,
    drop_unenforceable,
    spell_out,
)

REFUSED = [
    ({"properties": {"a": {"not": {}}}}, r"\$\.properties\.a: not"),
    ({"type": "array", "uniqueItems": True}, r"\$: uniqueItems"),
    ({"type": "array", "items": {"type": "array", "contains": {}}}, r"\$\.items: contains"),
    ({"anyOf": [{"type": "null"}, {"if": {}, "then": {}}]}, r"\$\.anyOf\[1\]: if"),
    ({"$defs": {"q": {"dependentRequired": {}}}}, r"\$\.\$defs\.q: dependentRequired"),
    ({"type": "object", "unevaluatedProperties": True}, "unevaluatedProperties"),
    ({"minimum": 3}, 'Add "type": "number"'),
    ({"type": "object", "maxLength": 3}, 'Add "type": "string"'),
    ({"type": "number", "multipleOf": 0.5}, "integers only"),
    ({"type": "string", "pattern": "a+", "maxLength": 3}, "maxLength beside pattern"),
    ({"type": "string", "pattern": "a(?=b)"}, "group in pattern"),
    ({"type": "string", "pattern": "(?i)a"}, "group in pattern"),
    ({"$ref": "#/$defs/a", "minimum": 3}, r"minimum beside \$ref"),
    ({"type": "object", "anyOf": [{}, {}]}, "type beside anyOf"),
    ({"allOf": [{"type": "integer"}, {"minimum": 1}]}, "allOf has 2 branches"),
    ({"$ref": "http://elsewhere/schema"}, "must point into this schema"),
    ({"$ref": "#name"}, "must point into this schema"),
    ({"properties": 5}, "must be an object of schemas"),
    ({"anyOf": {}}, "must be a list of schemas"),
    ({"items": 5}, r"5 at \$\.items"),
    (5, r"5 at \$"),
]
ACCEPTED = [
    True,
    {},
    {"type": "object", "properties": {"not": {"type": "string"}, "if": {"type": "integer"}}},
    {"type": "array", "uniqueItems": False, "items": {"type": "integer"}, "minItems": 2},
    {"type": "string", "enum": ["a", "b"], "description": "a choice", "default": "a"},
    {"anyOf": [{"type": "string", "minLength": 3}, {"type": "null"}], "title": "x", "default": None},
    {"type": ["integer", "null"], "minimum": 2, "multipleOf": 2},
    {"$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "$ref": "#/$defs/node"},
    {"allOf": [{"type": "integer"}], "description": "wrapped"},
    {"type": "string", "pattern": r"(?:a|\(?)+"},
    {"type": "string", "format": "date-time"},
    {"type": {"wrong": "form"}},
    {"type": [{"wrong": "form"}, "array"]},
]


@pytest.mark.parametrize(("schema", "problem"), REFUSED)
def test_what_would_be_ignored_is_refused_by_its_place(schema: object, problem: str) -> None:
    with pytest.raises(ConstraintError, match=problem):
        check_schema(schema)


@pytest.mark.parametrize("schema", ACCEPTED)
def test_what_is_enforced_is_accepted(schema: object) -> None:
    check_schema(schema)


@pytest.mark.parametrize("schema", [case[0] for case in REFUSED if isinstance(case[0], dict)][:17])
def test_what_is_left_after_dropping_is_accepted(schema: object) -> None:
    check_schema(drop_unenforceable(schema))


def test_dropping_keeps_what_is_enforced() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "not": {}}
    assert drop_unenforceable(schema) == {"type": "object", "properties": {"a": {"type": "array"}}}


def test_open_arrays_are_spelled_out_everywhere() -> None:
    schema = {"anyOf": [{"type": "array"}, {"type": ["array", "null"]}], "$defs": {"q": {"type": "array", "items": {}}}}
    spelled = {"anyOf": [{"type": "array", "items": True}, {"type": ["array", "null"], "items": True}]}
    assert spell_out(schema) == {**spelled, "$defs": schema["$defs"]}


def test_schemas_inside_a_structural_tag_are_checked() -> None:
    inner = {"type": "json_schema", "json_schema": {"properties": {"a": {"not": {}}}}}
    tag = {"format": {"type": "sequence", "elements": [{"type": "any_text"}, inner]}}
    with pytest.raises(ConstraintError, match=r"\$\.format\.elements\[1\]\.json_schema\.properties\.a: not"):
        check_constraint(Constraint(kind=ConstraintKind.STRUCTURAL_TAG, value=json.dumps(tag)))


@pytest.mark.parametrize("value", ["[]", "{}", '{"format": 5}'])
def test_a_structural_tag_needs_a_format(value: str) -> None:
    with pytest.raises(ConstraintError, match="format"):
        check_constraint(Constraint(kind=ConstraintKind.STRUCTURAL_TAG, value=value))


def test_broken_json_is_refused_with_its_place() -> None:
    with pytest.raises(ConstraintError, match="character 9"):
        check_constraint(Constraint(kind=ConstraintKind.JSON_SCHEMA, value='{"type": '))


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, object] = {}
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        schema = {"items": schema}
    with pytest.raises(ConstraintError, match="deeper"):
        check_schema(schema)


@pytest.mark.parametrize("value", ['{"items":' * 100_000, "x" * (MAX_CONSTRAINT_BYTES + 1), ""])
def test_a_monstrous_or_empty_value_is_refused(value: str) -> None:
    with pytest.raises(ConstraintError):
        check_constraint(Constraint(kind=ConstraintKind.JSON_SCHEMA, value=value))


def test_a_json_object_needs_no_value() -> None:
    check_constraint(Constraint(kind=ConstraintKind.JSON_OBJECT))
