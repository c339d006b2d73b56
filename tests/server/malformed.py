"""Requests that are wrong in exactly one known way: a strategy over every input of the ensemble and of the runtime."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dsv4_backend.server.wire import CLIENT_INPUTS, OPTIONS, RUNTIME_INPUTS, Dtype, Tensor

NUMPY = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}
NOT_UTF8 = st.binary(min_size=1, max_size=12).map(lambda data: data + b"\xff")
NOT_JSON = st.text(max_size=20).filter(lambda text: not _is_json(text)).map(str.encode)
NO_OBJECT = st.sampled_from([b"3", b"[1]", b'"text"', b"true", b"NaN", b"[[[]]]"])
BAD_JSON = st.one_of(NOT_JSON, NO_OBJECT)
BAD_TEXT: dict[str, st.SearchStrategy[bytes]] = {
    "logit_bias": st.one_of(
        BAD_JSON, st.sampled_from([b'{"x": 1}', b'{"999999": 1}', b'{"1": "a"}', b'{"1": 1e9}', b'{"-1": 0}'])
    ),
    "constraint": st.one_of(
        BAD_JSON,
        st.sampled_from(
            [b"{}", b'{"kind": 1}', b'{"kind": "poem"}', b'{"kind": "json_schema", "value": "{"}', b'{"kind": "regex"}']
        ),
    ),
    "request": st.one_of(
        BAD_JSON,
        st.sampled_from(
            [
                b"{}",
                b'{"messages": 3}',
                b'{"messages": [{"role": "user"}], "max_tokens": "x"}',
                b'{"messages": [{"role": "nobody", "content": "a"}]}',
                b'{"messages": [{"role": "user", "content": "a"}], "temperature": -5}',
                b'{"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}',
            ]
        ),
    ),
    "protocol": st.text(st.characters(codec="utf-8"), max_size=9).map(str.encode),
    "prepared": st.one_of(BAD_JSON, st.sampled_from([b"{}", b'{"prompt": {"limits": {"max_tokens": -1}}}'])),
    "cache_salt": st.integers(257, 400).map(lambda size: b"s" * size),
    "text_input": st.just(b""),
}


@dataclass(frozen=True)
class Wrong:
    """A request to `model`; `name` is what its refusal must speak of."""

    model: str
    name: str
    datatype: str
    array: Any
    base: dict[str, Any]

    def __repr__(self) -> str:
        return f"Wrong({self.model}: {self.name} {self.datatype} {self.array.shape} {self.array.reshape(-1)[:4]!r})"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _strings(values: list[bytes]) -> Any:
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array


def _kind(item: Tensor) -> str:
    return "BYTES" if item.dtype is Dtype.STRING else item.dtype.value


@st.composite
def wrong_values(draw: st.DrawFn, item: Tensor) -> tuple[str, Any]:
    """A value of the declared type and shape that means nothing."""
    if item.bounds:
        return _kind(item), np.array([draw(_outside(item))], item.dtype.numpy)
    if item.name == "input_ids":
        bad = draw(
            st.lists(st.one_of(st.integers(-(2**31), -1), st.integers(2**20, 2**31 - 1)), min_size=1, max_size=4)
        )
        return "INT32", np.array(bad, np.int32)
    if item.name == "stop_words":
        words = draw(st.lists(st.sampled_from([b"", b"x" * 2000]) | NOT_UTF8, min_size=1, max_size=3))
        return "BYTES", _strings(words)
    return "BYTES", _strings([draw(st.one_of(BAD_TEXT[item.name], NOT_UTF8))])


def _outside(item: Tensor) -> st.SearchStrategy[float]:
    bounds = item.bounds
    assert bounds
    if item.dtype is Dtype.FP32:
        numbers: st.SearchStrategy[float] = st.floats(width=32)
    else:
        bits = 64 if item.dtype is Dtype.INT64 else 32
        numbers = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) | st.integers(-50, 50)
    return numbers.filter(lambda value: not bounds.holds(value))


@st.composite
def wrong_types(draw: st.DrawFn, item: Tensor) -> tuple[str, Any]:
    """The declared shape in another type."""
    datatype = draw(st.sampled_from([name for name in NUMPY if name != _kind(item)]))
    return datatype, _strings([b"1"]) if datatype == "BYTES" else np.array([1], NUMPY[datatype])


@st.composite
def wrong_shapes(draw: st.DrawFn, item: Tensor) -> tuple[str, Any]:
    """The declared type in another shape."""
    shapes = [(1, 1), (2, 2), (1, 1, 1)] if item.is_list else [(2,), (0,), (1, 1), (3, 2)]
    shape = draw(st.sampled_from(shapes))
    array: Any = np.full(shape, b"1" if item.dtype is Dtype.STRING else 1, item.dtype.numpy)
    return _kind(item), array


def _meaningless(item: Tensor) -> bool:
    """Whether some value of the declared type and shape must be refused; not so for a boolean or a priority."""
    return item.dtype is not Dtype.BOOL and item.name != "priority"


@st.composite
def wrong_requests(draw: st.DrawFn) -> Wrong:
    """A request with one wrong input; everything else about it is right."""
    model = draw(st.sampled_from(["dsv4", "dsv4_runtime"]))
    table = CLIENT_INPUTS if model == "dsv4" else RUNTIME_INPUTS
    item = draw(st.sampled_from(table))
    ways = [wrong_types, wrong_shapes] + [wrong_values] * 2 * _meaningless(item)
    datatype, array = draw(draw(st.sampled_from(ways))(item))
    base: dict[str, Any] = {"text_input": "a"} if model == "dsv4" else {"input_ids": [70, 71]}
    if item.name == "request":
        base = {}
    if item.name == "protocol":
        base = {"request": '{"messages": [{"role": "user", "content": "a"}]}'}
        if array.size == 1 and array.reshape(-1)[0] in (b"chat", b"responses", b"messages"):
            array = _strings([b"smoke signals"])
    if item in OPTIONS and draw(st.booleans()):
        base |= {"max_tokens": 3}
    base.pop(item.name, None)
    return Wrong(model=model, name=item.name, datatype=datatype, array=array, base=base)
