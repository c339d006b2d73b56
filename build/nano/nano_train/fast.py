"""The operators of `ops`, compiled, with gradients by hand. Same names, same arguments, same results.

Rule: saved tensors are contiguous float32; widths and heads come from shapes; N is 4.
"""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor

from nano_train import ops
from nano_train.autograd import Function, Saved, apply
from nano_train.native import call

Grads = tuple[Tensor | None, ...]
plain = ContextVar("plain", default=False)


def is_native(x: Tensor) -> bool:
    """Whether the compiled library computes this: on the CPU, unless `plain` asks for torch alone."""
    return x.device.type == "cpu" and not plain.get()


class _NormRotate(Function):
    """x [T, (H,) D], weight [D] or None, cos and sin [T, R] or None, eps or None for no norm."""

    @staticmethod
    def forward(
        ctx: Saved, x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float | None
    ) -> Tensor:
        x, y, sizes = x.contiguous(), torch.empty(x.shape), _sizes(x, cos)
        factors = None if eps is None else torch.empty(sizes[0])
        call("nano_norm_rotate", x, weight, cos, sin, y, factors, *sizes, eps or 0.0)
        ctx.save_for_backward(x if eps is not None else None, weight, cos, sin, factors)  # type: ignore[arg-type]
        ctx.sizes = sizes  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx: Saved, dy: Tensor) -> Grads:
        x, weight, cos, sin, factors = ctx.saved_tensors  # type: ignore[attr-defined]
        dy, sizes = dy.contiguous(), ctx.sizes  # type: ignore[attr-defined]
        dx, room = torch.empty_like(dy), torch.empty(sizes[1])
        d_weight = None if weight is None else torch.zeros_like(weight)
        x = dy if x is None else x
        call("nano_norm_rotate_backward", x, weight, cos, sin, factors, dy, dx, d_weight, room, *sizes)
        return dx, d_weight, None, None, None


def _sizes(x: Tensor, cos: Tensor | None) -> tuple[int, int, int, int]:
    """Rows, width, rows per token, rotated pairs."""
    width = x.shape[-1]
    heads = x.shape[1] if x.dim() == 3 else 1
    return x.numel() // width, width, heads, 0 if cos is None else cos.shape[1]


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """As `ops.rms_norm`."""
    if not is_native(x):
        return ops.rms_norm(x, weight, eps)
    y: Tensor = apply(_NormRotate, x, weight, None, None, eps)
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `ops.rotate`."""
    if not is_native(x):
        return ops.rotate(x, cos, sin)
    y: Tensor = apply(_NormRotate, x, None, cos, sin, None)
    return y


def norm_rotate(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """As `ops.norm_rotate`."""
    if not is_native(x):
        return ops.norm_rotate(x, weight, cos, sin, eps)
    y: Tensor = apply(_NormRotate, x, weight, cos, sin, eps)
    return y


class _HyperRead(Function):
    """Everything that a sublayer takes from the streams, in one place, so that their gradient is summed in place."""

    @staticmethod
    def forward(
        ctx: Saved, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, constants: tuple[float, float, int]
    ) -> tuple[Tensor, ...]:
        norm_eps, eps, iterations = constants
        tokens, num, width = streams.shape
        flat, square = streams.view(tokens, -1), torch.empty(tokens)
        call("nano_mean_square", streams, square, tokens, num * width)
        inverse = (square + norm_eps).rsqrt_().unsqueeze(1)  # [T, 1]
        z = torch.mm(flat, fn.T).mul_(inverse)
        pre, post, comb = torch.empty(tokens, num), torch.empty(tokens, num), torch.empty(tokens, num, num)
        call("nano_hyper_maps", z, base, scale, pre, post, comb, tokens, eps, iterations)
        hidden = torch.empty(tokens, width)
        call("nano_collapse", streams, pre, hidden, tokens, width)
        ctx.save_for_backward(streams, fn, base, scale, inverse, z, pre)
        ctx.rest = eps, iterations  # type: ignore[attr-defined]
        return hidden, post, comb, streams.view_as(streams)

    @staticmethod
    def backward(ctx: Saved, d_hidden: Tensor, d_post: Tensor, d_comb: Tensor, d_streams: Tensor) -> Grads:
        streams, fn, base, scale, inverse, z, pre = ctx.saved_tensors  # type: ignore[attr-defined]
        eps, iterations = ctx.rest  # type: ignore[attr-defined]
        tokens, num, width = streams.shape
        d_hidden = d_hidden.contiguous()
        d_pre, d_logits = torch.empty_like(pre), torch.empty_like(z)
        call("nano_collapse_dots", streams, d_hidden, d_pre, tokens, width)
        d_post, d_comb = d_post.contiguous(), d_comb.contiguous()
        call("nano_hyper_maps_backward", z, base, scale, d_pre, d_post, d_comb, d_logits, tokens, eps, iterations)
        d_scale = torch.stack([part.sum() for part in (d_logits * z).split([num, num, num * num], dim=1)])
        sizes = torch.tensor([num, num, num * num])
        d_z = d_logits * scale.repeat_interleave(sizes)
        factor = (d_z * z).sum(1, keepdim=True) * inverse.square() / -(num * width)
        d_z.mul_(inverse)
        call("nano_collapse_add", streams, pre, d_hidden, factor, d_streams, tokens, width)
        flat = d_streams.view(tokens, -1)
        flat.addmm_(d_z, fn)
        d_fn = torch.mm(d_z.T, streams.view(tokens, -1))
        return d_streams, d_fn, d_logits.sum(0), d_scale, None


def hyper_read(
    streams: Tensor, maps: tuple[Tensor, Tensor, Tensor], norm_eps: float, eps: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Collapse the streams for a sublayer.

    Shapes: streams [T, N, d]; maps: fn, base, scale; returns hidden [T, d], post [T, N], comb [T, N, N], streams.
    Rule:   pass the returned streams to `hyper_mix`, once: their gradient is taken over and changed in place.
    """
    if not is_native(streams):
        return *ops.hyper_read(streams, maps, norm_eps, eps, iterations), streams
    hidden, post, comb, same = apply(_HyperRead, streams, *maps, (norm_eps, eps, iterations))
    return hidden, post, comb, same


class _HyperMix(Function):
    @staticmethod
    def forward(ctx: Saved, streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        y, out = y.contiguous(), torch.empty_like(streams)
        call("nano_mix", streams, y, post, comb, out, streams.shape[0], streams.shape[2])
        ctx.save_for_backward(streams, y, post, comb)
        return out

    @staticmethod
    def backward(ctx: Saved, d_out: Tensor) -> Grads:
        saved = ctx.saved_tensors  # type: ignore[attr-defined]
        grads = tuple(torch.empty_like(tensor) for tensor in saved)
        call("nano_mix_backward", *saved, d_out.contiguous(), *grads, saved[0].shape[0], saved[0].shape[2])
        return grads


def hyper_mix(streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """As `ops.hyper_mix`."""
    if not is_native(streams):
        return ops.hyper_mix(streams, y, post, comb)
    out: Tensor = apply(_HyperMix, streams, y, post, comb)
    return out


class _Swiglu(Function):
    @staticmethod
    def forward(ctx: Saved, gate_up: Tensor, limit: float) -> Tensor:
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        ctx.limit = limit  # type: ignore[attr-defined]
        return swiglu_forward(gate_up, None, limit)

    @staticmethod
    def backward(ctx: Saved, d_out: Tensor) -> Grads:
        (gate_up,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return swiglu_backward(gate_up, None, d_out.contiguous(), ctx.limit)[1], None  # type: ignore[attr-defined]


def swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """As `ops.swiglu` with shares of 1."""
    if not is_native(gate_up):
        return ops.swiglu(gate_up, None, limit)
    out: Tensor = apply(_Swiglu, gate_up, limit)
    return out


def swiglu_forward(gate_up: Tensor, shares: Tensor | None, limit: float) -> Tensor:
    """As `ops.swiglu`, without a gradient."""
    out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2)
    call("nano_swiglu", gate_up, shares, out, *out.shape, limit)
    return out


def swiglu_backward(
    gate_up: Tensor, shares: Tensor | None, d_out: Tensor, limit: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the forward result again, and the gradients of gate_up and shares."""
    out, d_gate_up = torch.empty_like(d_out), torch.empty_like(gate_up)
    d_shares = None if shares is None else torch.empty_like(shares)
    call("nano_swiglu_backward", gate_up, shares, d_out, out, d_gate_up, d_shares, *out.shape, limit)
    return out, d_gate_up, d_shares


def masked_softmax(scores: Tensor, mask: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
    """As `ops.masked_softmax`, in place and without a gradient."""
    normaliser = torch.empty(mask.shape[0], sink.shape[0])
    call("nano_masked_softmax", scores, mask, sink, normaliser, mask.shape[0], sink.shape[0], mask.shape[1])
    return scores, normaliser


def softmax_backward(scores: Tensor, d_share: Tensor, mask: Tensor, normaliser: Tensor, delta: Tensor) -> None:
    """Turn scores into shares again, and d_share into the gradient of the scores, both in place.

    Shapes: scores, d_share [C * H, K]; mask [C, K]; normaliser, delta [C, H].
    """
    call("nano_softmax_backward", scores, d_share, mask, normaliser, delta, *normaliser.shape, mask.shape[1])
