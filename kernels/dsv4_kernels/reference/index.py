"""The lightning indexer's choice of compressed entries."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.cache import CacheRows, rows_of_pages
from dsv4_kernels.reference.cache import unpack_rows


def index_select(
    query: Tensor,
    head_weights: Tensor,
    cache: CacheRows,
    rows: Tensor,
    num_visible: Tensor,
    k: int,
    page_rows: int = 1,
) -> Tensor:
    """As `ops.IndexSelect`."""
    chosen = torch.full((query.shape[0], k), -1, dtype=torch.int64)
    for token, visible in enumerate(num_visible.tolist()):
        if visible <= k:
            chosen[token, :visible] = torch.arange(visible)
            continue
        mine = rows[:visible] if rows.dim() == 1 else rows_of_pages(rows[token], page_rows)[:visible]
        keys = unpack_rows(cache, mine)  # [C, D]
        scores = head_weights[token] @ torch.relu(query[token] @ keys.T)  # [C]
        best = scores.sort(descending=True, stable=True).indices[:k]
        chosen[token] = best.sort().values
    return chosen
