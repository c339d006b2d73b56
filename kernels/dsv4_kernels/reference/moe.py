"""Gated experts with clamped SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from dsv4_kernels.prepared import ExpertWeights, LinearWeight
from dsv4_kernels.reference import round_trip as trips
from dsv4_kernels.trips import Trip, make_trip


def moe(x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, limit: float, round_trip: Trip) -> Tensor:
    """As `ops.Moe`."""
    slots = torch.zeros(*ids.shape, x.shape[1])  # [T, K, D]
    for expert in sorted(set(ids.flatten().tolist())):
        if expert < 0:
            continue
        token, slot = torch.where(ids == expert)
        gated = _gate(x[token], experts.matrix(expert, "w1"), experts.matrix(expert, "w3"), limit)
        hidden = gated * weights[token, slot].unsqueeze(1)
        slots[token, slot] = _down(hidden, experts.matrix(expert, "w2"), round_trip)
    total = torch.zeros_like(x)
    for k in range(ids.shape[1]):
        total = total + slots[:, k]
    return total


def gated_mlp(
    x: Tensor,
    w1: LinearWeight,
    w3: LinearWeight,
    w2: LinearWeight,
    limit: float,
    round_trip: Trip,
    *,
    made: Trip = Trip.NONE,
) -> Tensor:
    """As `ops.GatedMlp`."""
    return _down(_gate(x, w1.matrix(), w3.matrix(), limit), w2.matrix(), round_trip)


def _gate(x: Tensor, w1: Tensor, w3: Tensor, limit: float) -> Tensor:
    return silu((x @ w1.T).clamp(max=limit)) * (x @ w3.T).clamp(-limit, limit)


def _down(hidden: Tensor, w2: Tensor, round_trip: Trip) -> Tensor:
    return make_trip(trips, hidden, round_trip) @ w2.T
