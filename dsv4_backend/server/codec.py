"""Tensors ↔ records: what clients send becomes a checked Prompt, and chunks become output arrays.

Rule: whichever way a value came (its own tensor, an API body, the tokenizer's `prepared`), `check_prompt` has seen it
      before the engine does. Every refusal is a RequestError that names the input, the value, the limit and the fix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv4_backend.engine.coalesce import join_chunks
from dsv4_backend.errors import ConstraintError, RequestError
from dsv4_backend.records import Chunk, Constraint, ConstraintKind, Prompt, TokenLogprob
from dsv4_backend.server.wire import (
    MAX_BIASES,
    MAX_SALT_CHARS,
    MAX_STOP_BYTES,
    MAX_STOP_WORDS,
    OPTIONS,
    Dtype,
    Tensor,
)
from dsv4_backend.text.constraint import check_constraint

Array = NDArray[Any]
Value = str | int | float | bool | tuple[str, ...] | tuple[int, ...]
Values = Mapping[str, Value]
_CHECKED = tuple((item, attrgetter(item.target)) for item in OPTIONS if item.bounds)


def decode_inputs(tensors: Mapping[str, Array], table: Sequence[Tensor]) -> dict[str, Value]:
    """Return the Python value of every tensor that is present.

    Raises: RequestError for a wrong type, a wrong shape, or text that is not UTF-8.
    """
    return {item.name: _decode(item, tensors[item.name]) for item in table if item.name in tensors}


def _decode(item: Tensor, array: Array) -> Value:
    is_right = array.dtype.kind in "OS" if item.dtype is Dtype.STRING else array.dtype == item.dtype.numpy
    if not is_right:
        raise RequestError(f"{item.name} has type {array.dtype} but must be {item.dtype.value}.")
    if item.is_list and array.ndim != 1:
        raise RequestError(f"{item.name} has shape {list(array.shape)} but must be one row of values, shape [n].")
    if not item.is_list and array.size != 1:
        raise RequestError(f"{item.name} has shape {list(array.shape)} but must hold exactly 1 value. Send shape [1].")
    flat = array.reshape(-1).tolist()
    values = [_text(item.name, value) for value in flat] if item.dtype is Dtype.STRING else flat
    return tuple(values) if item.is_list else values[0]


def _text(name: str, value: bytes | str) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not valid UTF-8 at byte {error.start} of {len(value)}. Send UTF-8.") from error


def read_json(name: str, text: str) -> object:
    """Parse an input that carries JSON. Raises: RequestError naming the input and the place."""
    try:
        value = json.loads(text)
        if "\\u" in text:  # an escape may spell half of a surrogate pair, which is no character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        raise RequestError(f"{name} is not JSON: {error.msg} at character {error.pos}. Send a JSON object.") from error
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} spells half of a surrogate pair, which is no character. Send UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{name} is JSON that cannot be read: {error}.") from error


def apply_options(prompt: Prompt, values: Values) -> Prompt:
    """Return the prompt with every option that the client sent as a tensor of its own; those win over an API body.

    Raises: RequestError.
    """
    changes: dict[str, dict[str, Any]] = {"": {}, "sampling": {}, "limits": {}}
    for item in OPTIONS:
        if item.target and item.name in values:
            section, _, attribute = item.target.rpartition(".")
            changes[section][attribute] = values[item.name]
    if "stop_words" in values:
        changes["limits"]["stop"] = tuple(str(word).encode() for word in _items(values, "stop_words"))
    if "logit_bias" in values:
        changes["sampling"]["logit_bias"] = _logit_bias(str(values["logit_bias"]))
    if "constraint" in values:
        changes[""]["constraint"] = _constraint(str(values["constraint"]))
    sampling = replace(prompt.sampling, **changes["sampling"])
    if values.get("echo"):
        sampling = replace(sampling, prompt_logprobs=sampling.logprobs >= 0)
    is_echo = bool(values.get("echo")) or values.get("exclude_input_in_output") is False
    limits = replace(prompt.limits, **changes["limits"])
    return replace(prompt, sampling=sampling, limits=limits, echo=prompt.echo or is_echo, **changes[""])


def _items(values: Values, name: str) -> Sequence[str | int]:
    value = values[name]
    return value if isinstance(value, tuple) else ()


def _logit_bias(text: str) -> tuple[tuple[int, float], ...]:
    table = read_json("logit_bias", text)
    if not isinstance(table, dict):
        raise RequestError(f'logit_bias is a JSON {type(table).__name__} but must be an object such as {{"42": -1.5}}.')
    return tuple(_bias(key, value) for key, value in table.items())


def _bias(key: str, value: object) -> tuple[int, float]:
    if not key.isascii() or not key.isdigit() or len(key) > 9:
        raise RequestError(f"logit_bias names token {key[:40]!r} but token ids are whole numbers, such as 42.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"logit_bias of token {key} is {str(value)[:40]!r} but must be a number from -100 to 100.")
    if not abs(value) <= 100:  # also refuses NaN, and integers too large for a float
        raise RequestError(f"logit_bias of token {key} is {str(value)[:40]} but must be from -100 to 100.")
    return int(key), float(value)


def _constraint(text: str) -> Constraint:
    table = read_json("constraint", text)
    if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
        raise ConstraintError('constraint must be a JSON object {"kind": …, "value": …}.')
    known = [item.value for item in ConstraintKind]
    if table["kind"] not in known:
        raise ConstraintError(f"constraint kind is {table['kind'][:40]!r} but must be one of {', '.join(known)}.")
    unknown = sorted(set(table) - {"kind", "value"})
    if unknown:
        raise ConstraintError(f"constraint has the unknown key {unknown[0][:40]!r}; it takes kind and value.")
    value = table.get("value", "")
    text = value if isinstance(value, str) else json.dumps(value)
    constraint = Constraint(kind=ConstraintKind(table["kind"]), value=text)
    check_constraint(constraint)
    return constraint


def check_prompt(prompt: Prompt, vocab_size: int) -> None:
    """Verify every value that the wire table bounds.

    Raises: RequestError. Lengths against the context, and the ids of the prompt, are the engine's to check.
    """
    for item, read in _CHECKED:
        value = read(prompt)
        if value is not None and item.bounds and not (math.isfinite(value) and item.bounds.holds(value)):
            raise RequestError(f"{item.name} is {value} but must be {item.bounds}. Change it, or leave it out.")
    limits = prompt.limits
    if limits.max_tokens is not None and limits.min_tokens > limits.max_tokens:
        raise RequestError(
            f"min_tokens is {limits.min_tokens} but must be at most max_tokens, {limits.max_tokens}. Lower min_tokens."
        )
    _check_stop(limits.stop)
    biases = prompt.sampling.logit_bias
    if len(biases) > MAX_BIASES:
        raise RequestError(f"logit_bias names {len(biases)} tokens but at most {MAX_BIASES} are allowed.")
    stranger = next((token for token, _ in biases if not 0 <= token < vocab_size), None)
    if stranger is not None:
        raise RequestError(f"logit_bias names token {stranger} but ids go from 0 to {vocab_size - 1}.")
    if len(prompt.cache_salt) > MAX_SALT_CHARS:
        raise RequestError(
            f"cache_salt has {len(prompt.cache_salt)} characters but at most {MAX_SALT_CHARS} may be sent."
        )


def _check_stop(words: tuple[bytes, ...]) -> None:
    if len(words) > MAX_STOP_WORDS:
        raise RequestError(f"stop_words has {len(words)} entries but at most {MAX_STOP_WORDS} are allowed.")
    for index, word in enumerate(words):
        if not 1 <= len(word) <= MAX_STOP_BYTES:
            raise RequestError(
                f"stop_words[{index}] has {len(word)} bytes but must have 1 to {MAX_STOP_BYTES}. Change or drop it."
            )


def merge_chunks(chunks: Sequence[Chunk]) -> Chunk:
    """Return one chunk that says what all of them say, in order. Pairwise, so that long answers stay cheap to join."""
    level = list(chunks)
    while len(level) > 1:
        level = [reduce(join_chunks, level[start : start + 2]) for start in range(0, len(level), 2)]
    return level[0]


def encode_chunk(chunk: Chunk, index: int, *, wants_logprobs: bool) -> dict[str, Array]:
    """Return the runtime's output arrays by name; `index` counts the responses of the request from 0."""
    usage = chunk.usage
    return {
        "text_ids": np.array(chunk.text_ids, np.int32),
        "skip_bytes": np.array([chunk.skip_bytes], np.int32),
        "keep_bytes": np.array([chunk.keep_bytes], np.int32),
        "token_ids": np.array(chunk.token_ids, np.int32),
        "finish_reason": text_array(chunk.finish_reason.value if chunk.finish_reason else ""),
        "num_input_tokens": np.array([usage.num_input_tokens], np.int32),
        "num_output_tokens": np.array([usage.num_output_tokens], np.int32),
        "num_cached_tokens": np.array([usage.num_cached_tokens], np.int32),
        "output_logprobs": text_array(_logprobs(chunk) if wants_logprobs else ""),
        "index": np.array([index], np.int32),
        "error": text_array(chunk.error),
    }


def text_array(text: str) -> Array:
    """Return a STRING tensor of one value."""
    return np.array([text.encode()], np.object_)


def _logprobs(chunk: Chunk) -> str:
    """JSON {"tokens": […], "prompt": […]}; each entry is {"token_id", "logprob", "top": [[id, logprob], …]}."""
    found = {"tokens": [_entry(item) for item in chunk.logprobs]}
    if chunk.prompt_logprobs:
        found["prompt"] = [_entry(item) for item in chunk.prompt_logprobs]
    return json.dumps(found, separators=(",", ":"))


def _entry(item: TokenLogprob) -> dict[str, object]:
    """Minus infinity has no JSON spelling: it is sent as the most negative float32."""
    top = [[token, _finite(value)] for token, value in item.top]
    return {"token_id": item.token_id, "logprob": _finite(item.logprob), "top": top}


def _finite(value: float) -> float:
    return max(float(value), float(np.finfo(np.float32).min))
