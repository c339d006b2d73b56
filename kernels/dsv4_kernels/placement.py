"""Where a table of operators wants its tensors, and in which form its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dsv4_kernels.device_weights import DeviceWeight, dense_weight, stacks
from dsv4_kernels.formats import WeightFormat
from dsv4_kernels.prepared import ExpertWeights, LinearWeight, prepare_linear
from dsv4_kernels.tensors import QuantTensor, dequantise

HOST_DEVICE = torch.device("cpu")


class Placement(Protocol):
    """Puts what a checkpoint holds where operators read it."""

    @property
    def device(self) -> torch.device:
        """Where all tensors of a step lie."""

    def tensor(self, values: Tensor) -> Tensor:
        """A small tensor, in place."""

    def linear(self, stored: QuantTensor, num_groups: int = 1, *, is_exact: bool = False) -> LinearWeight:
        """One matrix, or `num_groups` of them stacked along its rows.

        Rule: `is_exact` is of products that decide something (the router) or whose inputs are never rounded (`wo_a`).
        """

    def experts(self, count: int, hidden: int, inter: int, format: WeightFormat) -> ExpertWeights:
        """Room for the experts of a layer."""


@dataclass(frozen=True, slots=True)
class HostPlacement:
    """Memory of this machine, for the `cpu` and `reference` tables."""

    device: torch.device = field(default=HOST_DEVICE, init=False)

    def tensor(self, values: Tensor) -> Tensor:
        """Where it is."""
        return values

    def linear(self, stored: QuantTensor, num_groups: int = 1, *, is_exact: bool = False) -> LinearWeight:
        """As `prepare_linear`: every product is exact here."""
        return prepare_linear(stored)

    def experts(self, count: int, hidden: int, inter: int, format: WeightFormat) -> ExpertWeights:
        """As `ExpertWeights.allocate`."""
        return ExpertWeights.allocate(count, hidden, inter, format)


@dataclass(frozen=True, slots=True)
class DevicePlacement:
    """A GPU's memory, for the `cuda` table. Weights go there one by one; nothing of them stays on this side.

    Rule: FP8 and FP4 weights stay as they are stored, and BF16 too. A product that must be exact takes its matrix in
          float32. What cannot be stacked, and `wo_a`, whose inputs are never rounded, is widened to BF16, which holds
          every FP8 value times its scale.
    """

    device: torch.device

    def tensor(self, values: Tensor) -> Tensor:
        """A copy on the device."""
        return values.to(self.device)

    def linear(self, stored: QuantTensor, num_groups: int = 1, *, is_exact: bool = False) -> LinearWeight:
        """Raises: torch.OutOfMemoryError."""
        if is_exact or stored.format is WeightFormat.FP32:
            return LinearWeight(placed=dense_weight(dequantise(stored).to(self.device), num_groups))
        if num_groups > 1:
            wide = dequantise(stored).to(torch.bfloat16)
            return LinearWeight(placed=dense_weight(wide.to(self.device), num_groups))
        placed = DeviceWeight.allocate(stored.format, 1, stored.shape, self.device)
        placed.put(0, stored)
        return LinearWeight(placed=placed)

    def experts(self, count: int, hidden: int, inter: int, format: WeightFormat) -> ExpertWeights:
        """Raises: torch.OutOfMemoryError."""
        kept = format if stacks(format, count, inter) and stacks(format, count, hidden) else WeightFormat.BF16

        def room(rows: int, columns: int) -> DeviceWeight:
            return DeviceWeight.allocate(kept, count, (rows, columns), self.device)

        return ExpertWeights(w1=room(inter, hidden), w2=room(hidden, inter), w3=room(inter, hidden))


HOST = HostPlacement()
