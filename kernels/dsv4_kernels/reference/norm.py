"""Root-mean-square norm."""

from __future__ import annotations

from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """As `ops.RmsNorm`."""
    unit = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return unit if weight is None else unit * weight
