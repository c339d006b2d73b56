"""Products of bfloat16 factors come near those of float32: one product, and the loss and gradients of a whole row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from nano_train.model import Pass
from nano_train.objective import losses
from nano_train.products import is_half, linear
from nano_train.row import IndexPhase
from nano_train_rig import packed, random_documents, random_weights, tiny_config
from torch import Tensor

STEP = 2.0**-8  # bfloat16 keeps 8 bits


@contextmanager
def half(is_lowered: bool = True) -> Iterator[None]:
    token = is_half.set(is_lowered)
    try:
        yield
    finally:
        is_half.reset(token)


def linear_results(x: Tensor, weight: Tensor) -> list[Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = linear(x, weight)
    return [y.detach(), *torch.autograd.grad((y * y.detach().cos()).sum(), (x, weight))]


@pytest.mark.parametrize("shape", [(50, 40), (7, 3, 40)])
def test_a_linear_of_bfloat16_factors_is_near_the_exact_one(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight = torch.randn(shape, generator=generator), torch.randn(24, 40, generator=generator)
    exact = linear_results(x, weight)
    with half():
        found = linear_results(x, weight)
    for mine, reference in zip(found, exact, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == reference.shape
        assert 0 < float((mine - reference).norm() / reference.norm()) < 12 * STEP


def test_the_gradient_of_fixed_factors_is_left_out() -> None:
    with half():
        weight = torch.ones(2, 4, requires_grad=True)
        linear(torch.ones(3, 4), weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[3.0] * 4] * 2


def test_a_row_has_nearly_the_loss_and_the_gradients_of_float32() -> None:
    config = tiny_config()
    batch = packed(random_documents((150, 70, 200), seed=3))
    found = []
    for is_lowered in (False, True):
        weights = {
            name: tensor.detach().clone().requires_grad_() if tensor.is_floating_point() else tensor
            for name, tensor in random_weights(config, seed=5).items()
        }
        with half(is_lowered):
            row = Pass(config, weights, batch, index=IndexPhase(frozenset((1, 4)), is_dense=True))
            total = losses(row, draft_depth=2).total(draft_weight=0.3)
            total.backward()
        found.append(
            (float(total.detach()), {name: item.grad for name, item in weights.items() if item.grad is not None})
        )
    (exact, exact_grads), (near, near_grads) = found
    assert near == pytest.approx(exact, rel=2e-3)
    assert near != exact
    assert near_grads.keys() == exact_grads.keys()
    for name, gradient in exact_grads.items():
        assert torch.cosine_similarity(near_grads[name].flatten(), gradient.flatten(), dim=0) > 0.94, name
