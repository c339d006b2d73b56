"""A constraint binds the answer, not the reasoning: while thinking is open, tokens are free."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsv4_backend.grammar.matcher import GrammarMatcher
from dsv4_backend.text.vocab import Vocabulary


class AnswerMatcher:
    """The grammar of one sequence's answer.

    Rule: thinking is open when the prompt's last thinking token opens it; the grammar begins after the token that
          closes it. Until then everything may come but the end of the sequence, which would leave no answer.
    """

    def __init__(self, matcher: GrammarMatcher, vocab: Vocabulary, prompt_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._close_id = vocab.think_close_id
        marks = (vocab.think_open_id, vocab.think_close_id)
        last = next((token for token in reversed(prompt_ids) if token in marks), None)
        self._is_thinking = last is not None and last == vocab.think_open_id
        self._history: list[bool] = []  # per accepted token: was it free?

    @property
    def is_completed(self) -> bool:
        """True while the answer so far is a whole one."""
        return not self._is_thinking and self._matcher.is_completed

    def allowed(self) -> torch.Tensor:
        """Return which tokens may come next. Shapes: [V] bool."""
        if not self._is_thinking:
            return self._matcher.allowed()
        return self._matcher.all_but_end()

    def accept(self, token_id: int) -> None:
        """Move over one token. Raises: ConstraintError, without a move, if the grammar does not allow it."""
        if not self._is_thinking:
            self._matcher.accept(token_id)
        self._history.append(self._is_thinking)
        self._is_thinking = self._is_thinking and token_id != self._close_id

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens accepted."""
        if num_tokens <= 0:
            return
        undone, self._history = self._history[-num_tokens:], self._history[:-num_tokens]
        self._is_thinking = undone[0]
        self._matcher.rollback(undone.count(False))
