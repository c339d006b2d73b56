"""The page tables of one rank: which page holds which block of which sequence, as the plans granted them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dsv4_backend.kv.layout import STATE, CacheLayout
from dsv4_backend.records import PageGrant, StepPlan

Rows = npt.NDArray[np.int64]


class SequencePages:
    """Pages of one sequence, by kind; blocks without a page read as -1."""

    def __init__(self, layout: CacheLayout) -> None:
        self._rows_per_page = {kind.name: kind.rows_per_page for kind in layout.kinds}
        self._pages: dict[str, Rows] = {name: np.full(1, -1, np.int64) for name in self._rows_per_page}

    def grant(self, grant: PageGrant) -> None:
        """Record pages for blocks first_block, first_block + 1, …"""
        end = grant.first_block + len(grant.page_ids)
        pages = self._pages[grant.kind]
        if end > len(pages):
            grown = np.full(max(end, 2 * len(pages)), -1, np.int64)
            grown[: len(pages)] = pages
            pages = self._pages[grant.kind] = grown
        pages[grant.first_block : end] = grant.page_ids

    def slot(self) -> int:
        """Return the slot of the sequence's compressor rings."""
        return int(self._pages[STATE][0])

    def rows(self, kind: str, entries: Rows) -> Rows:
        """Return the cache rows of entries by number (of tokens, where the kind has a row per token)."""
        rows_per_page = self._rows_per_page[kind]
        rows: Rows = self._pages[kind][entries // rows_per_page] * rows_per_page + entries % rows_per_page
        return rows


class PageTables:
    """Page tables of every sequence that this rank runs."""

    def __init__(self, layout: CacheLayout) -> None:
        self.layout = layout
        self._sequences: dict[int, SequencePages] = {}

    def apply(self, plan: StepPlan) -> None:
        """Forget finished sequences, begin new ones with empty tables, and record the grants of every row."""
        for sequence_id in plan.finished:
            self._sequences.pop(sequence_id, None)
        for start in plan.starts:
            self._sequences[start.sequence_id] = SequencePages(self.layout)
        for row in plan.rows:
            for grant in row.grants:
                self._sequences[row.sequence_id].grant(grant)

    def pages(self, sequence_id: int) -> SequencePages:
        """Return the table of a started sequence."""
        return self._sequences[sequence_id]

    @property
    def num_sequences(self) -> int:
        """Sequences with a table."""
        return len(self._sequences)
