"""Turn a StepPlan into flat tensors: what each token reads and writes on this rank.

Sequences of any length, prefill chunks and decodes mixed, lie one after the other; chunks may begin and end anywhere.
Letters: S sequences, T tokens, B closing blocks, C entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsv4_backend.config import LayerKind, ModelConfig
from dsv4_backend.kv.layout import CSA, HCA, INDEX, STATE, WINDOW, CacheLayout
from dsv4_backend.model.step import BlockInputs, EntryTable, StepInputs
from dsv4_backend.records import StepPlan
from dsv4_backend.runner.pages import PageTables, Rows


@dataclass(frozen=True, slots=True)
class _Spans:
    """The plan's rows as arrays: row s computes positions [starts, ends), its tokens begin at first_tokens.

    Shapes: lines, starts, ends, first_tokens [S]; owners (the row of each token) and positions [T].
    """

    lines: Rows
    starts: Rows
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
        self.window = config.window
        self.tables = PageTables(layout)
        self.csa_ratio = _ratio(config, LayerKind.CSA)
        self.hca_ratio = _ratio(config, LayerKind.HCA)

    def build(self, plan: StepPlan) -> StepInputs:
        """Apply the plan's starts, grants and ends, and return the inputs of its rows (at least one)."""
        self.tables.apply(plan)
        spans = self._spans(plan)
        logit_tokens, logit_spans = _logits(plan, spans)
        write_rows = self.tables.rows(WINDOW, spans.lines[spans.owners], spans.positions)
        entries = self._entries(spans)
        return StepInputs(
            token_ids=torch.tensor([token for row in plan.rows for token in row.token_ids], dtype=torch.int64),
            positions=torch.from_numpy(spans.positions),
            window_write_rows=torch.from_numpy(write_rows),
            window_rows=self._window_rows(spans),
            csa=self._blocks(spans, self.csa_ratio, num_series=2) if self.csa_ratio else None,
            csa_tables=entries.tables,
            csa_rows=torch.from_numpy(entries.csa_rows),
            first_entries=torch.from_numpy(entries.first_entries),
            num_visible=torch.from_numpy(entries.num_visible),
            hca=self._blocks(spans, self.hca_ratio, num_series=1) if self.hca_ratio else None,
            hca_rows=self._hca_rows(spans),
            logit_tokens=logit_tokens,
            logit_spans=logit_spans,
        )

    def _spans(self, plan: StepPlan) -> _Spans:
        lengths = np.array([len(row.token_ids) for row in plan.rows], np.int64)
        starts = np.array([row.start for row in plan.rows], np.int64)
        owners, offsets = _runs(lengths)
        return _Spans(
            lines=self.tables.lines([row.sequence_id for row in plan.rows]),
            starts=starts,
            ends=starts + lengths,
            first_tokens=np.cumsum(lengths) - lengths,
            owners=owners,
            positions=starts[owners] + offsets,
        )

    def _window_rows(self, spans: _Spans) -> Tensor:
        """Rows of the window of each token, oldest first, the token itself last; -1 before position 0."""
        seen = spans.positions[:, None] + np.arange(1 - self.window, 1)  # positions [T, W]
        rows = self.tables.rows(WINDOW, spans.lines[spans.owners, None], np.maximum(seen, 0))
        return torch.from_numpy(np.where(seen >= 0, rows, -1))

    def _blocks(self, spans: _Spans, ratio: int, num_series: int) -> BlockInputs:
        """Blocks that close in this step: their sources, their entries, and what the rings keep for later blocks.

        Rule: a ring holds num_series * ratio positions, so that a block closing later finds all its sources.
        """
        ring = num_series * ratio
        owners, offsets = _runs(spans.ends // ratio - spans.starts // ratio)
        blocks = spans.starts[owners] // ratio + offsets  # block numbers [B]
        sources = blocks[:, None] * ratio + np.arange(ratio - ring, ratio)  # positions [B, S]
        in_step = sources >= spans.starts[owners, None]
        ring_starts = self.tables.rows(STATE, spans.lines, np.zeros_like(spans.lines)) * ring  # [S]
        source_tokens = sources + (spans.first_tokens - spans.starts)[owners, None]
        source_rows = ring_starts[owners, None] + sources % ring
        kept = np.flatnonzero(spans.positions >= spans.ends[spans.owners] - ring)  # tokens
        lines = spans.lines[owners]
        index_rows = self.tables.rows(INDEX, lines, blocks) if num_series == 2 else blocks[:0]
        return BlockInputs(
            phases=torch.from_numpy(spans.positions % ratio),
            source_tokens=torch.from_numpy(np.where(in_step, source_tokens, -1)),
            source_rows=torch.from_numpy(np.where((sources >= 0) & ~in_step, source_rows, -1)),
            positions=torch.from_numpy(blocks * ratio),
            entry_rows=torch.from_numpy(self.tables.rows(CSA if num_series == 2 else HCA, lines, blocks)),
            index_rows=torch.from_numpy(index_rows),
            ring_tokens=torch.from_numpy(kept),
            ring_rows=torch.from_numpy(ring_starts[spans.owners[kept]] + spans.positions[kept] % ring),
        )

    def _entries(self, spans: _Spans) -> _Entries:
        """The CSA entries of the step's sequences, one sequence after the other."""
        if not self.csa_ratio:
            none = np.zeros(0, np.int64)
            return _Entries(tables=(), csa_rows=none, first_entries=none, num_visible=none)
        counts = spans.ends // self.csa_ratio  # [S]
        owners, entries = _runs(counts)
        lines = spans.lines[owners]
        index_rows = torch.from_numpy(self.tables.rows(INDEX, lines, entries))
        last_tokens = spans.first_tokens + spans.ends - spans.starts
        bounds = zip(spans.first_tokens.tolist(), last_tokens.tolist(), strict=True)
        parts = torch.split(index_rows, counts.tolist())
        return _Entries(
            tables=tuple(
                EntryTable(tokens=slice(*tokens), index_rows=part) for tokens, part in zip(bounds, parts, strict=True)
            ),
            csa_rows=self.tables.rows(CSA, lines, entries),
            first_entries=(np.cumsum(counts) - counts)[spans.owners],
            num_visible=(spans.positions + 1) // self.csa_ratio,
        )

    def _hca_rows(self, spans: _Spans) -> Tensor:
        """Rows of every visible HCA entry of each token; shorter sequences are filled with -1. Shapes: [T, C]."""
        if not self.hca_ratio:
            return torch.empty((len(spans.positions), 0), dtype=torch.int64)
        entries = np.arange(int(spans.ends.max()) // self.hca_ratio)
        rows = self.tables.rows(HCA, spans.lines[:, None], entries)  # [S, C]
        visible = (spans.positions + 1) // self.hca_ratio  # [T]
        return torch.from_numpy(np.where(entries < visible[:, None], rows[spans.owners], -1))


def _ratio(config: ModelConfig, kind: LayerKind) -> int:
    """Tokens per entry in the layers of a kind; 0 when the model has none."""
    return next((layer.ratio for layer in config.layers if layer.kind is kind), 0)


def _runs(counts: Rows) -> tuple[Rows, Rows]:
    """Lay `counts[s]` items of each s in a row: the s of every item, and its number within its s."""
    owners = np.repeat(np.arange(len(counts)), counts)
    return owners, np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]


def _logits(plan: StepPlan, spans: _Spans) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Tokens whose logits are wanted, and each row's share of them.

    Rule: every token of a row that wants prompt logprobs, else the last one of a row that is sampled, else none.
    """
    tokens: list[int] = []
    shares = []
    for row, first in zip(plan.rows, spans.first_tokens.tolist(), strict=True):
        begin, last = len(tokens), first + len(row.token_ids)
        if row.wants_prompt_logprobs:
            tokens.extend(range(first, last))
        elif row.is_sampled:
            tokens.append(last - 1)
        shares.append((begin, len(tokens)))
    return torch.tensor(tokens, dtype=torch.int64), tuple(shares)
