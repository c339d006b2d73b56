"""Weights on their way to a GPU: the checkpoint's bytes, one matrix at a time, and what cannot go there as it is."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.device_weights import DeviceWeight
from dsv4_kernels.errors import FormatError, ShapeError
from dsv4_kernels.placement import HOST, DevicePlacement
from dsv4_kernels.tensors import (
    QuantTensor,
    WeightFormat,
    dequantise,
    quantise_fp8_block,
    quantise_mxfp4,
    quantise_nvfp4,
)

PLACE = DevicePlacement(torch.device("cpu"))
QUANTISE = {
    WeightFormat.FP8: quantise_fp8_block,
    WeightFormat.MXFP4: quantise_mxfp4,
    WeightFormat.NVFP4: quantise_nvfp4,
}
each_format = pytest.mark.parametrize("format", QUANTISE)


def matrix(format: WeightFormat, rows: int, columns: int) -> QuantTensor:
    return QUANTISE[format](torch.randn(rows, columns))


@each_format
def test_a_matrix_keeps_its_bytes(format: WeightFormat) -> None:
    stored = matrix(format, 96, 256)
    weight = PLACE.linear(stored)
    placed = weight.placed
    assert placed is not None and placed.format is format and weight.shape == (96, 256)
    assert torch.equal(placed.codes.view(torch.uint8), stored.codes.view(torch.uint8))
    assert stored.scales is not None
    assert torch.equal(placed.scales.view(torch.uint8), stored.scales.view(torch.uint8))
    assert weight.resident_bytes == placed.codes.nbytes + placed.scales.nbytes + 4 * (format is WeightFormat.NVFP4)


@each_format
def test_experts_are_filled_one_by_one(format: WeightFormat) -> None:
    experts, parts = PLACE.experts(3, 256, 128, format), {}
    for expert in (2, 0, 1):
        for part, shape in (("w1", (128, 256)), ("w2", (256, 128)), ("w3", (128, 256))):
            parts[expert, part] = matrix(format, *shape)
            experts.put(expert, part, parts[expert, part])  # type: ignore[arg-type]
    assert experts.num_experts == 3 and isinstance(experts.w2, DeviceWeight)
    for expert in range(3):
        wanted = parts[expert, "w2"]
        rows = slice(expert * 256, (expert + 1) * 256)
        assert torch.equal(experts.w2.codes[rows].view(torch.uint8), wanted.codes.view(torch.uint8))
        if experts.w2.alphas is not None:
            assert float(experts.w2.alphas[expert]) == pytest.approx(wanted.global_scale)


def test_what_shares_scales_with_a_neighbour_is_widened_without_loss() -> None:
    experts, stored = PLACE.experts(2, 128, 64, WeightFormat.FP8), matrix(WeightFormat.FP8, 64, 128)
    experts.put(1, "w1", stored)
    assert isinstance(experts.w1, DeviceWeight) and experts.w1.format is WeightFormat.BF16
    assert torch.equal(experts.w1.codes[64:].float(), dequantise(stored))
    with pytest.raises(ShapeError, match="64 rows do not stack"):
        DeviceWeight.allocate(WeightFormat.FP8, 2, (64, 128), torch.device("cpu"))


def test_grouped_and_exact_matrices_are_widened_without_loss() -> None:
    stored = matrix(WeightFormat.FP8, 256, 128)
    grouped, exact = PLACE.linear(stored, 4).placed, PLACE.linear(stored, is_exact=True).placed
    assert grouped is not None and exact is not None
    assert (grouped.format, grouped.num_groups, grouped.shape) == (WeightFormat.BF16, 4, (64, 128))
    assert torch.equal(grouped.codes.float(), dequantise(stored)) and torch.equal(exact.codes, dequantise(stored))


def test_a_matrix_of_another_kind_is_refused() -> None:
    room = DeviceWeight.allocate(WeightFormat.MXFP4, 2, (64, 128), torch.device("cpu"))
    with pytest.raises(FormatError, match="fp8 matrix"):
        room.put(0, matrix(WeightFormat.FP8, 64, 128))
    with pytest.raises(FormatError, match=r"\[32, 128\]"):
        room.put(0, matrix(WeightFormat.MXFP4, 32, 128))


def test_the_host_keeps_what_it_is_given() -> None:
    values = torch.randn(3)
    assert HOST.tensor(values) is values and HOST.linear(matrix(WeightFormat.FP8, 8, 128)).packed is not None
