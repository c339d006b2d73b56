"""rms_norm, rope_rotate and compress_pool against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 64), (4, 1000)])
@pytest.mark.parametrize("has_weight", [True, False])
def test_rms_norm_divides_by_the_root_of_the_mean_square(
    shape: tuple[int, ...], has_weight: bool, ops: OpTable, rng: np.random.Generator
):
    x, w = normal(rng, *shape), normal(rng, shape[-1]) if has_weight else np.ones(shape[-1], np.float32)
    wide = x.astype(np.float64)
    want = w * wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    got = ops.rms_norm(torch.from_numpy(x), torch.from_numpy(w) if has_weight else None, 1e-6)
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-6)


def test_rms_norm_of_zeros_is_zero(ops: OpTable):
    assert not ops.rms_norm(torch.zeros(2, 8), None, 1e-6).any()


def test_rms_norm_keeps_a_strided_weight_alive(cpu: OpTable, rng: np.random.Generator):
    x, w = torch.from_numpy(normal(rng, 3, 64)), torch.from_numpy(normal(rng, 64, 2))[:, 1]
    assert torch.equal(cpu.rms_norm(x, w, 1e-6), cpu.rms_norm(x, w.contiguous(), 1e-6))


def angles(rng: np.random.Generator, tokens: int, pairs: int) -> np.ndarray:
    return rng.uniform(-10, 10, (tokens, pairs)).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 8), (5, 3, 64)])
@pytest.mark.parametrize("inverse", [False, True])
def test_rotation_multiplies_pairs_as_complex_numbers(
    shape: tuple[int, ...], inverse: bool, ops: OpTable, rng: np.random.Generator
):
    x, angle = normal(rng, *shape), angles(rng, shape[0], shape[-1] // 2)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = cos.astype(np.float64) + (-1j if inverse else 1j) * sin.astype(np.float64)
    product = (x[..., 0::2] + 1j * x[..., 1::2].astype(np.float64)) * (turn if x.ndim == 2 else turn[:, None])
    got = ops.rope_rotate(torch.from_numpy(x), torch.from_numpy(cos), torch.from_numpy(sin), inverse).numpy()
    np.testing.assert_allclose(got[..., 0::2], product.real, atol=1e-6)
    np.testing.assert_allclose(got[..., 1::2], product.imag, atol=1e-6)


def test_inverse_rotation_undoes_rotation(ops: OpTable, rng: np.random.Generator):
    x, angle = torch.from_numpy(normal(rng, 6, 2, 64)), torch.from_numpy(angles(rng, 6, 32))
    there = ops.rope_rotate(x, angle.cos(), angle.sin())
    torch.testing.assert_close(ops.rope_rotate(there, angle.cos(), angle.sin(), inverse=True), x, atol=2e-6, rtol=0)


def test_rotation_of_an_odd_width_is_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match="even"):
        cpu.rope_rotate(torch.empty(2, 7), torch.empty(2, 3), torch.empty(2, 3))


def pooled(values: np.ndarray, gates: np.ndarray) -> np.ndarray:
    weight = np.exp(gates.astype(np.float64) - gates.max(1, keepdims=True))
    return (weight / weight.sum(1, keepdims=True) * values).sum(1)


@pytest.mark.parametrize("shape", [(1, 8, 5), (3, 128, 16), (2, 8, 1030), (4, 1, 33)])
def test_pooling_softmaxes_each_channel_over_the_slots(shape: tuple[int, ...], ops: OpTable, rng: np.random.Generator):
    values, gates = normal(rng, *shape), 5 * normal(rng, *shape)
    got = ops.compress_pool(torch.from_numpy(values), torch.from_numpy(gates))
    np.testing.assert_allclose(got.numpy(), pooled(values, gates), atol=2e-6)


def test_slots_with_a_gate_of_minus_infinity_weigh_nothing(ops: OpTable, rng: np.random.Generator):
    values, gates = normal(rng, 2, 8, 40), normal(rng, 2, 8, 40)
    gates[:, :4] = -np.inf
    got = ops.compress_pool(torch.from_numpy(values), torch.from_numpy(gates))
    np.testing.assert_allclose(got.numpy(), pooled(values[:, 4:], gates[:, 4:]), atol=2e-6)


@pytest.mark.parametrize("spread", [80.0, 1000.0, 1e30])
def test_pooling_of_far_gates_neither_overflows_nor_vanishes(spread: float, ops: OpTable, rng: np.random.Generator):
    values, gates = normal(rng, 2, 8, 40), (spread * normal(rng, 2, 8, 40)).astype(np.float32)
    got = ops.compress_pool(torch.from_numpy(values), torch.from_numpy(gates))
    np.testing.assert_allclose(got.numpy(), pooled(values, gates), atol=2e-6)
