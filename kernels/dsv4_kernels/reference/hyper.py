"""Manifold-constrained hyper-connections (mHC): maps, collapse, mix and head."""

from __future__ import annotations

import torch
from torch import Tensor


def hyper_maps(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm_eps: float, hc_eps: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.HyperMaps`."""
    n = streams.shape[1]
    z = _project(streams, fn, norm_eps)
    pre = torch.sigmoid(z[:, :n] * scale[0] + base[:n]) + hc_eps
    post = 2 * torch.sigmoid(z[:, n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = (z[:, 2 * n :] * scale[2] + base[2 * n :]).view(-1, n, n)  # [T, N, N]
    comb = torch.softmax(comb, dim=2) + hc_eps
    comb = comb / (comb.sum(dim=1, keepdim=True) + hc_eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(dim=2, keepdim=True) + hc_eps)
        comb = comb / (comb.sum(dim=1, keepdim=True) + hc_eps)
    return pre, post, comb


def hyper_collapse(streams: Tensor, pre: Tensor) -> Tensor:
    """As `ops.HyperCollapse`."""
    return (streams * pre.unsqueeze(2)).sum(dim=1)  # [T, D]


def hyper_mix(streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """As `ops.HyperMix`."""
    return post.unsqueeze(2) * y.unsqueeze(1) + torch.einsum("tjk,tjd->tkd", comb, streams)


def hyper_head(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm_eps: float, hc_eps: float) -> Tensor:
    """As `ops.HyperHead`."""
    mixing = torch.sigmoid(_project(streams, fn, norm_eps) * scale + base) + hc_eps  # [T, N]
    return hyper_collapse(streams, mixing)


def _project(streams: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    """fn · vec(streams), then the root-mean-square norm as one factor per token."""
    flat = streams.flatten(1)  # [T, N * D]
    return (flat @ fn.T) * (flat.square().mean(1, keepdim=True) + norm_eps).rsqrt()
