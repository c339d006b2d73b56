"""A constraint binds the answer, not the reasoning: while thinking is open, tokens are free."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from dsv4_backend.errors import ConstraintError
from dsv4_backend.grammar.matcher import GrammarMatcher
from dsv4_backend.text.vocab import Vocabulary


class AnswerMatcher:
    """The grammar of one sequence's answer.

    Shapes: free [V] bool, the tokens that may come while thinking.
    Rule:   thinking is open when the prompt's last thinking token opens it; the grammar begins after the token that
            closes it. Until then everything may come but the end of the sequence, which would leave no answer.
            The grammar is compiled elsewhere meanwhile, and waited for when it is needed. One that cannot be compiled
            is told by the next `accept`, which ends that sequence alone.
    """

    def __init__(
        self, compiling: Future[GrammarMatcher], free: torch.Tensor, vocab: Vocabulary, prompt_ids: Sequence[int]
    ) -> None:
        self._compiling = compiling
        self._free = free
        self._close_id = vocab.think_close_id
        marks = (vocab.think_open_id, vocab.think_close_id)
        last = next((token for token in reversed(prompt_ids) if token in marks), None)
        self._is_thinking = last is not None and last == vocab.think_open_id
        self._history: list[bool] = []  # per accepted token: was it free?

    @property
    def is_completed(self) -> bool:
        """True while the answer so far is a whole one."""
        return not self._is_thinking and self._compiling.result().is_completed

    def allowed(self) -> torch.Tensor:
        """Return which tokens may come next. Shapes: [V] bool."""
        if self._is_thinking:
            return self._free
        try:
            return self._compiling.result().allowed()
        except ConstraintError:
            return torch.ones_like(self._free)

    def accept(self, token_id: int) -> None:
        """Move over one token. Raises: ConstraintError, without a move, if the grammar is broken or forbids it."""
        if not self._is_thinking:
            self._compiling.result().accept(token_id)
        elif self._compiling.done():
            self._compiling.result()
        self._history.append(self._is_thinking)
        self._is_thinking = self._is_thinking and token_id != self._close_id

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens accepted."""
        if num_tokens <= 0:
            return
        undone, self._history = self._history[-num_tokens:], self._history[:-num_tokens]
        self._is_thinking = undone[0]
        if not all(undone):
            self._compiling.result().rollback(undone.count(False))
