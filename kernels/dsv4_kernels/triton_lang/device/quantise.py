"""Tokens in the formats that tensor cores multiply: codes and scales apart."""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.numbers import VARIABLE, e2m1_code, power_of_two, scale_byte, to_e4m3


@triton.jit(do_not_specialize=VARIABLE)
def quantise_fp8_groups(x, codes, scales, num_groups, groups_per_row, width, GROUP: tl.constexpr,
                        BLOCK_G: tl.constexpr):  # fmt: skip
    """e4m3 with one power of two per GROUP columns, the last of a row may be short; BLOCK_G groups per program."""
    group = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    row = (group // groups_per_row).to(tl.int64)
    column = (group % groups_per_row)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (group < num_groups)[:, None] & (column < width)
    values = tl.load(x + row[:, None] * width + column, mask=inside, other=0.0).to(tl.float32)
    byte = scale_byte(tl.maximum(tl.max(tl.abs(values), 1), 1e-4), 448.0)
    tl.store(codes + row[:, None] * width + column, to_e4m3(values * power_of_two(254 - byte)[:, None]), mask=inside)
    tl.store(scales + group, byte.to(tl.uint8), mask=group < num_groups)


@triton.jit(do_not_specialize=VARIABLE)
def quantise_fp4_groups(x, codes, scales, num_groups, global_scale, GROUP: tl.constexpr, IS_NV: tl.constexpr,
                        BLOCK_G: tl.constexpr):  # fmt: skip
    """e2m1, two to a byte; IS_NV: an e4m3 scale per group under a global one, otherwise a power of two per group."""
    group = tl.program_id(0).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    half = tl.arange(0, GROUP // 2)
    has = group < num_groups
    place = group[:, None] * GROUP + 2 * half[None, :]
    a = tl.load(x + place, mask=has[:, None], other=0.0).to(tl.float32)
    b = tl.load(x + place + 1, mask=has[:, None], other=0.0).to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(a), 1), tl.max(tl.abs(b), 1))
    if IS_NV:
        scale = tl.math.div_rn(tl.math.div_rn(amax, amax * 0 + 6.0), amax * 0 + global_scale)
        scale = tl.minimum(scale, 448.0).to(tl.float8e4nv)
        factor = scale.to(tl.float32) * global_scale
        is_zero = (factor == 0.0)[:, None]
        below = tl.where(is_zero, 1.0, factor[:, None]) + half[None, :] * 0.0
        a = tl.where(is_zero, 0.0, tl.math.div_rn(a, below))
        b = tl.where(is_zero, 0.0, tl.math.div_rn(b, below))
        tl.store(scales + group, scale, mask=has)
    else:
        byte = scale_byte(tl.maximum(amax, 7.052966104933725e-38), 6.0)
        a = a * power_of_two(254 - byte)[:, None]
        b = b * power_of_two(254 - byte)[:, None]
        tl.store(scales + group, byte.to(tl.uint8), mask=has)
    packed = e2m1_code(a) | (e2m1_code(b) << 4)
    tl.store(codes + group[:, None] * (GROUP // 2) + half[None, :], packed.to(tl.uint8), mask=has[:, None])
