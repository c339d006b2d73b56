"""The inner loops of all matrix products: weight rows on the left (the 128-row operand), tokens on the right.

acc [BLOCK_N weight rows, BLOCK_T tokens] float32 over a part of K. With few tokens this is the "swapped" product that
tensor cores ask for: their row dimension is filled by the weight, and tokens may be as few as 16.

| FORMAT | weight | tokens | multiplied as |
|---|---|---|---|
| dense | bf16 or float32 | the same | bf16, or tf32 in three parts |
| fp8 | e4m3, one power of two per 128x128 | e4m3, one per 128 | e4m3, scales outside |
| mxfp8 | the same | the same | e4m3, scales inside the tensor core |
| mxfp4 | e2m1, one power of two per 32 | e4m3, one per 128 | e2m1 x e4m3, scales inside |
| mxfp4_as_fp8 | the same | the same | the weight widened to e4m3 (exact), scales inside |
| mxfp4_as_bf16 | the same | the same | both widened to bf16 (exact), token scales outside |
| nvfp4 | e2m1, one e4m3 per 16 | the same | e2m1 x e2m1, scales inside |
| nvfp4_as_bf16 | the same | bf16 | the weight widened to bf16 (exact) |
"""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.numbers import power_of_two, spread, unpack_e2m1


@triton.jit
def accumulate(x, x_scales, w, w_scales, row, has_row, token, has_token, k_from, k_to, K, FORMAT: tl.constexpr,
               BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Sum over k_from … k_to - 1. row [BLOCK_N], token [BLOCK_T]: row numbers in w and in x.

    Rule: k_from is a multiple of 256 and of BLOCK_K. Weights, tokens and their scales are row-major without gaps.
    """
    # wgmma's sums fill the registers: the addresses of its operands, moved out of the loop, would not fit beside them
    IS_FULL: tl.constexpr = FORMAT == "fp8" or FORMAT == "mxfp4_as_bf16"
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for k in tl.range(k_from, k_to, BLOCK_K, disable_licm=IS_FULL):
        if FORMAT == "dense":
            acc = dense_step(acc, x, w, row, has_row, token, has_token, k, K, BLOCK_K)
        elif FORMAT == "fp8":
            acc = fp8_step(acc, x, x_scales, w, w_scales, row, has_row, token, has_token, k, K, BLOCK_K)
        elif FORMAT == "nvfp4":
            acc = nvfp4_step(acc, x, x_scales, w, w_scales, row, has_row, token, has_token, k, K, BLOCK_K)
        elif FORMAT == "nvfp4_as_bf16":
            acc = nvfp4_wide_step(acc, x, w, w_scales, row, has_row, token, has_token, k, K, BLOCK_K)
        else:
            acc = mx_step(acc, x, x_scales, w, w_scales, row, has_row, token, has_token, k, K, FORMAT, BLOCK_K)
    return acc


@triton.jit
def weight_tile(w, row, has_row, column, stride):
    """[BLOCK_N, columns] of a row-major weight; zeros outside."""
    place = row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(w + place, mask=has_row[:, None] & (column < stride)[None, :], other=0.0)


@triton.jit
def token_tile(x, token, has_token, column, stride):
    """[columns, BLOCK_T]: each token's row is a column; zeros outside."""
    place = token.to(tl.int64)[None, :] * stride + column[:, None]
    return tl.load(x + place, mask=has_token[None, :] & (column < stride)[:, None], other=0.0)


@triton.jit
def dense_step(acc, x, w, row, has_row, token, has_token, k, K, BLOCK_K: tl.constexpr):
    """bf16, or float32 as three tf32 products."""
    column = k + tl.arange(0, BLOCK_K)
    left = weight_tile(w, row, has_row, column, K)
    right = token_tile(x, token, has_token, column, K).to(left.dtype)
    return tl.dot(left, right, acc, input_precision="tf32x3")


@triton.jit
def fp8_step(acc, x, x_scales, w, w_scales, row, has_row, token, has_token, k, K, BLOCK_K: tl.constexpr):
    """One 128-column block of both scales: they multiply the partial sum."""
    column = k + tl.arange(0, BLOCK_K)
    left = weight_tile(w, row, has_row, column, K)
    right = token_tile(x, token, has_token, column, K)
    groups = (K + 127) // 128
    ws = tl.load(w_scales + (row // 128) * groups + k // 128, mask=has_row, other=0)
    xs = tl.load(x_scales + token.to(tl.int64) * groups + k // 128, mask=has_token, other=0)
    return acc + tl.dot(left, right) * power_of_two(ws)[:, None] * power_of_two(xs)[None, :]


@triton.jit
def mx_step(acc, x, x_scales, w, w_scales, row, has_row, token, has_token, k, K, FORMAT: tl.constexpr,
            BLOCK_K: tl.constexpr):  # fmt: skip
    """Power-of-two scales inside the tensor core, one per 32 columns: coarser ones are repeated, which is exact."""
    column = k + tl.arange(0, BLOCK_K)
    part = k // 32 + tl.arange(0, BLOCK_K // 32)
    groups = (K + 127) // 128
    right = token_tile(x, token, has_token, column, K)
    if FORMAT == "mxfp8":
        left = weight_tile(w, row, has_row, column, K)
        ws = tl.load(w_scales + (row // 128)[:, None] * groups + (part // 4)[None, :],
                     mask=has_row[:, None] & (part * 32 < K)[None, :], other=0)  # fmt: skip
    else:
        left = weight_tile(w, row, has_row, k // 2 + tl.arange(0, BLOCK_K // 2), K // 2)
        ws = weight_tile(w_scales, row, has_row, part, K // 32)
    if FORMAT == "mxfp4_as_bf16":
        wide = spread(unpack_e2m1(left), power_of_two(ws), 32).to(tl.bfloat16)
        xs = tl.load(x_scales + token.to(tl.int64) * groups + k // 128, mask=has_token, other=0)
        acc += tl.dot(wide, right.to(tl.float32).to(tl.bfloat16)) * power_of_two(xs)[None, :]
    else:
        xs = tl.load(x_scales + token.to(tl.int64)[:, None] * groups + (part // 4)[None, :],
                     mask=has_token[:, None] & (part * 32 < K)[None, :], other=0)  # fmt: skip
        if FORMAT == "mxfp4":
            acc = tl.dot_scaled(left, ws, "e2m1", right, xs, "e4m3", acc)
        elif FORMAT == "mxfp4_as_fp8":
            acc = tl.dot_scaled(unpack_e2m1(left).to(tl.float8e4nv), ws, "e4m3", right, xs, "e4m3", acc)
        else:
            acc = tl.dot_scaled(left, ws, "e4m3", right, xs, "e4m3", acc)
    return acc


@triton.jit
def nvfp4_step(acc, x, x_scales, w, w_scales, row, has_row, token, has_token, k, K, BLOCK_K: tl.constexpr):
    """e4m3 scales per 16 columns on both sides, inside the tensor core."""
    half = k // 2 + tl.arange(0, BLOCK_K // 2)
    part = k // 16 + tl.arange(0, BLOCK_K // 16)
    left = weight_tile(w, row, has_row, half, K // 2)
    ws = weight_tile(w_scales, row, has_row, part, K // 16)
    right = token_tile(x, token, has_token, half, K // 2)
    xs = weight_tile(x_scales, token, has_token, part, K // 16)
    return tl.dot_scaled(left, ws, "e2m1", right, xs, "e2m1", acc)


@triton.jit
def nvfp4_wide_step(acc, x, w, w_scales, row, has_row, token, has_token, k, K, BLOCK_K: tl.constexpr):
    """Code times scale has at most six significant bits, so bf16 holds it exactly."""
    left = weight_tile(w, row, has_row, k // 2 + tl.arange(0, BLOCK_K // 2), K // 2)
    ws = weight_tile(w_scales, row, has_row, k // 16 + tl.arange(0, BLOCK_K // 16), K // 16)
    wide = spread(unpack_e2m1(left), ws.to(tl.float32), 16).to(tl.bfloat16)
    right = token_tile(x, token, has_token, k + tl.arange(0, BLOCK_K), K).to(tl.bfloat16)
    return tl.dot(wide, right, acc)
