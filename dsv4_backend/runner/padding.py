"""Decode steps in few fixed shapes, so that one recorded step serves all that fit in it.

A bucket has room for T tokens, each with P pages of its sequence. What a step does not need is filled with work that
nobody reads: tokens at position 0 that attend to nothing, and writes to the spare places behind the cache's own.
Letters: T tokens of the bucket, P pages, t tokens of the step, B blocks that close in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from dsv4_kernels.tensors import FoldRuns
from torch import Tensor
from torch.nn.functional import pad

from dsv4_backend.config.model import PAGE_TOKENS
from dsv4_backend.kv.layout import CacheLayout
from dsv4_backend.model.step import FoldInputs, PoolInputs, StepInputs
from dsv4_backend.records import StepPlan
from dsv4_backend.runner.inputs import NO_IDS, InputBuilder
from dsv4_backend.runner.pages import NO_PAGE
from dsv4_backend.runner.upload import changed

TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
PAGE_BUCKETS = tuple(4**power * 4 for power in range(7))  # 512 tokens of context up to 2 million


@dataclass(frozen=True, slots=True)
class Bucket:
    """Room for so many tokens, each with so many pages of 128 tokens."""

    tokens: int
    pages: int


class Padding:
    """Fits decode steps into buckets. `spare_page` and `spare_state` take the writes that nobody reads."""

    def __init__(self, builder: InputBuilder, layout: CacheLayout, spare_page: int, spare_state: int) -> None:
        self._builder = builder
        self._layout = layout
        self._page = spare_page
        self._state = spare_state
        self._drafts = layout.max_drafts

    def bucket(self, plan: StepPlan) -> Bucket | None:
        """The smallest bucket that the step fits in; None where it is no decode step, or too large.

        Rule: a row of a decode step has one token and its drafts, and all its logits are wanted.
        """
        rows = plan.rows
        if not rows or any(len(row.token_ids) != 1 + row.num_drafts or not row.is_sampled for row in rows):
            return None
        if any(row.wants_prompt_logprobs for row in rows):
            return None
        count = sum(len(row.token_ids) for row in rows)
        longest = max(row.start + len(row.token_ids) for row in rows)
        tokens = next((size for size in TOKEN_BUCKETS if size >= count), 0)
        pages = next((size for size in PAGE_BUCKETS if size * PAGE_TOKENS >= longest), 0)
        return Bucket(tokens, pages) if tokens and pages else None

    def idle(self, like: StepInputs, bucket: Bucket) -> StepInputs:
        """A step of nothing but filling. `like` gives the widths of the tables."""
        nothing = changed(like, lambda each: each[:0])
        if nothing.hca is not None:
            runs = replace(nothing.hca.runs, offsets=torch.zeros(1, dtype=torch.int64), num_entries=0)
            nothing = replace(nothing, hca=replace(nothing.hca, runs=runs))
        return self.pad(nothing, StepPlan(step=0, rows=()), bucket)

    def pad(self, inputs: StepInputs, plan: StepPlan, bucket: Bucket) -> StepInputs:
        """The inputs of the step in the bucket's shapes; token i of the step is token i of the bucket."""
        count = bucket.tokens
        ring = self._state * self._layout.window.ring_rows
        return replace(
            inputs,
            token_ids=_longer(inputs.token_ids, count, 0),
            positions=_longer(inputs.positions, count, 0),
            window_rows=_longer(inputs.window_rows, count, -1),
            ring_tokens=_longer(inputs.ring_tokens, count, 0),
            ring_rows=_longer(inputs.ring_rows, count, ring),
            csa=None if inputs.csa is None else self._pools(inputs.csa, count),
            csa_tables=(),
            csa_rows=NO_IDS,
            first_entries=NO_IDS,
            num_visible=_longer(inputs.num_visible, count, 0) if inputs.csa is not None else NO_IDS,
            hca=None if inputs.hca is None else self._folds(inputs.hca, plan, count),
            hca_rows=self._hca_rows(inputs.hca_rows, bucket),
            logit_tokens=torch.arange(count),
            csa_pages=self._pages(plan, bucket) if inputs.csa is not None else None,
            page_rows=PAGE_TOKENS // self._builder.csa_ratio if inputs.csa is not None else 1,
        )

    def _pages(self, plan: StepPlan, bucket: Bucket) -> Tensor:
        """The pages of each token's sequence; those that it has not are the spare one. Shapes: [T, P]."""
        lines = self._builder.tables.lines([row.sequence_id for row in plan.rows])
        lengths = np.array([len(row.token_ids) for row in plan.rows], np.int64)
        owners = np.repeat(np.array(lines, np.int64), lengths)
        pages = self._builder.tables.pages(owners, bucket.pages)
        return _longer(torch.from_numpy(np.where(pages == NO_PAGE, self._page, pages)), bucket.tokens, self._page)

    def _hca_rows(self, rows: Tensor, bucket: Bucket) -> Tensor:
        if not self._builder.hca_ratio:
            return rows.new_empty(bucket.tokens, 0)
        width = bucket.pages * (PAGE_TOKENS // self._builder.hca_ratio)
        return pad(rows, (0, width - rows.shape[1], 0, bucket.tokens - rows.shape[0]), value=-1)

    def _pools(self, blocks: PoolInputs, count: int) -> PoolInputs:
        """A token closes one block at most."""
        ring = self._state * self._layout.rings[0].ring_rows
        return PoolInputs(
            phases=_longer(blocks.phases, count, 0),
            positions=_longer(blocks.positions, count, 0),
            entry_rows=_longer(blocks.entry_rows, count, self._page * (PAGE_TOKENS // self._builder.csa_ratio)),
            source_tokens=_longer(blocks.source_tokens, count, -1),
            source_rows=_longer(blocks.source_rows, count, -1),
            ring_tokens=_longer(blocks.ring_tokens, count, 0),
            ring_rows=_longer(blocks.ring_rows, count, ring),
        )

    def _folds(self, blocks: FoldInputs, plan: StepPlan, count: int) -> FoldInputs:
        """At most one run per token that closes a block, and one that is stored; each may read raw rows again."""
        held = sum(len(row.token_ids) for row in plan.rows)
        num_raw = 2 * count * self._drafts
        runs, total = blocks.runs, 2 * count
        stored = runs.begins.shape[0] - blocks.positions.shape[0]
        missing = total - count - stored  # runs that store something nobody reads
        ends = torch.cat([runs.ends, torch.full((missing,), self._state), torch.full((count,), -1)])[:total]
        sources = torch.where(runs.sources >= held, runs.sources + count - held, runs.sources)
        kept = self._drafts > 0
        return FoldInputs(
            phases=_longer(blocks.phases, count, 0),
            positions=_longer(blocks.positions, count, 0),
            entry_rows=_longer(blocks.entry_rows, count, self._page * (PAGE_TOKENS // self._builder.hca_ratio)),
            runs=FoldRuns(
                begins=_longer(runs.begins, total, -1),
                offsets=_longer(runs.offsets, total + 1, int(runs.offsets[-1])),
                sources=_longer(sources, 2 * count * (1 + self._drafts), 0),
                ends=ends,
                num_entries=count,
            ),
            raw_rows=_longer(blocks.raw_rows, num_raw, 0),
            ring_tokens=_longer(blocks.ring_tokens, count, 0) if kept else blocks.ring_tokens,
            ring_rows=_longer(blocks.ring_rows, count, self._state * self._drafts) if kept else blocks.ring_rows,
        )


def _longer(values: Tensor, count: int, value: int) -> Tensor:
    """More lines. Shapes: values [t, ...]; returns [count, ...]. Raises: ValueError where there are more already."""
    if values.shape[0] > count:
        raise ValueError(f"a step has {values.shape[0]} lines but its bucket has room for {count}.")
    return pad(values, (0, 0) * (values.dim() - 1) + (0, count - values.shape[0]), value=value)
