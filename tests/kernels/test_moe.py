"""Routed and shared experts against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import ExpertWeights, LinearWeight

LIMIT = 2.0


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def gated(x: np.ndarray, w1: np.ndarray, w3: np.ndarray) -> np.ndarray:
    a, b = np.minimum(w1 @ x, LIMIT), np.clip(w3 @ x, -LIMIT, LIMIT)
    return a / (1 + np.exp(-a)) * b


def experts_of(rng: np.random.Generator, num: int, hidden: int, inter: int) -> ExpertWeights:
    up = (num, inter, hidden)
    w1, w2, w3 = normal(rng, *up), normal(rng, num, hidden, inter), normal(rng, *up)
    return ExpertWeights(w1=torch.from_numpy(w1), w2=torch.from_numpy(w2), w3=torch.from_numpy(w3))


def oracle(x: np.ndarray, experts: ExpertWeights, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    w1, w2, w3 = (w.numpy().astype(np.float64) for w in (experts.w1, experts.w2, experts.w3))
    out = np.zeros(x.shape)
    for token in range(len(x)):
        for expert, weight in zip(ids[token], weights[token], strict=True):
            if expert >= 0:
                out[token] += w2[expert] @ (weight * gated(x[token].astype(np.float64), w1[expert], w3[expert]))
    return out


@pytest.mark.parametrize(("tokens", "hidden", "inter"), [(1, 16, 8), (9, 40, 70), (150, 32, 48)])
def test_moe_sums_the_chosen_experts(tokens: int, hidden: int, inter: int, ops: OpTable, rng: np.random.Generator):
    experts, x = experts_of(rng, 5, hidden, inter), normal(rng, tokens, hidden)
    ids, weights = rng.integers(0, 5, (tokens, 3)), np.abs(normal(rng, tokens, 3))
    got = ops.moe(torch.from_numpy(x), experts, torch.from_numpy(ids), torch.from_numpy(weights), LIMIT, False)
    want = oracle(x, experts, ids, weights)
    np.testing.assert_allclose(got.numpy(), want, atol=2e-5 * np.abs(want).max())


def test_a_slot_without_an_expert_adds_nothing(ops: OpTable, rng: np.random.Generator):
    experts, x = experts_of(rng, 3, 16, 16), normal(rng, 2, 16)
    ids, weights = np.array([[-1, 2], [-1, -1]]), np.ones((2, 2), np.float32)
    got = ops.moe(torch.from_numpy(x), experts, torch.from_numpy(ids), torch.from_numpy(weights), LIMIT, False)
    np.testing.assert_allclose(got.numpy(), oracle(x, experts, ids, weights), atol=2e-4)
    assert not got[1].any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gate_is_clamped_above_and_up_on_both_sides(sign: float, ops: OpTable):
    one = LinearWeight(dense=torch.tensor([[1.0]]))
    side = LinearWeight(dense=torch.tensor([[sign]]))
    got = ops.gated_mlp(torch.tensor([[100.0], [-1.0]]), one, side, one, LIMIT, False)
    want = [sign * LIMIT * LIMIT / (1 + np.exp(-LIMIT)), sign / (1 + np.exp(1.0))]
    np.testing.assert_allclose(got[:, 0].numpy(), want, rtol=1e-6)


def test_a_gate_far_below_zero_gives_zero(ops: OpTable):
    one = LinearWeight(dense=torch.tensor([[1.0]]))
    assert abs(ops.gated_mlp(torch.tensor([[-200.0]]), one, one, one, LIMIT, False).item()) < 1e-30


def test_the_weighted_hidden_values_are_rounded_before_the_second_matrix(ops: OpTable, rng: np.random.Generator):
    """With the identity as second matrix, the result is what entered it."""
    experts, x = experts_of(rng, 1, 200, 200), torch.from_numpy(normal(rng, 3, 200))
    identity = ExpertWeights(w1=experts.w1, w3=experts.w3, w2=torch.eye(200).unsqueeze(0))
    ids, weight = torch.zeros(3, 1, dtype=torch.int64), torch.full((3, 1), 1.1)
    entered = ops.moe(x, identity, ids, weight, LIMIT, False)
    assert torch.equal(ops.moe(x, identity, ids, weight, LIMIT, True), ops.fp8_round_trip(entered, 128))


def test_the_shared_expert_is_an_expert_of_weight_one(ops: OpTable, rng: np.random.Generator):
    experts, x = experts_of(rng, 1, 32, 160), torch.from_numpy(normal(rng, 4, 32))
    w1, w3, w2 = (LinearWeight(dense=w[0]) for w in (experts.w1, experts.w3, experts.w2))
    routed = ops.moe(x, experts, torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1), LIMIT, True)
    assert torch.equal(ops.gated_mlp(x, w1, w3, w2, LIMIT, True), routed)


def test_pieces_of_the_batch_give_the_same_bits(cpu: OpTable, rng: np.random.Generator):
    experts, tokens = experts_of(rng, 2, 64, 64), 11_000  # more floats of scratch memory than are taken at a time
    x = torch.from_numpy(normal(rng, 20, 64)).repeat(tokens // 20, 1)
    ids, weights = torch.tensor([[0, 1] * 4]).repeat(tokens, 1), torch.ones(tokens, 8)
    parts = cpu.moe(x[:20], experts, ids[:20], weights[:20], LIMIT, True)
    assert torch.equal(cpu.moe(x, experts, ids, weights, LIMIT, True), parts.repeat(tokens // 20, 1))


def test_an_expert_that_does_not_exist_is_refused(cpu: OpTable, rng: np.random.Generator):
    experts = experts_of(rng, 3, 8, 8)
    with pytest.raises(ShapeError, match=r"-1\.\.2"):
        cpu.moe(torch.zeros(1, 8), experts, torch.tensor([[3]]), torch.ones(1, 1), LIMIT, False)
