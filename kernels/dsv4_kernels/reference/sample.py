"""The choice of a token from scores."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.sampling import NEGLIGIBLE, SampleRows


def sample_tokens(scores: Tensor, rows: SampleRows) -> Tensor:
    """As `ops.SampleTokens`."""
    left = rows.restrict(scores)
    return torch.tensor([_choose(row, rows, index) for index, row in enumerate(left)], dtype=torch.int64)


def _choose(scores: Tensor, rows: SampleRows, index: int) -> int:
    best = int(torch.argmax(scores))  # the first of equal ones
    highest, temperature = float(scores[best]), float(rows.temperature[index])
    if highest == -torch.inf:
        return -1
    if temperature == 0.0 or highest == torch.inf:
        return best
    wide = (scores.double() - highest) / temperature
    weights = torch.where(wide < NEGLIGIBLE, 0.0, wide.exp())
    weights = _filter(weights, int(rows.top_k[index]), float(rows.top_p[index]), float(rows.min_p[index]))
    sums = weights.cumsum(0)  # ids in order, whatever the filters: one that removes nothing changes nothing
    found = int(torch.searchsorted(sums, rows.number[index] * sums[-1], right=True))
    return found if found < len(sums) else int(torch.nonzero(weights)[-1])


def _filter(weights: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    order = torch.sort(weights, descending=True, stable=True).indices  # ties: the smaller id first
    if 0 < top_k < len(weights):
        order = order[:top_k]
    if top_p < 1.0:
        sums = weights[order].cumsum(0)
        order = order[: int(torch.searchsorted(sums, top_p * sums[-1])) + 1]
    kept = torch.zeros_like(weights)
    kept[order] = weights[order]
    return torch.where(kept < min_p, 0.0, kept)
