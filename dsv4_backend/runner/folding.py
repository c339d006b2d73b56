"""Which rows an HCA layer folds in a step, when the last tokens of a step may be taken back by the next one.

A state holds the open block folded up to max_drafts positions before the furthest one ever written: those can never be
taken back. The rows after them stay raw. A step refolds raw rows where a block closes, but stores only what is certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Fold positions [first, end) of plan row `row`.

    Rule: it goes on from the row's state, or from nothing; it closes a block, or is stored as the row's state.
    """

    row: int
    first: int
    end: int
    goes_on: bool
    closes: bool

    @property
    def length(self) -> int:
        """Positions of the run."""
        return self.end - self.first

    def positions(self) -> Rows:
        """The positions, ascending."""
        return np.arange(self.first, self.end)


@dataclass(frozen=True, slots=True)
class Folding:
    """The plan rows of a step: [starts, ends) is computed, [0, written) was written before. Shapes: each [S]."""

    starts: Rows
    written: Rows
    ends: Rows
    ratio: int
    max_drafts: int

    def runs(self, owners: Rows, blocks: Rows) -> list[Run]:
        """Return all runs: those that close blocks in the order given, then those that are stored."""
        closing = [self._close(row, block) for row, block in zip(owners.tolist(), blocks.tolist(), strict=True)]
        stored = (self._store(row) for row in range(len(self.starts)))
        return closing + [run for run in stored if run is not None]

    def _folded(self, row: int) -> int:
        """The position up to which a row's state is folded; the start of its open block if it holds nothing of it."""
        start = int(self.starts[row])
        return max(int(self.written[row]) - self.max_drafts, start // self.ratio * self.ratio)

    def _close(self, row: int, block: int) -> Run:
        first, folded = block * self.ratio, self._folded(row)
        goes_on = folded // self.ratio == block and folded > first
        return Run(row=row, first=folded if goes_on else first, end=first + self.ratio, goes_on=goes_on, closes=True)

    def _store(self, row: int) -> Run | None:
        """Fold what became certain of the block that is open at its end; None where there is nothing."""
        certain = max(int(self.written[row]), int(self.ends[row])) - self.max_drafts
        first, folded = certain // self.ratio * self.ratio, self._folded(row)
        goes_on = first < folded
        first = max(first, folded)
        return Run(row=row, first=first, end=certain, goes_on=goes_on, closes=False) if first < certain else None
