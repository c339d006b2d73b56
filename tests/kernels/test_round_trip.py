"""fp8_round_trip, fp4_round_trip, int8_round_trip and hadamard against exact float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.ops import OpTable
from hypothesis import assume, given, settings
from hypothesis import strategies as st

E4M3 = np.array([m * 2.0**-9 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)])[
    :127
]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float64)
FP8_FLOOR, FP4_FLOOR, INT8_FLOOR = float(np.float32(1e-4)), 6 * 2.0**-126, 127 * 2.0**-126

SPECIAL = [
    0.0,
    -0.0,
    448.0,
    449.0,
    -448.0,
    464.0,
    6.0,
    5.0,
    2.5,
    0.25,
    0.75,
    1.75,
    1e-4,
    2.0**-126,
    2.0**-149,
    1e-30,
    3e38,
]
numbers = st.one_of(
    st.sampled_from(SPECIAL),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-64, 64).map(lambda n: n / 16.0),
    st.tuples(st.integers(1, 127), st.integers(-20, 20)).map(lambda p: p[0] * 2.0 ** p[1]),
)


def exact_scale(amax: float, largest: float) -> float:
    """The smallest power of two s with amax <= largest * s; every comparison is exact in float64."""
    power = int(np.floor(np.log2(amax / largest))) - 1
    while largest * 2.0**power < amax:
        power += 1
    return 2.0**power


def nearest(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Nearest grid value, ties to the even index, saturating; the sign of zero is kept."""
    middles = (grid[1:] + grid[:-1]) / 2
    magnitude = np.abs(values)
    index = np.searchsorted(middles, magnitude, side="left")
    tied = (index < len(middles)) & (magnitude == middles[np.minimum(index, len(middles) - 1)])
    index = np.where(tied & (index % 2 == 1), index + 1, index)
    return np.copysign(grid[index], values)


def exact(x: np.ndarray, group: int, floor: float, grid: np.ndarray) -> np.ndarray:
    out = np.empty(x.shape)
    for row, result in zip(x.astype(np.float64), out, strict=True):
        for first in range(0, len(row), group):
            part = row[first : first + group]
            scale = exact_scale(max(np.abs(part).max(), floor), grid[-1])
            result[first : first + group] = nearest(part / scale, grid) * scale
    with np.errstate(over="ignore"):
        return out.astype(np.float32)


def exact_int8(x: np.ndarray, group: int) -> np.ndarray:
    """Float64 but for the two quotients, which are float32's; the products have no more than 24 bits."""
    out = np.empty(x.shape)
    for row, result in zip(x, out, strict=True):
        for first in range(0, len(row), group):
            part = row[first : first + group]
            mantissa, exponent = np.frexp(np.float64(np.float32(max(np.abs(part).max(), INT8_FLOOR)) / np.float32(127)))
            scale = np.ldexp(np.ceil(np.ldexp(mantissa, 17)), exponent - 17)
            result[first : first + group] = np.rint((part / np.float32(scale)).astype(np.float64)) * scale
    with np.errstate(over="ignore"):
        return out.astype(np.float32)


def same_bits(got: torch.Tensor, want: np.ndarray) -> None:
    np.testing.assert_array_equal(got.numpy().view(np.uint32), want.view(np.uint32))


def test_grid_of_the_oracle_is_e4m3():
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    np.testing.assert_array_equal(codes.to(torch.float64).numpy(), E4M3)


@settings(max_examples=150, deadline=None)
@given(values=st.lists(numbers, min_size=1, max_size=20), group=st.sampled_from([3, 4, 16, 64]))
def test_fp8_round_trip_is_exact(values: list[float], group: int, ops: OpTable):
    x = np.array([values], dtype=np.float32)
    same_bits(ops.fp8_round_trip(torch.from_numpy(x), group), exact(x, group, FP8_FLOOR, E4M3))


@settings(max_examples=150, deadline=None)
@given(values=st.lists(numbers, min_size=1, max_size=20), group=st.sampled_from([3, 4, 16, 32]))
def test_int8_round_trip_is_exact_and_a_second_one_changes_nothing(values: list[float], group: int, ops: OpTable):
    x = np.array([values], dtype=np.float32)
    once = ops.int8_round_trip(torch.from_numpy(x), group)
    same_bits(once, exact_int8(x, group))
    assume(once.isfinite().all())  # the largest floats may round to infinity
    same_bits(ops.int8_round_trip(once, group), once.numpy())


@pytest.mark.parametrize("width", [4096, 200, 20])
def test_int8_round_trip_is_exact_at_the_models_widths(width: int, ops: OpTable, rng: np.random.Generator):
    x = (rng.standard_normal((6, width)) * 10.0 ** rng.integers(-8, 8, (6, width))).astype(np.float32)
    same_bits(ops.int8_round_trip(torch.from_numpy(x), 32), exact_int8(x, 32))


@settings(max_examples=150, deadline=None)
@given(values=st.lists(numbers, min_size=1, max_size=20), group=st.sampled_from([3, 4, 16, 32]))
def test_fp4_round_trip_is_exact(values: list[float], group: int, ops: OpTable):
    x = np.array([values], dtype=np.float32)
    same_bits(ops.fp4_round_trip(torch.from_numpy(x), group), exact(x, group, FP4_FLOOR, E2M1))


@pytest.mark.parametrize(("group", "width"), [(64, 448), (128, 3072), (128, 200), (64, 20)])
def test_fp8_round_trip_is_exact_at_the_models_widths(group: int, width: int, ops: OpTable, rng: np.random.Generator):
    x = (rng.standard_normal((6, width)) * 10.0 ** rng.integers(-8, 8, (6, width))).astype(np.float32)
    same_bits(ops.fp8_round_trip(torch.from_numpy(x), group), exact(x, group, FP8_FLOOR, E4M3))


@pytest.mark.parametrize("width", [128, 100])
def test_fp4_round_trip_is_exact_at_the_models_widths(width: int, ops: OpTable, rng: np.random.Generator):
    x = rng.standard_normal((64, width)).astype(np.float32)
    same_bits(ops.fp4_round_trip(torch.from_numpy(x)), exact(x, 32, FP4_FLOOR, E2M1))


@pytest.mark.parametrize("power", range(-13, 40))
def test_a_power_of_two_times_the_largest_fp8_value_does_not_round_the_scale_up(power: int, ops: OpTable):
    largest = 448 * 2.0**power
    x = torch.tensor([[largest, largest / 448]])
    assert torch.equal(ops.fp8_round_trip(x, 2), x)


@pytest.mark.parametrize("grid", [E4M3, E2M1], ids=["fp8", "fp4"])
def test_every_middle_between_two_codes_goes_to_the_even_one(grid: np.ndarray, ops: OpTable):
    middles = (grid[1:] + grid[:-1]) / 2
    x = np.concatenate([[grid[-1]], middles, -middles]).astype(np.float32)[None]
    trip = ops.fp8_round_trip if len(grid) > 8 else ops.fp4_round_trip
    same_bits(trip(torch.from_numpy(x), 1000), exact(x, 1000, FP4_FLOOR, grid))


def test_round_trips_keep_any_leading_shape(ops: OpTable):
    x = torch.randn(2, 3, 5, 64)
    assert torch.equal(ops.fp8_round_trip(x, 64)[1, 2], ops.fp8_round_trip(x[1, 2], 64))
    assert torch.equal(ops.int8_round_trip(x, 32)[1, 2], ops.int8_round_trip(x[1, 2], 32))
    assert torch.equal(ops.fp4_round_trip(x)[1, 2], ops.fp4_round_trip(x[1, 2]))


def sylvester(size: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


@pytest.mark.parametrize("size", [1, 4, 16, 64, 256])
def test_hadamard_of_integers_is_exact_where_the_root_is_a_power_of_two(
    size: int, ops: OpTable, rng: np.random.Generator
):
    x = rng.integers(-1000, 1000, (5, size)).astype(np.float32)
    want = (x.astype(np.float64) @ sylvester(size) / np.sqrt(size)).astype(np.float32)
    np.testing.assert_array_equal(ops.hadamard(torch.from_numpy(x)).numpy(), want)


def test_hadamard_of_128_integers_is_the_nearest_float(ops: OpTable, rng: np.random.Generator):
    x = rng.integers(-1000, 1000, (5, 128)).astype(np.float32)
    want = (x.astype(np.float64) @ sylvester(128)).astype(np.float32) * np.float32(128**-0.5)
    np.testing.assert_array_equal(ops.hadamard(torch.from_numpy(x)).numpy(), want)


def test_hadamard_keeps_dot_products(ops: OpTable, rng: np.random.Generator):
    a, b = (torch.from_numpy(rng.standard_normal((1, 128)).astype(np.float32)) for _ in range(2))
    torch.testing.assert_close((ops.hadamard(a) * ops.hadamard(b)).sum(), (a * b).sum(), atol=1e-4, rtol=1e-4)
