"""Number formats: powers of two, e4m3 and e2m1, exactly as `dsv4_kernels.tensors` defines them."""

import triton
import triton.language as tl

# What differs from step to step: no kernel is compiled anew because one of these is 1 or a multiple of 16.
VARIABLE = (
    "num_slots", "num_tokens", "num_rows", "num_groups", "num_blocks", "num_parts", "num_runs", "num_entries", "size",
    "distance", "split_y", "blocks_per_split", "tiles_per_split", "num_splits", "line_pages",
)  # fmt: skip


@triton.jit
def power_of_two(byte):
    """UE8M0 bytes s as float32 2^(s - 127), exact for 0 … 254."""
    wide = byte.to(tl.int32)
    bits = tl.where(wide == 0, 1 << 22, wide << 23)  # 2^-127 is subnormal
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def scale_byte(amax, LARGEST: tl.constexpr):
    """UE8M0 byte of the smallest power of two s with amax <= LARGEST * s; amax > 0. Division rounds to nearest."""
    bits = tl.math.div_rn(amax, amax * 0 + LARGEST).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
    return tl.minimum(tl.where(bits <= (1 << 22), 0, exponent), 254)


@triton.jit
def to_e4m3(values):
    """Nearest even, saturating at 448."""
    return tl.minimum(tl.maximum(values, -448.0), 448.0).to(tl.float8e4nv)


@triton.jit
def e2m1_code(values):
    """Nearest e2m1 code, ties to the even index, saturating; int32 0 … 15."""
    size = tl.abs(values)
    code = (size > 0.25).to(tl.int32) + (size >= 0.75).to(tl.int32) + (size > 1.25).to(tl.int32)
    code += (size >= 1.75).to(tl.int32) + (size > 2.5).to(tl.int32) + (size >= 3.5).to(tl.int32)
    code += (size > 5.0).to(tl.int32)
    sign = (values.to(tl.int32, bitcast=True) >> 31) & 1
    return code | (sign << 3)


@triton.jit
def e2m1_value(code):
    """The float32 worth of e2m1 codes: exponent and mantissa bits placed in a float32, times 2^126."""
    wide = code.to(tl.int32)
    magnitude = ((wide & 7) << 22).to(tl.float32, bitcast=True) * 8.507059173023462e37
    return tl.where((wide & 8) != 0, -magnitude, magnitude)


@triton.jit
def unpack_e2m1(packed):
    """Bytes [R, K / 2] to float32 [R, K], the low nibble first."""
    return tl.interleave(e2m1_value(packed & 15), e2m1_value(packed >> 4))


@triton.jit
def spread(values, scales, GROUP: tl.constexpr):
    """values [R, K] times scales [R, K / GROUP], each for its GROUP columns."""
    R: tl.constexpr = values.shape[0]
    K: tl.constexpr = values.shape[1]
    scaled = tl.reshape(values, [R, K // GROUP, GROUP]) * tl.expand_dims(scales, 2)
    return tl.reshape(scaled, [R, K])


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))
