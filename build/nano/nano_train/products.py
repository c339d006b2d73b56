"""Matrix products: float32, or, where a run asks for it, bfloat16 factors with sums in float32.

Rule: a CPU with AVX512-BF16 multiplies bfloat16 twice as fast. Results are float32 again. The routers, the head and the
      maps of the streams stay in float32 throughout: their choices and logits need the digits.
"""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor

from nano_train.autograd import Function, Saved, apply

is_half = ContextVar("is_half", default=False)


def lowered(x: Tensor) -> Tensor:
    """Return a factor as this run multiplies it."""
    return x.bfloat16() if is_half.get() else x


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32. Shapes: a [M, K]; b [K, N], both as `lowered` returns them."""
    return torch.mm(a, b).float()


def product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """As `product`, written to `out` [M, N] float32."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(torch.mm(a, b))


class _Linear(Function):
    """x [T, K], weight [N, K] ─► [T, N]."""

    @staticmethod
    def forward(ctx: Saved, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = lowered(x), lowered(weight)
        ctx.save_for_backward(x, weight)
        return product(x, weight.T)

    @staticmethod
    def backward(ctx: Saved, d_y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, needs_weight = ctx.needs_input_grad  # type: ignore[attr-defined]
        d_y = d_y.to(x.dtype)
        return product(d_y, weight) if needs_x else None, product(d_y.T, x) if needs_weight else None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weightᵀ. Shapes: x [..., K]; weight [N, K]; returns [..., N]."""
    if not is_half.get():
        return torch.nn.functional.linear(x, weight)
    y: Tensor = apply(_Linear, x.reshape(-1, x.shape[-1]), weight)
    return y.view(*x.shape[:-1], -1)
