"""A step's inputs from the compiled planner's sections: the same numbers as `inputs.py` makes, in two calls."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from dsv4_kernels.cpu.plan import SECTIONS, StepPlanner
from dsv4_kernels.tensors import FoldRuns
from torch import Tensor

from dsv4_backend.kv.layout import BLOCK
from dsv4_backend.model.step import EntryTable, FoldInputs, PoolInputs, StepInputs
from dsv4_backend.records import StepPlan
from dsv4_backend.runner.pages import PageTables

Spans = tuple[tuple[int, int], ...]


def planned_inputs(
    plan: StepPlan, tables: PageTables, planner: StepPlanner, ratios: tuple[int, int], logits: tuple[list[int], Spans]
) -> StepInputs:
    """Return the inputs of the plan's rows. `ratios` are those of CSA and HCA, 0 where the model has none.

    Rule: `logits` are the tokens whose logits are wanted, and each row's share of them.
    """
    rows = plan.rows
    lines = tables.lines([row.sequence_id for row in rows])
    starts = [row.start for row in rows]
    written = [max(row.start, row.num_written) for row in rows]
    ends = [row.start + len(row.token_ids) for row in rows]
    token_ids = [token_id for row in rows for token_id in row.token_ids]
    given = (lines, tables.states(lines), starts, written, ends)
    part = dict(zip(SECTIONS, planner(tables.table(BLOCK), given, len(token_ids)), strict=True))
    csa_ratio, hca_ratio = ratios
    return StepInputs(
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        positions=part["positions"],
        window_rows=part["window_rows"].view(len(token_ids), -1),
        ring_tokens=part["ring_tokens"],
        ring_rows=part["ring_rows"],
        csa=_pools(part, csa_ratio) if csa_ratio else None,
        csa_tables=_tables(plan, part["csa_rows"], [end // csa_ratio for end in ends]) if csa_ratio else (),
        csa_rows=part["csa_rows"],
        first_entries=part["first_entries"],
        num_visible=part["num_visible"],
        hca=_folds(part) if hca_ratio else None,
        hca_rows=part["hca_rows"].view(len(token_ids), -1 if part["hca_rows"].numel() else 0),
        logit_tokens=torch.tensor(logits[0], dtype=torch.int64),
        logit_spans=logits[1],
    )


def _tables(plan: StepPlan, csa_rows: Tensor, counts: list[int]) -> tuple[EntryTable, ...]:
    """Each row's tokens, and its part of the entries."""
    bounds = pairwise([0, *accumulate(len(row.token_ids) for row in plan.rows)])
    parts = torch.split(csa_rows, counts) if len(counts) > 1 else (csa_rows,)
    pairs = zip(bounds, parts, strict=True)
    return tuple(EntryTable(tokens=slice(first, last), index_rows=rows) for (first, last), rows in pairs)


def _pools(part: dict[str, Tensor], ratio: int) -> PoolInputs:
    count = part["csa_positions"].shape[0]
    return PoolInputs(
        phases=part["csa_phases"],
        positions=part["csa_positions"],
        entry_rows=part["csa_entry_rows"],
        source_tokens=part["csa_source_tokens"].view(count, 2 * ratio),
        source_rows=part["csa_source_rows"].view(count, 2 * ratio),
        ring_tokens=part["csa_ring_tokens"],
        ring_rows=part["csa_ring_rows"],
    )


def _folds(part: dict[str, Tensor]) -> FoldInputs:
    return FoldInputs(
        phases=part["hca_phases"],
        positions=part["hca_positions"],
        entry_rows=part["hca_entry_rows"],
        runs=FoldRuns(
            begins=part["begins"],
            offsets=part["offsets"],
            sources=part["sources"],
            ends=part["ends"],
            num_entries=part["hca_positions"].shape[0],
        ),
        raw_rows=part["raw_rows"],
        ring_tokens=part["hca_ring_tokens"],
        ring_rows=part["hca_ring_rows"],
    )
