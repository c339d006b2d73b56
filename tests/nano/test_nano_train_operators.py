"""The compiled operators equal their plain twins, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nano_train import fast, ops
from nano_train.attend import View, attend
from nano_train.config import CHUNK
from nano_train.moe import Rules, routed_experts
from nano_train.numerics import Rounding
from torch import Tensor

T, N, D = 37, 4, 24
Function = Callable[..., Tensor | tuple[Tensor, ...]]


def randoms(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def results(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """Results of a function, then gradients of a random weighing of them."""
    leaves = [item.clone().requires_grad_() for item in inputs]
    found = function(*leaves)
    outs = list(found) if isinstance(found, tuple) else [found]
    total = sum((out * randoms(out.shape, (1,))[0]).sum() for out in outs)
    assert isinstance(total, Tensor)
    return [*outs, *torch.autograd.grad(total, leaves)]


def assert_same(found: Function, expected: Function, inputs: list[Tensor]) -> None:
    for mine, reference in zip(results(found, inputs), results(expected, inputs), strict=True):
        torch.testing.assert_close(mine, reference, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(T, D), (T, 3, D)])
def test_norm_and_rotation_equal_their_twin(shape: tuple[int, ...]) -> None:
    angles = torch.linspace(0, 9, T * 4).view(T, 4)
    cos, sin = angles.cos(), angles.sin()
    assert_same(
        lambda x, w: fast.norm_rotate(x, w, cos, sin, 1e-6),
        lambda x, w: ops.norm_rotate(x, w, cos, sin, 1e-6),
        randoms(shape, (D,)),
    )


def test_rotation_without_norm_equals_its_twin() -> None:
    angles = torch.linspace(0, 9, T * 4).view(T, 4)
    cos, sin = angles.cos(), angles.sin()
    assert_same(lambda x: fast.rotate(x, cos, sin), lambda x: ops.rotate(x, cos, sin), randoms((T, 3, D)))


def test_norm_without_rotation_equals_its_twin() -> None:
    assert_same(lambda x, w: fast.rms_norm(x, w, 1e-6), lambda x, w: ops.rms_norm(x, w, 1e-6), randoms((T, N, D), (D,)))


def test_a_sublayer_between_hyper_connections_equals_its_twin() -> None:
    def compiled(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor) -> Tensor:
        hidden, post, comb, same = fast.hyper_read(streams, (fn, base, scale), 1e-6, 1e-6, 20)
        return fast.hyper_mix(same, hidden.tanh(), post, comb)

    def plain(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor) -> Tensor:
        flat = streams.flatten(1)
        z = (flat @ fn.T) * (flat.square().mean(1, keepdim=True) + 1e-6).rsqrt()
        pre, post, comb = ops.hyper_maps(z, base, scale, 1e-6, 20)
        return ops.hyper_mix(streams, ops.hyper_collapse(streams, pre).tanh(), post, comb)

    assert_same(compiled, plain, randoms((T, N, D), (24, N * D), (24,), (3,)))


def test_swiglu_equals_its_twin_on_both_sides_of_the_clamp() -> None:
    assert_same(lambda x: fast.swiglu(x, 0.7), lambda x: ops.swiglu(x, None, 0.7), randoms((T, 2 * D)))


def test_experts_equal_a_sum_over_all_of_them() -> None:
    ids = torch.rand((T, 5), generator=torch.Generator().manual_seed(1)).topk(2).indices
    rules = Rules(limit=1.5, rounding=Rounding())

    def plain(x: Tensor, shares: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        each = torch.stack([ops.swiglu(x @ up.T, None, 1.5) @ down.T for up, down in zip(w13, w2, strict=True)], 1)
        return (each.gather(1, ids[..., None].expand(-1, -1, D)) * shares[..., None]).sum(1)

    assert_same(
        lambda x, shares, w13, w2: routed_experts(x, ids, shares, w13, w2, rules),
        plain,
        randoms((T, D), (T, 2), (5, 32, D), (5, D, 16)),
    )


def test_attention_equals_one_softmax_over_all_that_is_visible() -> None:
    window, heads, tokens, ranges = 32, 3, 2 * CHUNK, ((0, 0), (1, 6))
    rows = torch.arange(tokens)
    is_near = (rows[:, None] >= rows) & (rows[:, None] - rows < window)
    is_open = torch.arange(8)[None].expand(tokens, 8).clone() * 16 + 16 <= rows[:, None]
    is_open[:, 0] = is_open[:, 6:] = is_open[:CHUNK] = False
    masks = []
    for chunk, (low, high) in enumerate(ranges):
        keys = torch.arange(chunk * CHUNK - window, (chunk + 1) * CHUNK)
        near = is_near[chunk * CHUNK : (chunk + 1) * CHUNK][:, keys.clamp(min=0)] & (keys >= 0)
        seen = torch.cat([near, is_open[chunk * CHUNK : (chunk + 1) * CHUNK, low:high]], dim=1)
        masks.append(torch.where(seen, 0.0, float("-inf")))
    view = View(window, ranges, tuple(masks))

    def plain(query: Tensor, kv: Tensor, entries: Tensor, sink: Tensor) -> Tensor:
        keys = torch.cat([kv, entries])
        logits = torch.einsum("thd,kd->thk", query, keys) * query.shape[2] ** -0.5
        logits = logits.masked_fill(~torch.cat([is_near, is_open], dim=1)[:, None], float("-inf"))
        shares = torch.softmax(torch.cat([logits, sink[None, :, None].expand(tokens, -1, 1)], dim=2), dim=2)
        return shares[..., :-1] @ keys

    assert_same(
        lambda *inputs: attend(*inputs, view)[0],
        plain,
        randoms((tokens, heads, D), (tokens, D), (8, D), (heads,)),
    )
