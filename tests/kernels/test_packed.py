"""Packed weights lose nothing: a product has the bits of the float32 weight; FP4 experts are summed in integers."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.errors import FormatError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.packing import PackedMatrices
from dsv4_kernels.prepared import ExpertWeights, LinearWeight, prepare_linear
from dsv4_kernels.tensors import (
    QuantTensor,
    WeightFormat,
    dequantise,
    quantise_fp8_block,
    quantise_mxfp4,
    quantise_nvfp4,
)
from torch import Tensor

FP4 = ("mxfp4", "nvfp4")
FORMATS = ("bf16", "fp8", *FP4)
LIMIT = 3.0


def stored(format: str, rows: int, columns: int, seed: int = 1) -> QuantTensor:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if format == "bf16":
        return QuantTensor(format=WeightFormat.BF16, codes=matrix.to(torch.bfloat16), shape=(rows, columns))
    return {"fp8": quantise_fp8_block, "mxfp4": quantise_mxfp4, "nvfp4": quantise_nvfp4}[format](matrix)


def experts_of(format: str, num: int, hidden: int, inter: int) -> tuple[ExpertWeights, ExpertWeights]:
    """The same experts packed, and as float32."""
    shapes = {"w1": (inter, hidden), "w2": (hidden, inter), "w3": (inter, hidden)}
    packed = ExpertWeights.allocate(num, hidden, inter, WeightFormat(format))
    dense = ExpertWeights.allocate(num, hidden, inter)
    for expert in range(num):
        for place, (part, shape) in enumerate(shapes.items()):
            one = stored(format, *shape, seed=3 * expert + place)
            packed.put(expert, part, one)
            dense.put(expert, part, one)
    return packed, dense


def inputs(tokens: int, hidden: int, num: int, ops: OpTable) -> tuple[Tensor, Tensor, Tensor]:
    x = ops.fp8_round_trip(torch.randn(tokens, hidden), 128)
    return x, torch.randint(-1, num, (tokens, 3)), torch.rand(tokens, 3)


def exact_moe(experts: ExpertWeights, x: Tensor, ids: Tensor, weights: Tensor, ops: OpTable) -> Tensor:
    """Both products in float64, the inner round trip as the operator makes it."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for expert, weight in zip(ids[token].tolist(), weights[token], strict=True):
            if expert < 0:
                continue
            w1, w3, w2 = (experts.matrix(expert, part).double() for part in ("w1", "w3", "w2"))
            a, b = (w1 @ x[token].double()).clamp(max=LIMIT), (w3 @ x[token].double()).clamp(-LIMIT, LIMIT)
            inner = (torch.nn.functional.silu(a) * b * weight).float()
            out[token] += w2 @ ops.fp8_round_trip(inner[None], 128)[0].double()
    return out


def same_bits(got: Tensor, want: Tensor) -> bool:
    return torch.equal(got.view(torch.int32), want.view(torch.int32))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(8, 128), (130, 256), (13, 96), (300, 160)])
def test_unpacking_gives_the_stored_bytes(format: str, rows: int, columns: int):
    one = stored(format, rows, columns)
    packed = PackedMatrices.allocate(one.format, 3, one.shape)
    packed.put(1, one)
    codes, scales, global_scale = packed.unpack(1)
    assert torch.equal(codes, one.codes.view(torch.uint8).view(rows, -1))
    assert global_scale == one.global_scale
    if one.scales is not None:
        assert scales is not None
        assert torch.equal(scales, one.scales.view(torch.uint8))


@pytest.mark.parametrize(("format", "columns"), [("bf16", 7), ("bf16", 100), ("fp8", 1), ("fp8", 257)])
def test_columns_that_fill_no_block_are_kept(format: str, columns: int, cpu: OpTable):
    one = stored(format, 20, columns)
    weight, x = prepare_linear(one), torch.randn(3, columns)
    assert weight.packed is not None
    assert torch.equal(weight.matrix(), dequantise(one))
    assert same_bits(cpu.linear(x, weight), cpu.linear(x, LinearWeight(dense=dequantise(one))))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 9, 70])
@pytest.mark.parametrize(("rows", "columns"), [(130, 256), (13, 96), (260, 512), (7, 200)])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_a_packed_weight_gives_the_bits_of_its_float32_matrix(
    format: str, tokens: int, rows: int, columns: int, is_rounded: bool, cpu: OpTable
):
    """Rounded inputs are bfloat16 numbers, which some CPUs multiply two at a time."""
    if format in FP4 and columns % 32:
        columns += 32 - columns % 32
    one = stored(format, rows, columns)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(5))
    x = cpu.fp8_round_trip(x, 128) if is_rounded else x
    got = cpu.linear(x, prepare_linear(one))
    assert same_bits(got, cpu.linear(x, LinearWeight(dense=dequantise(one))))


@pytest.mark.parametrize("format", FORMATS)
def test_packed_groups_give_the_bits_of_float32_groups(format: str, cpu: OpTable):
    one = stored(format, 3 * 70, 128)
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(6))
    got = cpu.grouped_linear(x, prepare_linear(one))
    assert same_bits(got, cpu.grouped_linear(x, LinearWeight(dense=dequantise(one))))


def test_every_code_and_scale_of_fp8_is_exact(cpu: OpTable):
    """All codes that are numbers, under the smallest scales and the largest that is packed."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes[(codes & 127) == 127] = 0
    scales = torch.tensor([[0, 1], [6, 7], [60, 134]], dtype=torch.uint8)
    matrix = codes.repeat(384, 1).view(torch.float8_e4m3fn)
    one = QuantTensor(format=WeightFormat.FP8, codes=matrix, scales=scales, shape=(384, 256))
    weight = prepare_linear(one)
    assert weight.packed is not None
    assert torch.equal(cpu.linear(torch.eye(256), weight), dequantise(one).T)
    assert torch.equal(torch.cat([cpu.linear(row[None], weight) for row in torch.eye(256)]), dequantise(one).T)


@pytest.mark.parametrize("size", [2.0**-126, 2.0**-100, 2.0**-90, 2.0**99, 2.0**110])
@pytest.mark.parametrize("tokens", [1, 5])
def test_bfloat16_inputs_far_from_one_give_the_bits_of_the_float32_matrix(size: float, tokens: int, cpu: OpTable):
    """Instructions for bfloat16 take the smallest numbers for zeros."""
    one = stored("fp8", 128, 192)
    x = torch.randn(tokens, 192, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16).float() * size
    got = cpu.linear(x, prepare_linear(one))
    assert same_bits(got, cpu.linear(x, LinearWeight(dense=dequantise(one))))


@pytest.mark.parametrize("size", [1e-30, 1e25, 1e37])
def test_inputs_far_from_one_give_the_bits_of_the_float32_matrix(size: float, cpu: OpTable):
    """Beyond some size the scales cannot be multiplied into the inputs, which is how few rows are computed."""
    one = stored("fp8", 256, 128)
    x = torch.randn(1, 128, generator=torch.Generator().manual_seed(5)) * size
    got = cpu.linear(x, prepare_linear(one))
    assert same_bits(got, cpu.linear(x, LinearWeight(dense=dequantise(one))))


@pytest.mark.parametrize(("code", "scale"), [(127, 120), (8, 135)])
def test_what_cannot_be_read_packed_becomes_float32(code: int, scale: int):
    codes = torch.full((4, 32), code, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = torch.full((1, 1), scale, dtype=torch.uint8)
    one = QuantTensor(format=WeightFormat.FP8, codes=codes, scales=scales, shape=(4, 32))
    assert prepare_linear(one).dense is not None
    with pytest.raises(FormatError, match=r"2\^7"):
        PackedMatrices.allocate(WeightFormat.FP8, 1, (4, 32)).put(0, one)


@pytest.mark.parametrize("columns", [1024, 4096])
def test_nvfp4_linear_is_within_15e_8_of_float64(columns: int, cpu: OpTable):
    torch.manual_seed(7)
    one, x = stored("nvfp4", 512, columns), torch.randn(16, columns)
    want = x.double() @ dequantise(one).double().T
    error = (cpu.linear(x, prepare_linear(one)).double() - want).norm() / want.norm()
    assert float(error) < 1.5e-7


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_packed_experts_without_round_trip_give_the_bits_of_float32_ones(format: str, tokens: int, cpu: OpTable):
    torch.manual_seed(8)
    packed, dense = experts_of(format, 5, 128, 160)
    x, ids, weights = inputs(tokens, 128, 5, cpu)
    assert same_bits(cpu.moe(x, packed, ids, weights, LIMIT, False), cpu.moe(x, dense, ids, weights, LIMIT, False))


@pytest.mark.parametrize("format", FP4)
@pytest.mark.parametrize(("hidden", "inter"), [(256, 160), (96, 128), (1024, 512)])
def test_fp4_experts_sum_integers_exactly(format: str, hidden: int, inter: int, cpu: OpTable):
    """Closer to float64 than the float32 chain: the inner value can differ by a rounding of e4m3 at a tie only."""
    torch.manual_seed(9)
    packed, _ = experts_of(format, 4, hidden, inter)
    x, ids, weights = inputs(6, hidden, 4, cpu)
    want = exact_moe(packed, x, ids, weights, cpu)
    error = (cpu.moe(x, packed, ids, weights, LIMIT, True).double() - want).norm() / want.norm()
    assert float(error) < 2e-7


@pytest.mark.parametrize("format", FP4)
def test_small_activations_beside_large_ones_count_exactly(format: str, cpu: OpTable):
    """Magnitudes of every e4m3 exponent in one group: all three digits are needed."""
    torch.manual_seed(10)
    packed, _ = experts_of(format, 1, 128, 128)
    signs = torch.where(torch.rand(40, 128) < 0.5, -1.0, 1.0)
    x = cpu.fp8_round_trip(signs * torch.exp2(torch.randint(-9, 9, (40, 128)).float()) * 1.375, 128)
    ids, weights = torch.zeros(40, 1, dtype=torch.int64), torch.ones(40, 1)
    want = exact_moe(packed, x, ids, weights, cpu)
    error = (cpu.moe(x, packed, ids, weights, LIMIT, True).double() - want).norm() / want.norm()
    assert float(error) < 2e-7


@pytest.mark.parametrize("format", FP4)
def test_a_row_of_fp4_experts_has_the_same_bits_alone_and_in_any_batch(format: str, cpu: OpTable):
    torch.manual_seed(11)
    packed, _ = experts_of(format, 5, 256, 160)
    x, ids, weights = inputs(90, 256, 5, cpu)
    whole = cpu.moe(x, packed, ids, weights, LIMIT, True)
    for first, last in ((0, 1), (13, 14), (20, 31), (5, 90)):
        part = cpu.moe(x[first:last], packed, ids[first:last], weights[first:last], LIMIT, True)
        assert same_bits(part, whole[first:last])


def test_the_checkpoint_stays_packed_in_memory():
    """A weight takes the bytes that the file has for it, and a matrix of experts as well."""
    one = stored("fp8", 256, 512)
    assert prepare_linear(one).resident_bytes == 256 * 512 + 2 * 4 + 4
    experts = ExpertWeights.allocate(7, 256, 128, WeightFormat.MXFP4)
    assert experts.resident_bytes == 3 * 7 * (256 * 128 // 2 + 256 * 128 // 32 + 4)
