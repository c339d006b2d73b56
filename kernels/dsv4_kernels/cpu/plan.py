"""The integers of a step's tensors, from the rows of a plan, in two calls of the compiled library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsv4_kernels.cpu.table import CpuOps
from dsv4_kernels.ops import OpTable
from dsv4_kernels.steps import EntryTable, FoldInputs, PoolInputs, StepInputs
from dsv4_kernels.tensors import FoldRuns

SECTIONS = (
    "positions window_rows ring_tokens ring_rows"
    " csa_phases csa_positions csa_entry_rows csa_source_tokens csa_source_rows csa_ring_tokens csa_ring_rows"
    " csa_rows first_entries num_visible"
    " hca_phases hca_positions hca_entry_rows begins offsets sources ends raw_rows hca_ring_tokens hca_ring_rows"
    " hca_rows"
).split()
Logits = tuple[list[int], tuple[tuple[int, int], ...]]


class PlanShape(ctypes.Structure):
    """`Shape` of plan.cpp."""

    _fields_ = (
        ("pages", c_void_p),
        *((name, c_int64) for name in ("line_pages", "rows", "tokens", "page_tokens")),
        *((name, c_int64) for name in ("window", "window_ring", "csa_ratio", "csa_ring", "hca_ratio", "drafts")),
    )


class PlannedFields(ctypes.Structure):
    """`Planned` of backbone.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("token_ids", "given", "sections", "sizes")),
        *((name, c_int64) for name in ("num_rows", "num_tokens")),
    )


class PlannedStep:
    """A step as the compiled planner left it. `inputs` has the same numbers as tensors, made when they are asked for.

    Shapes: token_ids int64 [T]; logit_tokens int64 [L], the tokens whose logits are wanted; logit_spans gives each row
            its [begin, end) of L.
    """

    def __init__(
        self,
        shape: PlanShape,
        given: ctypes.Array[c_int64],
        sizes: ctypes.Array[c_int64],
        token_ids: list[int],
        logits: Logits,
    ) -> None:
        """given: lines, states, starts, written and ends, each [rows]."""
        self._shape, self._given, self._sizes = shape, given, sizes
        self._flat = torch.empty(sum(sizes), dtype=torch.int64)
        self.token_ids = torch.tensor(token_ids, dtype=torch.int64)
        self.logit_tokens, self.logit_spans = torch.tensor(logits[0], dtype=torch.int64), logits[1]

    @property
    def address(self) -> int:
        """Where the sections lie."""
        return self._flat.data_ptr()

    @property
    def fields(self) -> PlannedFields:
        """What the compiled layers are told."""
        return PlannedFields(
            self.token_ids.data_ptr(),
            ctypes.addressof(self._given),
            self.address,
            ctypes.addressof(self._sizes),
            self._shape.rows,
            self._shape.tokens,
        )

    @cached_property
    def inputs(self) -> StepInputs:
        """The step for whoever computes it otherwise."""
        part = dict(zip(SECTIONS, torch.split(self._flat, list(self._sizes)), strict=True))
        count, csa_ratio, hca_ratio = self._shape.tokens, self._shape.csa_ratio, self._shape.hca_ratio
        return StepInputs(
            token_ids=self.token_ids,
            positions=part["positions"],
            window_rows=part["window_rows"].view(count, -1),
            ring_tokens=part["ring_tokens"],
            ring_rows=part["ring_rows"],
            csa=_pools(part, csa_ratio) if csa_ratio else None,
            csa_tables=self._tables(part["csa_rows"]) if csa_ratio else (),
            csa_rows=part["csa_rows"],
            first_entries=part["first_entries"],
            num_visible=part["num_visible"],
            hca=_folds(part) if hca_ratio else None,
            hca_rows=part["hca_rows"].view(count, -1 if part["hca_rows"].numel() else 0),
            logit_tokens=self.logit_tokens,
            logit_spans=self.logit_spans,
        )

    def _tables(self, csa_rows: Tensor) -> tuple[EntryTable, ...]:
        """Each row's tokens, and its part of the entries."""
        rows, given = self._shape.rows, list(self._given)
        starts, ends = given[2 * rows : 3 * rows], given[4 * rows :]
        bounds = pairwise([0, *accumulate(end - start for start, end in zip(starts, ends, strict=True))])
        parts = torch.split(csa_rows, [end // self._shape.csa_ratio for end in ends])
        pairs = zip(bounds, parts, strict=True)
        return tuple(EntryTable(tokens=slice(first, last), index_rows=part) for (first, last), part in pairs)


class StepPlanner:
    """Plans steps. It does what `runner/inputs.py` does with numpy, with the same numbers.

    Rule: `fixed` are the fields of PlanShape from page_tokens on: they stay the same for a model.
    """

    def __init__(self, twins: CpuOps, **fixed: int) -> None:
        self._twins = twins
        self._fixed = fixed

    def __call__(
        self, pages: npt.NDArray[np.int64], rows: Sequence[Sequence[int]], token_ids: list[int], logits: Logits
    ) -> PlannedStep:
        """Return the step. `logits` are the tokens whose logits are wanted, and each row's share of them.

        Shapes: pages [lines, blocks], contiguous; rows five lists [S]: lines, states, starts, written, ends.
        """
        given = (c_int64 * (5 * len(rows[0])))(*(value for part in rows for value in part))
        sizes = (c_int64 * len(SECTIONS))()
        shape = PlanShape(
            pages=pages.ctypes.data, line_pages=pages.shape[1], rows=len(rows[0]), tokens=len(token_ids), **self._fixed
        )
        self._twins.library.dsv4_plan_step(ctypes.byref(shape), ctypes.byref(given), ctypes.byref(sizes))
        step = PlannedStep(shape, given, sizes, token_ids, logits)
        self._twins.library.dsv4_take_step(step.address)
        return step


def planner_of(ops: OpTable, **fixed: int) -> StepPlanner | None:
    """The planner of the CPU's table of operators; None for other tables, which may be there without the library."""
    twins = getattr(ops.linear, "__self__", None)
    return StepPlanner(twins, **fixed) if isinstance(twins, CpuOps) else None


def unplanned(step: StepInputs | PlannedStep) -> StepInputs:
    """A step as tensors."""
    return step.inputs if isinstance(step, PlannedStep) else step


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
