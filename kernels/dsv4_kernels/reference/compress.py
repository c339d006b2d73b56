"""Pooling of a block of tokens into one compressed entry."""

from __future__ import annotations

import torch
from torch import Tensor


def compress_pool(values: Tensor, gates: Tensor) -> Tensor:
    """As `ops.CompressPool`."""
    return (torch.softmax(gates, dim=1) * values).sum(dim=1)  # [B, D]
