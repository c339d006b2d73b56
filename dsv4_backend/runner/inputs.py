"""Turn a StepPlan into flat tensors: what each token reads and writes on this rank.

Sequences of any length, prefill chunks and decodes mixed, lie one after the other; chunks may begin and end anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dsv4_backend.config import LayerKind, ModelConfig
from dsv4_backend.kv.layout import CSA, HCA, INDEX, WINDOW, CacheLayout
from dsv4_backend.model.step import BlockInputs, EntryTable, StepInputs
from dsv4_backend.records import PlanRow, StepPlan
from dsv4_backend.runner.pages import PageTables, Rows, SequencePages


@dataclass(frozen=True, slots=True)
class _Span:
    """One row of the plan as positions [start, end), its tokens beginning at first_token of the step."""

    row: PlanRow
    pages: SequencePages
    first_token: int

    @property
    def start(self) -> int:
        return self.row.start

    @property
    def end(self) -> int:
        return self.row.start + len(self.row.token_ids)

    def positions(self) -> Rows:
        return np.arange(self.start, self.end)


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
        positions = np.concatenate([span.positions() for span in spans])
        logit_tokens, logit_spans = _logits(spans)
        return StepInputs(
            token_ids=torch.tensor([token for row in plan.rows for token in row.token_ids], dtype=torch.int64),
            positions=torch.from_numpy(positions),
            window_write_rows=_join([span.pages.rows(WINDOW, span.positions()) for span in spans]),
            window_rows=_join([self._window_rows(span) for span in spans]),
            csa=_blocks(spans, self.csa_ratio, num_series=2) if self.csa_ratio else None,
            csa_tables=tuple(_table(span, self.csa_ratio) for span in spans) if self.csa_ratio else (),
            num_visible=torch.from_numpy((positions + 1) // max(self.csa_ratio, 1)),
            hca=_blocks(spans, self.hca_ratio, num_series=1) if self.hca_ratio else None,
            hca_rows=_hca_rows(spans, self.hca_ratio) if self.hca_ratio else torch.empty((len(positions), 0)),
            logit_tokens=logit_tokens,
            logit_spans=logit_spans,
        )

    def _spans(self, plan: StepPlan) -> list[_Span]:
        spans, first_token = [], 0
        for row in plan.rows:
            spans.append(_Span(row, self.tables.pages(row.sequence_id), first_token))
            first_token += len(row.token_ids)
        return spans

    def _window_rows(self, span: _Span) -> Rows:
        """Rows of the window of each token, oldest first, the token itself last; -1 before position 0."""
        first = span.start - self.window + 1
        known = np.full(span.end - first, -1, np.int64)  # rows of positions [first, end)
        seen = max(first, 0)
        known[seen - first :] = span.pages.rows(WINDOW, np.arange(seen, span.end))
        return np.lib.stride_tricks.sliding_window_view(known, self.window)  # [T, W]


def _ratio(config: ModelConfig, kind: LayerKind) -> int:
    """Tokens per entry in the layers of a kind; 0 when the model has none."""
    return next((layer.ratio for layer in config.layers if layer.kind is kind), 0)


def _join(parts: Sequence[Rows]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _logits(spans: Sequence[_Span]) -> tuple[torch.Tensor, tuple[tuple[int, int], ...]]:
    """Tokens whose logits are wanted, and each row's share of them.

    Rule: every token of a row that wants prompt logprobs, else the last one of a row that is sampled, else none.
    """
    tokens: list[int] = []
    shares = []
    for span in spans:
        begin, last = len(tokens), span.first_token + len(span.row.token_ids)
        if span.row.wants_prompt_logprobs:
            tokens.extend(range(span.first_token, last))
        elif span.row.is_sampled:
            tokens.append(last - 1)
        shares.append((begin, len(tokens)))
    return torch.tensor(tokens, dtype=torch.int64), tuple(shares)


@dataclass(frozen=True, slots=True)
class _SpanBlocks:
    """The share of one sequence in BlockInputs."""

    source_tokens: Rows
    source_rows: Rows
    positions: Rows
    entry_rows: Rows
    index_rows: Rows
    ring_tokens: Rows
    ring_rows: Rows


def _blocks(spans: Sequence[_Span], ratio: int, num_series: int) -> BlockInputs:
    shares = [_span_blocks(span, ratio, num_series) for span in spans]
    return BlockInputs(
        phases=_join([span.positions() % ratio for span in spans]),
        source_tokens=_join([share.source_tokens for share in shares]),
        source_rows=_join([share.source_rows for share in shares]),
        positions=_join([share.positions for share in shares]),
        entry_rows=_join([share.entry_rows for share in shares]),
        index_rows=_join([share.index_rows for share in shares]),
        ring_tokens=_join([share.ring_tokens for share in shares]),
        ring_rows=_join([share.ring_rows for share in shares]),
    )


def _span_blocks(span: _Span, ratio: int, num_series: int) -> _SpanBlocks:
    """Blocks that close in [start, end): their sources, their entries, and what the ring keeps for later blocks.

    Rule: a ring holds num_series * ratio positions, so that a block closing next finds all its sources.
    """
    ring = num_series * ratio
    ring_start = span.pages.slot() * ring
    closed = np.arange(span.start // ratio, span.end // ratio)  # block numbers [B]
    sources = closed[:, None] * ratio + np.arange(ratio - ring, ratio)  # positions [B, S]
    in_step = sources >= span.start
    is_kept = (sources >= 0) & ~in_step
    kept = np.arange(max(span.start, span.end - ring), span.end)
    return _SpanBlocks(
        source_tokens=np.where(in_step, sources - span.start + span.first_token, -1),
        source_rows=np.where(is_kept, ring_start + sources % ring, -1),
        positions=closed * ratio,
        entry_rows=span.pages.rows(CSA if num_series == 2 else HCA, closed),
        index_rows=span.pages.rows(INDEX, closed) if num_series == 2 else closed[:0],
        ring_tokens=kept - span.start + span.first_token,
        ring_rows=ring_start + kept % ring,
    )


def _table(span: _Span, ratio: int) -> EntryTable:
    entries = np.arange(span.end // ratio)
    return EntryTable(
        first_token=span.first_token,
        num_tokens=len(span.row.token_ids),
        entry_rows=torch.from_numpy(span.pages.rows(CSA, entries)),
        index_rows=torch.from_numpy(span.pages.rows(INDEX, entries)),
    )


def _hca_rows(spans: Sequence[_Span], ratio: int) -> torch.Tensor:
    """Rows of every visible HCA entry of each token; shorter sequences are filled with -1. Shapes: [T, C]."""
    most = max(span.end // ratio for span in spans)
    parts = []
    for span in spans:
        entries = np.arange(span.end // ratio)
        visible = (span.positions() + 1) // ratio  # [T]
        rows = np.full((len(visible), most), -1, np.int64)
        is_visible = entries[None, :] < visible[:, None]
        rows[:, : len(entries)] = np.where(is_visible, span.pages.rows(HCA, entries)[None, :], -1)
        parts.append(rows)
    return _join(parts)
