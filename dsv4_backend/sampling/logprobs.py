"""Logprobs of tokens under the unmodified distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsv4_backend.records import TokenLogprob


def token_logprob(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Return the logprob of one token and the `num_top` best ones.

    Shapes: logits [V] float32, all finite.
    Rule:   one row at a time in float64, so that the batch cannot change a bit; ties take the smaller id.
    """
    wide = logits.double().cpu()
    norm = float(torch.logsumexp(wide, dim=0))
    top = tuple((token, float(wide[token]) - norm) for token in best_ids(wide, num_top).tolist())
    return TokenLogprob(token_id=token_id, logprob=float(wide[token_id]) - norm, top=top)


def prompt_logprobs(logits: torch.Tensor, targets: Sequence[int], num_top: int) -> tuple[TokenLogprob, ...]:
    """Return the logprob of each target under the logits of the token before it. Shapes: logits [T, V], T targets."""
    return tuple(token_logprob(row, target, num_top) for row, target in zip(logits, targets, strict=True))


def best_ids(scores: torch.Tensor, num_best: int) -> torch.Tensor:
    """Return the ids of the highest scores, best first; ties take the smaller id. Shapes: scores [V]; returns [K]."""
    num_best = min(num_best, len(scores))
    if num_best <= 0:
        return torch.empty(0, dtype=torch.int64)
    if num_best == len(scores):
        return torch.sort(scores, descending=True, stable=True).indices
    least = torch.topk(scores, num_best).values[-1]
    above = torch.nonzero(scores > least).flatten()
    above = above[torch.sort(scores[above], descending=True, stable=True).indices]
    level = torch.nonzero(scores == least).flatten()
    return torch.cat([above, level[: num_best - len(above)]])
