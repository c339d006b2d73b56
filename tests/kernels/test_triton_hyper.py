"""mHC, pooling and routing kernels in the interpreter against their references."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.ops import OpTable
from dsv4_kernels.tensors import FoldRuns
from triton_rig import close, interpreted

TABLE = interpreted()


@pytest.mark.parametrize(("tokens", "width"), [(5, 64), pytest.param(19, 1100, marks=pytest.mark.ci)])
def test_hyper_maps(tokens: int, width: int, reference: OpTable):
    torch.manual_seed(1)
    streams, fn = torch.randn(tokens, 4, width), torch.randn(24, 4 * width) / width**0.5
    arguments = (streams, fn, torch.randn(24), torch.tensor([0.5, 0.3, 0.7]), 1e-6, 1e-6, 20)
    for got, want in zip(TABLE.hyper_maps(*arguments), reference.hyper_maps(*arguments), strict=True):
        close(got, want, 3e-6)


@pytest.mark.parametrize(("tokens", "width"), [(3, 40), pytest.param(2, 2100, marks=pytest.mark.ci)])
def test_collapse_mix_and_head(tokens: int, width: int, reference: OpTable):
    torch.manual_seed(2)
    streams, pre, post, comb = torch.randn(tokens, 4, width), *torch.randn(2, tokens, 4), torch.randn(tokens, 4, 4)
    y, fn = torch.randn(tokens, width), torch.randn(4, 4 * width) / width**0.5
    close(TABLE.hyper_collapse(streams, pre), reference.hyper_collapse(streams, pre), 1e-6)
    close(TABLE.hyper_mix(streams, y, post, comb), reference.hyper_mix(streams, y, post, comb), 1e-6)
    arguments = (streams, fn, torch.randn(4), torch.tensor([0.5]), 1e-6, 1e-6)
    close(TABLE.hyper_head(*arguments), reference.hyper_head(*arguments), 3e-6)


def test_bf16_streams_are_read_exactly(reference: OpTable):
    torch.manual_seed(3)
    streams, pre = torch.randn(3, 4, 128).bfloat16(), torch.rand(3, 4)
    want = reference.hyper_collapse(streams.float(), pre).bfloat16()
    close(TABLE.hyper_collapse(streams, pre), want, 2**-8)


@pytest.mark.parametrize(("blocks", "slots", "width"), [(3, 8, 512), (2, 128, 70), (0, 8, 16), (2, 5, 33)])
def test_compress_pool(blocks: int, slots: int, width: int, reference: OpTable):
    torch.manual_seed(4)
    values, gates = torch.randn(2, blocks, slots, width)
    gates[:1, : slots // 2] = -torch.inf
    close(TABLE.compress_pool(values, gates), reference.compress_pool(values, gates), 1e-6)


def test_folding_continues_what_earlier_runs_stored(reference: OpTable):
    torch.manual_seed(5)
    values, gates = torch.randn(9, 70), 5 * torch.randn(9, 70)
    runs = FoldRuns(
        begins=torch.tensor([-1, 2, 0, 2]),
        offsets=torch.tensor([0, 3, 5, 7, 9]),
        sources=torch.tensor([4, 1, 0, 2, 3, 8, 7, 5, 6]),
        ends=torch.tensor([2, -1, 1, -1]),
    )
    states = torch.rand(4, 3, 70) + 0.5
    mine, theirs = states.clone(), states.clone()
    close(TABLE.compress_fold(values, gates, mine, runs), reference.compress_fold(values, gates, theirs, runs), 1e-6)
    close(mine, theirs, 1e-6)


@pytest.mark.parametrize(("experts", "k", "has_bias"), [(24, 6, True), (16, 4, False), (384, 6, True)])
def test_route_takes_the_best_and_the_smaller_of_equals(experts: int, k: int, has_bias: bool, reference: OpTable):
    torch.manual_seed(6)
    logits = (4 * torch.randn(5, experts)).round() / 2  # many ties
    logits[0, :3] = torch.tensor([25.0, -40.0, 25.0])
    bias = (torch.randn(experts)).round() / 4 if has_bias else None
    ids, weights = TABLE.route(logits, bias, None, k, 2.5)
    want_ids, want_weights = reference.route(logits, bias, None, k, 2.5)
    assert torch.equal(ids, want_ids)
    close(weights, want_weights, 1e-6)


def test_hash_layers_take_the_given_experts(reference: OpTable):
    torch.manual_seed(7)
    logits, fixed = torch.randn(4, 16) - 30, torch.randint(0, 16, (4, 6))
    ids, weights = TABLE.route(logits, None, fixed, 6, 1.5)
    assert torch.equal(ids, fixed)
    close(weights, reference.route(logits, None, fixed, 6, 1.5)[1], 1e-6)
