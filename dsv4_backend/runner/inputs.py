"""Turn a StepPlan into flat tensors: what each token reads and writes on this rank.

Sequences of any length, prefill chunks and decodes mixed, lie one after the other; chunks may begin and end anywhere.
Letters: S sequences, T tokens, B closing blocks, C entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from dsv4_kernels.tensors import FoldRuns
from torch import Tensor

from dsv4_backend.config import LayerKind, ModelConfig
from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.layout import CacheLayout
from dsv4_backend.model.step import EntryTable, FoldInputs, PoolInputs, StepInputs
from dsv4_backend.records import StepPlan
from dsv4_backend.runner.folding import Folding
from dsv4_backend.runner.pages import PageTables, Rows

NONE = np.zeros(0, np.int64)
NO_IDS = torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class _Spans:
    """The plan's rows as arrays: row s computes positions [starts, ends), its tokens begin at first_tokens.

    Shapes: lines, states, starts, written, ends, first_tokens [S]; owners (the row of each token) and positions [T].
    Rule:   positions [0, written) were written before, of which those from `starts` on are taken back.
    """

    lines: Rows
    states: Rows
    starts: Rows
    written: Rows
    ends: Rows
    first_tokens: Rows
    owners: Rows
    positions: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """The CSA part of StepInputs."""

    tables: tuple[EntryTable, ...]
    csa_rows: Rows
    first_entries: Rows
    num_visible: Rows


class InputBuilder:
    """Keeps this rank's page tables and builds the inputs of each step."""

    def __init__(self, config: ModelConfig, layout: CacheLayout) -> None:
        self.layout = layout
        self.tables = PageTables()
        self.csa_ratio = _ratio(config, LayerKind.CSA)
        self.hca_ratio = _ratio(config, LayerKind.HCA)

    def build(self, plan: StepPlan) -> StepInputs:
        """Apply the plan's starts, grants and ends, and return the inputs of its rows (at least one)."""
        self.tables.apply(plan)
        spans = self._spans(plan)
        logit_tokens, logit_spans = _logits(plan, spans)
        ring_tokens, ring_rows = _kept(spans, self.layout.window.ring_rows)
        entries = self._entries(spans)
        return StepInputs(
            token_ids=torch.tensor([token for row in plan.rows for token in row.token_ids], dtype=torch.int64),
            positions=torch.from_numpy(spans.positions),
            window_rows=self._window_rows(spans),
            ring_tokens=ring_tokens,
            ring_rows=ring_rows,
            csa=self._pools(spans, self.csa_ratio) if self.csa_ratio else None,
            csa_tables=entries.tables,
            csa_rows=torch.from_numpy(entries.csa_rows),
            first_entries=torch.from_numpy(entries.first_entries),
            num_visible=torch.from_numpy(entries.num_visible),
            hca=self._folds(spans, self.hca_ratio) if self.hca_ratio else None,
            hca_rows=self._hca_rows(spans),
            logit_tokens=logit_tokens,
            logit_spans=logit_spans,
        )

    def _spans(self, plan: StepPlan) -> _Spans:
        lengths = np.array([len(row.token_ids) for row in plan.rows], np.int64)
        starts = np.array([row.start for row in plan.rows], np.int64)
        owners, offsets = _runs(lengths)
        lines = self.tables.lines([row.sequence_id for row in plan.rows])
        return _Spans(
            lines=lines,
            states=self.tables.states(lines),
            starts=starts,
            written=np.maximum(starts, [row.num_written for row in plan.rows]),
            ends=starts + lengths,
            first_tokens=np.cumsum(lengths) - lengths,
            owners=owners,
            positions=starts[owners] + offsets,
        )

    def _window_rows(self, spans: _Spans) -> Tensor:
        """Rows of the window of each token, oldest first, the token itself last; -1 before position 0."""
        seen = spans.positions[:, None] + np.arange(1 - self.layout.window_tokens, 1)  # positions [T, W]
        starts = spans.starts[spans.owners, None]
        size = self.layout.window.ring_rows
        old = spans.states[spans.owners, None] * size + seen % size
        new = -2 - (spans.first_tokens[spans.owners, None] + seen - starts)
        return torch.from_numpy(np.where(seen >= starts, new, np.where(seen >= 0, old, -1)))

    def _pools(self, spans: _Spans, ratio: int) -> PoolInputs:
        """CSA blocks that close in this step: their sources, and what the rings keep for later blocks."""
        size = self.layout.rings[0].ring_rows
        owners, blocks = _closing(spans, ratio)
        ring_tokens, ring_rows = _kept(spans, size)
        phases = torch.from_numpy(spans.positions % ratio)
        if not len(blocks):
            return PoolInputs(
                phases=phases,
                positions=NO_IDS,
                entry_rows=NO_IDS,
                source_tokens=NO_IDS.view(0, 2 * ratio),
                source_rows=NO_IDS.view(0, 2 * ratio),
                ring_tokens=ring_tokens,
                ring_rows=ring_rows,
            )
        sources = blocks[:, None] * ratio + np.arange(-ratio, ratio)  # positions [B, 2 * ratio]
        in_step = sources >= spans.starts[owners, None]
        source_tokens = sources + (spans.first_tokens - spans.starts)[owners, None]
        source_rows = spans.states[owners, None] * size + sources % size
        return PoolInputs(
            phases=phases,
            positions=torch.from_numpy(blocks * ratio),
            entry_rows=torch.from_numpy(self._entry_rows(spans.lines[owners], blocks, ratio)),
            source_tokens=torch.from_numpy(np.where(in_step, source_tokens, -1)),
            source_rows=torch.from_numpy(np.where((sources >= 0) & ~in_step, source_rows, -1)),
            ring_tokens=ring_tokens,
            ring_rows=ring_rows,
        )

    def _folds(self, spans: _Spans, ratio: int) -> FoldInputs:
        """HCA blocks that close in this step, what is folded of open ones, and the raw rows that may be taken back."""
        owners, blocks = _closing(spans, ratio)
        folding = Folding(spans.starts, spans.written, spans.ends, ratio, self.layout.max_drafts)
        runs = folding.runs(owners, blocks)
        positions = np.concatenate([run.positions() for run in runs]) if runs else np.zeros(0, np.int64)
        rows = np.repeat([run.row for run in runs], [run.length for run in runs]).astype(np.int64)
        in_step = positions >= spans.starts[rows]
        size = self.layout.max_drafts
        raw_rows = spans.states[rows[~in_step]] * size + positions[~in_step] % max(1, size)
        sources = positions + (spans.first_tokens - spans.starts)[rows]
        sources[~in_step] = len(spans.positions) + np.arange(len(raw_rows))
        states = [int(spans.states[run.row]) for run in runs]
        ring_tokens, ring_rows = _kept(spans, size)
        return FoldInputs(
            phases=torch.from_numpy(spans.positions % ratio),
            positions=torch.from_numpy(blocks * ratio),
            entry_rows=torch.from_numpy(self._entry_rows(spans.lines[owners], blocks, ratio)),
            runs=FoldRuns(
                begins=_ids(state if run.goes_on else -1 for run, state in zip(runs, states, strict=True)),
                offsets=torch.from_numpy(np.cumsum([0, *(run.length for run in runs)])),
                sources=torch.from_numpy(sources),
                ends=_ids(-1 if run.closes else state for run, state in zip(runs, states, strict=True)),
            ),
            raw_rows=torch.from_numpy(raw_rows),
            ring_tokens=ring_tokens,
            ring_rows=ring_rows,
        )

    def _entry_rows(self, lines: Rows, entries: Rows, ratio: int) -> Rows:
        return self.tables.entry_rows(lines, entries, PAGE_TOKENS // ratio)

    def _entries(self, spans: _Spans) -> _Entries:
        """The CSA entries of the step's sequences, one sequence after the other."""
        if not self.csa_ratio:
            return _Entries(tables=(), csa_rows=NONE, first_entries=NONE, num_visible=NONE)
        counts = spans.ends // self.csa_ratio  # [S]
        owners, entries = _runs(counts)
        lines = spans.lines[owners]
        rows = self._entry_rows(lines, entries, self.csa_ratio)
        last_tokens = spans.first_tokens + spans.ends - spans.starts
        bounds = zip(spans.first_tokens.tolist(), last_tokens.tolist(), strict=True)
        all_rows = torch.from_numpy(rows)
        parts = torch.split(all_rows, counts.tolist()) if len(counts) > 1 else (all_rows,)
        return _Entries(
            tables=tuple(
                EntryTable(tokens=slice(*tokens), index_rows=part) for tokens, part in zip(bounds, parts, strict=True)
            ),
            csa_rows=rows,
            first_entries=(np.cumsum(counts) - counts)[spans.owners],
            num_visible=(spans.positions + 1) // self.csa_ratio,
        )

    def _hca_rows(self, spans: _Spans) -> Tensor:
        """Rows of every visible HCA entry of each token; shorter sequences are filled with -1. Shapes: [T, C]."""
        if not self.hca_ratio:
            return torch.empty((len(spans.positions), 0), dtype=torch.int64)
        entries = np.arange(int(spans.ends.max()) // self.hca_ratio)
        rows = self._entry_rows(spans.lines[:, None], entries, self.hca_ratio)  # [S, C]
        visible = (spans.positions + 1) // self.hca_ratio  # [T]
        return torch.from_numpy(np.where(entries < visible[:, None], rows[spans.owners], -1))


def _ratio(config: ModelConfig, kind: LayerKind) -> int:
    """Tokens per entry in the layers of a kind; 0 when the model has none."""
    return next((layer.ratio for layer in config.layers if layer.kind is kind), 0)


def _closing(spans: _Spans, ratio: int) -> tuple[Rows, Rows]:
    """Blocks that close in this step, one sequence after the other: the plan row and the number of each."""
    counts = spans.ends // ratio - spans.starts // ratio
    if not counts.any():
        return NONE, NONE
    owners, offsets = _runs(counts)
    return owners, spans.starts[owners] // ratio + offsets


def _kept(spans: _Spans, size: int) -> tuple[Tensor, Tensor]:
    """Tokens of this step that a ring of `size` rows per state keeps, and their rows."""
    if not size:
        return NO_IDS, NO_IDS
    tokens = np.flatnonzero(spans.positions >= spans.ends[spans.owners] - size)
    rows = spans.states[spans.owners[tokens]] * size + spans.positions[tokens] % size
    return torch.from_numpy(tokens), torch.from_numpy(rows)


def _ids(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def _runs(counts: Rows) -> tuple[Rows, Rows]:
    """Lay `counts[s]` items of each s in a row: the s of every item, and its number within its s."""
    if len(counts) == 1:  # one sequence: the step of a chat
        items = np.arange(int(counts[0]))
        return np.zeros_like(items), items
    owners = np.repeat(np.arange(len(counts)), counts)
    return owners, np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]


def _logits(plan: StepPlan, spans: _Spans) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Tokens whose logits are wanted, and each row's share of them.

    Rule: every token of a row that wants prompt logprobs, else the last one of a row that is sampled and the drafts
          after it, else none.
    """
    tokens: list[int] = []
    shares = []
    for row, first in zip(plan.rows, spans.first_tokens.tolist(), strict=True):
        begin, last = len(tokens), first + len(row.token_ids)
        if row.wants_prompt_logprobs:
            tokens.extend(range(first, last))
        elif row.is_sampled:
            tokens.extend(range(last - 1 - row.num_drafts, last))
        shares.append((begin, len(tokens)))
    return torch.tensor(tokens, dtype=torch.int64), tuple(shares)
