"""Change the scores of single tokens before the choice: penalties, then biases."""

from __future__ import annotations

import torch

from dsv4_backend.sampling.state import SequenceSampling


def penalise(scores: torch.Tensor, state: SequenceSampling) -> torch.Tensor:
    """Return scores with the sequence's penalties and biases.

    Shapes: scores [V] float32, not changed; returns [V].
    Rule:   repetition divides positive and multiplies negative scores of every token seen, prompt included; presence
            and frequency subtract for generated tokens; logit_bias adds.
    """
    params = state.params
    if state.seen is not None:
        penalty = params.repetition_penalty
        scores = torch.where(state.seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)
    if state.counts is not None:
        scores = scores - params.presence_penalty * (state.counts > 0) - params.frequency_penalty * state.counts
    if len(state.bias_ids):
        scores = scores.index_add(0, state.bias_ids, state.bias_values)
    return scores
