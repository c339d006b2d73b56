"""Rows of a cache as a tensor of bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4_kernels.errors import require
from dsv4_kernels.rows import RowFormat, RowSpec


@dataclass(frozen=True, slots=True)
class CacheRows:
    """Stored rows. Shapes: data [R, row_bytes] uint8, contiguous."""

    data: Tensor
    spec: RowSpec

    def __post_init__(self) -> None:
        shape, wanted = tuple(self.data.shape), (self.data.shape[0], self.spec.row_bytes)
        require(
            shape == wanted and self.data.dtype == torch.uint8 and self.data.is_contiguous(),
            f"cache rows are {self.data.dtype} {list(shape)} but {self.spec} takes contiguous uint8 {list(wanted)}.",
        )

    @classmethod
    def allocate(cls, spec: RowSpec, num_rows: int, device: torch.device | None = None) -> CacheRows:
        """Rows of zero bytes. A CPU's memory is touched only where rows are written."""
        return cls(torch.zeros(num_rows, spec.row_bytes, dtype=torch.uint8, device=device), spec)

    @classmethod
    def plain(cls, values: Tensor) -> CacheRows:
        """The float32 rows of a tensor, which is not copied if it is contiguous. Shapes: values [R, D]."""
        spec = RowSpec(format=RowFormat.FP32, width=values.shape[1])
        return cls(values.contiguous().view(torch.uint8), spec)

    @property
    def num_rows(self) -> int:
        """Rows, used or not."""
        return self.data.shape[0]

    def insert(self, rows: Tensor, source: CacheRows, source_rows: Tensor | None = None) -> None:
        """Store rows of another tensor of the same format. Shapes: rows, source_rows int64 [N]."""
        require(source.spec == self.spec, f"rows of {source.spec} do not go into a cache of {self.spec}.")
        wide = _widest(self.spec.row_bytes)
        taken = source.data.view(wide)
        self.data.view(wide)[rows] = taken if source_rows is None else taken[source_rows]


@dataclass(frozen=True, slots=True)
class WindowRows:
    """The window of each token. Shapes: rows int64 [T, W].

    Rule: -1 is none, w >= 0 row w of the ring, w <= -2 row -2 - w of the fresh ones (those of this step).
    """

    ring: CacheRows
    fresh: CacheRows
    rows: Tensor


@dataclass(frozen=True, slots=True)
class EntryRows:
    """The entries that each token attends to. Shapes: rows int64 [T, K], -1 = none."""

    cache: CacheRows
    rows: Tensor


def rows_of_pages(pages: Tensor, page_rows: int) -> Tensor:
    """The rows of pages, in order. Shapes: pages int64 [P]; returns [P * page_rows]."""
    return (pages[:, None] * page_rows + torch.arange(page_rows, device=pages.device)).view(-1)


def _widest(row_bytes: int) -> torch.dtype:
    """The largest element that rows are whole numbers of: copying goes by elements."""
    for size, dtype in ((8, torch.int64), (4, torch.int32), (2, torch.int16)):
        if row_bytes % size == 0:
            return dtype
    return torch.uint8
