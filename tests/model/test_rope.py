"""Frequencies and angles of both layer families, up to the last position."""

from __future__ import annotations

import math

import pytest
import torch
from hf_oracle import YARN
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding

from dsv4_backend.config import RopeSpec, YarnSpec
from dsv4_backend.model.rope import frequencies, rotation, rotations

ROPE_DIM = 64
PLAIN = RopeSpec(theta=10_000.0)
COMPRESSED = RopeSpec(
    theta=160_000.0, yarn=YarnSpec(factor=16.0, original_tokens=65_536, beta_fast=32.0, beta_slow=1.0)
)
LAST_POSITION = 1_048_575


def by_the_formula(spec: RopeSpec) -> torch.Tensor:
    """The specification in float64, with the released models' ramp from pair 15 to pair 25."""
    plain = [spec.theta ** (-2 * pair / ROPE_DIM) for pair in range(ROPE_DIM // 2)]
    if spec.yarn is None:
        return torch.tensor(plain, dtype=torch.float64)
    ramp = [min(max((pair - 15) / 10, 0.0), 1.0) for pair in range(ROPE_DIM // 2)]
    blended = [f * (1 - r) + f / 16 * r for f, r in zip(plain, ramp, strict=True)]
    return torch.tensor(blended, dtype=torch.float64)


@pytest.mark.parametrize("spec", [PLAIN, COMPRESSED], ids=["plain", "compressed"])
def test_frequencies_follow_the_formula(spec: RopeSpec) -> None:
    torch.testing.assert_close(frequencies(spec, ROPE_DIM).double(), by_the_formula(spec), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("spec", "family"), [(PLAIN, "main"), (COMPRESSED, "compress")])
def test_angles_equal_those_of_transformers_at_any_position(spec: RopeSpec, family: str) -> None:
    positions = torch.tensor([0, 1, 127, 128, 65_536, 500_001, LAST_POSITION])
    rotary = DeepseekV4RotaryEmbedding(DeepseekV4Config(rope_scaling=dict(YARN)))
    cos, sin = rotary(torch.zeros(1), positions[None], layer_type=family)
    at = rotation(frequencies(spec, ROPE_DIM), positions)
    torch.testing.assert_close(at.cos, cos[0], rtol=0, atol=3e-7)
    torch.testing.assert_close(at.sin, sin[0], rtol=0, atol=3e-7)


def test_cosines_are_not_scaled() -> None:
    at = rotation(frequencies(COMPRESSED, ROPE_DIM), torch.tensor([0, LAST_POSITION]))
    assert float(at.cos[0].min()) == 1.0
    torch.testing.assert_close(at.cos.square() + at.sin.square(), torch.ones_like(at.cos))


@pytest.mark.parametrize("count", [1, 3, 64])
def test_angles_of_a_position_do_not_depend_on_the_others(count: int) -> None:
    positions = torch.arange(LAST_POSITION - 99, LAST_POSITION + 1)
    table = frequencies(COMPRESSED, ROPE_DIM)
    whole = rotation(table, positions)
    assert torch.equal(rotation(table, positions[:count]).cos, whole.cos[:count])


def test_the_ramp_of_a_short_original_context_stays_within_the_channels() -> None:
    spec = RopeSpec(theta=10_000.0, yarn=YarnSpec(factor=4.0, original_tokens=16, beta_fast=32.0, beta_slow=1.0))
    table = frequencies(spec, ROPE_DIM)
    assert math.isclose(float(table[0]), 1.0, rel_tol=1e-6)
    assert bool((table > 0).all())


def test_families_that_are_rotated_together_have_the_bits_of_each_alone() -> None:
    tables = [frequencies(spec, ROPE_DIM) for spec in (PLAIN, COMPRESSED)]
    positions = torch.tensor([0, 7, 65_537, LAST_POSITION])
    together = rotations(torch.stack([table[None] for table in tables]), positions)
    for at, table in zip(together, tables, strict=True):
        alone = rotation(table, positions)
        assert torch.equal(at.cos, alone.cos) and torch.equal(at.sin, alone.sin)
