"""Planning a step while the one before it still runs: only what does not depend on the token that is chosen there."""

from __future__ import annotations

from dataclasses import replace

from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.records import CHOSEN_BEFORE, PlanRow
from dsv4_backend.scheduler.sequence import Sequence


def is_certain(row: PlanRow, sequence: Sequence, max_drafts: int) -> bool:
    """Whether the row that follows a running one is known but for its token, unless that ends the sequence.

    Rule: a plain decode step of a request without constraint or budget, that has not been in a failing step; and the
          token does not stand behind a page edge, where a copy of the state is taken and a page is added.
    """
    is_plain = len(row.token_ids) == 1 and row.is_sampled and row.num_wanted is None and row.forced_token_id is None
    is_free = sequence.prompt.constraint is None and sequence.reasoning is None and not row.wants_prompt_logprobs
    is_inside = (row.start + 1) % PAGE_TOKENS > max_drafts
    return is_plain and is_free and is_inside and not sequence.num_restarts


def row_after(row: PlanRow, sequence: Sequence) -> PlanRow | None:
    """The row that follows; None where the answer has its last token with the running one."""
    if sequence.num_output + 1 >= sequence.max_tokens:
        return None
    return replace(row, start=row.start + 1, token_ids=(CHOSEN_BEFORE,), grants=(), num_written=sequence.num_written)
