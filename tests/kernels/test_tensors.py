"""Stored weights: exact values against a decoder of its own, encoders, and what malformed weights say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels import tensors
from dsv4_kernels.errors import FormatError, ShapeError
from dsv4_kernels.prepared import ExpertWeights, prepare_linear
from dsv4_kernels.tensors import (
    QuantTensor,
    WeightFormat,
    dequantise,
    quantise_fp8_block,
    quantise_mxfp4,
    quantise_nvfp4,
)

SHAPES = [(1, 128), (128, 128), (130, 257), (300, 64), (127, 129)]
FP4_SHAPES = [(1, 32), (5, 96), (130, 256)]


def decode_e4m3(code: int) -> float:
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


def decode_e2m1(code: int) -> float:
    sign, exponent, mantissa = -1.0 if code & 8 else 1.0, (code >> 1) & 3, code & 1
    return sign * (mantissa * 0.5 if exponent == 0 else (2 + mantissa) * 2.0 ** (exponent - 2))


E4M3 = np.array([decode_e4m3(code) for code in range(256)])
E2M1 = np.array([decode_e2m1(code) for code in range(16)])


def unpack(packed: np.ndarray) -> np.ndarray:
    values = np.empty((packed.shape[0], packed.shape[1] * 2))
    values[:, 0::2], values[:, 1::2] = E2M1[packed & 15], E2M1[packed >> 4]
    return values


def random_fp8(rng: np.random.Generator, rows: int, columns: int) -> tuple[QuantTensor, np.ndarray]:
    codes = rng.integers(0, 256, (rows, columns)).astype(np.uint8)
    codes[(codes & 127) == 127] = 0  # no NaN
    scales = rng.integers(0, 240, (-(-rows // 128), -(-columns // 128))).astype(np.uint8)
    wide = np.repeat(np.repeat(scales, 128, 0), 128, 1)[:rows, :columns]
    value = (E4M3[codes] * 2.0 ** (wide.astype(np.float64) - 127)).astype(np.float32)
    stored = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    q = QuantTensor(format=WeightFormat.FP8, codes=stored, scales=torch.from_numpy(scales), shape=(rows, columns))
    return q, value


def random_mxfp4(rng: np.random.Generator, rows: int, columns: int) -> tuple[QuantTensor, np.ndarray]:
    packed = rng.integers(0, 256, (rows, columns // 2)).astype(np.uint8)
    scales = rng.integers(0, 250, (rows, columns // 32)).astype(np.uint8)
    value = (unpack(packed) * 2.0 ** (np.repeat(scales, 32, 1).astype(np.float64) - 127)).astype(np.float32)
    stored = torch.from_numpy(packed)
    q = QuantTensor(format=WeightFormat.MXFP4, codes=stored, scales=torch.from_numpy(scales), shape=(rows, columns))
    return q, value


def random_nvfp4(rng: np.random.Generator, rows: int, columns: int) -> tuple[QuantTensor, np.ndarray]:
    packed = rng.integers(0, 256, (rows, columns // 2)).astype(np.uint8)
    scales = rng.integers(0, 127, (rows, columns // 16)).astype(np.uint8)
    factor = E4M3[scales].astype(np.float32) * np.float32(0.0123)
    value = unpack(packed).astype(np.float32) * np.repeat(factor, 16, 1)
    q = QuantTensor(
        format=WeightFormat.NVFP4,
        codes=torch.from_numpy(packed),
        scales=torch.from_numpy(scales).view(torch.float8_e4m3fn),
        global_scale=float(np.float32(0.0123)),
        shape=(rows, columns),
    )
    return q, value


def same_bits(got: torch.Tensor, want: np.ndarray) -> None:
    assert want.dtype == np.float32
    np.testing.assert_array_equal(got.numpy().view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_blocks_dequantise_bit_for_bit(shape: tuple[int, int], rng: np.random.Generator):
    q, want = random_fp8(rng, *shape)
    same_bits(dequantise(q), want)


@pytest.mark.parametrize("shape", FP4_SHAPES)
def test_mxfp4_dequantises_bit_for_bit(shape: tuple[int, int], rng: np.random.Generator):
    q, want = random_mxfp4(rng, *shape)
    same_bits(dequantise(q), want)


@pytest.mark.parametrize("shape", FP4_SHAPES)
def test_nvfp4_multiplies_its_scales_in_float32_first(shape: tuple[int, int], rng: np.random.Generator):
    q, want = random_nvfp4(rng, *shape)
    same_bits(dequantise(q), want)


def test_nvfp4_takes_the_low_nibble_first():
    codes = torch.tensor([[0x21, 0x43, 0x65, 0x87, 0xA9, 0xCB, 0xED, 0x0F]], dtype=torch.uint8)
    scales = torch.ones(1, 1).to(torch.float8_e4m3fn)
    q = QuantTensor(format=WeightFormat.NVFP4, codes=codes, scales=scales, global_scale=2.0, shape=(1, 16))
    assert dequantise(q)[0].tolist() == [1, 2, 3, 4, 6, 8, 12, -0.0, -1, -2, -3, -4, -6, -8, -12, 0]


def test_plain_formats_convert_exactly(rng: np.random.Generator):
    weight = torch.from_numpy(rng.standard_normal((7, 9)).astype(np.float32))
    stored = weight.to(torch.bfloat16)
    assert torch.equal(dequantise(QuantTensor(format=WeightFormat.BF16, codes=stored, shape=(7, 9))), stored.float())
    assert torch.equal(dequantise(QuantTensor(format=WeightFormat.FP32, codes=weight, shape=(7, 9))), weight)


@pytest.mark.parametrize("make", [random_fp8, random_mxfp4, random_nvfp4])
def test_chunks_of_rows_give_the_whole(make, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator):
    monkeypatch.setattr(tensors, "CHUNK_ELEMENTS", 1000)
    q, want = make(rng, 300, 160)
    same_bits(dequantise(q), want)


def test_every_ue8m0_byte_is_a_power_of_two():
    got = tensors.power_of_two(torch.arange(256, dtype=torch.uint8))
    assert torch.isnan(got[255])
    same_bits(got[:255], (2.0 ** (np.arange(255.0) - 127)).astype(np.float32))


@pytest.mark.parametrize("encode", [quantise_fp8_block, quantise_mxfp4, quantise_nvfp4])
def test_encoding_a_decoded_weight_changes_nothing(encode, rng: np.random.Generator):
    weight = torch.from_numpy(rng.standard_normal((150, 320)).astype(np.float32))
    once = dequantise(encode(weight))
    assert torch.equal(dequantise(encode(once)), once)


@pytest.mark.parametrize(
    ("encode", "relative"), [(quantise_fp8_block, 2.0**-4), (quantise_mxfp4, 0.25), (quantise_nvfp4, 0.25)]
)
def test_codes_are_nearest_within_the_step_of_the_format(encode, relative: float, rng: np.random.Generator):
    weight = torch.from_numpy(rng.standard_normal((40, 256)).astype(np.float32))
    error = (dequantise(encode(weight)) - weight).abs()
    largest = weight.view(40, -1, 16).abs().amax() if encode is quantise_nvfp4 else weight.abs().amax()
    assert (error <= relative * weight.abs() + largest / 8).all()


@pytest.mark.parametrize("encode", [quantise_fp8_block, quantise_mxfp4, quantise_nvfp4])
def test_a_weight_of_zeros_encodes_to_zeros(encode):
    q = encode(torch.zeros(3, 64))
    assert torch.equal(dequantise(q), torch.zeros(3, 64))


def test_fp8_scale_of_448_times_a_power_is_that_power():
    weight = torch.zeros(128, 256)
    weight[0, 0], weight[5, 200] = 448 * 2.0**-3, 448 * 4.0 * (1 + 2.0**-23)
    assert (quantise_fp8_block(weight).scales.to(torch.int32) - 127).tolist() == [[-3, 3]]


def test_nvfp4_uses_the_global_scale_that_it_is_given(rng: np.random.Generator):
    weight = torch.from_numpy(rng.standard_normal((4, 32)).astype(np.float32))
    assert quantise_nvfp4(weight, global_scale=0.25).global_scale == 0.25


def test_nvfp4_global_scale_is_amax_over_2688():
    assert quantise_nvfp4(torch.full((1, 16), 2688.0)).global_scale == 1.0


@pytest.mark.parametrize("values", [[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]])
def test_ties_go_to_the_even_code(values: list[float]):
    codes = tensors.e2m1_codes(torch.tensor(values + [-v for v in values]))
    assert codes.tolist() == [0, 2, 2, 4, 4, 6, 6, 7, 8, 10, 10, 12, 12, 14, 14, 15]


def test_scales_of_another_shape_are_refused():
    codes = torch.zeros(130, 64).to(torch.float8_e4m3fn)
    with pytest.raises(FormatError, match=r"\[2, 1\]"):
        QuantTensor(format=WeightFormat.FP8, codes=codes, scales=torch.zeros(1, 1, dtype=torch.uint8), shape=(130, 64))


def test_missing_scales_are_refused():
    with pytest.raises(FormatError, match="needs scales"):
        QuantTensor(format=WeightFormat.MXFP4, codes=torch.zeros(2, 16, dtype=torch.uint8), shape=(2, 32))


def test_superfluous_scales_are_refused():
    with pytest.raises(FormatError, match="has no scales"):
        QuantTensor(format=WeightFormat.FP32, codes=torch.zeros(2, 2), scales=torch.zeros(1), shape=(2, 2))


def test_columns_that_do_not_fill_a_group_are_refused():
    with pytest.raises(FormatError, match="multiple of 32"):
        QuantTensor(format=WeightFormat.MXFP4, codes=torch.zeros(2, 20, dtype=torch.uint8), shape=(2, 40))


def test_codes_of_another_type_are_refused():
    with pytest.raises(FormatError, match="bfloat16"):
        QuantTensor(format=WeightFormat.BF16, codes=torch.zeros(2, 2), shape=(2, 2))


def test_preparing_a_float32_weight_copies_nothing():
    weight = torch.zeros(4, 4)
    assert prepare_linear(QuantTensor(format=WeightFormat.FP32, codes=weight, shape=(4, 4))).dense is weight


def test_an_expert_fills_its_own_slice_only(rng: np.random.Generator):
    experts = ExpertWeights.allocate(3, 32, 64)
    for tensor in (experts.w1, experts.w2, experts.w3):
        tensor.zero_()
    q, want = random_mxfp4(rng, 32, 64)
    experts.put(1, "w2", q)
    same_bits(experts.w2[1], want)
    assert not experts.w2[0].any() and not experts.w2[2].any() and not experts.w1.any() and not experts.w3.any()


def test_an_expert_that_does_not_exist_is_refused(rng: np.random.Generator):
    q, _ = random_mxfp4(rng, 64, 32)
    with pytest.raises(ShapeError, match=r"0\.\.2"):
        ExpertWeights.allocate(3, 32, 64).put(3, "w1", q)


def test_an_expert_of_another_shape_is_refused(rng: np.random.Generator):
    q, _ = random_mxfp4(rng, 32, 64)
    with pytest.raises(ShapeError, match=r"\[32, 64\]"):
        ExpertWeights.allocate(3, 32, 64).put(0, "w1", q)
