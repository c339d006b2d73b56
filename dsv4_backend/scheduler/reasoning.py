"""The reasoning budget: after so many tokens inside an open <think>, its end is forced."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkTokens:
    """Token ids that open and close thinking; None where the vocabulary has none."""

    open_id: int | None = None
    close_id: int | None = None


class ReasoningBudget:
    """Counts the answer's tokens inside an open <think>.

    Rule: thinking is open when the last opening token has no closing token after it, in the prompt or in the answer.
          Tokens of the prompt do not count against the budget.
    """

    def __init__(self, think: ThinkTokens, max_tokens: int, prompt_ids: Tokens[int]) -> None:
        self._think = think
        self._max_tokens = max_tokens
        self._num_used = 0
        marks = (think.open_id, think.close_id)
        last = next((token for token in reversed(prompt_ids) if token in marks), None)
        self._is_open = last is not None and last == think.open_id

    def push(self, token_id: int) -> None:
        """Count one token of the answer."""
        if token_id == self._think.open_id:
            self._is_open, self._num_used = True, 0
        elif token_id == self._think.close_id:
            self._is_open = False
        elif self._is_open:
            self._num_used += 1

    @property
    def forced_id(self) -> int | None:
        """The end-of-thinking token when the next token must be it, else None."""
        is_spent = self._is_open and self._num_used >= self._max_tokens
        return self._think.close_id if is_spent else None
