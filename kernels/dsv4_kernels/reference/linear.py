"""Dense projections."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.prepared import LinearWeight
from dsv4_kernels.trips import Trip


def linear(x: Tensor, weight: LinearWeight, made: Trip = Trip.NONE) -> Tensor:
    """As `ops.Linear`."""
    return x @ weight.matrix().T  # [T, N]


def grouped_linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """As `ops.GroupedLinear`."""
    groups = weight.matrix().view(x.shape[1], -1, x.shape[2])  # [G, N, K]
    return torch.einsum("tgk,gnk->tgn", x, groups)
