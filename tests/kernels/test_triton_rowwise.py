"""Row-by-row kernels in the interpreter against their references."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.errors import BindError
from dsv4_kernels.ops import OpTable
from triton_rig import close, interpreted

TABLE = interpreted()


@pytest.mark.parametrize(
    ("shape", "has_weight"), [((3, 7), True), ((2, 5, 512), False), ((1, 1536), True), ((0, 8), True)]
)
def test_rms_norm(shape: tuple[int, ...], has_weight: bool, reference: OpTable):
    torch.manual_seed(1)
    x, weight = 3 * torch.randn(shape), torch.randn(shape[-1]) if has_weight else None
    close(TABLE.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6), 1e-6)


def test_rms_norm_rounds_once_to_bf16(reference: OpTable):
    torch.manual_seed(2)
    x, weight = torch.randn(4, 96).bfloat16(), torch.randn(96).bfloat16()
    want = reference.rms_norm(x.float(), weight.float(), 1e-6).bfloat16()
    got = TABLE.rms_norm(x, weight, 1e-6)
    assert got.dtype == torch.bfloat16
    close(got, want, 2**-8)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(5, 64), (3, 4, 64), (2, 3, 6)])
def test_rope_rotate(shape: tuple[int, ...], inverse: bool, reference: OpTable):
    torch.manual_seed(3)
    x, angle = torch.randn(shape), torch.randn(shape[0], shape[-1] // 2)
    arguments = (x, angle.cos(), angle.sin(), inverse)
    close(TABLE.rope_rotate(*arguments), reference.rope_rotate(*arguments), 1e-6)


@pytest.mark.parametrize(("shape", "group"), [((3, 128), 64), ((2, 2, 100), 64), ((4, 130), 128)])
def test_fp8_round_trip_is_bit_equal(shape: tuple[int, ...], group: int, reference: OpTable):
    torch.manual_seed(4)
    x = torch.randn(shape) * torch.logspace(-9, 6, shape[-1])
    assert torch.equal(TABLE.fp8_round_trip(x, group), reference.fp8_round_trip(x, group))


@pytest.mark.parametrize("shape", [(3, 128), (2, 2, 50)])
def test_fp4_round_trip_is_bit_equal(shape: tuple[int, ...], reference: OpTable):
    torch.manual_seed(5)
    x = torch.randn(shape) * torch.logspace(-30, 6, shape[-1])
    x[0, ..., :33] = 0.0
    assert torch.equal(TABLE.fp4_round_trip(x), reference.fp4_round_trip(x))


@pytest.mark.parametrize("shape", [(3, 128), (2, 5, 8), (1, 1)])
def test_hadamard(shape: tuple[int, ...], reference: OpTable):
    torch.manual_seed(6)
    x = torch.randn(shape)
    close(TABLE.hadamard(x), reference.hadamard(x), 1e-6)


def test_int8_is_refused_with_what_to_set():
    with pytest.raises(BindError, match="Set numerics to trained"):
        TABLE.int8_round_trip(torch.zeros(1, 32), 32)
