"""Whether a request can be served at all: its lengths against the limits, before anything is reserved."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_backend.config import ModelConfig, ServingConfig
from dsv4_backend.errors import RequestError
from dsv4_backend.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Limits that a prompt must keep.

    Units: all in tokens. capacity_tokens is what the cache holds for one sequence alone.
    """

    vocab_size: int
    context_tokens: int
    max_output_tokens: int
    capacity_tokens: int
    default_max_tokens: int


def make_limits(model: ModelConfig, serving: ServingConfig, capacity_tokens: int) -> AdmissionLimits:
    """Join the model's and the operator's limits."""
    return AdmissionLimits(
        vocab_size=model.vocab_size,
        context_tokens=min(serving.context_tokens, model.max_positions),
        max_output_tokens=serving.max_output_tokens,
        capacity_tokens=capacity_tokens,
        default_max_tokens=serving.default_max_tokens,
    )


def resolve_max_tokens(prompt: Prompt, limits: AdmissionLimits) -> int:
    """Return how many tokens may be generated.

    Rule:   an explicit max_tokens is refused where it cannot be kept; a missing one means what fits.
    Raises: RequestError with value, limit and fix.
    """
    num_prompt = len(prompt.token_ids)
    if num_prompt == 0:
        raise RequestError("the prompt has 0 tokens but needs at least 1. Send text_input, request or input_ids.")
    bad = next((token for token in prompt.token_ids if not 0 <= token < limits.vocab_size), None)
    if bad is not None:
        raise RequestError(f"input_ids holds {bad} but ids go from 0 to {limits.vocab_size - 1}.")
    total = min(limits.context_tokens, limits.capacity_tokens)
    source = "context_tokens" if limits.context_tokens <= limits.capacity_tokens else "cache_tokens"
    room = min(total - num_prompt, limits.max_output_tokens)
    if room < 1:
        raise RequestError(
            f"the prompt has {num_prompt} tokens but {source} is {total}, answer included."
            f" Shorten the prompt to {total - 1} tokens, or raise {source} on the server."
        )
    asked = prompt.limits.max_tokens
    if asked is None:
        return min(room, limits.default_max_tokens) if limits.default_max_tokens else room
    if asked < 1:
        raise RequestError(f"max_tokens is {asked} but must be at least 1.")
    if asked > limits.max_output_tokens:
        raise RequestError(f"max_tokens is {asked} but the server allows {limits.max_output_tokens}. Ask for less.")
    if asked > room:
        raise RequestError(
            f"max_tokens is {asked} and the prompt has {num_prompt} tokens, together {asked + num_prompt}, but {source}"
            f" is {total}. Set max_tokens to at most {room}, or raise {source} on the server."
        )
    return asked
