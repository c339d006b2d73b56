"""What decides the choice of a token, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE = -50.0  # a token whose weight is below e to this of the best one's is never chosen


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Settings of S rows. Shapes: temperature, top_p, min_p, number float64 [S]; top_k int64 [S].

    Units: temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch that filter off; number is in [0, 1).
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    number: Tensor

    @classmethod
    def of(cls, rows: list[tuple[float, int, float, float, float]]) -> SampleRows:
        """Gather rows of (temperature, top_k, top_p, min_p, number)."""
        temperature, top_k, top_p, min_p, number = zip(*rows, strict=True)
        reals = (torch.tensor(values, dtype=torch.float64) for values in (temperature, top_p, min_p, number))
        first, *others = reals
        return cls(first, torch.tensor(top_k, dtype=torch.int64), *others)
