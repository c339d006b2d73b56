"""Expert kernels in the interpreter: unused slots, empty experts, every weight format."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.device_weights import quantised_weight
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import ExpertWeights, LinearWeight
from dsv4_kernels.tensors import dequantise, quantise_fp8_block, quantise_mxfp4, quantise_nvfp4
from dsv4_kernels.triton_lang.moe import Experts, make_schedule
from triton_rig import close, interpreted, interpreted_device

E, D, I, K = 5, 128, 160, 3  # noqa: E741


def routing(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(-1, E, (tokens, K))
    return torch.where(ids == 2, -1, ids), torch.rand(tokens, K)  # nobody goes to expert 2


@pytest.mark.parametrize("tokens", [7, pytest.param(40, marks=pytest.mark.ci)])
@pytest.mark.parametrize("round_trip", [False, True])
def test_dense_experts(tokens: int, round_trip: bool, reference: OpTable):
    torch.manual_seed(tokens)
    experts = ExpertWeights(w1=torch.randn(E, I, D) / 6, w3=torch.randn(E, I, D) / 6, w2=torch.randn(E, D, I))
    arguments = (torch.randn(tokens, D), experts, *routing(tokens), 1.5, round_trip)
    # A hidden value beside a rounding edge may take the other e4m3 code.
    close(interpreted().moe(*arguments), reference.moe(*arguments), 2e-2 if round_trip else 2e-6)


def test_shared_expert(reference: OpTable):
    torch.manual_seed(3)
    w1, w3, w2 = (LinearWeight(dense=torch.randn(shape) / 6) for shape in ((I, D), (I, D), (D, I)))
    arguments = (torch.randn(4, D), w1, w3, w2, 10.0, False)
    close(interpreted().gated_mlp(*arguments), reference.gated_mlp(*arguments), 2e-6)


@pytest.mark.parametrize("size", [16, 32])
def test_the_schedule_holds_every_slot_once(size: int):
    torch.manual_seed(4)
    ids, _ = routing(33)
    schedule = make_schedule(interpreted_device(), ids, E, size)
    seen: list[int] = []
    for expert, slots in zip(schedule.experts.tolist(), schedule.slots.view(-1, size).tolist(), strict=True):
        here = [slot for slot in slots if slot >= 0] if expert >= 0 else []
        assert all(int(ids.flatten()[slot]) == expert for slot in here)
        assert here == sorted(here)
        seen += here
    assert sorted(seen) == torch.nonzero(ids.flatten() >= 0).flatten().tolist()


@pytest.mark.parametrize(
    ("kind", "arch"),
    [("fp8", "sm_90"), ("mxfp4", "sm_100a"), ("nvfp4", "sm_100a"), ("nvfp4-a4", "sm_100a")]
    + [
        pytest.param(kind, arch, marks=pytest.mark.ci)
        for kind, arch in (("fp8", "sm_100a"), ("mxfp4", "sm_90"), ("mxfp4", "sm_120a"), ("nvfp4-a4", "sm_90"))
    ],
)
def test_quantised_experts(kind: str, arch: str, reference: OpTable):
    torch.manual_seed(5)
    quantise = {"fp8": quantise_fp8_block, "mxfp4": quantise_mxfp4}.get(kind, quantise_nvfp4)
    inter = 256
    parts = {
        name: [quantise(torch.randn(shape) / 6) for _ in range(E)]
        for name, shape in (("w1", (inter, D)), ("w3", (inter, D)), ("w2", (D, inter)))
    }
    input_scale = 1 / 50 if kind == "nvfp4-a4" else 0.0
    experts = Experts(**{name: quantised_weight(each, input_scale) for name, each in parts.items()})
    dense = ExpertWeights(**{name: torch.stack([dequantise(q) for q in each]) for name, each in parts.items()})
    x, (ids, weights) = torch.randn(9, D), routing(9)
    got = interpreted(arch).moe(x, experts, ids, weights, 10.0, False)
    is_fp8 = kind in ("fp8", "mxfp4")
    seen = reference.fp8_round_trip(x, 128) if is_fp8 else x
    want = reference.moe(seen, dense, ids, weights, 10.0, is_fp8)
    # W4A16 rounds tokens to bf16, W4A4 to e2m1 (twice): FP4's own error, not the kernel's.
    close(got, want, {"fp8": 2e-2, "mxfp4": 2e-2, "nvfp4": 2e-2, "nvfp4-a4": 2e-1 if arch != "sm_90" else 2e-2}[kind])
