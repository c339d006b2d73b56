"""Rotary positions: frequencies of a layer family, and the rotation of the last channels of a vector.

Source: shared facts `deepseek_v4.md` 2.4. Interleaved pairs; no mscale anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from dsv4_kernels.ops import OpTable
from torch import Tensor

from dsv4_backend.config import RopeSpec, YarnSpec


@dataclass(frozen=True, slots=True)
class Rotation:
    """Angles of some positions. Shapes: cos, sin [T, R/2]."""

    cos: Tensor
    sin: Tensor


def frequencies(spec: RopeSpec, rope_dim: int) -> Tensor:
    """Return the angle per position of each channel pair. Shapes: [rope_dim / 2] fp32."""
    exponents = torch.arange(0, rope_dim, 2, dtype=torch.float32) / rope_dim
    plain = 1.0 / (spec.theta**exponents)
    if spec.yarn is None:
        return plain
    keep = 1.0 - _ramp(spec.theta, spec.yarn, rope_dim)
    return plain / spec.yarn.factor * (1.0 - keep) + plain * keep


def rotation(spec_frequencies: Tensor, positions: Tensor) -> Rotation:
    """Return cos and sin of position times frequency. Shapes: spec_frequencies [R/2]; positions [T]."""
    return rotations(spec_frequencies[None, None], positions)[0]


def rotations(frequencies_of: Tensor, positions: Tensor) -> list[Rotation]:
    """As `rotation`, for several layer families at once. Shapes: frequencies_of [F, 1, R/2]; positions [T].

    Rule: the angle is a fp32 product, as in training; its cosine is rounded once, from fp64, so that the bits do not
          depend on how many positions are computed together.
    """
    angles = (positions.to(torch.float32)[:, None] * frequencies_of).to(torch.float64)  # [F, T, R/2]
    cos, sin = angles.cos().to(torch.float32), angles.sin().to(torch.float32)
    return [Rotation(*each) for each in zip(cos.unbind(), sin.unbind(), strict=True)]


def rotate(ops: OpTable, x: Tensor, at: Rotation, *, inverse: bool = False) -> Tensor:
    """Rotate the last channels of x by its positions; the other channels are left alone. Shapes: x [T, (H,) D]."""
    rope_dim = 2 * at.cos.shape[-1]
    turned = ops.rope_rotate(x[..., -rope_dim:].contiguous(), at.cos, at.sin, inverse=inverse)
    return torch.cat([x[..., :-rope_dim], turned], dim=-1)


def _ramp(theta: float, yarn: YarnSpec, rope_dim: int) -> Tensor:
    """0 where a channel keeps its frequency, 1 where it is fully interpolated."""
    low = max(math.floor(_correction(theta, yarn.original_tokens, yarn.beta_fast, rope_dim)), 0)
    high = min(math.ceil(_correction(theta, yarn.original_tokens, yarn.beta_slow, rope_dim)), rope_dim - 1)
    pairs = torch.arange(rope_dim // 2, dtype=torch.float32)
    return ((pairs - low) / max(high - low, 0.001)).clamp(0.0, 1.0)


def _correction(theta: float, original_tokens: int, turns: float, rope_dim: int) -> float:
    """The channel pair that makes `turns` turns over the original context."""
    return rope_dim * math.log(original_tokens / (turns * 2 * math.pi)) / (2 * math.log(theta))
