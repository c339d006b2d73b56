"""What a caller may ask for, as keyword arguments of `Client.generate`, and the tensor that each becomes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from dsv4_backend.errors import RequestError
from dsv4_backend.records import Constraint


class Options(TypedDict, total=False):
    """Optional inputs of the model repository; a missing one takes the server's default."""

    max_tokens: int
    min_tokens: int
    stream: bool
    exclude_input_in_output: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop_words: str | Sequence[str]
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int
    echo: bool
    ignore_eos: bool
    priority: int
    max_reasoning_tokens: int
    cache_salt: str
    constraint: Constraint


@dataclass(frozen=True, slots=True)
class TensorKind:
    """A Triton data type and the protobuf field that holds its values."""

    datatype: str
    field: str


STRING = TensorKind("BYTES", "bytes_contents")
INT32 = TensorKind("INT32", "int_contents")
INT64 = TensorKind("INT64", "int64_contents")
FP32 = TensorKind("FP32", "fp32_contents")
BOOL = TensorKind("BOOL", "bool_contents")

_KINDS: dict[str, TensorKind] = {
    **dict.fromkeys(("max_tokens", "min_tokens", "top_k", "logprobs", "priority", "max_reasoning_tokens"), INT32),
    **dict.fromkeys(("temperature", "top_p", "min_p"), FP32),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), FP32),
    **dict.fromkeys(("stream", "exclude_input_in_output", "echo", "ignore_eos"), BOOL),
    **dict.fromkeys(("stop_words", "logit_bias", "cache_salt", "constraint"), STRING),
    "seed": INT64,
}


def _stop_words(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [str(word) for word in _sequence(value)]


def _sequence(value: object) -> Sequence[object]:
    if not isinstance(value, Sequence):
        raise TypeError("a string or a list of strings")
    return value


def _logit_bias(value: object) -> list[str]:
    if not isinstance(value, Mapping):
        raise TypeError("a mapping from token id to bias")
    return [json.dumps({str(token): bias for token, bias in value.items()})]


def _constraint(value: object) -> list[str]:
    if not isinstance(value, Constraint):
        raise TypeError("a dsv4_backend.records.Constraint")
    return [json.dumps({"kind": value.kind.value, "value": value.value})]


_ENCODERS: dict[str, Callable[[object], list[str]]] = {
    "stop_words": _stop_words,
    "logit_bias": _logit_bias,
    "constraint": _constraint,
}
_PLAIN_TYPES: dict[TensorKind, tuple[type, ...]] = {
    STRING: (str,),
    INT32: (int,),
    INT64: (int,),
    FP32: (int, float),
    BOOL: (bool,),
}


def encode_option(name: str, value: object) -> tuple[TensorKind, list[object]]:
    """Return the tensor of one option: its kind and its values.

    Raises: RequestError for an unknown name (the nearest is named) or a value of the wrong type.
    """
    kind = _KINDS.get(name)
    if kind is None:
        close = difflib.get_close_matches(name, _KINDS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise RequestError(f"unknown option {name!r}.{hint} Known: {', '.join(sorted(_KINDS))}.")
    encoder = _ENCODERS.get(name)
    if encoder is not None:
        try:
            values: list[object] = [text.encode("utf-8") for text in encoder(value)]
        except TypeError as error:
            raise RequestError(f"{name} is {value!r} but must be {error}.") from error
        return kind, values
    types = _PLAIN_TYPES[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise RequestError(f"{name} is {value!r} but must be of type {types[-1].__name__}.")
    return kind, [value.encode("utf-8") if isinstance(value, str) else value]
