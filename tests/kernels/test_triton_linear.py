"""Linear kernels in the interpreter: dense against the reference, quantised against their dequantised values."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.device_weights import dense_weight, quantised_weight
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import LinearWeight
from dsv4_kernels.tensors import QuantTensor, dequantise, quantise_fp8_block, quantise_mxfp4, quantise_nvfp4
from dsv4_kernels.triton_lang.linear import grouped_linear, linear
from dsv4_kernels.triton_lang.weights import quantise_nvfp4 as quantise_tokens
from triton_rig import close, each_arch, interpreted, interpreted_device

TABLE = interpreted()
QUANTISE = {"fp8": quantise_fp8_block, "mxfp4": quantise_mxfp4, "nvfp4": quantise_nvfp4}
SHAPES = [(3, 140, 320), pytest.param(20, 130, 1184, marks=pytest.mark.ci)]


@pytest.mark.parametrize(("tokens", "n", "k"), [(1, 5, 7), (3, 130, 100), (40, 20, 1200)])
def test_dense_float32(tokens: int, n: int, k: int, reference: OpTable):
    torch.manual_seed(1)
    x, weight = torch.randn(tokens, k), LinearWeight(dense=torch.randn(n, k))
    close(TABLE.linear(x, weight), reference.linear(x, weight), 1e-6)


def test_dense_bf16():
    torch.manual_seed(2)
    x, w = torch.randn(3, 1100).bfloat16(), torch.randn(70, 1100).bfloat16()
    got = linear(interpreted_device(), x, dense_weight(w))
    assert got.dtype == torch.bfloat16
    close(got, x.double() @ w.double().T, 2**-8)


def test_one_matrix_per_group(reference: OpTable):
    torch.manual_seed(3)
    x, weight = torch.randn(3, 4, 50), LinearWeight(dense=torch.randn(4 * 30, 50))
    close(TABLE.grouped_linear(x, weight), reference.grouped_linear(x, weight), 1e-6)


def quantised(kind: str, n: int, k: int) -> QuantTensor:
    return QUANTISE[kind](torch.randn(n, k) * torch.logspace(-2, 2, n)[:, None])


@each_arch
@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
@pytest.mark.parametrize(("tokens", "n", "k"), SHAPES)
def test_fp8_tokens_meet_fp8_and_mxfp4_weights(kind, tokens, n, k, arch: str, reference: OpTable):
    torch.manual_seed(4)
    x, q = torch.randn(tokens, k), quantised(kind, n, k)
    got = linear(interpreted_device(arch), x, quantised_weight([q]))
    want = reference.fp8_round_trip(x, 128).double() @ dequantise(q).double().T
    close(got, want, 2e-6)


@each_arch
@pytest.mark.parametrize(("tokens", "n", "k"), SHAPES)
def test_nvfp4_weights_with_bf16_tokens(tokens: int, n: int, k: int, arch: str):
    torch.manual_seed(5)
    x, q = torch.randn(tokens, k).bfloat16().float(), quantised("nvfp4", n, k)
    got = linear(interpreted_device(arch), x, quantised_weight([q]))
    close(got, x.double() @ dequantise(q).double().T, 2e-6)


@pytest.mark.parametrize("arch", ["sm_100a", "sm_120a"])
@pytest.mark.parametrize(("tokens", "n", "k"), SHAPES)
def test_nvfp4_weights_with_nvfp4_tokens(tokens: int, n: int, k: int, arch: str):
    torch.manual_seed(6)
    x, q, global_scale = torch.randn(tokens, k), quantised("nvfp4", n, k), 3 / 2688
    got = linear(interpreted_device(arch), x, quantised_weight([q], input_scale=global_scale))
    tokens_as_stored = dequantise(quantise_nvfp4(x, global_scale))
    close(got, tokens_as_stored.double() @ dequantise(q).double().T, 2e-6)


def test_nvfp4_tokens_have_the_references_bytes():
    torch.manual_seed(7)
    x = torch.randn(5, 96) * torch.logspace(-6, 2, 96)
    x[0] = 0.0
    want = quantise_nvfp4(x, 0.01)
    codes, scales = quantise_tokens(interpreted_device(), x, 0.01)
    assert torch.equal(codes, want.codes)
    assert torch.equal(scales.view(torch.uint8), want.scales.view(torch.uint8))


@each_arch
def test_grouped_output_projection_in_fp8(arch: str, reference: OpTable):
    torch.manual_seed(8)
    x, q = torch.randn(3, 2, 256), quantised("fp8", 2 * 128, 256)
    got = grouped_linear(interpreted_device(arch), x, quantised_weight([q], num_groups=2))
    weight = LinearWeight(dense=dequantise(q))
    close(got, reference.grouped_linear(reference.fp8_round_trip(x, 128), weight), 2e-6)
