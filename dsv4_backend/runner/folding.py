"""Which rows an HCA layer folds in a step, when the last tokens of a step may be taken back by the next one.

A state holds the open block folded up to max_drafts positions before the furthest one ever written: those can never be
taken back. The rows after them stay raw. A step refolds raw rows where a block closes, but stores only what is certain.
"""

from __future__ import annotations

from dataclasses import dataclass

Closing = list[tuple[int, int]]  # plan rows, and the numbers of blocks that close in them


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Fold positions [first, end) of plan row `row`, in ascending order.

    Rule: it goes on from the row's state, or from nothing; it closes a block, or is stored as the row's state.
    """

    row: int
    first: int
    end: int
    goes_on: bool
    closes: bool


@dataclass(frozen=True, slots=True)
class Folding:
    """The plan rows of a step: [starts, ends) is computed, [0, written) was written before. Shapes: each [S]."""

    starts: list[int]
    written: list[int]
    ends: list[int]
    ratio: int
    max_drafts: int

    def runs(self, closing: Closing) -> list[Run]:
        """Return all runs: those that close blocks in the order given, then those that are stored."""
        stored = (self._store(row) for row in range(len(self.starts)))
        return [self._close(row, block) for row, block in closing] + [run for run in stored if run is not None]

    def _folded(self, row: int) -> int:
        """The position up to which a row's state is folded; the start of its open block if it holds nothing of it."""
        return max(self.written[row] - self.max_drafts, self.starts[row] // self.ratio * self.ratio)

    def _close(self, row: int, block: int) -> Run:
        first, folded = block * self.ratio, self._folded(row)
        goes_on = folded // self.ratio == block and folded > first
        return Run(row=row, first=folded if goes_on else first, end=first + self.ratio, goes_on=goes_on, closes=True)

    def _store(self, row: int) -> Run | None:
        """Fold what became certain of the block that is open at its end; None where there is nothing."""
        certain = max(self.written[row], self.ends[row]) - self.max_drafts
        first, folded = certain // self.ratio * self.ratio, self._folded(row)
        goes_on = first < folded
        first = max(first, folded)
        return Run(row=row, first=first, end=certain, goes_on=goes_on, closes=False) if first < certain else None
