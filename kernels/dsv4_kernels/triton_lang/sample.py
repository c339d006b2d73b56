"""The choice of a token on a device: torch over all rows at once, without waiting for a result.

No kernel of our own: a sort and two sums over the vocabulary are what the library does well, once per step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.sampling import NEGLIGIBLE, SampleRows
from dsv4_kernels.triton_lang.launch import Device


def sample_tokens(device: Device, scores: Tensor, rows: SampleRows) -> Tensor:
    """As `ops.SampleTokens`."""
    place, scores = scores.device, rows.restrict(scores)
    temperature, top_p, min_p, number = (
        item.to(place)[:, None] for item in (rows.temperature, rows.top_p, rows.min_p, rows.number)
    )
    width = scores.shape[1]
    most = torch.where((rows.top_k > 0) & (rows.top_k < width), rows.top_k, width).to(place)[:, None]
    highest, best = scores.max(1, keepdim=True)
    best = (scores == highest).to(torch.uint8).argmax(1, keepdim=True)  # the first of equal ones
    wide = (scores.double() - highest.double()) / torch.where(temperature == 0, 1.0, temperature)
    weights = torch.where(wide < NEGLIGIBLE, 0.0, wide.exp())
    sorted_weights, order = torch.sort(weights, dim=1, descending=True, stable=True)
    is_kept = torch.arange(width, device=place) < most
    sums = torch.where(is_kept, sorted_weights, 0.0).cumsum(1)
    before = sums - torch.where(is_kept, sorted_weights, 0.0)
    is_kept &= (top_p >= 1.0) | (before < top_p * sums[:, -1:])
    is_kept[:, 0] = True
    kept = torch.zeros_like(weights).scatter(1, order, torch.where(is_kept, sorted_weights, 0.0))
    kept = torch.where(kept < min_p, 0.0, kept)
    sums = kept.cumsum(1)
    is_past = sums > number * sums[:, -1:]
    last = width - 1 - (kept > 0).flip(1).to(torch.uint8).argmax(1, keepdim=True)
    picked = torch.where(is_past.any(1, keepdim=True), is_past.to(torch.uint8).argmax(1, keepdim=True), last)
    is_greedy = (temperature == 0) | (highest == torch.inf)
    picked = torch.where(is_greedy, best, picked)
    return torch.where(highest == -torch.inf, -1, picked).squeeze(1)
