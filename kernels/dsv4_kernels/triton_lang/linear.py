"""Linear over any weight format, and one matrix per group of channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4_kernels.device_weights import DeviceWeight
from dsv4_kernels.errors import require
from dsv4_kernels.triton_lang.device import gemm as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, new, power_of_two_at_least
from dsv4_kernels.triton_lang.weights import tokens_for

BLOCK_N = 128  # weight rows: the row dimension of the tensor core
FULL_GRID = 128  # programs that keep a GPU busy; fewer, and K is split
MIN_SPLIT_COLUMNS = 512
PART_MULTIPLE = 256  # parts of K begin at whole blocks and scales of every format
SUM_BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Block sizes and options of one matrix product."""

    tokens: int
    columns: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """As keywords of a launch."""
        sizes = {"BLOCK_N": BLOCK_N, "BLOCK_T": self.tokens, "BLOCK_K": self.columns}
        return {**sizes, "warps": self.warps, "stages": self.stages}


def choose_blocks(
    device: Device, format: str, num_tokens: int, element_bytes: int = 2, *, is_pair: bool = False
) -> Blocks:
    """Blocks for about so many tokens per matrix. element_bytes: of a dense weight; is_pair: two sums are held at once.

    Rule: few tokens are padded to 16, many take 128. Columns as wide as the format's scales and shared memory allow.
          Both, and the warps, so that no configuration of the models moves registers to memory (`report.py`).
    """
    is_wide = (format == "dense" and element_bytes == 4) or (format == "fp8" and is_pair)  # sums and their parts
    most = 64 if device.arch.is_small or is_wide else 128
    tokens = min(most, power_of_two_at_least(num_tokens, 16))
    columns = 256 if format == "nvfp4" else 128
    if format.endswith("as_bf16"):
        columns = 64
    elif format == "dense":
        columns = 128 // element_bytes
    if is_pair and device.arch.is_small and tokens >= 64 and format in ("nvfp4", "mxfp4_as_fp8"):
        columns //= 2  # operands stand in registers beside both sums
    stages = 3 if device.arch.is_small else 4
    if format == "dense" and (element_bytes == 4 or device.arch.is_small):
        stages = 2
    many = 128 if format == "dense" else 32 if device.arch.is_small and is_pair else 64  # tokens that take eight warps
    return Blocks(tokens=tokens, columns=columns, warps=8 if tokens >= many else 4, stages=stages)


def linear(device: Device, x: Tensor, weight: DeviceWeight) -> Tensor:
    """As `ops.Linear`, over any weight format. y has x's type."""
    require(x.dim() == 2 and x.shape[1] == weight.num_columns, f"x is {list(x.shape)}, K is {weight.num_columns}.")
    require(weight.num_groups == 1, f"the weight has {weight.num_groups} groups: use grouped_linear.")
    return _multiply(device, x.unsqueeze(1), weight).squeeze(1)


def grouped_linear(device: Device, x: Tensor, weight: DeviceWeight) -> Tensor:
    """As `ops.GroupedLinear`, over any weight format."""
    require(
        x.dim() == 3 and x.shape[1:] == (weight.num_groups, weight.num_columns),
        f"x is {list(x.shape)} but the weight has {weight.num_groups} groups of {weight.num_columns} columns.",
    )
    return _multiply(device, x, weight)


def _multiply(device: Device, x: Tensor, weight: DeviceWeight) -> Tensor:
    """Shapes: x [T, G, K]; returns [T, G, N]."""
    tokens, groups, k = x.shape
    n = weight.num_rows
    format = weight.multiplied(device)
    x = x.contiguous()
    y = new(x, tokens, groups, n)
    blocks = choose_blocks(device, format, tokens, weight.codes.element_size())
    grid = (ceil_div(n, BLOCK_N), ceil_div(tokens, blocks.tokens))
    parts = 1 if groups > 1 else _num_parts(grid[0] * grid[1], k)
    k_per_part = ceil_div(ceil_div(k, parts), PART_MULTIPLE) * PART_MULTIPLE
    parts = ceil_div(k, k_per_part)
    out = new(x, parts, tokens, n, dtype=torch.float32) if parts > 1 else y
    codes, scales = tokens_for(device, x, weight)
    factors = weight.factors(device)
    matrix = (weight.codes, weight.scales, x if factors is None else factors)
    device(
        kernels.linear_kernel,
        (*grid, parts if parts > 1 else groups),
        *(codes, scales, *matrix, out, codes, codes, tokens, n, k, tokens * n, k_per_part // PART_MULTIPLE),
        FORMAT=format,
        ROUTED=False,
        HAS_ALPHA=factors is not None,
        GROUPS=groups,
        IS_SPLIT=parts > 1,
        **blocks.options,
    )
    if parts > 1:
        size = tokens * n
        device(kernels.sum_parts, (ceil_div(size, SUM_BLOCK),), out, y, size, parts, size, BLOCK=SUM_BLOCK)
    return y


def _num_parts(num_blocks: int, columns: int) -> int:
    """Parts of K that fill the GPU where the blocks of the result do not, each of a sensible length."""
    return max(1, min(ceil_div(FULL_GRID, max(1, num_blocks)), columns // MIN_SPLIT_COLUMNS))
