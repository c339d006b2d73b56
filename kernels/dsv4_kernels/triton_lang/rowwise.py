"""Norm, rotation, round trips and the Hadamard transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsv4_kernels.errors import require
from dsv4_kernels.triton_lang.device import rowwise as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, power_of_two_at_least

ROW_ELEMENTS = 2048  # elements of one program: four warps with 16 each


def rms_norm(device: Device, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """As `ops.RmsNorm`; bf16 in gives bf16 out."""
    x = x.contiguous()
    width = x.shape[-1]
    y = torch.empty_like(x)
    block = power_of_two_at_least(width)
    require(weight is None or tuple(weight.shape) == (width,), f"weight must have {width} elements.")
    grid = (x.numel() // max(1, width),)
    arguments = (x, x if weight is None else weight.contiguous(), y, width, eps)
    constants = {"HAS_WEIGHT": weight is not None, "BLOCK_D": block}
    device(kernels.rms_norm_rows, grid, *arguments, warps=8 if block > 2048 else 4, **constants)
    return y


def rope_rotate(device: Device, x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """As `ops.RopeRotate`."""
    x = x.contiguous()
    tokens, width = x.shape[0], x.shape[-1]
    require(width % 2 == 0, f"rotated width is {width} but must be even.")
    want = (tokens, width // 2)
    require(tuple(cos.shape) == want and tuple(sin.shape) == want, f"cos and sin must be {list(want)}.")
    y = torch.empty_like(x)
    heads = x.shape[1] if x.dim() == 3 else 1
    block_p = power_of_two_at_least(width // 2)
    block_r = max(1, ROW_ELEMENTS // (2 * block_p))
    rows = tokens * heads
    arguments = (x, cos.contiguous(), sin.contiguous(), y, rows, heads, width // 2)
    constants = {"INVERSE": inverse, "BLOCK_R": block_r, "BLOCK_P": block_p}
    device(kernels.rope_rows, (ceil_div(rows, block_r),), *arguments, **constants)
    return y


def fp8_round_trip(device: Device, x: Tensor, group: int) -> Tensor:
    """As `ops.Fp8RoundTrip`."""
    return _round_trip(device, x, group, is_fp4=False)


def fp4_round_trip(device: Device, x: Tensor, group: int = 32) -> Tensor:
    """As `ops.Fp4RoundTrip`."""
    return _round_trip(device, x, group, is_fp4=True)


def hadamard(device: Device, x: Tensor) -> Tensor:
    """As `ops.Hadamard`."""
    x = x.contiguous()
    width = x.shape[-1]
    require(width > 0 and width & (width - 1) == 0, f"width is {width} but must be a power of two.")
    y = torch.empty_like(x)
    rows = x.numel() // width
    block = max(1, ROW_ELEMENTS // width)
    arguments = (x, y, rows, 1 / math.sqrt(width))
    device(
        kernels.hadamard_rows,
        (ceil_div(rows, block),),
        *arguments,
        LOG=width.bit_length() - 1,
        BLOCK_R=block,
    )
    return y


def _round_trip(device: Device, x: Tensor, group: int, *, is_fp4: bool) -> Tensor:
    x = x.contiguous()
    width = x.shape[-1]
    y = torch.empty_like(x)
    per_row = ceil_div(width, group)
    groups = x.numel() // max(1, width) * per_row
    block_d = power_of_two_at_least(group)
    block_g = max(1, ROW_ELEMENTS // block_d)
    constants = {"GROUP": group, "BLOCK_G": block_g, "BLOCK_D": block_d, "IS_FP4": is_fp4}
    arguments = (x, y, groups, per_row, width)
    device(kernels.round_trip_rows, (ceil_div(groups, block_g),), *arguments, **constants)
    return y
