"""Differentiable operators in plain torch: the specification of those in `native`.

Letters: T tokens, D width, H heads, N residual streams. Everything is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """w · x · rsqrt(mean(x²) + eps) over the last dimension; without a weight, the unit norm."""
    unit = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return unit if weight is None else unit * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved pairs of the last 2R channels. Shapes: x [T, (H,) D]; cos, sin [T, R]."""
    if x.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    rope_dim = 2 * cos.shape[-1]
    pairs = x[..., -rope_dim:].reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([x[..., :-rope_dim], turned], dim=-1)


def norm_rotate(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """`rms_norm` over the last dimension, then `rotate`. Shapes: x [T, (H,) D]."""
    return rotate(rms_norm(x, weight, eps), cos, sin)


def hyper_maps(z: Tensor, base: Tensor, scale: Tensor, eps: float, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turn projections into the three maps of a sublayer: pre, post, and comb by Sinkhorn.

    Shapes: z [T, (2 + N)N]; base [(2 + N)N]; scale [3]; returns pre [T, N], post [T, N], comb [T, N, N].
    """
    n = int((z.shape[1] + 1) ** 0.5) - 1
    pre = torch.sigmoid(z[:, :n] * scale[0] + base[:n]) + eps
    post = 2 * torch.sigmoid(z[:, n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = torch.softmax((z[:, 2 * n :] * scale[2] + base[2 * n :]).view(-1, n, n), dim=2) + eps
    comb = comb / (comb.sum(dim=1, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(dim=2, keepdim=True) + eps)
        comb = comb / (comb.sum(dim=1, keepdim=True) + eps)
    return pre, post, comb


def hyper_collapse(streams: Tensor, pre: Tensor) -> Tensor:
    """Σ_n pre_n · streams_n. Shapes: streams [T, N, D]; pre [T, N]; returns [T, D]."""
    return (streams * pre.unsqueeze(2)).sum(dim=1)


def hyper_read(
    streams: Tensor, maps: tuple[Tensor, Tensor, Tensor], norm_eps: float, eps: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Collapse the streams for a sublayer. Shapes: maps: fn, base, scale; returns hidden [T, D], post, comb."""
    fn, base, scale = maps
    flat = streams.flatten(1)
    z = (flat @ fn.T) * (flat.square().mean(1, keepdim=True) + norm_eps).rsqrt()
    pre, post, comb = hyper_maps(z, base, scale, eps, iterations)
    return hyper_collapse(streams, pre), post, comb


def hyper_mix(streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """post_k · y + Σ_j comb_jk · streams_j. Shapes: y [T, D]; returns [T, N, D]."""
    return post.unsqueeze(2) * y.unsqueeze(1) + torch.einsum("tjk,tjd->tkd", comb, streams)


def swiglu(gate_up: Tensor, shares: Tensor | None, limit: float) -> Tensor:
    """silu(min(a, limit)) · clip(b, ±limit) · share, a and b being the halves. Shapes: [T, 2I]; shares [T]; [T, I]."""
    gate, up = gate_up.chunk(2, dim=1)
    product = torch.nn.functional.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)
    return product if shares is None else product * shares.unsqueeze(1)


def masked_softmax(scores: Tensor, mask: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
    """Weights under one softmax with a sink that has no value, and the log of their denominator.

    Shapes: scores [C * H, K], heads of a query together; mask [C, K], 0 or -inf; sink [H]; returns as scores, [C, H].
    """
    heads = sink.shape[0]
    logits = scores.view(mask.shape[0], heads, -1) + mask.unsqueeze(1)  # [C, H, K]
    normaliser = torch.logsumexp(torch.cat([logits, sink[None, :, None].expand(mask.shape[0], -1, 1)], dim=2), dim=2)
    return torch.exp(logits - normaliser.unsqueeze(2)).view_as(scores), normaliser
