"""Sampling options and limits that a body carries, whether or not the converter knows them.

DeepSeek's own API drops temperature and top_p while thinking. Here the client's value counts, as on other servers.
"""

from __future__ import annotations

from typing import Any

from dsv4_backend.chat.body import Body
from dsv4_backend.errors import RequestError
from dsv4_backend.records import Limits, SamplingParams

_REALS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
_INTEGERS = ("top_k", "seed")


def read_sampling(body: Body, *, temperature: float, top_p: float, logprobs: int) -> SamplingParams:
    """Return the body's sampling options; the arguments are the converter's values, used where the body is silent.

    Raises: RequestError for a value of the wrong type. Ranges are checked with all other inputs.
    """
    found: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    found |= {name: _real(body, name) for name in _REALS if body.get(name) is not None}
    found |= {name: _integer(body, name) for name in _INTEGERS if body.get(name) is not None}
    if found.get("top_k") == -1:  # another spelling of "off"
        found["top_k"] = 0
    return SamplingParams(logprobs=logprobs, logit_bias=_logit_bias(body), **found)


def read_limits(body: Body, *, max_tokens: int | None, stop: tuple[str, ...], is_thinking: bool) -> Limits:
    """Return when the answer ends; the arguments are the converter's values. Raises: RequestError.

    Rule: thinking.budget_tokens (Messages) and max_reasoning_tokens bound the reasoning.
    """
    return Limits(
        max_tokens=max_tokens,
        min_tokens=_integer(body, "min_tokens") if body.get("min_tokens") is not None else 0,
        stop=tuple(item.encode() for item in stop),
        ignore_eos=_switch(body, "ignore_eos"),
        max_reasoning_tokens=_reasoning_budget(body) if is_thinking else None,
    )


def read_priority(body: Body) -> int:
    """Return the body's priority; lower is served first. Raises: RequestError."""
    return _integer(body, "priority") if body.get("priority") is not None else 0


def read_cache_salt(body: Body) -> str:
    """Return the body's cache salt. Raises: RequestError."""
    salt = body.get("cache_salt")
    if salt is not None and not isinstance(salt, str):
        raise RequestError(f"cache_salt is {salt!r:.60} but must be a string. Change it, or leave it out.")
    return salt or ""


def _reasoning_budget(body: Body) -> int | None:
    if body.get("max_reasoning_tokens") is not None:
        return _integer(body, "max_reasoning_tokens")
    thinking = body.get("thinking")
    if isinstance(thinking, dict) and thinking.get("budget_tokens") is not None:
        return _integer(thinking, "budget_tokens")
    return None


def _logit_bias(body: Body) -> tuple[tuple[int, float], ...]:
    table = body.get("logit_bias") or {}
    if not isinstance(table, dict):
        raise RequestError(f'logit_bias is {table!r:.60} but must be an object such as {{"42": -1.5}}.')
    for name in table:
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise RequestError(f"logit_bias names token {name!r:.60} but token ids are whole numbers, such as 42.")
    return tuple((int(name), _bias(table, name)) for name in table)


def _bias(table: Body, name: str) -> float:
    value = table[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 100:
        raise RequestError(f"logit_bias of token {name} is {value!r:.60} but must be a number from -100 to 100.")
    return float(value)


def _real(body: Body, name: str) -> float:
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise RequestError(f"{name} is {value!r:.60} but must be a finite number. Change it, or leave it out.")
    return float(value)


def _integer(body: Body, name: str) -> int:
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise RequestError(f"{name} is {value!r:.60} but must be a 64-bit whole number. Change it, or leave it out.")
    return value


def _switch(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} is {value!r:.60} but must be true or false. Change it, or leave it out.")
    return bool(value)
