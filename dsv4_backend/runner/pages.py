"""The page tables of one rank: which page holds which block of which sequence, as the plans granted them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dsv4_backend.kv.layout import BLOCK, KINDS, STATE
from dsv4_backend.records import PageGrant, StepPlan

Rows = npt.NDArray[np.int64]

NO_PAGE = -1


class PageTables:
    """One table per cache kind, with a line per sequence and a column per block of 128 tokens.

    Lines and columns double when they run out; the line of a finished sequence is used again.
    """

    def __init__(self) -> None:
        self._pages: dict[str, Rows] = {kind: np.full((1, 1), NO_PAGE, np.int64) for kind in KINDS}
        self._lines: dict[int, int] = {}
        self._free_lines: list[int] = []

    @property
    def num_sequences(self) -> int:
        """Sequences with a line."""
        return len(self._lines)

    def table(self, kind: str) -> Rows:
        """The pages of all lines. Shapes: [lines, blocks], contiguous."""
        return self._pages[kind]

    def apply(self, plan: StepPlan) -> None:
        """Forget finished sequences, begin new ones with empty lines, and record the grants of every row."""
        for sequence_id in plan.finished:
            self._forget(sequence_id)
        for start in plan.starts:
            self._forget(start.sequence_id)
            self._begin(start.sequence_id)
        for row in plan.rows:
            for grant in row.grants:
                self._grant(self._lines[row.sequence_id], grant)

    def lines(self, sequence_ids: list[int]) -> list[int]:
        """Return the lines of started sequences."""
        return [self._lines[sequence_id] for sequence_id in sequence_ids]

    def entry_rows(self, lines: Rows, entries: Rows, rows_per_page: int) -> Rows:
        """Return the cache rows of entries by number. Shapes: lines and entries [B]."""
        pages = self._pages[BLOCK][lines, entries // rows_per_page]
        rows: Rows = pages * rows_per_page + entries % rows_per_page
        return rows

    def first_rows(self, lines: list[int], count: int, rows_per_page: int) -> Rows:
        """Return the cache rows of the first `count` entries of each line. Shapes: [len(lines), count]."""
        pages = self._pages[BLOCK][lines, : -(-count // rows_per_page)]
        rows: Rows = pages[:, :, None] * rows_per_page + np.arange(rows_per_page)
        return rows.reshape(len(lines), -1)[:, :count]

    def pages(self, lines: Rows, count: int) -> Rows:
        """Return the first `count` pages of each line, NO_PAGE where it has fewer. Shapes: [len(lines), count]."""
        found = self._pages[BLOCK][lines, :count]
        short: Rows = np.pad(found, ((0, 0), (0, count - found.shape[1])), constant_values=NO_PAGE)
        return short

    def states(self, lines: list[int]) -> list[int]:
        """Return the state of each line."""
        states: list[int] = self._pages[STATE][lines, 0].tolist()
        return states

    def _forget(self, sequence_id: int) -> None:
        line = self._lines.pop(sequence_id, None)
        if line is not None:
            self._free_lines.append(line)

    def _begin(self, sequence_id: int) -> None:
        line = self._free_lines.pop() if self._free_lines else len(self._lines)
        self._lines[sequence_id] = line
        for kind in self._pages:
            self._reach(kind, line + 1, 1)[line] = NO_PAGE

    def _grant(self, line: int, grant: PageGrant) -> None:
        end = grant.first_block + len(grant.page_ids)
        self._reach(grant.kind, 1, end)[line, grant.first_block : end] = grant.page_ids

    def _reach(self, kind: str, num_lines: int, num_blocks: int) -> Rows:
        """Return the kind's table, grown to at least that many lines and blocks."""
        table = self._pages[kind]
        lines, blocks = table.shape
        if num_lines > lines or num_blocks > blocks:
            shape = (_enough(num_lines, lines), _enough(num_blocks, blocks))
            grown = np.full(shape, NO_PAGE, np.int64)
            grown[:lines, :blocks] = table
            table = self._pages[kind] = grown
        return table


def _enough(wanted: int, held: int) -> int:
    """At least `wanted`; at least double where it must grow."""
    return held if wanted <= held else max(wanted, 2 * held)
