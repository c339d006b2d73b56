"""The integers of a step's tensors, from the rows of a plan, in two calls of the compiled library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsv4_kernels.cpu.table import CpuOps
from dsv4_kernels.ops import OpTable

SECTIONS = (
    "positions window_rows ring_tokens ring_rows"
    " csa_phases csa_positions csa_entry_rows csa_source_tokens csa_source_rows csa_ring_tokens csa_ring_rows"
    " csa_rows first_entries num_visible"
    " hca_phases hca_positions hca_entry_rows begins offsets sources ends raw_rows hca_ring_tokens hca_ring_rows"
    " hca_rows"
).split()


class PlanShape(ctypes.Structure):
    """`Shape` of plan.cpp."""

    _fields_ = (
        ("pages", c_void_p),
        *((name, c_int64) for name in ("line_pages", "rows", "tokens", "page_tokens")),
        *((name, c_int64) for name in ("window", "window_ring", "csa_ratio", "csa_ring", "hca_ratio", "drafts")),
    )


class StepPlanner:
    """Fills the tensors of steps. It does what `runner/inputs.py` does with numpy, with the same numbers.

    Rule: `fixed` are the fields of PlanShape from page_tokens on: they stay the same for a model.
    """

    def __init__(self, twins: CpuOps, **fixed: int) -> None:
        self._library = twins.library
        self._fixed = fixed
        self._sizes = (c_int64 * len(SECTIONS))()

    def __call__(self, pages: npt.NDArray[np.int64], rows: Sequence[Sequence[int]], num_tokens: int) -> list[Tensor]:
        """Return the sections in their order, as views of one tensor.

        Shapes: pages [lines, blocks], contiguous; rows five lists [S]: lines, states, starts, written, ends.
        """
        given = (c_int64 * (5 * len(rows[0])))(*(value for part in rows for value in part))
        shape = PlanShape(
            pages=pages.ctypes.data, line_pages=pages.shape[1], rows=len(rows[0]), tokens=num_tokens, **self._fixed
        )
        self._library.dsv4_plan_step(ctypes.byref(shape), ctypes.byref(given), ctypes.byref(self._sizes))
        sizes = list(self._sizes)
        flat = torch.empty(sum(sizes), dtype=torch.int64)
        self._library.dsv4_take_step(flat.data_ptr())
        parts: list[Tensor] = list(torch.split(flat, sizes))
        return parts


def planner_of(ops: OpTable, **fixed: int) -> StepPlanner | None:
    """The planner of the CPU's table of operators; None for other tables, which may be there without the library."""
    twins = getattr(ops.linear, "__self__", None)
    return StepPlanner(twins, **fixed) if isinstance(twins, CpuOps) else None
