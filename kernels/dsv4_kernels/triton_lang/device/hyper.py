"""mHC: the prenorm projection with its sum of squares, the maps with their Sinkhorn steps, collapse, mix and head."""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.numbers import VARIABLE, sigmoid


@triton.jit(do_not_specialize=VARIABLE)
def project_part(streams, fn, parts, squares, num_tokens, num_rows, K, k_per_part, BLOCK_T: tl.constexpr,
                 BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Part p of fn · vec(streams) and of the sum of squares, for BLOCK_T tokens; grid: tokens, parts.

    Three tf32 products keep float32's accuracy: the maps pass through 20 Sinkhorn steps. fn may be float32 or bf16.
    """
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(1)
    n = tl.arange(0, BLOCK_N)
    has_token = token < num_tokens
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    square = tl.zeros([BLOCK_T], tl.float32)
    for k in range(part * k_per_part, tl.minimum((part + 1) * k_per_part, K), BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        inside = column < K
        x = tl.load(streams + token.to(tl.int64)[:, None] * K + column[None, :],
                    mask=has_token[:, None] & inside[None, :], other=0.0).to(tl.float32)  # fmt: skip
        f = tl.load(fn + n[None, :] * K + column[:, None], mask=(n < num_rows)[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(x, f.to(tl.float32), acc, input_precision="tf32x3")
        square += tl.sum(x * x, 1)
    at = part * num_tokens + token
    tl.store(parts + at[:, None] * num_rows + n[None, :], acc, mask=has_token[:, None] & (n < num_rows)[None, :])
    tl.store(squares + at, square, mask=has_token)


@triton.jit
def load_z(parts, squares, token, n, has, num_tokens, num_rows, width, norm_eps, NUM_PARTS: tl.constexpr):
    """z of tokens [T] at rows n [...] of fn, the factor of the norm included; shapes are the caller's."""
    z = tl.zeros(has.shape, tl.float32)
    square = tl.zeros(has.shape, tl.float32)
    for part in range(NUM_PARTS):
        at = part * num_tokens + token
        z += tl.load(parts + at * num_rows + n, mask=has, other=0.0)
        square += tl.load(squares + at, mask=has, other=0.0)
    return z / tl.sqrt(square / width + norm_eps)


@triton.jit(do_not_specialize=VARIABLE)
def finish_maps(parts, squares, base, scale, pre, post, comb, num_tokens, num_rows, width, norm_eps, hc_eps, ITERATIONS,
                N: tl.constexpr, NUM_PARTS: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """Sum the parts, then the three maps of BLOCK_T tokens. N is a power of two."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.arange(0, N)
    has = (token < num_tokens)[:, None] & (n >= 0)[None, :]
    t2 = token[:, None] + n[None, :] * 0
    place = token.to(tl.int64)[:, None] * N + n[None, :]
    z = load_z(parts, squares, t2, n[None, :], has, num_tokens, num_rows, width, norm_eps, NUM_PARTS)
    tl.store(pre + place, sigmoid(z * tl.load(scale) + tl.load(base + n)[None, :]) + hc_eps, mask=has)
    z = load_z(parts, squares, t2, N + n[None, :], has, num_tokens, num_rows, width, norm_eps, NUM_PARTS)
    tl.store(post + place, 2.0 * sigmoid(z * tl.load(scale + 1) + tl.load(base + N + n)[None, :]), mask=has)
    cell = n[:, None] * N + n[None, :]
    has3 = (token < num_tokens)[:, None, None] & (cell >= 0)[None, :, :]
    t3 = token[:, None, None] + cell[None, :, :] * 0
    z = load_z(parts, squares, t3, 2 * N + cell[None, :, :], has3, num_tokens, num_rows, width, norm_eps, NUM_PARTS)
    c = z * tl.load(scale + 2) + tl.load(base + 2 * N + cell)[None, :, :]
    c = tl.exp(c - tl.expand_dims(tl.max(c, 2), 2))
    c = c / tl.expand_dims(tl.sum(c, 2), 2) + hc_eps
    c = c / (tl.expand_dims(tl.sum(c, 1), 1) + hc_eps)
    for _ in range(ITERATIONS - 1):
        c = c / (tl.expand_dims(tl.sum(c, 2), 2) + hc_eps)
        c = c / (tl.expand_dims(tl.sum(c, 1), 1) + hc_eps)
    tl.store(comb + token.to(tl.int64)[:, None, None] * N * N + cell[None, :, :], c, mask=has3)


@triton.jit(do_not_specialize=VARIABLE)
def finish_head(parts, squares, base, scale, mixing, num_tokens, num_rows, width, norm_eps, hc_eps, N: tl.constexpr,
                NUM_PARTS: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """Sum the parts, then the head's weights of BLOCK_T tokens."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.arange(0, N)
    has = (token < num_tokens)[:, None] & (n >= 0)[None, :]
    t2 = token[:, None] + n[None, :] * 0
    z = load_z(parts, squares, t2, n[None, :], has, num_tokens, num_rows, width, norm_eps, NUM_PARTS)
    a = sigmoid(z * tl.load(scale) + tl.load(base + n)[None, :]) + hc_eps
    tl.store(mixing + token.to(tl.int64)[:, None] * N + n[None, :], a, mask=has)


@triton.jit
def collapse_streams(streams, pre, y, width, N: tl.constexpr, BLOCK_D: tl.constexpr):
    """One token and BLOCK_D channels per program; the sum runs in the order of n."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for n in tl.static_range(N):
        x = tl.load(streams + (token * N + n) * width + d, mask=d < width, other=0.0).to(tl.float32)
        total += tl.load(pre + token * N + n) * x
    tl.store(y + token * width + d, total.to(y.dtype.element_ty), mask=d < width)


@triton.jit
def mix_streams(streams, y, post, comb, out, width, N: tl.constexpr, BLOCK_D: tl.constexpr):
    """One token and BLOCK_D channels per program: every stream is read once and written once."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.arange(0, N)
    inside = d < width
    added = tl.load(y + token * width + d, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(post + token * N + k)[:, None] * added[None, :]
    for j in tl.static_range(N):
        x = tl.load(streams + (token * N + j) * width + d, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(comb + (token * N + j) * N + k)[:, None] * x[None, :]
    place = (token * N + k)[:, None] * width + d[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(k >= 0)[:, None] & inside[None, :])
