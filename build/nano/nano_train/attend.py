"""Attention core, chunk by chunk, so that scores never leave the processor's cache; backward computes them again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nano_train import fast
from nano_train.autograd import Function, Saved, apply
from nano_train.config import CHUNK
from nano_train.products import lowered, product, product_into


@dataclass(frozen=True, slots=True)
class View:
    """What the queries of each chunk may see.

    Rule: keys of chunk c are window rows CHUNK·c - window ... CHUNK·(c + 1) - 1, then entries ranges[c]; masks[c]
          [CHUNK, keys] is 0 or -inf.
    """

    window: int
    ranges: tuple[tuple[int, int], ...]
    masks: tuple[Tensor, ...]


class _Attend(Function):
    """query [T, H, D], keys [window + T, D], entries [C, D], sink [H] ─► out [T, H, D], normaliser [T, H]."""

    @staticmethod
    def forward(
        ctx: Saved, query: Tensor, keys: Tensor, entries: Tensor, sink: Tensor, view: View
    ) -> tuple[Tensor, Tensor]:
        out, normaliser = torch.empty_like(query), query.new_empty(query.shape[:2])
        query, scale = lowered(query), query.shape[2] ** -0.5
        for chunk, mask in enumerate(view.masks):
            rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            seen = _seen(keys, entries, view, chunk)  # [K, D]
            scores = product(query[rows].flatten(0, 1), lowered(seen * scale).T)  # [CHUNK * H, K]
            share, normaliser[rows] = fast.masked_softmax(scores, mask, sink)
            product_into(out[rows].view(-1, query.shape[2]), lowered(share), lowered(seen))
        ctx.save_for_backward(query, keys, entries, sink, out, normaliser)
        ctx.view = view  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(normaliser)
        return out, normaliser

    @staticmethod
    def backward(ctx: Saved, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, entries, sink, out, normaliser = ctx.saved_tensors  # type: ignore[attr-defined]
        view: View = ctx.view  # type: ignore[attr-defined]
        d_query, d_keys, d_entries = torch.empty_like(out), torch.zeros_like(keys), torch.zeros_like(entries)
        scale, heads = query.shape[2] ** -0.5, query.shape[1]
        d_out = d_out.contiguous()
        delta = (d_out * out).sum(2)  # [T, H]
        d_out = d_out.to(query.dtype)
        for chunk, mask in enumerate(view.masks):
            rows, width = slice(chunk * CHUNK, (chunk + 1) * CHUNK), view.window + CHUNK
            seen = _seen(keys, entries, view, chunk)
            flat_query, flat_out = query[rows].flatten(0, 1), d_out[rows].flatten(0, 1)
            scaled = (seen * scale).to(query.dtype)
            share = product(flat_query, scaled.T)  # [CHUNK * H, K]
            d_scores = product(flat_out, seen.to(query.dtype).T)
            fast.softmax_backward(share, d_scores, mask, normaliser[rows], delta[rows])
            share, d_scores = share.to(query.dtype), d_scores.to(query.dtype)
            product_into(d_query[rows].view(CHUNK * heads, -1), d_scores, scaled)
            d_seen = product(share.T, flat_out).add_(product(d_scores.T, flat_query), alpha=scale)
            d_keys[chunk * CHUNK : chunk * CHUNK + width] += d_seen[:width]
            low, high = view.ranges[chunk]
            if high > low:
                d_entries[low:high] += d_seen[width:]
        d_sink = -(torch.exp(sink - normaliser) * delta).sum(0)
        return d_query, d_keys, d_entries, d_sink, None


def attend(query: Tensor, kv: Tensor, entries: Tensor, sink: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Attend to window rows and entries under one softmax with sinks.

    Shapes: query [T, H, D]; kv [T, D]; entries [C, D]; sink [H]; returns [T, H, D] and the log of each softmax's
            denominator [T, H], which carries no gradient.
    """
    keys = torch.nn.functional.pad(kv, (0, 0, view.window, 0))
    out, normaliser = apply(_Attend, query, keys, entries, sink, view)
    return out, normaliser


def _seen(keys: Tensor, entries: Tensor, view: View, chunk: int) -> Tensor:
    window = keys[chunk * CHUNK : (chunk + 1) * CHUNK + view.window]
    low, high = view.ranges[chunk]
    return window if low == high else torch.cat([window, entries[low:high]])
