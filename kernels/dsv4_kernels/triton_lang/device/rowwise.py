"""Norm, rotation, round trips and the Hadamard transform: one or a few rows per program."""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.numbers import VARIABLE, e2m1_code, e2m1_value, power_of_two, scale_byte, to_e4m3


@triton.jit
def rms_norm_rows(x, weight, y, width, eps, HAS_WEIGHT: tl.constexpr, BLOCK_D: tl.constexpr):
    """One row per program."""
    row = tl.program_id(0).to(tl.int64) * width
    d = tl.arange(0, BLOCK_D)
    inside = d < width
    values = tl.load(x + row + d, mask=inside, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(values * values, 0) / width + eps)
    values = values * factor
    if HAS_WEIGHT:
        values = values * tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row + d, values.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARIABLE)
def rope_rows(
    x, cos, sin, y, num_rows, heads, half, INVERSE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr
):
    """BLOCK_R rows (token, head) per program, all their pairs."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    pair = tl.arange(0, BLOCK_P)
    inside = (row < num_rows)[:, None] & (pair < half)[None, :]
    angle = (row // heads)[:, None] * half + pair[None, :]
    c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    if INVERSE:
        s = -s
    place = (row.to(tl.int64)[:, None] * half + pair[None, :]) * 2
    even = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(x + place + 1, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, (even * c - odd * s).to(y.dtype.element_ty), mask=inside)
    tl.store(y + place + 1, (even * s + odd * c).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARIABLE)
def round_trip_rows(x, y, num_groups, groups_per_row, width, GROUP: tl.constexpr, BLOCK_G: tl.constexpr,
                    BLOCK_D: tl.constexpr, IS_FP4: tl.constexpr):  # fmt: skip
    """BLOCK_G groups per program."""
    group = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    row, first = group // groups_per_row, (group % groups_per_row) * GROUP
    d = tl.arange(0, BLOCK_D)
    channel = first[:, None] + d[None, :]
    inside = (group < num_groups)[:, None] & (d < GROUP)[None, :] & (channel < width)
    place = row.to(tl.int64)[:, None] * width + channel
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(values), 1)
    if IS_FP4:
        byte = scale_byte(tl.maximum(amax, 7.052966104933725e-38), 6.0)  # 6 * 2^-126
        scaled = values * power_of_two(254 - byte)[:, None]
        values = e2m1_value(e2m1_code(scaled))
    else:
        byte = scale_byte(tl.maximum(amax, 1e-4), 448.0)
        values = to_e4m3(values * power_of_two(254 - byte)[:, None]).to(tl.float32)
    tl.store(y + place, (values * power_of_two(byte)[:, None]).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARIABLE)
def hadamard_rows(x, y, num_rows, factor, LOG: tl.constexpr, BLOCK_R: tl.constexpr):
    """BLOCK_R rows of 2^LOG channels per program."""
    WIDTH: tl.constexpr = 1 << LOG
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    place = row.to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = (row < num_rows)[:, None] & (tl.arange(0, WIDTH) >= 0)[None, :]
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    for bit in tl.static_range(LOG):
        shaped = tl.reshape(values, [BLOCK_R, WIDTH >> (bit + 1), 2, 1 << bit])
        low, high = tl.split(tl.permute(shaped, [0, 1, 3, 2]))
        values = tl.reshape(tl.permute(tl.join(low + high, low - high), [0, 1, 3, 2]), [BLOCK_R, WIDTH])
    tl.store(y + place, (values * factor).to(y.dtype.element_ty), mask=inside)
