"""Sums of FP4 weights and integers have the same bits with VNNI, with AVX2 alone, and without either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dsv4_kernels import build as builder
from dsv4_kernels.build import cpu_flags, levels_of
from dsv4_kernels.dispatch import bind
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import ExpertWeights, prepare_linear
from dsv4_kernels.tensors import QuantTensor, WeightFormat, quantise_mxfp4, quantise_nvfp4
from dsv4_kernels.trips import Trip, make_trip
from torch import Tensor

FORMATS: dict[WeightFormat, Callable[[Tensor], QuantTensor]] = {
    WeightFormat.MXFP4: quantise_mxfp4,
    WeightFormat.NVFP4: quantise_nvfp4,
}


def answers(table: OpTable, format: WeightFormat) -> list[Tensor]:
    """A linear of three slabs and three experts, on rows of both round trips."""
    torch.manual_seed(15)
    weight, experts = (
        prepare_linear(FORMATS[format](torch.randn(72, 1120))),
        ExpertWeights.allocate(3, 256, 160, format),
    )
    for expert in range(3):
        experts.put(expert, "w1", FORMATS[format](torch.randn(160, 256) / 16))
        experts.put(expert, "w3", FORMATS[format](torch.randn(160, 256) / 16))
        experts.put(expert, "w2", FORMATS[format](torch.randn(256, 160) / 16))
    x, y, ids, weights = torch.randn(9, 1120), torch.randn(9, 256), torch.randint(3, (9, 2)), torch.rand(9, 2)
    found = []
    for trip in (Trip.FP8, Trip.INT8):
        found.append(table.linear(make_trip(table, x, trip), weight, trip))
        found.append(table.moe(make_trip(table, y, trip), experts, ids, weights, 10.0, trip))
    return found


@pytest.mark.ci
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512vnni", "-mno-avx2 -mno-avx512f"])
def test_every_instruction_set_gives_the_same_bits(
    flags: str, cpu: OpTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    best = levels_of(cpu_flags())[0]
    monkeypatch.setattr(builder, "levels_of", lambda _: [best])
    monkeypatch.setattr(builder, "FLAGS", (*builder.FLAGS, "-O1", *flags.split()))
    other = bind("cpu", tmp_path)
    for format in FORMATS:
        assert all(torch.equal(*both) for both in zip(answers(other, format), answers(cpu, format), strict=True))
