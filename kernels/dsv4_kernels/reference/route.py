"""Expert routing."""

from __future__ import annotations

import torch
from torch import Tensor


def route(logits: Tensor, bias: Tensor | None, fixed_ids: Tensor | None, k: int, scale: float) -> tuple[Tensor, Tensor]:
    """As `ops.Route`."""
    scores = torch.nn.functional.softplus(logits, threshold=20.0).sqrt()  # [T, E]
    if fixed_ids is None:
        ranked = scores if bias is None else scores + bias
        ids = ranked.sort(dim=1, descending=True, stable=True).indices[:, :k]  # [T, k]
    else:
        ids = fixed_ids
    chosen = scores.gather(1, ids)
    return ids, chosen / (chosen.sum(dim=1, keepdim=True) + 1e-20) * scale
