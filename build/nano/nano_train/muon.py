"""Optimiser: Muon for matrices, AdamW for everything else; moments live in tensors that the caller owns.

Source of Muon: orthogonalised momentum by five Newton-Schulz steps, scaled to the root mean square of AdamW's updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nano_train.products import lowered

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
UPDATE_RMS = 0.2
EMBEDDING_FACTOR = 3.0  # a row is touched only when its token occurs
_ADAM_ONLY = ("embed.weight", "head.weight", "gate.weight", "_fn", ".ape", "weights_proj.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Hyperparameters of one step; `decay` is per unit of learning rate and spares vectors."""

    learning_rate: float
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.98
    decay: float = 0.05
    eps: float = 1e-10


def uses_muon(name: str, shape: torch.Size) -> bool:
    """Whether a weight is a matrix (or a stack of them) of the network's inside."""
    return len(shape) >= 2 and not name.endswith(_ADAM_ONLY)


@torch.no_grad()
def update(name: str, weight: Tensor, gradient: Tensor, moments: Mapping[str, Tensor], rates: Rates, step: int) -> None:
    """Change one weight in place. moments: `first` and `second`, shaped as the weight; `step` counts from 1."""
    first, second = moments["first"], moments["second"]
    if weight.dim() >= 2:
        weight.mul_(1 - rates.learning_rate * rates.decay)
    if uses_muon(name, weight.shape):
        first.mul_(rates.momentum).add_(gradient)
        direction = gradient.add(first, alpha=rates.momentum)  # Nesterov
        weight.sub_(_orthogonal(name, direction), alpha=rates.learning_rate)
        return
    first.lerp_(gradient, 1 - rates.beta1)
    second.lerp_(gradient.square(), 1 - rates.beta2)
    scale = (second / (1 - rates.beta2**step)).sqrt_().add_(rates.eps)
    rate = rates.learning_rate * (EMBEDDING_FACTOR if name == "embed.weight" else 1.0)
    weight.addcdiv_(first, scale, value=-rate / (1 - rates.beta1**step))


def _orthogonal(name: str, direction: Tensor) -> Tensor:
    """Replace each matrix by the nearest orthogonal one, at UPDATE_RMS per element."""
    shape = direction.shape
    if name.endswith(".w13"):  # w1 above w3: two matrices
        direction = direction.reshape(2 * shape[0], -1, shape[2])
    is_tall = direction.shape[-2] > direction.shape[-1]
    x = direction.mT if is_tall else direction
    x = x.reshape(-1, x.shape[-2], x.shape[-1])
    x = lowered(x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12))
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    scale: float = UPDATE_RMS * max(x.shape[-2:]) ** 0.5
    x = x.float() * scale
    return (x.mT if is_tall else x).reshape(shape)
