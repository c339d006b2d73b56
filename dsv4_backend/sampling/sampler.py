"""Choose the next token of each row.

Order: logprobs of the unmodified logits; penalties and biases; `min_tokens` and the constraint take tokens away; then
temperature, top_k, top_p, min_p; one random number picks from what is left. Each row is computed by itself, so the
other rows of a step cannot change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dsv4_backend.records import SamplingParams, TokenLogprob
from dsv4_backend.sampling.logprobs import best_ids, token_logprob
from dsv4_backend.sampling.penalties import penalise
from dsv4_backend.sampling.state import SequenceSampling
from dsv4_backend.sampling.uniform import uniform

FIRST_SORTED = 512
NOT_FINITE = "the model gave a logit that is not a finite number; the checkpoint or its numerics are damaged."
NO_TOKEN = "the constraint allows no token after this text; change the grammar, the logit_bias or min_tokens."


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The next token of one row, or why there is none. token_id is -1 with an error."""

    token_id: int = -1
    logprob: TokenLogprob | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """What decides one row besides its logits.

    Shapes: allowed [V] bool, the tokens that the constraint leaves; None = all.
    Rule:   forced_token_id replaces the choice; its logprob is still reported.
    """

    state: SequenceSampling
    allowed: torch.Tensor | None = None
    forced_token_id: int | None = None


def sample(logits: torch.Tensor, rows: Sequence[Choosing]) -> list[Choice]:
    """Choose a token for every row; the states are not changed (`SequenceSampling.append` does that).

    Shapes: logits [S, V] float32, one row per Choosing.
    Rule:   the random number belongs to the position of the new token; temperature 0 takes the best score, ties the
            smallest id. A row with a NaN or infinite logit, or with no token left, gets an error; the others go on.
    """
    is_finite = torch.isfinite(logits).all(dim=1).tolist()
    return [_choose(logits[index], row) if is_finite[index] else _NOT_FINITE for index, row in enumerate(rows)]


def draft_token(scores: torch.Tensor, state: SequenceSampling, number: int, allowed: torch.Tensor | None = None) -> int:
    """Choose draft `number` (0 is the first) from a draft model's logits, as the token itself would be chosen.

    Shapes: scores [V] float32; allowed [V] bool, None = all.
    Rule: with the random number of that token's own position, so that the better the draft model knows the
          distribution, the more drafts are right. Penalties count the tokens that are certain.
    """
    scores = _restrict(penalise(scores, state), Choosing(state=state, allowed=allowed))
    picked = _pick(scores, state.params, uniform(state.seed, state.num_tokens + number))
    return 0 if picked is None else picked


_NOT_FINITE = Choice(error=NOT_FINITE)


def _choose(logits: torch.Tensor, row: Choosing) -> Choice:
    state = row.state
    token_id = row.forced_token_id
    if token_id is None:
        scores = _restrict(penalise(logits, state), row)
        token_id = _pick(scores, state.params, uniform(state.seed, state.num_tokens))
        if token_id is None:
            return Choice(error=NO_TOKEN)
    num_top = state.params.logprobs
    logprob = token_logprob(logits, token_id, num_top) if num_top >= 0 else None
    return Choice(token_id=token_id, logprob=logprob)


def _restrict(scores: torch.Tensor, row: Choosing) -> torch.Tensor:
    """Take away what the constraint forbids, and the end while `min_tokens` is not reached.

    Rule: where the constraint allows nothing but the end, it may come before `min_tokens`.
    """
    if row.allowed is not None:
        scores = scores.masked_fill(~row.allowed, -torch.inf)
    if not row.state.must_go_on:
        return scores
    kept = scores.clone()
    kept[list(row.state.eos_ids)] = -torch.inf
    return kept if bool((kept > -torch.inf).any()) else scores


def _pick(scores: torch.Tensor, params: SamplingParams, number: float) -> int | None:
    """Return the token that `number` in [0, 1) chooses, or None if every score is minus infinity."""
    best = int(torch.argmax(scores))  # the first of equal ones
    highest = float(scores[best])
    if highest == -torch.inf:
        return None
    if params.temperature == 0.0 or highest == torch.inf:  # a penalty may overflow
        return best
    wide = (scores.double() - highest) / params.temperature
    weights = _filter(wide.exp(), params)
    # Ids in order, whatever the filters: a filter that removes nothing changes nothing.
    sums = weights.cumsum(0)
    target = torch.tensor([number * float(sums[-1])], dtype=torch.float64)
    found = int(torch.searchsorted(sums, target, right=True))
    return found if found < len(sums) else int(torch.nonzero(weights)[-1])


def _filter(weights: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Set the weights that top_k, top_p and min_p take away to 0. Shapes: weights [V] float64, the largest is 1.

    Rule: top_k keeps exactly k; top_p keeps the fewest best tokens whose share of what top_k left reaches p; min_p
          keeps what is at least that fraction of the best. Ties take the smaller id.
    """
    num_kept = params.top_k if 0 < params.top_k < len(weights) else len(weights)
    if num_kept < len(weights) or params.top_p < 1.0:
        ids = _kept_ids(weights, num_kept, params.top_p)
        weights = torch.zeros_like(weights).index_copy(0, ids, weights[ids])
    if params.min_p > 0.0:
        weights = weights.masked_fill(weights < params.min_p, 0.0)
    return weights


def _kept_ids(weights: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Return the best `top_k` ids, cut where their sum reaches top_p.

    Sorting a whole vocabulary is slow, and a few hundred tokens nearly always reach top_p: they are tried first.
    """
    is_cut = top_k < len(weights)
    for num_sorted in (top_k,) if is_cut else (FIRST_SORTED, len(weights)):
        ids = best_ids(weights, num_sorted)
        sums = weights[ids].cumsum(0)
        needed = top_p * (sums[-1:] if is_cut else weights.sum(0, keepdim=True))
        if bool(sums[-1:] >= needed):
            break
    if top_p < 1.0:
        ids = ids[: int(torch.searchsorted(sums, needed)) + 1]
    return ids
