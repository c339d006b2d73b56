"""Weights as the kernels read them, and tokens in the formats that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4_kernels.errors import require
from dsv4_kernels.tensors import PACKED, QuantTensor, WeightFormat
from dsv4_kernels.triton_lang.device import quantise as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, new

FP8_GROUP = 128
MX_GROUP = 32
NV_GROUP = 16
GROUPS_PER_PROGRAM = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWeight:
    """One matrix, or one for each of G groups or experts stacked along the rows.

    Shapes: codes [G * N, K] or [G * N, K / 2]; scales as `QuantTensor` for G * N rows; alphas [G] float32, what the
            product of group g is multiplied by (NVFP4's global scales; None is 1); token_alphas times input_scale.
    Rule:   input_scale is NVFP4's global scale of the tokens; 0 leaves tokens in bf16 (W4A16).
    """

    format: WeightFormat
    codes: Tensor
    scales: Tensor
    alphas: Tensor | None
    num_groups: int
    token_alphas: Tensor | None = None
    input_scale: float = 0.0

    @property
    def num_rows(self) -> int:
        """N, of one group."""
        return self.codes.shape[0] // self.num_groups

    @property
    def num_columns(self) -> int:
        """K."""
        return self.codes.shape[1] * (2 if self.format in PACKED else 1)

    def multiplied(self, device: Device) -> str:
        """The format of `device/accumulate.py` that this architecture multiplies the weight in."""
        kind = {WeightFormat.FP8: "fp8", WeightFormat.MXFP4: "mxfp4", WeightFormat.NVFP4: "nvfp4"}.get(self.format)
        if kind == "nvfp4" and self.input_scale == 0.0:
            kind = "nvfp4_a16"
        return device.arch.formats[kind or "dense"]

    def factors(self, device: Device) -> Tensor | None:
        """What products are multiplied by: with the tokens' scale where tokens are NVFP4."""
        return self.token_alphas if self.multiplied(device) == "nvfp4" else self.alphas


def dense_weight(matrix: Tensor, num_groups: int = 1) -> DeviceWeight:
    """float32 or bf16 rows [G * N, K]."""
    is_wide = matrix.dtype == torch.float32
    format = WeightFormat.FP32 if is_wide else WeightFormat.BF16
    matrix = matrix.contiguous()
    return DeviceWeight(format=format, codes=matrix, scales=matrix, alphas=None, num_groups=num_groups)


def quantised_weight(parts: Sequence[QuantTensor], input_scale: float = 0.0, num_groups: int = 0) -> DeviceWeight:
    """Stack the matrices of groups or experts, all of one format and shape, on the device that holds them.

    Rule: num_groups may be given where one tensor holds the rows of several groups (`wo_a`).
    """
    first = parts[0]
    require(
        all(one.format is first.format and one.shape == first.shape for one in parts),
        f"stacked weights must all be {first.format.value} {list(first.shape)}.",
    )
    if first.scales is None:
        return dense_weight(torch.cat([one.codes for one in parts]), num_groups or len(parts))
    require(
        first.format is not WeightFormat.FP8 or first.shape[0] % (FP8_GROUP * max(1, num_groups)) == 0
        or max(len(parts), num_groups) == 1,
        f"stacked FP8 weights need a multiple of {FP8_GROUP} rows each but have {first.shape[0]}.",
    )  # fmt: skip
    is_nv = first.format is WeightFormat.NVFP4
    globals_ = torch.tensor([one.global_scale for one in parts], dtype=torch.float32, device=first.codes.device)
    return DeviceWeight(
        format=first.format,
        codes=torch.cat([one.codes for one in parts]) if len(parts) > 1 else first.codes,
        scales=torch.cat([one.scales for one in parts if one.scales is not None]),
        alphas=globals_ if is_nv else None,
        token_alphas=globals_ * input_scale if is_nv else None,
        num_groups=num_groups or len(parts),
        input_scale=input_scale if is_nv else 0.0,
    )


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
