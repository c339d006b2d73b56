"""Check a constraint before admission, without the grammar library: syntax, size, and what it would silently ignore.

xgrammar 0.2.8 accepts many JSON Schema keywords that it does not enforce. An answer that breaks the client's schema is
worse than a refusal, so those are refused here by their place in the schema. What is stricter than the standard is kept
and documented: `pattern` must match the whole string, objects hold their declared properties in the declared order, and
`oneOf` is read as `anyOf`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from dsv4_backend.errors import ConstraintError
from dsv4_backend.records import Constraint, ConstraintKind

MAX_CONSTRAINT_BYTES = 262_144
MAX_SCHEMA_DEPTH = 64
MAX_REPEAT = 128  # xgrammar 0.2.8 fails on a pattern inside JSON that repeats something more often

# What a JSON string may hold unescaped, named by what it is: of a negated class the library lets bytes pass that are
# no text (halves of UTF-16 pairs, overlong forms), each as one character where a reader sees several.
_CHARACTER = rf"[ !#-\[\]-\ud7ff\ue000-{chr(0x10FFFF)}]"

_IGNORED = frozenset(
    "uniqueItems contains minContains maxContains not if then else dependentRequired dependentSchemas dependencies"
    " unevaluatedProperties $dynamicRef $recursiveRef additionalItems propertyDependencies".split()
)
_CHOICES = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
_NEEDS_TYPE = {
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}
_ASSERTIONS = frozenset(
    "type properties required additionalProperties patternProperties propertyNames items prefixItems"
    " unevaluatedItems".split()
) | {name for names in _NEEDS_TYPE.values() for name in names}
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "propertyNames", "unevaluatedItems")


def check_constraint(constraint: Constraint) -> None:
    """Refuse a constraint that cannot be enforced as written.

    Raises: ConstraintError naming the place and the fix. What only a compiler can find is found on the rank.
    """
    size = len(constraint.value.encode("utf-8", "surrogatepass"))
    if size > MAX_CONSTRAINT_BYTES:
        raise ConstraintError(f"the constraint has {size} bytes but at most {MAX_CONSTRAINT_BYTES} are allowed.")
    if constraint.kind is ConstraintKind.JSON_OBJECT:
        return
    if not constraint.value:
        raise ConstraintError(f"the {constraint.kind.value} constraint is empty. Give its text in `value`.")
    if constraint.kind is ConstraintKind.JSON_SCHEMA:
        check_schema(_parse(constraint))
    elif constraint.kind is ConstraintKind.STRUCTURAL_TAG:
        _check_tag(_parse(constraint))


def check_schema(schema: object, path: str = "$") -> None:
    """Refuse what the grammar library would silently ignore in a JSON Schema. Raises: ConstraintError with the path."""
    for place, found in walk_schema(schema, path):
        for problem in _problems(found):
            raise ConstraintError(f"the JSON schema cannot be enforced at {place}: {problem}")


def walk_schema(schema: object, path: str = "$") -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield each object schema inside `schema` with its JSON path, outermost first.

    Raises: ConstraintError for something that is no schema, or for nesting beyond MAX_SCHEMA_DEPTH.
    """
    pending = [(path, schema, 0)]
    while pending:
        place, found, depth = pending.pop()
        if isinstance(found, bool):
            continue
        if not isinstance(found, dict):
            raise ConstraintError(
                f"the JSON schema holds {found!r:.40} at {place} but a schema must be an object there."
            )
        if depth > MAX_SCHEMA_DEPTH:
            raise ConstraintError(f"the JSON schema is nested deeper than {MAX_SCHEMA_DEPTH} at {place}. Use $defs.")
        yield place, found
        pending.extend((f"{place}.{name}", child, depth + 1) for name, child in reversed(list(_children(found))))


def spell_out(schema: object) -> object:
    """Return the schema in words that the library reads rightly.

    Rule: `items` is written where an array leaves it open, because its absence is read as "none". A length of up to
          MAX_REPEAT becomes a pattern, whose masks are found faster; a longer one cannot be compiled as a pattern.
    """
    return map_schema(schema, _spell_out)


def _spell_out(found: dict[str, object]) -> dict[str, object]:
    if "array" in _types(found) and not {"items", "prefixItems"} & found.keys():
        found = {**found, "items": True}
    low, high = found.get("minLength", 0), found.get("maxLength")
    is_bounded = "string" in _types(found) and ("minLength" in found or high is not None)
    if is_bounded and all(each is None or (isinstance(each, int) and each <= MAX_REPEAT) for each in (low, high)):
        kept = {name: value for name, value in found.items() if name not in ("minLength", "maxLength")}
        found = {**kept, "pattern": f"^{_CHARACTER}{{{low},{'' if high is None else high}}}$"}
    return found


def drop_unenforceable(schema: object) -> object:
    """Return the schema without the keywords that `check_schema` refuses: for tools that do not ask to be strict."""

    def change(found: dict[str, object]) -> dict[str, object]:
        kept = {name: value for name, value in found.items() if name not in _IGNORED}
        return kept if not next(_problems(kept), "") else {}

    return map_schema(schema, change)


def map_schema(schema: object, change: Callable[[dict[str, object]], dict[str, object]]) -> object:
    """Return a copy of the schema with `change` applied to every object schema in it, outermost first."""
    if not isinstance(schema, dict):
        return schema
    copy = dict(change(schema))
    for name, value in copy.items():
        if name in _SCHEMA_MAPS and isinstance(value, dict):
            copy[name] = {key: map_schema(child, change) for key, child in value.items()}
        elif name in _SCHEMA_LISTS and isinstance(value, list):
            copy[name] = [map_schema(child, change) for child in value]
        elif name in _SCHEMAS:
            copy[name] = map_schema(value, change)
    return copy


def _parse(constraint: Constraint) -> object:
    try:
        return json.loads(constraint.value)
    except json.JSONDecodeError as error:
        raise ConstraintError(
            f"the {constraint.kind.value} constraint is not JSON: {error.msg} at character {error.pos}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"the {constraint.kind.value} constraint cannot be read: {error}.") from error


def _check_tag(tag: object) -> None:
    """Check the schemas inside a structural tag. The tag's own form is the compiler's to check."""
    if not isinstance(tag, dict) or not isinstance(tag.get("format"), dict):
        raise ConstraintError('a structural tag must be a JSON object with an object "format".')
    pending: list[tuple[str, object]] = [("$.format", tag["format"])]
    while pending:
        place, found = pending.pop()
        if isinstance(found, dict):
            if found.get("type") == "json_schema":
                check_schema(found.get("json_schema"), f"{place}.json_schema")
            else:
                pending.extend((f"{place}.{name}", child) for name, child in found.items())
        elif isinstance(found, list):
            pending.extend((f"{place}[{index}]", child) for index, child in enumerate(found))


def _children(schema: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the direct subschemas with the rest of their path."""
    for name in _SCHEMA_MAPS:
        members = schema.get(name, {})
        if not isinstance(members, dict):
            raise ConstraintError(f"{name} of the JSON schema is {members!r:.40} but must be an object of schemas.")
        yield from ((f"{name}.{key}", child) for key, child in members.items())
    for name in _SCHEMA_LISTS:
        branches = schema.get(name, [])
        if not isinstance(branches, list):
            raise ConstraintError(f"{name} of the JSON schema is {branches!r:.40} but must be a list of schemas.")
        yield from ((f"{name}[{index}]", child) for index, child in enumerate(branches))
    yield from ((name, schema[name]) for name in _SCHEMAS if name in schema)


def _problems(schema: Mapping[str, object]) -> Iterator[str]:
    """Yield what one object schema asks for and would not get."""
    for name in sorted(_IGNORED & schema.keys()):
        if schema[name] is not False:
            yield f"{name} is not supported. Leave it out and check the answer yourself."
    yield from _choice_problems(schema)
    yield from _type_problems(schema)
    yield from _string_problems(schema)
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        yield f"$ref is {reference!r:.60} but must point into this schema, such as '#/$defs/name'."


def _types(schema: Mapping[str, object]) -> set[str]:
    """Return the type names of one object schema. A `type` of another form is the compiler's to refuse."""
    kinds = schema.get("type")
    return {kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str)}


def _choice_problems(schema: Mapping[str, object]) -> Iterator[str]:
    """Of several assertions beside a choice, only the choice would be enforced."""
    choices = [name for name in _CHOICES if name in schema]
    if not choices:
        return
    beside = (_ASSERTIONS & schema.keys()) | set(choices[1:])
    if choices[0] in ("enum", "const"):
        beside -= {"type"}
    if beside:
        yield f"{min(beside)} beside {choices[0]} is not enforced. Move it into the branches."
    branches = schema.get("allOf")
    if isinstance(branches, list) and len(branches) > 1:
        yield f"allOf has {len(branches)} branches but only 1 is supported. Merge them into one schema."


def _type_problems(schema: Mapping[str, object]) -> Iterator[str]:
    """An assertion about one type is enforced only if the type is named."""
    if any(name in schema for name in _CHOICES):
        return
    named = _types(schema)
    for kind, names in _NEEDS_TYPE.items():
        present = [name for name in names if name in schema]
        accepted = {"number", "integer"} if kind == "number" else {kind}
        if present and not accepted & named:
            yield f'{present[0]} is enforced only beside a type. Add "type": "{kind}".'
    if "multipleOf" in schema and "number" in named:
        yield 'multipleOf is enforced for integers only. Use "type": "integer".'


def _string_problems(schema: Mapping[str, object]) -> Iterator[str]:
    rules = [name for name in ("pattern", "format") if name in schema]
    lengths = [name for name in ("minLength", "maxLength") if name in schema]
    if rules and len(rules) + len(lengths) > 1:
        yield f"{[*rules, *lengths][1]} beside {rules[0]} is not enforced. Put it into the pattern."
    pattern = schema.get("pattern", "")
    if isinstance(pattern, str) and _has_special_group(pattern):
        yield f"the group in pattern {pattern!r:.60} is ignored. Use plain (…) and (?:…) groups."


def _has_special_group(pattern: str) -> bool:
    """True for lookaround and inline flags."""
    groups = pattern.replace("\\\\", "").replace("\\(", "").split("(?")[1:]
    return any(not group.startswith((":", "<")) or group.startswith(("<=", "<!")) for group in groups)
