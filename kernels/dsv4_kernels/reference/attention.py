"""Attention over gathered rows of two caches, with a sink."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_attention(
    query: Tensor,
    window_cache: Tensor,
    window_rows: Tensor,
    entry_cache: Tensor | None,
    entry_rows: Tensor | None,
    sink: Tensor,
    scale: float,
) -> Tensor:
    """As `ops.SparseAttention`."""
    out = torch.empty_like(query)
    for token in range(query.shape[0]):
        rows = [_gather(window_cache, window_rows[token])]
        if entry_cache is not None and entry_rows is not None:
            rows.append(_gather(entry_cache, entry_rows[token]))
        kv = torch.cat(rows)  # [J, D]
        scores = query[token] @ kv.T * scale  # [H, J]
        logits = torch.cat([scores, sink.unsqueeze(1)], dim=1)  # [H, J + 1]: the sink is one more logit without a value
        out[token] = torch.softmax(logits, dim=1)[:, :-1] @ kv
    return out


def _gather(cache: Tensor, rows: Tensor) -> Tensor:
    return cache[rows[rows >= 0]]
