"""Where one sequence stands in its grammar, and which tokens may come next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xgrammar

from dsv4_backend.errors import ConstraintError


class GrammarMatcher:
    """The state of one sequence.

    Shapes: ends int32 [W], one bit per token: the ends of the sequence.
    Rule:   after the end-of-sequence token only that token is allowed, and accepted, for requests that ignore it.
    """

    def __init__(self, matcher: xgrammar.GrammarMatcher, ends: torch.Tensor, eos_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._eos_ids = tuple(eos_ids)
        self._num_after_end = 0

    @property
    def is_terminated(self) -> bool:
        """True once the end-of-sequence token was accepted."""
        return bool(self._matcher.is_terminated())

    @property
    def is_completed(self) -> bool:
        """True while the text so far is a whole answer: the end may come, if nothing longer does."""
        return bool(self._matcher.is_completed())

    def fill(self, words: torch.Tensor, row: int) -> None:
        """Write which tokens may come next into one row; none at a dead end.

        Shapes: words int32 [S, W], one bit per token.
        """
        if self.is_terminated:
            words[row] = self._ends
        else:
            self._matcher.fill_next_token_bitmask(words, row)

    def accept(self, token_id: int) -> None:
        """Move over one token. Raises: ConstraintError, without a move, if the grammar does not allow it."""
        if token_id in self._eos_ids and self.is_terminated:
            self._num_after_end += 1
        elif not self._matcher.accept_token(token_id):
            raise ConstraintError(f"token {token_id} was forced or restored but the constraint does not allow it here.")

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens accepted."""
        extra = min(num_tokens, self._num_after_end)
        self._num_after_end -= extra
        if num_tokens > extra:
            self._matcher.rollback(num_tokens - extra)
