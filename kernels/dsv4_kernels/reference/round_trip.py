"""Round trips through FP8, FP4 (the model was trained with them) and int8; the transform that goes before FP4."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsv4_kernels.tensors import FP4_MAX, FP8_MAX, e2m1_codes, e2m1_values, power_of_two, scale_bytes

FP8_FLOOR = 1e-4
FP4_FLOOR = 6 * 2.0**-126
INT8_MAX = 127
INT8_FLOOR = INT8_MAX * 2.0**-126
DROPPED = 127  # the low bits of a scale that has 17 significant ones


def fp8_round_trip(x: Tensor, group: int) -> Tensor:
    """As `ops.Fp8RoundTrip`."""
    groups, scale = _scaled(x, group, FP8_FLOOR, FP8_MAX)
    codes = groups.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return _restore(codes.to(torch.float32) * scale, x)


def int8_round_trip(x: Tensor, group: int) -> Tensor:
    """As `ops.Int8RoundTrip`."""
    groups = _grouped(x, group)
    scale = groups.abs().amax(dim=2, keepdim=True).clamp(min=INT8_FLOOR) / INT8_MAX
    scale = ((scale.view(torch.int32) + DROPPED) & ~DROPPED).view(torch.float32)
    return _restore((groups / scale).round() * scale, x)


def fp4_round_trip(x: Tensor, group: int = 32) -> Tensor:
    """As `ops.Fp4RoundTrip`."""
    groups, scale = _scaled(x, group, FP4_FLOOR, FP4_MAX)
    return _restore(e2m1_values(e2m1_codes(groups)) * scale, x)


def hadamard(x: Tensor) -> Tensor:
    """As `ops.Hadamard`."""
    size = x.shape[-1]
    y = x.reshape(-1, size)
    half = 1
    while half < size:
        pairs = y.reshape(-1, size // (2 * half), 2, half)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        y = torch.stack([low + high, low - high], dim=2)
        half *= 2
    return (y.reshape(x.shape) * (1 / math.sqrt(size))).contiguous()


def _scaled(x: Tensor, group: int, floor: float, largest: float) -> tuple[Tensor, Tensor]:
    """x / scale as [rows, groups, group] (the last group padded with zeros), and the scales [rows, groups, 1]."""
    groups = _grouped(x, group)
    amax = groups.abs().amax(dim=2, keepdim=True).clamp(min=floor)
    scale = power_of_two(scale_bytes(amax, largest))
    return groups / scale, scale


def _grouped(x: Tensor, group: int) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    padded = torch.nn.functional.pad(rows, (0, -x.shape[-1] % group))
    return padded.view(padded.shape[0], -1, group)


def _restore(groups: Tensor, x: Tensor) -> Tensor:
    return groups.flatten(1)[:, : x.shape[-1]].reshape(x.shape).contiguous()
