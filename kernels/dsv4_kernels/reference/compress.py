"""Pooling of a block of tokens into one compressed entry, at once or token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.tensors import FoldRuns


def compress_pool(values: Tensor, gates: Tensor) -> Tensor:
    """As `ops.CompressPool`."""
    return (torch.softmax(gates, dim=1) * values).sum(dim=1)  # [B, D]


def compress_fold(values: Tensor, gates: Tensor, states: Tensor, runs: FoldRuns) -> Tensor:
    """As `ops.CompressFold`."""
    entries = []
    for run, (begin, end) in enumerate(zip(runs.begins.tolist(), runs.ends.tolist(), strict=True)):
        rows = runs.sources[runs.offsets[run] : runs.offsets[run + 1]]
        state = _empty(values.shape[1]) if begin < 0 else states[begin].clone()
        for value, gate in zip(values[rows], gates[rows], strict=True):
            state = _fold(state, value, gate)
        if end < 0:
            entries.append(state[2] / state[1])
        else:
            states[end] = state
    return torch.stack(entries) if entries else values.new_empty((0, values.shape[1]))  # [B, D]


def _empty(width: int) -> Tensor:
    return torch.stack([torch.full((width,), -torch.inf), torch.zeros(width), torch.zeros(width)])


def _fold(state: Tensor, value: Tensor, gate: Tensor) -> Tensor:
    top = torch.maximum(state[0], gate)
    kept, weight = torch.exp(state[0] - top), torch.exp(gate - top)
    return torch.stack([top, state[1] * kept + weight, state[2] * kept + weight * value])
