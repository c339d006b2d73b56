"""Expert routing against float64, and its tie rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def scores(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return np.sqrt(np.where(wide > 20, wide, np.log1p(np.exp(np.minimum(wide, 30)))))


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_best_experts_are_chosen_with_the_bias_and_weighed_without_it(
    has_bias: bool, ops: OpTable, rng: np.random.Generator
):
    logits, bias = 5 * normal(rng, 20, 32), normal(rng, 32)
    s = scores(logits)
    want = np.argsort(-(s + bias if has_bias else s), axis=1, kind="stable")[:, :6]
    chosen = np.take_along_axis(s, want, 1)
    ids, weights = ops.route(torch.from_numpy(logits), torch.from_numpy(bias) if has_bias else None, None, 6, 2.5)
    np.testing.assert_array_equal(ids.numpy(), want)
    np.testing.assert_allclose(weights.numpy(), chosen / chosen.sum(1, keepdims=True) * 2.5, rtol=3e-6)


def test_hash_layers_weigh_the_experts_that_the_table_names(ops: OpTable, rng: np.random.Generator):
    logits = normal(rng, 4, 8)
    fixed = np.array([[7, 0], [1, 1], [2, 5], [0, 3]])
    chosen = np.take_along_axis(scores(logits), fixed, 1)
    ids, weights = ops.route(torch.from_numpy(logits), None, torch.from_numpy(fixed), 2, 1.5)
    np.testing.assert_array_equal(ids.numpy(), fixed)
    np.testing.assert_allclose(weights.numpy(), chosen / chosen.sum(1, keepdims=True) * 1.5, rtol=3e-6)


def test_ties_take_the_smaller_expert(ops: OpTable):
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 3.0]])
    assert ops.route(logits, None, None, 5, 1.0)[0].tolist() == [[1, 3, 5, 0, 2]]


def test_softplus_is_linear_above_twenty(ops: OpTable):
    _, weights = ops.route(torch.tensor([[25.0, 100.0, 1e30]]), None, None, 3, 1.0)
    root = np.sqrt(np.array([1e30, 100.0, 25.0]))
    np.testing.assert_allclose(weights.numpy()[0], root / root.sum(), rtol=1e-6)


def test_scores_that_vanish_give_weights_that_are_numbers(ops: OpTable):
    _, weights = ops.route(torch.full((1, 4), -300.0), None, None, 2, 1.0)
    assert torch.equal(weights, torch.zeros(1, 2))


def test_a_fixed_expert_that_does_not_exist_is_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match=r"0\.\.3"):
        cpu.route(torch.zeros(1, 4), None, torch.tensor([[4]]), 1, 1.0)


def test_more_experts_than_there_are_is_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match="k is 5"):
        cpu.route(torch.zeros(1, 4), None, None, 5, 1.0)
