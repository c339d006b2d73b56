"""linear and grouped_linear against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import LinearWeight


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def assert_within(got: torch.Tensor, a: np.ndarray, b: np.ndarray, want: np.ndarray) -> None:
    """The error of a dot product is bounded by the sum of its absolute products."""
    bound = 1e-6 * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64).T)
    assert (np.abs(got.numpy() - want) <= bound + 1e-30).all()


@pytest.mark.parametrize(
    ("tokens", "n", "k"), [(1, 1, 1), (1, 24, 100), (3, 17, 15), (6, 5, 16), (67, 33, 200), (5, 40, 1024)]
)
def test_linear_is_the_product_in_float64(tokens: int, n: int, k: int, ops: OpTable, rng: np.random.Generator):
    x, w = normal(rng, tokens, k), normal(rng, n, k)
    got = ops.linear(torch.from_numpy(x), LinearWeight(dense=torch.from_numpy(w)))
    assert_within(got, x, w, x.astype(np.float64) @ w.astype(np.float64).T)


def test_linear_of_no_tokens_is_empty(ops: OpTable):
    assert ops.linear(torch.empty(0, 8), LinearWeight(dense=torch.ones(3, 8))).shape == (0, 3)


def test_each_group_sees_its_own_rows_of_the_weight(ops: OpTable, rng: np.random.Generator):
    x, w = normal(rng, 9, 3, 40), normal(rng, 3 * 7, 40)
    got = ops.grouped_linear(torch.from_numpy(x), LinearWeight(dense=torch.from_numpy(w)))
    assert got.shape == (9, 3, 7)
    for group in range(3):
        rows = w[group * 7 : (group + 1) * 7]
        assert_within(got[:, group], x[:, group], rows, x[:, group].astype(np.float64) @ rows.astype(np.float64).T)


def test_strided_input_gives_the_same_as_its_copy(cpu: OpTable, rng: np.random.Generator):
    x = torch.from_numpy(normal(rng, 20, 4)).T
    w = LinearWeight(dense=torch.from_numpy(normal(rng, 6, 20)))
    assert torch.equal(cpu.linear(x, w), cpu.linear(x.contiguous(), w))


def test_a_width_that_does_not_fit_is_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match="x has 7 channels but the weight takes 8"):
        cpu.linear(torch.empty(2, 7), LinearWeight(dense=torch.ones(3, 8)))


def test_groups_that_do_not_divide_the_weight_are_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match="the weight is"):
        cpu.grouped_linear(torch.empty(2, 4, 8), LinearWeight(dense=torch.ones(6, 8)))


def test_another_dtype_is_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match="float32"):
        cpu.linear(torch.empty(2, 8, dtype=torch.float64), LinearWeight(dense=torch.ones(3, 8)))
