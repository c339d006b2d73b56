"""Attention over gathered rows of two caches, with a sink."""

from __future__ import annotations

import math

import torch
import triton.language as tl
from torch import Tensor

from dsv4_kernels.cache import EntryRows, WindowRows
from dsv4_kernels.errors import require
from dsv4_kernels.rows import RowFormat
from dsv4_kernels.triton_lang.device import attention as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, new, power_of_two_at_least

FULL_GRID = 128  # programs that keep a GPU busy; fewer, and the rows are split
MAX_SPLITS = 32
LOG2_E = 1.4426950408889634


def sparse_attention(
    device: Device, query: Tensor, window: WindowRows, entries: EntryRows | None, sink: Tensor, scale: float
) -> Tensor:
    """As `ops.SparseAttention`. Rows in FP8 or bf16 are multiplied as bf16, the softmax is float32."""
    query = query.contiguous()
    tokens, heads, width = query.shape
    ring, fresh = window.ring.spec, window.fresh.spec
    chosen = window.ring if entries is None else entries.cache
    require(ring == fresh, f"ring rows are {ring} but fresh ones {fresh}: store them alike.")
    require(
        ring.width == chosen.spec.width == width, f"rows are {ring.width} and {chosen.spec.width} wide, not {width}."
    )
    entry_rows = window.rows[:, :0] if entries is None else entries.rows
    is_exact = RowFormat.FP32 in (ring.format, chosen.spec.format)
    block_h, block_j, warps = _blocks(device, heads, is_exact)
    tiles = ceil_div(window.rows.shape[1], block_j) + ceil_div(entry_rows.shape[1], block_j)
    grid = (tokens, ceil_div(heads, block_h))
    per_split = ceil_div(tiles, _num_splits(grid[0] * grid[1], tiles)) if tiles else 1
    splits = max(1, ceil_div(tiles, per_split))
    out = torch.empty_like(query)
    partial = new(query, tokens, splits, heads, width, dtype=torch.float32) if splits > 1 else out
    tops, belows = (new(query, tokens, splits, heads, dtype=torch.float32) for _ in range(2))
    caches = (window.ring.data, window.fresh.data, window.rows.contiguous(), chosen.data, entry_rows.contiguous())
    sizes = (heads, window.rows.shape[1], entry_rows.shape[1], splits, per_split, scale * LOG2_E)
    device(
        kernels.attend_split,
        (*grid, splits),
        *(query, *caches, sink, partial, tops, belows, *sizes),
        warps=warps,
        stages=1,
        WINDOW=ring.format.value,
        ENTRIES=chosen.spec.format.value,
        WIDTH=width,
        WINDOW_ROPE=ring.rope_dim,
        ENTRY_ROPE=chosen.spec.rope_dim,
        WINDOW_BYTES=ring.row_bytes,
        ENTRY_BYTES=chosen.spec.row_bytes,
        WINDOW_ALIGN=_alignment(ring.row_bytes, window.ring.data, window.fresh.data),
        ENTRY_ALIGN=_alignment(chosen.spec.row_bytes, chosen.data),
        IS_SPLIT=splits > 1,
        BLOCK_H=block_h,
        BLOCK_J=block_j,
        BLOCK_D=power_of_two_at_least(width, 64),
        DOT=tl.float32 if is_exact else tl.bfloat16,
        HEADS_LEFT=not device.arch.has_tensor_memory,
    )
    if splits > 1:
        blocks = {"WIDTH": width, "BLOCK_S": power_of_two_at_least(splits), "BLOCK_D": power_of_two_at_least(width)}
        device(kernels.combine_splits, (tokens, heads), partial, tops, belows, sink, out, heads, splits, **blocks)
    return out


def _blocks(device: Device, heads: int, is_exact: bool) -> tuple[int, int, int]:
    """Heads and rows of a block, and warps."""
    if device.arch.is_small or is_exact:
        return 16, 32, 8
    if device.arch.has_tensor_memory:
        return min(32, power_of_two_at_least(heads, 16)), 64, 8  # two blocks share a processor's memory
    return 64, 32, 8  # wgmma takes 64 rows, which are heads here


def _alignment(row_bytes: int, *caches: Tensor) -> int:
    """What every row's address is a multiple of: rows follow one another without gaps."""
    bytes = math.gcd(row_bytes, 16)
    for cache in caches:
        place = cache.data_ptr()
        require(place % bytes == 0, f"a cache begins at address {place} but must begin at a multiple of {bytes} bytes.")
    return bytes


def _num_splits(programs: int, tiles: int) -> int:
    return max(1, min(ceil_div(FULL_GRID, max(1, programs)), tiles, MAX_SPLITS))
