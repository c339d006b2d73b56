"""The tensor `prepared`: what the tokenizer tells the runtime beside the ids, as JSON.

    {"stop": true}                     end the running request of this id
    {"prompt": {"sampling": {…}, …}}   records.Prompt without its token ids

Both sides are ours, but a client can address the runtime directly, so reading is strict.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from dsv4_backend.errors import RequestError
from dsv4_backend.records import Prompt
from dsv4_backend.server.codec import read_json

STOP = '{"stop":true}'


def dump_prompt(prompt: Prompt) -> str:
    """Return the JSON of a prompt without its ids."""
    values = asdict(prompt)
    del values["token_ids"]
    return json.dumps({"prompt": values}, default=_plain, separators=(",", ":"))


def load_prompt(text: str, token_ids: tuple[int, ...]) -> Prompt | None:
    """Return the prompt, or None where the tokenizer saw `stop`. Raises: RequestError."""
    table = read_json("prepared", text)
    if table == {"stop": True}:
        return None
    values = table.get("prompt") if isinstance(table, dict) else None
    if not isinstance(values, dict):
        raise RequestError('prepared is written by dsv4_tokenizer and holds "prompt" or "stop". Leave it out.')
    return cast(Prompt, _read(Prompt, values | {"token_ids": list(token_ids)}, "prepared"))


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    raise TypeError(f"{value!r} has no JSON form")


def _read(kind: Any, value: object, name: str) -> object:
    """Build a value of the annotated type from JSON."""
    if isinstance(kind, UnionType):
        inner = next(item for item in get_args(kind) if item is not type(None))
        return None if value is None else _read(inner, value, name)
    if get_origin(kind) is tuple:
        return _read_tuple(get_args(kind), value, name)
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_record(kind, value, name)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _read_enum(kind, value, name)
    if kind is bytes and isinstance(value, str):
        return value.encode("utf-8")
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is kind:
        return value
    raise RequestError(f"{name} is {reprlib.repr(value)} but must be a {kind.__name__}.")


def _read_tuple(kinds: tuple[Any, ...], value: object, name: str) -> tuple[object, ...]:
    if not isinstance(value, list) or (kinds[-1] is not ... and len(value) != len(kinds)):
        raise RequestError(f"{name} is {reprlib.repr(value)} but must be a list.")
    inner = [kinds[0]] * len(value) if kinds[-1] is ... else kinds
    return tuple(_read(kind, item, name) for kind, item in zip(inner, value, strict=True))


def _read_record(kind: type[Any], value: object, name: str) -> object:
    known = {field.name for field in fields(kind)}
    if not isinstance(value, Mapping) or set(value) - known:
        raise RequestError(f"{name} is {reprlib.repr(value)} but must be an object with {', '.join(sorted(known))}.")
    hints = get_type_hints(kind)
    try:
        return kind(**{key: _read(hints[key], item, f"{name}.{key}") for key, item in value.items()})
    except TypeError as error:
        raise RequestError(f"{name} lacks a value: {error}.") from error


def _read_enum(kind: type[Enum], value: object, name: str) -> Enum:
    try:
        return kind(value)
    except ValueError as error:
        raise RequestError(f"{name} is {reprlib.repr(value)}; known: {[item.value for item in kind]}.") from error
