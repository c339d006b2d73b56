"""The wire contract as one table: every tensor of the model repository, its range, and where it lands in a Prompt.

The codec reads it to decode and to check, `pbtxt` reads it to write config.pbtxt: they cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import DTypeLike

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_STOP_WORDS = 64
MAX_STOP_BYTES = 1024
MAX_LOGPROBS = 20
MAX_BIASES = 4096
MAX_SALT_CHARS = 256
MAX_ID_CHARS = 256


class Dtype(str, Enum):
    """A Triton data type, as config.pbtxt spells it after TYPE_."""

    STRING = "STRING"
    INT32 = "INT32"
    INT64 = "INT64"
    FP32 = "FP32"
    BOOL = "BOOL"

    @property
    def numpy(self) -> DTypeLike:
        """The numpy type that the Python backend hands over."""
        return _NUMPY[self]


_NUMPY: dict[Dtype, DTypeLike] = {
    Dtype.STRING: np.object_,
    Dtype.INT32: np.int32,
    Dtype.INT64: np.int64,
    Dtype.FP32: np.float32,
    Dtype.BOOL: np.bool_,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """A closed range; `is_above` leaves the minimum itself out."""

    minimum: float
    maximum: float
    is_above: bool = False

    def holds(self, value: float) -> bool:
        """Whether value lies inside; NaN never does."""
        return (value > self.minimum if self.is_above else value >= self.minimum) and value <= self.maximum

    def __str__(self) -> str:
        """As a sentence's end: what a value must be."""
        start = "above" if self.is_above else "from"
        return f"{start} {self.minimum:.12g} to {self.maximum:.12g}" if self.maximum < MAX_INT32 else self._open(start)

    def _open(self, start: str) -> str:
        return f"{start} {self.minimum:.12g} up (at most {int(self.maximum)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input or output.

    Rule: `target` is the attribute of records.Prompt that an input sets ("sampling.top_p"); empty for the inputs that
          the codec reads one by one. `dims` are those of config.pbtxt; -1 takes any length.
    """

    name: str
    dtype: Dtype
    dims: tuple[int, ...] = (1,)
    target: str = ""
    bounds: Bounds | None = None

    @property
    def is_list(self) -> bool:
        """Whether the tensor holds any number of values."""
        return self.dims != (1,)


def _number(name: str, dtype: Dtype, target: str, bounds: Bounds) -> Tensor:
    return Tensor(name=name, dtype=dtype, target=target, bounds=bounds)


def _at_least(minimum: float, maximum: float = MAX_INT32) -> Bounds:
    return Bounds(minimum=minimum, maximum=maximum)


# What a client may say about sampling and limits: the ensemble and the runtime both take these.
OPTIONS = (
    _number("max_tokens", Dtype.INT32, "limits.max_tokens", _at_least(1)),
    Tensor(name="stream", dtype=Dtype.BOOL, target="stream"),
    Tensor(name="exclude_input_in_output", dtype=Dtype.BOOL),
    _number("temperature", Dtype.FP32, "sampling.temperature", _at_least(0, 100)),
    _number("top_p", Dtype.FP32, "sampling.top_p", Bounds(minimum=0, maximum=1, is_above=True)),
    _number("top_k", Dtype.INT32, "sampling.top_k", _at_least(0)),
    _number("min_p", Dtype.FP32, "sampling.min_p", _at_least(0, 1)),
    _number("seed", Dtype.INT64, "sampling.seed", _at_least(0, MAX_INT64)),
    Tensor(name="stop_words", dtype=Dtype.STRING, dims=(-1,)),
    _number("presence_penalty", Dtype.FP32, "sampling.presence_penalty", _at_least(-2, 2)),
    _number("frequency_penalty", Dtype.FP32, "sampling.frequency_penalty", _at_least(-2, 2)),
    _number("repetition_penalty", Dtype.FP32, "sampling.repetition_penalty",
            Bounds(minimum=0, maximum=10, is_above=True)),
    Tensor(name="logit_bias", dtype=Dtype.STRING),
    _number("logprobs", Dtype.INT32, "sampling.logprobs", _at_least(-1, MAX_LOGPROBS)),
    Tensor(name="echo", dtype=Dtype.BOOL),
    _number("min_tokens", Dtype.INT32, "limits.min_tokens", _at_least(0)),
    Tensor(name="ignore_eos", dtype=Dtype.BOOL, target="limits.ignore_eos"),
    _number("priority", Dtype.INT32, "priority", _at_least(-MAX_INT32 - 1)),
    _number("max_reasoning_tokens", Dtype.INT32, "limits.max_reasoning_tokens", _at_least(0)),
    Tensor(name="cache_salt", dtype=Dtype.STRING, target="cache_salt"),
    Tensor(name="constraint", dtype=Dtype.STRING),
    Tensor(name="stop", dtype=Dtype.BOOL),
)  # fmt: skip

INPUT_IDS = Tensor(name="input_ids", dtype=Dtype.INT32, dims=(-1,))
PREPARED = Tensor(name="prepared", dtype=Dtype.STRING)
CLIENT_INPUTS = (
    Tensor(name="text_input", dtype=Dtype.STRING),
    *OPTIONS,
    Tensor(name="request", dtype=Dtype.STRING),
    Tensor(name="protocol", dtype=Dtype.STRING),
)
RUNTIME_INPUTS = (INPUT_IDS, PREPARED, *OPTIONS)

# The text of a response is bytes [skip_bytes, keep_bytes) of the joined bytes of text_ids (records.Chunk).
TEXT_INPUTS = (
    Tensor(name="text_ids", dtype=Dtype.INT32, dims=(-1,)),
    Tensor(name="skip_bytes", dtype=Dtype.INT32),
    Tensor(name="keep_bytes", dtype=Dtype.INT32),
)
TEXT_OUTPUT = Tensor(name="text_output", dtype=Dtype.STRING)
RESULTS = (
    Tensor(name="token_ids", dtype=Dtype.INT32, dims=(-1,)),
    Tensor(name="finish_reason", dtype=Dtype.STRING),
    Tensor(name="num_input_tokens", dtype=Dtype.INT32),
    Tensor(name="num_output_tokens", dtype=Dtype.INT32),
    Tensor(name="num_cached_tokens", dtype=Dtype.INT32),
    Tensor(name="output_logprobs", dtype=Dtype.STRING),  # an ensemble cannot have an input and an output of one name
    Tensor(name="index", dtype=Dtype.INT32),
    Tensor(name="error", dtype=Dtype.STRING),
)
