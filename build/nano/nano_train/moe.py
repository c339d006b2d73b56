"""Routed experts: tokens sorted by expert, one pair of matrix products per expert, gradients by hand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nano_train import fast
from nano_train.autograd import Function, Saved, apply
from nano_train.numerics import Rounding
from nano_train.products import lowered, product_into


@dataclass(frozen=True, slots=True)
class Rules:
    """How experts compute besides their weights: the clamp of SwiGLU, and what enters the second matrix rounded."""

    limit: float
    rounding: Rounding


class _Experts(Function):
    """x [T, d], ids [T, K], shares [T, K], w13 [E, 2I, d], w2 [E, d, I] ─► [T, d]."""

    @staticmethod
    def forward(ctx: Saved, x: Tensor, ids: Tensor, shares: Tensor, w13: Tensor, w2: Tensor, rules: Rules) -> Tensor:
        order = ids.flatten().argsort(stable=True)  # [T * K], by expert
        bounds = [0, *torch.bincount(ids.flatten(), minlength=w13.shape[0]).cumsum(0).tolist()]
        tokens, sorted_shares = order // ids.shape[1], shares.flatten()[order]
        gate_up, out = x.new_empty(order.shape[0], w13.shape[1]), x.new_empty(order.shape[0], x.shape[1])
        picked, w13, w2 = lowered(x)[tokens], lowered(w13), lowered(w2)  # picked [T * K, d]
        for expert, (low, high) in enumerate(pairwise(bounds)):
            product_into(gate_up[low:high], picked[low:high], w13[expert].T)
        hidden = lowered(rules.rounding.input(fast.swiglu_forward(gate_up, sorted_shares, rules.limit)))
        for expert, (low, high) in enumerate(pairwise(bounds)):
            product_into(out[low:high], hidden[low:high], w2[expert].T)
        ctx.save_for_backward(picked, gate_up, sorted_shares, order, w13, w2)
        ctx.rest = bounds, rules, ids.shape  # type: ignore[attr-defined]
        return _unsort(out, order, ids.shape)

    @staticmethod
    def backward(ctx: Saved, d_total: Tensor) -> tuple[Tensor | None, ...]:
        picked, gate_up, shares, order, w13, w2 = ctx.saved_tensors  # type: ignore[attr-defined]
        bounds, rules, shape = ctx.rest  # type: ignore[attr-defined]
        d_out = d_total.to(picked.dtype)[order // shape[1]]  # [T * K, d]
        d_hidden, d_picked = gate_up.new_empty(order.shape[0], w2.shape[2]), gate_up.new_empty(picked.shape)
        d_w13, d_w2 = gate_up.new_empty(w13.shape), gate_up.new_empty(w2.shape)
        for expert, (low, high) in enumerate(pairwise(bounds)):
            product_into(d_hidden[low:high], d_out[low:high], w2[expert])
        hidden, d_gate_up, d_sorted = fast.swiglu_backward(gate_up, shares, d_hidden, rules.limit)
        hidden, d_half = rules.rounding.input(hidden).to(picked.dtype), d_gate_up.to(picked.dtype)
        assert d_sorted is not None
        for expert, (low, high) in enumerate(pairwise(bounds)):
            product_into(d_w2[expert], d_out[low:high].T, hidden[low:high])
            product_into(d_w13[expert], d_half[low:high].T, picked[low:high])
            product_into(d_picked[low:high], d_half[low:high], w13[expert])
        d_shares = torch.empty_like(d_sorted).scatter_(0, order, d_sorted).view(shape)
        return _unsort(d_picked, order, shape), None, d_shares, d_w13, d_w2, None


def routed_experts(x: Tensor, ids: Tensor, shares: Tensor, w13: Tensor, w2: Tensor, rules: Rules) -> Tensor:
    """Σ_k W2 (share_k · swiglu(W13 x)). Shapes: x [T, d]; ids, shares [T, K]; returns [T, d]."""
    total: Tensor = apply(_Experts, x, ids, shares, w13, w2, rules)
    return total


def route(
    logits: Tensor, bias: Tensor | None, fixed_ids: Tensor | None, num_chosen: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Choose experts and their shares. Shapes: logits [T, E]; bias [E]; fixed_ids [T, K]; returns [T, K] twice."""
    scores = torch.sqrt(torch.nn.functional.softplus(logits))
    if fixed_ids is None:
        biased = scores.detach() if bias is None else scores.detach() + bias
        fixed_ids = biased.topk(num_chosen, dim=1).indices
    chosen = scores.gather(1, fixed_ids)
    return fixed_ids, chosen / (chosen.sum(1, keepdim=True) + 1e-20) * scale


def balanced_bias(bias: Tensor, loads: Tensor, rate: float) -> Tensor:
    """Return the router bias after a step: up for experts below the mean load, down for those above. Shapes: [E]."""
    return bias + rate * torch.sign(loads.mean() - loads)


def _unsort(rows: Tensor, order: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Add up the rows of each token. Shapes: rows [T * K, d]; returns [T, d]."""
    back = torch.empty_like(order)
    back[order] = torch.arange(order.shape[0])
    return rows[back].view(shape[0], shape[1], -1).sum(1)
