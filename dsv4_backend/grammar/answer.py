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

    Shapes: free int32 [W], one bit per token: what may come while thinking.
    Rule:   thinking is open when the prompt's last thinking token opens it; the grammar begins after the token that
            closes it. Until then everything may come but the end of the sequence, which would leave no answer.
            The grammar is compiled elsewhere meanwhile, and waited for when it is needed. One that cannot be compiled
            is told by the next `accept`, which ends that sequence alone.
    """

    def __init__(
        self, compiling: Future[GrammarMatcher], free: torch.Tensor, vocab: Vocabulary, prompt_ids: Sequence[int]
    ) -> None:
        self._compiling = compiling
        self._compiled: GrammarMatcher | None = None
        self._free = free
        self._close_id = vocab.think_close_id
        marks = (vocab.think_open_id, vocab.think_close_id)
        last = next((token for token in reversed(prompt_ids) if token in marks), None)
        self._is_thinking = last is not None and last == vocab.think_open_id
        self._history: list[bool] = []  # per accepted token: was it free?

    @property
    def is_compiling(self) -> bool:
        """Whether the next token needs the grammar and it is not there yet."""
        return not self._is_thinking and self._compiled is None and not self._compiling.done()

    @property
    def is_completed(self) -> bool:
        """True while the answer so far is a whole one."""
        return not self._is_thinking and self._matcher().is_completed

    def fill(self, words: torch.Tensor, row: int) -> None:
        """Write which tokens may come next into one row; everything, if the grammar is broken. Shapes: as `free`."""
        if self._is_thinking:
            words[row] = self._free
            return
        try:
            self._matcher().fill(words, row)
        except ConstraintError:
            words[row] = -1

    def accept(self, token_id: int) -> None:
        """Move over one token. Raises: ConstraintError, without a move, if the grammar is broken or forbids it."""
        if not self._is_thinking:
            self._matcher().accept(token_id)
        elif self._compiled is None and self._compiling.done():
            self._matcher()
        self._history.append(self._is_thinking)
        self._is_thinking = self._is_thinking and token_id != self._close_id

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens accepted."""
        if num_tokens <= 0:
            return
        undone, self._history = self._history[-num_tokens:], self._history[:-num_tokens]
        self._is_thinking = undone[0]
        if not all(undone):
            self._matcher().rollback(undone.count(False))

    def _matcher(self) -> GrammarMatcher:
        """Wait for the grammar, once. Raises: ConstraintError if it is broken."""
        if self._compiled is None:
            self._compiled = self._compiling.result()
        return self._compiled
