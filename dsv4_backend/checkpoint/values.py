"""Random weights with the statistics of a sane model: activations stay near 1, and every path carries signal.

A tensor's values depend on the seed and its own name only, so that every storage layout starts from the same floats.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from dsv4_backend.checkpoint.names import Weight


def random_weight(weight: Weight, seed: int, num_experts: int) -> Tensor:
    """Return float32 values for a weight (int64 expert ids for `tid2eid`)."""
    digest = hashlib.sha256(f"{seed}:{weight.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if weight.name.endswith(".tid2eid"):
        tokens, chosen = weight.shape
        return torch.rand((tokens, num_experts), generator=generator).topk(chosen).indices
    mean, deviation = _statistics(weight)
    return torch.randn(weight.shape, generator=generator) * deviation + mean


def _statistics(weight: Weight) -> tuple[float, float]:
    """Mean and standard deviation, by what the weight does."""
    name = weight.name
    if weight.is_matmul:
        return 0.0, _GAIN.get(name, 1.0) / math.sqrt(weight.shape[-1])
    if name.endswith("norm.weight"):
        return 1.0, 0.1
    if name.endswith("_scale"):  # mHC: how much the mapping depends on the stream
        return 1.0, 0.1
    if name.endswith("gate.bias"):  # small against router scores near 0.8, large enough to change a choice
        return 0.0, 0.05
    if name.endswith(("_base", ".ape")):
        return 0.0, 0.5
    return 0.0, 1.0  # embedding, sinks


_GAIN = {"head.weight": 2.0}  # greedy choices have a clear margin
