"""Turn a StepPlan into flat tensors: what each token reads and writes on this rank.

Sequences of any length, prefill chunks and decodes mixed, lie one after the other; chunks may begin and end anywhere.
Letters: S sequences, T tokens, B closing blocks, C entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from dsv4_kernels.cpu.plan import PlannedStep, StepPlanner, planner_of
from dsv4_kernels.ops import OpTable
from dsv4_kernels.tensors import FoldRuns
from torch import Tensor

from dsv4_backend.config import LayerKind, ModelConfig
from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.layout import BLOCK, CacheLayout
from dsv4_backend.model.step import EntryTable, FoldInputs, PoolInputs, StepInputs
from dsv4_backend.records import StepPlan
from dsv4_backend.runner.folding import Closing, Folding
from dsv4_backend.runner.pages import PageTables, Rows

NO_IDS = torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spans:
    """The plan's rows: row s computes positions [starts, ends), its tokens begin at first_tokens.

    Shapes: lines, states, starts, written, ends, first_tokens, shifts are lists [S]; the arrays are [T].
    Rule:   positions [0, written) were written before, of which those from `starts` on are taken back. A position of
            row s is token position - shifts[s], the longest row has `longest` tokens. Of each token: its number, row,
            position and its row's state.
    """

    lines: list[int]
    states: list[int]
    starts: list[int]
    written: list[int]
    ends: list[int]
    first_tokens: list[int]
    shifts: list[int]
    longest: int
    tokens: Rows
    owners: Rows
    positions: Rows
    token_states: Rows

    def of_tokens(self, values: list[int]) -> Rows:
        """What each token's row has in a list [S]. Shapes: [T]."""
        found: Rows = np.array(values, np.int64)[self.owners]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """The CSA part of StepInputs."""

    tables: tuple[EntryTable, ...] = ()
    csa_rows: Tensor = NO_IDS
    first_entries: Tensor = NO_IDS
    num_visible: Tensor = NO_IDS


class InputBuilder:
    """Keeps this rank's page tables and builds the inputs of each step.

    Rule: with the CPU's operators the compiled planner does it (`cpu/plan.py`); what stands here is its readable form.
    """

    def __init__(self, config: ModelConfig, layout: CacheLayout, ops: OpTable | None = None) -> None:
        self.layout = layout
        self.tables = PageTables()
        self.csa_ratio = _ratio(config, LayerKind.CSA)
        self.hca_ratio = _ratio(config, LayerKind.HCA)
        self._behind = np.arange(1 - layout.window_tokens, 1)  # a window, from the position that it ends with
        self._planner = None if ops is None else planner_of(ops, **self._sizes())
        self._no_sources = torch.zeros((0, 2 * self.csa_ratio), dtype=torch.int64)

    def build(self, plan: StepPlan) -> StepInputs | PlannedStep:
        """Apply the plan's starts, grants and ends, and return the inputs of its rows (at least one)."""
        self.tables.apply(plan)
        if self._planner is not None:
            return self._planned(plan, self._planner)
        logit_tokens, logit_spans = _logits(plan)
        spans = self._spans(plan)
        ring_tokens, ring_rows = _kept(spans, self.layout.window.ring_rows)
        entries = self._entries(spans)
        return StepInputs(
            token_ids=_ids([token for row in plan.rows for token in row.token_ids]),
            positions=torch.from_numpy(spans.positions),
            window_rows=self._window_rows(spans),
            ring_tokens=ring_tokens,
            ring_rows=ring_rows,
            csa=self._pools(spans, self.csa_ratio) if self.csa_ratio else None,
            csa_tables=entries.tables,
            csa_rows=entries.csa_rows,
            first_entries=entries.first_entries,
            num_visible=entries.num_visible,
            hca=self._folds(spans, self.hca_ratio) if self.hca_ratio else None,
            hca_rows=self._hca_rows(spans),
            logit_tokens=_ids(logit_tokens),
            logit_spans=logit_spans,
        )

    def _planned(self, plan: StepPlan, planner: StepPlanner) -> PlannedStep:
        rows = plan.rows
        lines = self.tables.lines([row.sequence_id for row in rows])
        starts = [row.start for row in rows]
        written = [max(row.start, row.num_written) for row in rows]
        ends = [row.start + len(row.token_ids) for row in rows]
        given = (lines, self.tables.states(lines), starts, written, ends)
        token_ids = [token_id for row in rows for token_id in row.token_ids]
        return planner(self.tables.table(BLOCK), given, token_ids, _logits(plan))

    def _sizes(self) -> dict[str, int]:
        """What the compiled planner knows of the model and its caches."""
        return {
            "page_tokens": PAGE_TOKENS,
            "window": self.layout.window_tokens,
            "window_ring": self.layout.window.ring_rows,
            "csa_ratio": self.csa_ratio,
            "csa_ring": self.layout.rings[0].ring_rows if self.csa_ratio else 0,
            "hca_ratio": self.hca_ratio,
            "drafts": self.layout.max_drafts,
        }

    def _spans(self, plan: StepPlan) -> _Spans:
        lines = self.tables.lines([row.sequence_id for row in plan.rows])
        states = self.tables.states(lines)
        starts = [row.start for row in plan.rows]
        lengths = [len(row.token_ids) for row in plan.rows]
        bounds = [0, *accumulate(lengths)]
        shifts = [start - first for start, first in zip(starts, bounds, strict=False)]
        tokens, owners = np.arange(bounds[-1]), np.repeat(np.arange(len(lengths)), lengths)
        return _Spans(
            lines=lines,
            states=states,
            starts=starts,
            written=[max(row.start, row.num_written) for row in plan.rows],
            ends=[start + length for start, length in zip(starts, lengths, strict=True)],
            first_tokens=bounds[:-1],
            shifts=shifts,
            longest=max(lengths),
            tokens=tokens,
            owners=owners,
            positions=tokens + np.array(shifts, np.int64)[owners],
            token_states=np.array(states, np.int64)[owners],
        )

    def _window_rows(self, spans: _Spans) -> Tensor:
        """Rows of the window of each token, oldest first, the token itself last; -1 before position 0."""
        seen = spans.positions[:, None] + self._behind  # positions [T, W]
        size = self.layout.window.ring_rows
        old = spans.token_states[:, None] * size + seen % size
        new = (spans.of_tokens(spans.shifts) - 2)[:, None] - seen
        in_step = seen >= spans.of_tokens(spans.starts)[:, None]
        return torch.from_numpy(np.where(in_step, new, np.where(seen >= 0, old, -1)))

    def _pools(self, spans: _Spans, ratio: int) -> PoolInputs:
        """CSA blocks that close in this step: their sources, and what the rings keep for later blocks."""
        size = self.layout.rings[0].ring_rows
        closing = _closing(spans, ratio)
        source_tokens, source_rows = self._sources(spans, closing, ratio, size)
        ring_tokens, ring_rows = _kept(spans, size)
        return PoolInputs(
            phases=torch.from_numpy(spans.positions % ratio),
            positions=_ids([block * ratio for _, block in closing]),
            entry_rows=self._entry_rows(spans, closing, ratio),
            source_tokens=source_tokens,
            source_rows=source_rows,
            ring_tokens=ring_tokens,
            ring_rows=ring_rows,
        )

    def _sources(self, spans: _Spans, closing: Closing, ratio: int, size: int) -> tuple[Tensor, Tensor]:
        """Tokens and ring rows that closing CSA blocks are pooled from, -1 where it is the other, or neither."""
        if not closing:
            return self._no_sources, self._no_sources
        owners, blocks = np.array(closing, np.int64).T
        starts, shifts, states = (np.array(each)[owners, None] for each in (spans.starts, spans.shifts, spans.states))
        sources = blocks[:, None] * ratio + np.arange(-ratio, ratio)  # positions [B, 2 * ratio]
        in_step = sources >= starts
        tokens = np.where(in_step, sources - shifts, -1)
        rows = np.where((sources >= 0) & ~in_step, states * size + sources % size, -1)
        return torch.from_numpy(tokens), torch.from_numpy(rows)

    def _folds(self, spans: _Spans, ratio: int) -> FoldInputs:
        """HCA blocks that close in this step, what is folded of open ones, and the raw rows that may be taken back."""
        closing, size = _closing(spans, ratio), self.layout.max_drafts
        runs = Folding(spans.starts, spans.written, spans.ends, ratio, size).runs(closing)
        sources: list[int] = []
        raw_rows: list[int] = []
        offsets = [0]
        for run in runs:
            state, shift = spans.states[run.row], spans.shifts[run.row]
            cut = min(max(run.first, spans.starts[run.row]), run.end)  # positions from here on are of this step
            first_raw = len(spans.tokens) + len(raw_rows)
            raw_rows += [state * size + position % size for position in range(run.first, cut)]
            sources += [*range(first_raw, first_raw + cut - run.first), *range(cut - shift, run.end - shift)]
            offsets.append(len(sources))
        ring_tokens, ring_rows = _kept(spans, size)
        return FoldInputs(
            phases=torch.from_numpy(spans.positions % ratio),
            positions=_ids([block * ratio for _, block in closing]),
            entry_rows=self._entry_rows(spans, closing, ratio),
            runs=FoldRuns(
                begins=_ids([spans.states[run.row] if run.goes_on else -1 for run in runs]),
                offsets=_ids(offsets),
                sources=_ids(sources),
                ends=_ids([-1 if run.closes else spans.states[run.row] for run in runs]),
                num_entries=len(closing),
            ),
            raw_rows=_ids(raw_rows),
            ring_tokens=ring_tokens,
            ring_rows=ring_rows,
        )

    def _entry_rows(self, spans: _Spans, closing: Closing, ratio: int) -> Tensor:
        """Where the entries of closing blocks go. Shapes: [B]."""
        if not closing:
            return NO_IDS
        owners, blocks = np.array(closing, np.int64).T
        return torch.from_numpy(self.tables.entry_rows(np.array(spans.lines)[owners], blocks, PAGE_TOKENS // ratio))

    def _entries(self, spans: _Spans) -> _Entries:
        """The CSA entries of the step's sequences, one sequence after the other."""
        if not self.csa_ratio:
            return _Entries()
        counts = [end // self.csa_ratio for end in spans.ends]
        bounds = [0, *accumulate(counts)]
        parts = [
            self.tables.first_rows([line], count, PAGE_TOKENS // self.csa_ratio)[0]
            for line, count in zip(spans.lines, counts, strict=True)
        ]
        tables = tuple(
            EntryTable(tokens=slice(first, end - shift), index_rows=torch.from_numpy(part))
            for first, end, shift, part in zip(spans.first_tokens, spans.ends, spans.shifts, parts, strict=True)
        )
        return _Entries(
            tables=tables,
            csa_rows=torch.from_numpy(np.concatenate(parts)) if len(parts) > 1 else tables[0].index_rows,
            first_entries=torch.from_numpy(spans.of_tokens(bounds[:-1])),
            num_visible=torch.from_numpy((spans.positions + 1) // self.csa_ratio),
        )

    def _hca_rows(self, spans: _Spans) -> Tensor:
        """Rows of every visible HCA entry of each token; shorter sequences are filled with -1. Shapes: [T, C]."""
        count = max(spans.ends) // self.hca_ratio if self.hca_ratio else 0
        if not count:
            return torch.empty((len(spans.tokens), 0), dtype=torch.int64)
        rows = self.tables.first_rows(spans.lines, count, PAGE_TOKENS // self.hca_ratio)  # [S, C]
        visible = (spans.positions + 1) // self.hca_ratio  # [T]
        return torch.from_numpy(np.where(np.arange(count) < visible[:, None], rows[spans.owners], -1))


def _ratio(config: ModelConfig, kind: LayerKind) -> int:
    """Tokens per entry in the layers of a kind; 0 when the model has none."""
    return next((layer.ratio for layer in config.layers if layer.kind is kind), 0)


def _closing(spans: _Spans, ratio: int) -> Closing:
    """Blocks that close in this step, one sequence after the other."""
    return [
        (row, block)
        for row, (start, end) in enumerate(zip(spans.starts, spans.ends, strict=True))
        for block in range(start // ratio, end // ratio)
    ]


def _kept(spans: _Spans, size: int) -> tuple[Tensor, Tensor]:
    """Tokens of this step that a ring of `size` rows per state keeps, and their rows."""
    if not size:
        return NO_IDS, NO_IDS
    tokens = spans.tokens
    if spans.longest > size:
        tokens = np.flatnonzero(spans.positions >= spans.of_tokens(spans.ends) - size)
    rows = spans.token_states[tokens] * size + spans.positions[tokens] % size
    return torch.from_numpy(tokens), torch.from_numpy(rows)


def _ids(values: list[int]) -> Tensor:
    return torch.from_numpy(np.array(values, np.int64)) if values else NO_IDS


def _logits(plan: StepPlan) -> tuple[list[int], tuple[tuple[int, int], ...]]:
    """Tokens whose logits are wanted, and each row's share of them.

    Rule: every token of a row that wants prompt logprobs, else the last one of a row that is sampled and the drafts
          after it, else none.
    """
    tokens: list[int] = []
    shares, last = [], 0
    for row in plan.rows:
        begin, first, last = len(tokens), last, last + len(row.token_ids)
        if row.wants_prompt_logprobs:
            tokens.extend(range(first, last))
        elif row.is_sampled:
            tokens.extend(range(last - 1 - row.num_drafts, last))
        shares.append((begin, len(tokens)))
    return tokens, tuple(shares)
