"""FP4 weights times activations of int8: the exact product of the rounded input, near that of the unrounded one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import ExpertWeights, prepare_linear
from dsv4_kernels.tensors import QuantTensor, WeightFormat, dequantise, quantise_mxfp4, quantise_nvfp4
from dsv4_kernels.trips import Trip, make_trip
from torch import Tensor

FORMATS: dict[str, Callable[[Tensor], QuantTensor]] = {"mxfp4": quantise_mxfp4, "nvfp4": quantise_nvfp4}
EACH_FORMAT = pytest.mark.parametrize("format", FORMATS)
LIMIT = 10.0


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(14)


def stored(format: str, rows: int, columns: int) -> QuantTensor:
    return FORMATS[format](torch.randn(rows, columns) / columns**0.5)


def experts_of(format: str, num: int, hidden: int, inter: int) -> ExpertWeights:
    experts = ExpertWeights.allocate(num, hidden, inter, WeightFormat(format))
    for expert in range(num):
        experts.put(expert, "w1", stored(format, inter, hidden))
        experts.put(expert, "w3", stored(format, inter, hidden))
        experts.put(expert, "w2", stored(format, hidden, inter))
    return experts


def exact_moe(
    experts: ExpertWeights, x: Tensor, ids: Tensor, weights: Tensor, inner: Callable[[Tensor], Tensor]
) -> Tensor:
    """Every product in float64; `inner` is what the values before w2 go through."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for expert, weight in zip(ids[token].tolist(), weights[token].double(), strict=True):
            w1, w3, w2 = (experts.matrix(expert, part).double() for part in ("w1", "w3", "w2"))
            a, b = (w1 @ x[token].double()).clamp(max=LIMIT), (w3 @ x[token].double()).clamp(-LIMIT, LIMIT)
            out[token] += w2 @ inner(torch.nn.functional.silu(a) * b * weight)
    return out


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@EACH_FORMAT
@pytest.mark.parametrize(("tokens", "columns"), [(1, 4096), (2, 1024), (16, 512), (70, 4096)])
def test_a_linear_is_the_exact_product_of_its_rounded_input(format: str, tokens: int, columns: int, cpu: OpTable):
    one, x = stored(format, 264, columns), torch.randn(tokens, columns)
    rounded, matrix = cpu.int8_round_trip(x, 32), dequantise(one).double()
    got = cpu.linear(rounded, prepare_linear(one), Trip.INT8)
    assert error(got, rounded.double() @ matrix.T) < 1.5e-7
    assert error(got, x.double() @ matrix.T) < 6e-3


@EACH_FORMAT
def test_every_code_meets_every_integer(format: str, cpu: OpTable, reference: OpTable):
    """The largest sums of both signs, which 16 bits just hold: weights of 6 and -6 in one group, integers of 127."""
    matrix = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, -6])[torch.randint(16, (64, 64))]
    matrix[0], matrix[1], matrix[2] = 6.0, -6.0, torch.tensor([6.0, -6.0]).repeat(32)
    weight, x = prepare_linear(FORMATS[format](matrix)), torch.randint(-127, 128, (300, 64)).float()
    x[:, ::16] = 127.0
    x[0], x[1], x[2] = 127.0, -127.0, torch.tensor([127.0, -127.0]).repeat(32)
    assert torch.equal(cpu.int8_round_trip(x, 32), x)
    got, want = (table.linear(x, weight, Trip.INT8) for table in (cpu, reference))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0.05)  # the scale of NVFP4 is no power of two


@EACH_FORMAT
@pytest.mark.parametrize("trip", [Trip.FP8, Trip.INT8])
@pytest.mark.parametrize(("rows", "columns"), [(13, 96), (130, 256), (300, 160)])
def test_a_row_of_a_linear_has_the_same_bits_alone_and_in_any_batch(
    format: str, trip: Trip, rows: int, columns: int, cpu: OpTable
):
    weight, x = prepare_linear(stored(format, rows, columns)), make_trip(cpu, torch.randn(90, columns), trip)
    whole = cpu.linear(x, weight, trip)
    torch.testing.assert_close(whole, cpu.linear(x, weight), rtol=1e-4, atol=1e-5)
    for first, last in ((0, 1), (13, 15), (20, 28), (5, 90)):
        assert torch.equal(cpu.linear(x[first:last], weight, trip), whole[first:last])


@EACH_FORMAT
def test_a_linear_of_fp8_inputs_is_their_exact_product(format: str, cpu: OpTable):
    one, x = stored(format, 264, 512), cpu.fp8_round_trip(torch.randn(16, 512), 128)
    assert error(cpu.linear(x, prepare_linear(one), Trip.FP8), x.double() @ dequantise(one).double().T) < 1.5e-7


@EACH_FORMAT
@pytest.mark.parametrize(("hidden", "inter"), [(256, 160), (96, 128), (1024, 512)])
def test_experts_are_the_exact_products_of_their_rounded_inputs(format: str, hidden: int, inter: int, cpu: OpTable):
    """The inner values differ by a float32 rounding, so one in some thousand goes to the other of two integers."""
    experts, x = experts_of(format, 4, hidden, inter), cpu.int8_round_trip(torch.randn(8, hidden), 32)
    ids, weights = torch.randint(4, (8, 3)), torch.rand(8, 3)
    trip = lambda values: cpu.int8_round_trip(values.float()[None], 32)[0].double()  # noqa: E731 - one line
    got, want = cpu.moe(x, experts, ids, weights, LIMIT, Trip.INT8), exact_moe(experts, x, ids, weights, trip)
    assert float((got.double() - want).norm(dim=1).div(want.norm(dim=1)).median()) < 1.5e-7


@EACH_FORMAT
def test_experts_of_int8_inputs_are_nearer_to_the_unrounded_ones_than_fp8_is(format: str, cpu: OpTable):
    """Two roundings of 5e-3, and one of gated values, whose groups have larger peaks. FP8 was trained with 2.6e-2."""
    experts, x = experts_of(format, 4, 1024, 512), torch.randn(16, 1024)
    ids, weights = torch.randint(4, (16, 3)), torch.rand(16, 3)
    want = exact_moe(experts, x, ids, weights, lambda values: values)
    int8, fp8 = (
        error(cpu.moe(make_trip(cpu, x, trip), experts, ids, weights, LIMIT, trip), want)
        for trip in (Trip.INT8, Trip.FP8)
    )
    assert int8 < 1.3e-2
    assert fp8 > 3e-2


@EACH_FORMAT
def test_a_row_of_experts_has_the_same_bits_alone_and_in_any_batch(format: str, cpu: OpTable):
    experts, x = experts_of(format, 5, 256, 160), cpu.int8_round_trip(torch.randn(90, 256), 32)
    ids, weights = torch.randint(-1, 5, (90, 3)), torch.rand(90, 3)
    whole = cpu.moe(x, experts, ids, weights, LIMIT, Trip.INT8)
    for first, last in ((0, 1), (13, 14), (20, 28), (5, 90)):
        part = cpu.moe(x[first:last], experts, ids[first:last], weights[first:last], LIMIT, Trip.INT8)
        assert torch.equal(part, whole[first:last])


@EACH_FORMAT
def test_what_is_no_number_stays_none(format: str, cpu: OpTable):
    weight, x = prepare_linear(stored(format, 16, 64)), torch.randn(2, 64)
    x[0, 40] = float("nan")
    x[1, 3] = float("inf")
    assert not cpu.linear(cpu.int8_round_trip(x, 32), weight, Trip.INT8).isfinite().any()
