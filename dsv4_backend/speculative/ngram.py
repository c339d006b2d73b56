"""Drafts from the sequence's own text: what followed the last time that its newest tokens stood there.

For models without a draft head, and for answers that repeat their prompt: code, tables, tool results.
"""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (4, 3, 2)  # tokens that must agree; longer ones are tried first
MAX_INDEXED = 65_536  # of the newest tokens: the table of a million would take hundreds of megabytes


class NgramDrafts:
    """The table of one sequence. Rule: `token_ids` only grows at its end, or is cut to what was indexed less often."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids
        self._num_indexed = max(0, len(token_ids) - MAX_INDEXED)
        self._after: dict[tuple[int, ...], int] = {}

    def propose(self, count: int) -> tuple[int, ...]:
        """Return up to `count` tokens that may come next; none where the newest tokens never stood before."""
        tokens = self._token_ids
        self._index()
        for length in LENGTHS:
            begin = self._after.get(tuple(tokens[-length:])) if len(tokens) >= length else None
            if begin is not None:
                return tuple(tokens[begin : begin + count])
        return ()

    def _index(self) -> None:
        """Note what follows each run of tokens, the newest of them excepted: nothing follows it yet."""
        tokens = self._token_ids
        for end in range(self._num_indexed + 1, len(tokens)):
            for length in LENGTHS:
                if end >= length:
                    self._after[tuple(tokens[end - length : end])] = end
        self._num_indexed = max(self._num_indexed, len(tokens) - 1)
