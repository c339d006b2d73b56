"""Weights, moments and gradients of a run in shared memory: ranks add up gradients and split the updates by weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from threading import BrokenBarrierError
from typing import Protocol

import torch
from torch import Tensor

from nano_train.muon import Rates, update, uses_muon
from nano_train.weights import Weights, is_buffer

WAIT_S = 900.0


class Barrier(Protocol):
    """Where ranks wait for each other."""

    def wait(self, timeout: float | None = None) -> int:
        """Return when all ranks are here."""


@dataclass(frozen=True, slots=True)
class Arena:
    """Everything that ranks share, as flat tensors; a weight's place is the same in each.

    Shapes: values, first, second [P]; gradients [ranks, P]; report [ranks, R]; buffers by name.
    """

    shapes: Mapping[str, torch.Size]
    values: Tensor
    first: Tensor
    second: Tensor
    gradients: Tensor
    report: Tensor
    buffers: Weights

    @classmethod
    def allocate(cls, weights: Weights, num_ranks: int, num_reported: int, device: str = "cpu") -> Arena:
        """Copy the weights into shared memory, or onto the device of a single rank."""
        place = _shared if device == "cpu" else partial(torch.Tensor.to, device=device)
        shapes = {name: tensor.shape for name, tensor in weights.items() if not is_buffer(name)}
        total = sum(shape.numel() for shape in shapes.values())
        arena = cls(
            shapes=shapes,
            values=place(torch.zeros(total)),
            first=place(torch.zeros(total)),
            second=place(torch.zeros(total)),
            gradients=place(torch.zeros(num_ranks, total)),
            report=_shared(torch.zeros(num_ranks, num_reported, dtype=torch.float64)),
            buffers={name: place(tensor.clone()) for name, tensor in weights.items() if is_buffer(name)},
        )
        for name, view in arena.views(arena.values).items():
            view.copy_(weights[name].detach())
        return arena

    def views(self, flat: Tensor) -> Weights:
        """The parts of a flat tensor by name."""
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def weights(self, rank: int, only: str = "") -> Weights:
        """The shared weights; those with `only` in their names are leaves whose gradients are this rank's."""
        leaves = self.views(self.values)
        for name, gradient in self.views(self.gradients[rank]).items():
            if only in name:
                leaves[name].requires_grad_()
                leaves[name].grad = gradient
        return leaves | self.buffers

    def updater(self, rank: int, only: str = "") -> Updater:
        """What changes this rank's share of the weights with `only` in their names."""
        return Updater(self, rank, only)


class Updater:
    """Changes the weights that one rank is responsible for, in shared memory."""

    def __init__(self, arena: Arena, rank: int, only: str) -> None:
        num_ranks = arena.gradients.shape[0]
        self.names = _shares({name: shape for name, shape in arena.shapes.items() if only in name}, num_ranks)[rank]
        self.values, self.first, self.second = (arena.views(flat) for flat in (arena.values, arena.first, arena.second))
        self.gradients = [arena.views(flat) for flat in arena.gradients]

    def step(self, rates: Rates, number: int, largest_norm: float) -> None:
        """Apply the mean gradient of all ranks, clipped to a norm weight by weight. number is 1 at first."""
        for name in self.names:
            gradient = self.gradients[0][name].clone()
            for other in self.gradients[1:]:
                gradient += other[name]
            gradient /= len(self.gradients)
            norm = float(gradient.norm())
            if norm > largest_norm:
                gradient *= largest_norm / norm
            moments = {"first": self.first[name], "second": self.second[name]}
            update(name, self.values[name], gradient, moments, rates, number)


def meet(barrier: Barrier) -> None:
    """Wait for the other ranks. Raises: RuntimeError if one of them is gone."""
    try:
        barrier.wait(WAIT_S)
    except BrokenBarrierError as error:
        raise RuntimeError("another rank of the training run has ended. Look for its error above.") from error


def _shared(tensor: Tensor) -> Tensor:
    return tensor.share_memory_()  # type: ignore[no-untyped-call, no-any-return]


def _shares(shapes: Mapping[str, torch.Size], num_ranks: int) -> list[list[str]]:
    """Share weights out so that every rank has the same work; Newton-Schulz costs the most."""
    shares: list[list[str]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    for name, shape in sorted(shapes.items(), key=lambda item: -_cost(*item)):
        rank = loads.index(min(loads))
        shares[rank].append(name)
        loads[rank] += _cost(name, shape)
    return shares


def _cost(name: str, shape: torch.Size) -> float:
    return shape.numel() * (min(shape[-2:]) if uses_muon(name, shape) else 4)
