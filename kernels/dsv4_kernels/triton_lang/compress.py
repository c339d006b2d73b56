"""Pooling of a block of tokens into one compressed entry, at once or token by token."""

from __future__ import annotations

from torch import Tensor

from dsv4_kernels.errors import require
from dsv4_kernels.tensors import FoldRuns
from dsv4_kernels.triton_lang.device import compress as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, new, power_of_two_at_least


def compress_pool(device: Device, values: Tensor, gates: Tensor) -> Tensor:
    """As `ops.CompressPool`."""
    blocks, slots, width = values.shape
    require(gates.shape == values.shape, f"gates are {list(gates.shape)} but values {list(values.shape)}.")
    y = new(values, blocks, width)
    block_s = power_of_two_at_least(slots)
    block_d = min(64 if block_s > 16 else 256, power_of_two_at_least(width))
    grid = (blocks, ceil_div(width, block_d))
    arguments = (values.contiguous(), gates.contiguous(), y, slots, width)
    device(kernels.pool_block, grid, *arguments, BLOCK_S=block_s, BLOCK_D=block_d)
    return y


def compress_fold(device: Device, values: Tensor, gates: Tensor, states: Tensor, runs: FoldRuns) -> Tensor:
    """As `ops.CompressFold`."""
    num_entries = int((runs.ends < 0).sum()) if runs.num_entries is None else runs.num_entries
    require(states.is_contiguous(), "states must be contiguous: they are written in place.")
    width = values.shape[1]
    entries = new(values, num_entries, width)
    block = min(128, power_of_two_at_least(width))
    inputs = (values.contiguous(), gates.contiguous(), states)
    plan = (runs.begins, runs.offsets, runs.sources, runs.ends)
    arguments = (*inputs, *plan, entries, runs.begins.shape[0], width)
    device(kernels.fold_runs, (ceil_div(width, block),), *arguments, warps=1, BLOCK_D=block)
    return entries
