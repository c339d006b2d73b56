"""Attention over gathered rows of two caches, with a sink."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.cache import EntryRows, WindowRows
from dsv4_kernels.reference.cache import unpack_rows


def sparse_attention(
    query: Tensor, window: WindowRows, entries: EntryRows | None, sink: Tensor, scale: float
) -> Tensor:
    """As `ops.SparseAttention`."""
    out = torch.empty_like(query)
    for token in range(query.shape[0]):
        kv = _window(window, window.rows[token])
        if entries is not None:
            rows = entries.rows[token]
            kv = torch.cat([kv, unpack_rows(entries.cache, rows[rows >= 0])])
        scores = query[token] @ kv.T * scale  # [H, J]
        logits = torch.cat([scores, sink.unsqueeze(1)], dim=1)  # [H, J + 1]: the sink is one more logit without a value
        out[token] = torch.softmax(logits, dim=1)[:, :-1] @ kv
    return out


def _window(window: WindowRows, rows: Tensor) -> Tensor:
    """What the numbers stand for, in their order. Shapes: rows [W]; returns [J, D], J of them not -1."""
    rows = rows[rows != -1]
    is_old = rows >= 0
    kv = torch.empty(rows.shape[0], window.ring.spec.width)
    kv[is_old] = unpack_rows(window.ring, rows[is_old])
    kv[~is_old] = unpack_rows(window.fresh, -2 - rows[~is_old])
    return kv
