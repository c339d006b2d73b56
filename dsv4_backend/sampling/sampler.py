"""Choose the next token of each row.

Order: logprobs of the unmodified logits; penalties and biases; `min_tokens` and the constraint take tokens away; then
temperature, top_k, top_p, min_p; one random number picks from what is left. Each row is computed by itself, so the
other rows of a step cannot change it. What constraints leave comes as one bit per token for all rows, and is applied
where the token is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dsv4_kernels.ops import OpTable
from dsv4_kernels.sampling import SampleRows, unpack_bits

from dsv4_backend.records import TokenLogprob
from dsv4_backend.sampling.logprobs import token_logprob
from dsv4_backend.sampling.penalties import penalise
from dsv4_backend.sampling.state import SequenceSampling
from dsv4_backend.sampling.uniform import uniform

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

    Rule: forced_token_id replaces the choice; its logprob is still reported.
    """

    state: SequenceSampling
    forced_token_id: int | None = None


def sample(
    logits: torch.Tensor, rows: Sequence[Choosing], ops: OpTable, allowed: torch.Tensor | None = None
) -> list[Choice]:
    """Choose a token for every row; the states are not changed (`SequenceSampling.append` does that).

    Shapes: logits [S, V] float32, one row per Choosing; allowed int32 [S, W], one bit for each token that the row's
            constraint leaves (all bits without one); None = all tokens of all rows.
    Rule:   the random number belongs to the position of the new token; temperature 0 takes the best score, ties the
            smallest id. A row with a NaN or infinite logit, or with no token left, gets an error; the others go on.
    """
    is_finite = torch.isfinite(logits).all(dim=1).tolist()
    free = [index for index, row in enumerate(rows) if is_finite[index] and row.forced_token_id is None]
    chosen = dict(zip(free, _pick(logits, rows, free, ops, allowed), strict=True))
    return [
        _choice(logits[index], row, chosen.get(index, row.forced_token_id)) if is_finite[index] else _NOT_FINITE
        for index, row in enumerate(rows)
    ]


def draft_token(
    scores: torch.Tensor, state: SequenceSampling, number: int, ops: OpTable, allowed: torch.Tensor | None = None
) -> int:
    """Choose draft `number` (0 is the first) from a draft model's logits, as the token itself would be chosen.

    Shapes: scores [V] float32; allowed int32 [1, W], one bit per token, None = all.
    Rule: with the random number of that token's own position, so that the better the draft model knows the
          distribution, the more drafts are right. Penalties count the tokens that are certain.
    """
    scores = _hold_back(penalise(scores, state), state, allowed)
    return max(0, int(ops.sample_tokens(scores[None], SampleRows.of([_settings(state, number)], allowed))))


_NOT_FINITE = Choice(error=NOT_FINITE)


def _pick(
    logits: torch.Tensor, rows: Sequence[Choosing], free: list[int], ops: OpTable, allowed: torch.Tensor | None
) -> list[int]:
    """Return the tokens of the rows named by `free`; -1 where none is left."""
    if not free:
        return []
    are_as_given = len(free) == len(rows) and all(row.state.is_plain for row in rows)
    scores = logits if are_as_given else logits[free]  # a copy [F, V]
    left = None if allowed is None else allowed[free]
    for place, index in enumerate(free):
        state = rows[index].state
        if not state.is_plain:
            words = None if left is None else left[place]
            scores[place] = _hold_back(penalise(scores[place], state), state, words)
    settings = SampleRows.of([_settings(rows[index].state, 0) for index in free], left)
    return ops.sample_tokens(scores, settings).tolist()


def _settings(state: SequenceSampling, ahead: int) -> tuple[float, int, float, float, float]:
    params, number = state.params, uniform(state.seed, state.num_tokens + ahead)
    return (params.temperature, params.top_k, params.top_p, params.min_p, number)


def _choice(logits: torch.Tensor, row: Choosing, token_id: int | None) -> Choice:
    if token_id is None or token_id < 0:
        return Choice(error=NO_TOKEN)
    num_top = row.state.params.logprobs
    return Choice(token_id=token_id, logprob=token_logprob(logits, token_id, num_top) if num_top >= 0 else None)


def _hold_back(scores: torch.Tensor, state: SequenceSampling, words: torch.Tensor | None) -> torch.Tensor:
    """Take away the end while `min_tokens` is not reached. Shapes: scores [V]; words int32 [..., W], one bit per token.

    Rule: where the constraint allows nothing but the end, it may come before `min_tokens`.
    """
    if not state.must_go_on:
        return scores
    kept = scores.clone()
    kept[list(state.eos_ids)] = -torch.inf
    left = (
        kept if words is None else kept.masked_fill(~unpack_bits(words.to(kept.device), len(kept)).view(-1), -torch.inf)
    )
    return kept if bool((left > -torch.inf).any()) else scores
