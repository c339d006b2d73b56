"""Choose the next token of each row.

Order: logprobs of the unmodified logits; penalties and biases; `min_tokens` and the constraint take tokens away; then
temperature, top_k, top_p, min_p; one random number picks from what is left. Each row is computed by itself, so the
other rows of a step cannot change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dsv4_kernels.ops import OpTable
from dsv4_kernels.sampling import SampleRows

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

    Shapes: allowed [V] bool, the tokens that the constraint leaves; None = all.
    Rule:   forced_token_id replaces the choice; its logprob is still reported.
    """

    state: SequenceSampling
    allowed: torch.Tensor | None = None
    forced_token_id: int | None = None


def sample(logits: torch.Tensor, rows: Sequence[Choosing], ops: OpTable) -> list[Choice]:
    """Choose a token for every row; the states are not changed (`SequenceSampling.append` does that).

    Shapes: logits [S, V] float32, one row per Choosing.
    Rule:   the random number belongs to the position of the new token; temperature 0 takes the best score, ties the
            smallest id. A row with a NaN or infinite logit, or with no token left, gets an error; the others go on.
    """
    is_finite = torch.isfinite(logits).all(dim=1).tolist()
    free = [index for index, row in enumerate(rows) if is_finite[index] and row.forced_token_id is None]
    chosen = dict(zip(free, _pick(logits, rows, free, ops), strict=True))
    return [
        _choice(logits[index], row, chosen.get(index, row.forced_token_id)) if is_finite[index] else _NOT_FINITE
        for index, row in enumerate(rows)
    ]


def draft_token(
    scores: torch.Tensor, state: SequenceSampling, number: int, ops: OpTable, allowed: torch.Tensor | None = None
) -> int:
    """Choose draft `number` (0 is the first) from a draft model's logits, as the token itself would be chosen.

    Shapes: scores [V] float32; allowed [V] bool, None = all.
    Rule: with the random number of that token's own position, so that the better the draft model knows the
          distribution, the more drafts are right. Penalties count the tokens that are certain.
    """
    scores = _restrict(penalise(scores, state), Choosing(state=state, allowed=allowed))
    return max(0, int(ops.sample_tokens(scores[None], SampleRows.of([_settings(state, number)]))))


_NOT_FINITE = Choice(error=NOT_FINITE)


def _pick(logits: torch.Tensor, rows: Sequence[Choosing], free: list[int], ops: OpTable) -> list[int]:
    """Return the tokens of the rows named by `free`; -1 where none is left."""
    if not free:
        return []
    scores = torch.stack([_restrict(penalise(logits[index], rows[index].state), rows[index]) for index in free])
    settings = SampleRows.of([_settings(rows[index].state, 0) for index in free])
    return ops.sample_tokens(scores, settings).tolist()


def _settings(state: SequenceSampling, ahead: int) -> tuple[float, int, float, float, float]:
    params, number = state.params, uniform(state.seed, state.num_tokens + ahead)
    return (params.temperature, params.top_k, params.top_p, params.min_p, number)


def _choice(logits: torch.Tensor, row: Choosing, token_id: int | None) -> Choice:
    if token_id is None or token_id < 0:
        return Choice(error=NO_TOKEN)
    num_top = row.state.params.logprobs
    return Choice(token_id=token_id, logprob=token_logprob(logits, token_id, num_top) if num_top >= 0 else None)


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
