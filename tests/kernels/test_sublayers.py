"""One call for a stretch of a sublayer gives the bits of the operators that it stands for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dsv4_kernels.cpu.sublayers import CpuSublayers
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.groups import CompressStage, EnterSpec, ExpertStage, KeyStage, OutputStage, QueryStage
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import ExpertWeights, LinearWeight, prepare_linear
from dsv4_kernels.sublayers import Composed, Sublayers, sublayers_of
from dsv4_kernels.tensors import WeightFormat, quantise_fp8_block, quantise_mxfp4, quantise_nvfp4
from dsv4_kernels.trips import Trip
from torch import Tensor

EPS, WIDTH, ROPE = 1e-6, 128, 32
TOKENS = pytest.mark.parametrize("tokens", [1, 9])
ROUNDS = pytest.mark.parametrize("rounds", list(Trip), ids=["plain", "trained", "w4a8"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(12)


def fp8(rows: int, columns: int) -> LinearWeight:
    return prepare_linear(quantise_fp8_block(torch.randn(rows, columns) / columns**0.5))


def stored(rows: int, columns: int, rounds: Trip) -> LinearWeight:
    """FP4 where its inputs are rounded to int8, else FP8."""
    return prepare_linear(quantise_nvfp4(torch.randn(rows, columns))) if rounds is Trip.INT8 else fp8(rows, columns)


def angles(tokens: int) -> tuple[Tensor, Tensor]:
    turn = torch.rand(tokens, ROPE // 2) * 6
    return turn.cos(), turn.sin()


def query_stage(rounds: Trip) -> QueryStage:
    norm = torch.rand(96)
    return QueryStage(
        wq_a=stored(96, WIDTH, rounds),
        norm=norm,
        wq_b=stored(4 * 64, 96, rounds),
        num_heads=4,
        eps=EPS,
        rounds_a=rounds,
        rounds_b=rounds,
    )


def expert_stage(rounds: Trip, bias: Tensor | None) -> ExpertStage:
    experts = ExpertWeights.allocate(6, WIDTH, 96, WeightFormat.MXFP4)
    for expert in range(6):
        experts.put(expert, "w1", quantise_mxfp4(torch.randn(96, WIDTH) / 8))
        experts.put(expert, "w3", quantise_mxfp4(torch.randn(96, WIDTH) / 8))
        experts.put(expert, "w2", quantise_mxfp4(torch.randn(WIDTH, 96) / 8))
    return ExpertStage(
        gate=LinearWeight(dense=torch.randn(6, WIDTH)),
        bias=bias,
        experts=experts,
        shared=(fp8(64, WIDTH), fp8(64, WIDTH), fp8(WIDTH, 64)),
        num_chosen=2,
        scale=1.5,
        limit=5.0,
        rounds=rounds,
        rounds_shared=rounds,
        rounds_shared_inner=rounds,
    )


def both(cpu: OpTable) -> tuple[Sublayers, Sublayers]:
    return sublayers_of(cpu), Composed(cpu)


def assert_same_bits(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.view(torch.int32), other.contiguous().view(torch.int32))


def test_the_cpu_table_has_twins_and_others_are_composed(cpu: OpTable, reference: OpTable):
    assert isinstance(sublayers_of(cpu), CpuSublayers)
    assert isinstance(sublayers_of(reference), Composed)


@TOKENS
def test_enter(tokens: int, cpu: OpTable):
    spec = EnterSpec(
        fn=torch.randn(24, 4 * WIDTH) / 20,
        base=torch.randn(24),
        scale=torch.rand(3),
        norm=torch.rand(WIDTH),
        norm_eps=EPS,
        hc_eps=EPS,
        iterations=20,
    )
    streams = torch.randn(tokens, 4, WIDTH)
    got, want = (each.enter(streams, spec) for each in both(cpu))
    assert_same_bits(got, want)


@TOKENS
@ROUNDS
def test_query(tokens: int, rounds: Trip, cpu: OpTable):
    stage, x, at = query_stage(rounds), torch.randn(tokens, WIDTH), angles(tokens)
    got, want = (each.query(x, stage, *at) for each in both(cpu))
    assert_same_bits(got, want)


@TOKENS
@ROUNDS
def test_keys(tokens: int, rounds: Trip, cpu: OpTable):
    stage = KeyStage(
        wkv=stored(160, WIDTH, rounds), norm=torch.rand(160), eps=EPS, rounds=rounds, rounds_entry=bool(rounds)
    )
    x, at = torch.randn(tokens, WIDTH), angles(tokens)
    got, want = ((each.keys(x, stage, *at),) for each in both(cpu))
    assert_same_bits(got, want)


@TOKENS
@ROUNDS
def test_output(tokens: int, rounds: Trip, cpu: OpTable):
    stage = OutputStage(wo_a=fp8(2 * 32, 128), wo_b=stored(WIDTH, 64, rounds), num_groups=2, rounds=rounds)
    mixed, at = torch.randn(tokens, 4, 64), angles(tokens)
    kept = mixed.clone()
    got, want = ((each.output(mixed, stage, *at),) for each in both(cpu))
    assert_same_bits(got, want)
    assert torch.equal(mixed, kept)


@TOKENS
@ROUNDS
def test_compress_inputs(tokens: int, rounds: Trip, cpu: OpTable):
    stage = CompressStage(
        wkv=stored(96, WIDTH, rounds), wgate=stored(96, WIDTH, rounds), ape=torch.randn(4, 96), rounds=rounds
    )
    x, phases = torch.randn(tokens, WIDTH), torch.arange(tokens) % 4
    got, want = (each.compress_inputs(x, stage, phases) for each in both(cpu))
    assert_same_bits(got, want)


@TOKENS
@ROUNDS
@pytest.mark.parametrize("is_hash_routed", [False, True])
def test_feed_forward(tokens: int, rounds: Trip, is_hash_routed: bool, cpu: OpTable):
    stage = expert_stage(rounds, None if is_hash_routed else torch.rand(6))
    x = torch.randn(tokens, WIDTH)
    fixed = torch.randint(0, 6, (tokens, 2)) if is_hash_routed else None
    got, want = ((each.feed_forward(x, fixed, stage),) for each in both(cpu))
    assert_same_bits(got, want)


@TOKENS
@pytest.mark.parametrize("outer", list(Trip))
@pytest.mark.parametrize("inner", list(Trip))
def test_feed_forward_of_a_shared_expert_of_mixed_formats(tokens: int, outer: Trip, inner: Trip, cpu: OpTable):
    """Each of its products reads what its own weight was trained with, whatever the routed ones read."""
    shared = (stored(64, WIDTH, outer), stored(64, WIDTH, outer), stored(WIDTH, 64, inner))
    stage = replace(expert_stage(Trip.INT8, None), shared=shared, rounds_shared=outer, rounds_shared_inner=inner)
    x = torch.randn(tokens, WIDTH)
    got, want = ((each.feed_forward(x, None, stage),) for each in both(cpu))
    assert_same_bits(got, want)


def test_a_fixed_expert_that_does_not_exist_is_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match=r"0\.\.5"):
        sublayers_of(cpu).feed_forward(torch.randn(1, WIDTH), torch.tensor([[0, 6]]), expert_stage(Trip.FP8, None))


def test_inputs_of_another_width_are_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match="x has 127 channels"):
        sublayers_of(cpu).query(torch.randn(1, WIDTH - 1), query_stage(Trip.FP8), *angles(1))
