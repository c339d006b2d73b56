"""Attention, indexer and experts for a device without the compiled library: all chunks of a row at once.

Same results as `attend`, `indexer` and `moe`, with torch's own gradients. Letters: N chunks, Q queries of one (CHUNK),
W window rows of one, C entries of the chunk that sees the most of them.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from nano_train import ops
from nano_train.batch import Geometry
from nano_train.config import CHUNK
from nano_train.indexer import Indexer
from nano_train.moe import Rules
from nano_train.row import Stacked


def attend(
    query: Tensor, kv: Tensor, entries: Tensor | None, sink: Tensor, geometry: Geometry, seen: Stacked | None
) -> tuple[Tensor, Tensor]:
    """As `attend.attend`, `seen` being what may be attended to besides the window."""
    heads, width = query.shape[1:]
    keys = pad(kv, (0, 0, geometry.window, 0)).unfold(0, geometry.window + CHUNK, CHUNK).transpose(1, 2)  # [N, W, D]
    mask = geometry.window_masks
    if entries is not None and seen is not None:
        keys, mask = torch.cat([keys, entries[seen.rows]], 1), torch.cat([mask, seen.masks], 2)
    queries = query.view(-1, CHUNK * heads, width)
    scores = torch.bmm(queries, (keys * width**-0.5).transpose(1, 2)).view(-1, mask.shape[2])
    share, normaliser = ops.masked_softmax(scores, mask.flatten(0, 1), sink)
    out = torch.bmm(share.view(len(keys), CHUNK * heads, -1), keys)
    return out.view(query.shape), normaliser.detach()


def chosen(indexer: Indexer, seen: Stacked) -> Stacked:
    """Leave the entries that the indexer chooses for each query."""
    most = indexer.config.index_topk
    if int(seen.visible.max()) <= most:
        return seen
    with torch.no_grad():
        scores = index_scores(indexer, seen, torch.arange(len(seen.rows), device=seen.rows.device)) + seen.masks
        best = scores.topk(min(most, scores.shape[2]), dim=2).indices
        masks = torch.full_like(scores, float("-inf")).scatter_(2, best, 0.0) + seen.masks
    return Stacked(seen.rows, masks, seen.visible)


def index_scores(indexer: Indexer, seen: Stacked, chunks: Tensor) -> Tensor:
    """Scores of the entries for the queries of some chunks. Shapes: chunks [n]; returns [n, Q, C]."""
    heads, width = indexer.config.index_heads, indexer.config.index_head_dim
    tokens = (chunks[:, None] * CHUNK + torch.arange(CHUNK, device=chunks.device)).flatten()
    query = torch.nn.functional.linear(indexer.latent[tokens], indexer.wq_b).view(-1, heads, width)
    query = indexer.rounding.index(ops.rotate(query, indexer.at_tokens.cos[tokens], indexer.at_tokens.sin[tokens]))
    keys = indexer.keys[seen.rows[chunks]]  # [n, C, cI]
    each = torch.relu(torch.bmm(query.view(len(chunks), -1, width), keys.transpose(1, 2)))
    weights = indexer.head_weights[tokens] * (width**-0.5 * heads**-0.5)
    return torch.bmm(weights.view(-1, 1, heads), each.view(len(tokens), heads, -1)).view(len(chunks), CHUNK, -1)


def index_loss(
    indexer: Indexer, query: Tensor, entries: Tensor, normaliser: Tensor, seen: Stacked, trained: frozenset[int]
) -> Tensor:
    """As `Indexer.loss`, over the given chunks."""
    chunks = torch.tensor(sorted(trained), device=query.device)
    is_open = seen.visible[chunks] > 1  # [n, Q]
    mask = seen.masks[chunks]
    with torch.no_grad():
        heads, width = query.shape[1:]
        picked = query.view(-1, CHUNK * heads, width)[chunks]
        scores = torch.bmm(picked, entries[seen.rows[chunks]].transpose(1, 2)) * width**-0.5
        scores = scores.view(len(chunks), CHUNK, heads, -1) - normaliser.view(-1, CHUNK, heads, 1)[chunks]
        target = torch.exp(scores).sum(2) * torch.exp(mask)
        target = target / target.sum(2, keepdim=True).clamp(min=1e-20)
    logits = index_scores(indexer, seen, chunks) + mask
    logs = torch.log_softmax(logits.masked_fill(~is_open[:, :, None], 0.0), dim=2).masked_fill(mask < 0, 0.0)
    each = (torch.xlogy(target, target) - target * logs).sum(2)
    return each.masked_fill(~is_open, 0.0).sum() / is_open.sum().clamp(min=1)


def routed_experts(x: Tensor, ids: Tensor, shares: Tensor, w13: Tensor, w2: Tensor, rules: Rules) -> Tensor:
    """As `moe.routed_experts`."""
    order = ids.flatten().argsort(stable=True)
    bounds = [0, *torch.bincount(ids.flatten(), minlength=w13.shape[0]).cumsum(0).tolist()]
    tokens, weights = order // ids.shape[1], shares.flatten()[order]
    picked = x[tokens]
    outs = []
    for expert, (low, high) in enumerate(pairwise(bounds)):
        hidden = ops.swiglu(picked[low:high] @ w13[expert].T, weights[low:high], rules.limit)
        outs.append(rules.rounding.input(hidden) @ w2[expert].T)
    return torch.zeros_like(x).index_add(0, tokens, torch.cat(outs))
