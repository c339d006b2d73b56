"""Tokens in the formats that go with the weights that they are multiplied by."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.device_weights import DeviceWeight
from dsv4_kernels.errors import require
from dsv4_kernels.triton_lang.device import quantise as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, new

FP8_GROUP = 128
MX_GROUP = 32
NV_GROUP = 16
GROUPS_PER_PROGRAM = 16


def tokens_for(device: Device, x: Tensor, weight: DeviceWeight) -> tuple[Tensor, Tensor]:
    """x [..., K] as this weight is multiplied with, and its scales (x itself where there are none)."""
    format = weight.multiplied(device)
    if format in ("dense", "nvfp4_as_bf16"):
        return x, x
    if format == "nvfp4":
        return quantise_nvfp4(device, x, weight.input_scale)
    return quantise_fp8(device, x)


def quantise_fp8(device: Device, x: Tensor, group: int = FP8_GROUP) -> tuple[Tensor, Tensor]:
    """e4m3 codes and UE8M0 bytes, as `ops.Fp8RoundTrip` rounds. Shapes: x [..., K]; codes as x; [..., K / group]."""
    x = x.contiguous()
    width = x.shape[-1]
    per_row = ceil_div(width, group)
    codes = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = new(x, *x.shape[:-1], per_row, dtype=torch.uint8)
    grid = (ceil_div(scales.numel(), GROUPS_PER_PROGRAM),)
    arguments = (x, codes, scales, scales.numel(), per_row, width)
    device(kernels.quantise_fp8_groups, grid, *arguments, GROUP=group, BLOCK_G=GROUPS_PER_PROGRAM)
    return codes, scales


def quantise_nvfp4(device: Device, x: Tensor, global_scale: float) -> tuple[Tensor, Tensor]:
    """By the rule of `tensors.quantise_nvfp4`. Shapes: x [..., K]; codes [..., K / 2]; e4m3 scales [..., K / 16]."""
    return _quantise_fp4(device, x, NV_GROUP, global_scale)


def quantise_mxfp4(device: Device, x: Tensor) -> tuple[Tensor, Tensor]:
    """By the rule of `ops.Fp4RoundTrip`. Shapes: x [..., K]; codes [..., K / 2]; UE8M0 bytes [..., K / 32]."""
    return _quantise_fp4(device, x, MX_GROUP, 0.0)


def _quantise_fp4(device: Device, x: Tensor, group: int, global_scale: float) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    width = x.shape[-1]
    require(width % group == 0, f"width is {width} but must be a multiple of {group}.")
    is_nv = group == NV_GROUP
    codes = new(x, *x.shape[:-1], width // 2, dtype=torch.uint8)
    scales = new(x, *x.shape[:-1], width // group, dtype=torch.float8_e4m3fn if is_nv else torch.uint8)
    block = 8 * GROUPS_PER_PROGRAM
    arguments = (x, codes, scales, scales.numel(), float(global_scale))
    constants = {"GROUP": group, "IS_NV": is_nv, "BLOCK_G": block}
    device(kernels.quantise_fp4_groups, (ceil_div(scales.numel(), block),), *arguments, **constants)
    return codes, scales
