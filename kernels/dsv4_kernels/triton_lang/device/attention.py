"""Sparse attention over window and entry rows with a sink: split over the rows, then combined."""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.numbers import VARIABLE
from dsv4_kernels.triton_lang.device.rows import load_channels


@triton.jit
def product(left, right, acc, IS_SWAPPED: tl.constexpr):
    """acc + left · right, computed as rightᵀ · leftᵀ where IS_SWAPPED."""
    if IS_SWAPPED:
        return tl.trans(tl.dot(tl.trans(right), tl.trans(left), tl.trans(acc), input_precision="tf32x3"))
    return tl.dot(left, right, acc, input_precision="tf32x3")


@triton.jit
def attend_tile(top, below, sum0, sum1, sum2, sum3, q0, q1, q2, q3, row, valid, scale, FORMAT: tl.constexpr,
                WIDTH: tl.constexpr, ROPE: tl.constexpr, QUARTER: tl.constexpr, DOT: tl.constexpr,
                HEADS_LEFT: tl.constexpr):  # fmt: skip
    """Take BLOCK_J rows into the running softmax (top, below [H]) and its sums [QUARTER, H]; scale is for base 2.

    Rows, then channels, stand on the left of the products and heads on the right: channels fill the tensor core's rows
    whatever the number of heads. HEADS_LEFT swaps them where a left operand may stand in registers (wgmma, mma.sync):
    rows on the left would have to be decoded in its register layout. Channels go by quarters, so that decoding one
    takes few registers.
    """
    kv0 = load_channels(row, valid, 0, QUARTER, FORMAT, WIDTH, ROPE).to(DOT)
    scores = tl.zeros([row.shape[0], top.shape[0]], tl.float32)
    scores = product(kv0, q0, scores, HEADS_LEFT)
    kv1 = load_channels(row, valid, QUARTER, QUARTER, FORMAT, WIDTH, ROPE).to(DOT)
    scores = product(kv1, q1, scores, HEADS_LEFT)
    kv2 = load_channels(row, valid, 2 * QUARTER, QUARTER, FORMAT, WIDTH, ROPE).to(DOT)
    scores = product(kv2, q2, scores, HEADS_LEFT)
    kv3 = load_channels(row, valid, 3 * QUARTER, QUARTER, FORMAT, WIDTH, ROPE).to(DOT)
    scores = product(kv3, q3, scores, HEADS_LEFT) * scale  # [J, H]
    scores = tl.where(valid[:, None], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 0))
    weights = tl.where(valid[:, None], tl.exp2(scores - higher[None, :]), 0.0)
    kept = tl.exp2(top - higher)
    below = below * kept + tl.sum(weights, 0)
    weights = weights.to(DOT)
    sum0 = product(tl.trans(kv0), weights, sum0 * kept[None, :], HEADS_LEFT)
    sum1 = product(tl.trans(kv1), weights, sum1 * kept[None, :], HEADS_LEFT)
    sum2 = product(tl.trans(kv2), weights, sum2 * kept[None, :], HEADS_LEFT)
    sum3 = product(tl.trans(kv3), weights, sum3 * kept[None, :], HEADS_LEFT)
    return higher, below, sum0, sum1, sum2, sum3


@triton.jit
def load_query(at, has_head, d, WIDTH: tl.constexpr, DOT: tl.constexpr):
    """Channels d of BLOCK_H heads, [D, H]; at: pointers to the heads' first channels [H]."""
    return tl.load(at[None, :] + d[:, None], mask=has_head[None, :] & (d < WIDTH)[:, None], other=0.0).to(DOT)


@triton.jit
def store_sum(at, has_head, d, values, WIDTH: tl.constexpr):
    """The counterpart of `load_query`."""
    keep = has_head[None, :] & (d < WIDTH)[:, None]
    tl.store(at[None, :] + d[:, None], values.to(at.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=VARIABLE)
def attend_split(query, ring, fresh, window_rows, entries, entry_rows, sink, out, tops, belows, num_heads, num_window,
                 num_chosen, num_splits, tiles_per_split, scale, WINDOW: tl.constexpr, ENTRIES: tl.constexpr,
                 WIDTH: tl.constexpr, WINDOW_ROPE: tl.constexpr, ENTRY_ROPE: tl.constexpr, WINDOW_BYTES: tl.constexpr,
                 ENTRY_BYTES: tl.constexpr, WINDOW_ALIGN: tl.constexpr, ENTRY_ALIGN: tl.constexpr,
                 IS_SPLIT: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
                 DOT: tl.constexpr, HEADS_LEFT: tl.constexpr):  # fmt: skip
    """One token, BLOCK_H heads and one split of its rows. The result is final, or partial where IS_SPLIT.

    Shapes: query [T, H, WIDTH]; rows int64 [T, num_window], [T, num_chosen]; out [T, H, WIDTH], or partial
            [T, S, H, WIDTH] float32 with tops and belows [T, S, H]. WINDOW and ENTRIES name row formats.
    Rule:   rows begin at multiples of WINDOW_ALIGN and ENTRY_ALIGN bytes: the compiler does not see it through the
            choice of ring or fresh, and would load byte by byte. Nothing is moved out of the loops: some fifty
            addresses of wgmma's operands would stand in registers, and the sums in memory.
    """
    token = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    QUARTER: tl.constexpr = BLOCK_D // 4
    d = tl.arange(0, QUARTER)
    has_head = h < num_heads
    at = query + (token * num_heads + h) * WIDTH
    q0 = load_query(at, has_head, d, WIDTH, DOT)
    q1 = load_query(at, has_head, d + QUARTER, WIDTH, DOT)
    q2 = load_query(at, has_head, d + 2 * QUARTER, WIDTH, DOT)
    q3 = load_query(at, has_head, d + 3 * QUARTER, WIDTH, DOT)
    top = tl.full([BLOCK_H], -3.0e38, tl.float32)
    below = tl.zeros([BLOCK_H], tl.float32)
    sum0 = tl.zeros([QUARTER, BLOCK_H], tl.float32)
    sum1 = tl.zeros([QUARTER, BLOCK_H], tl.float32)
    sum2 = tl.zeros([QUARTER, BLOCK_H], tl.float32)
    sum3 = tl.zeros([QUARTER, BLOCK_H], tl.float32)
    window_tiles = (num_window + BLOCK_J - 1) // BLOCK_J
    from_tile = split * tiles_per_split
    to_tile = from_tile + tiles_per_split
    for tile in tl.range(from_tile, tl.minimum(to_tile, window_tiles), disable_licm=True):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        row = tl.load(window_rows + token * num_window + j, mask=j < num_window, other=-1)
        place = tl.where(row >= 0, ring + row * WINDOW_BYTES, fresh + tl.maximum(-2 - row, 0) * WINDOW_BYTES)
        place = tl.multiple_of(place, WINDOW_ALIGN)
        top, below, sum0, sum1, sum2, sum3 = attend_tile(
            top, below, sum0, sum1, sum2, sum3, q0, q1, q2, q3, place, row != -1, scale, WINDOW, WIDTH, WINDOW_ROPE,
            QUARTER, DOT, HEADS_LEFT)  # fmt: skip
    entry_tiles = (num_chosen + BLOCK_J - 1) // BLOCK_J
    for tile in tl.range(tl.maximum(from_tile, window_tiles) - window_tiles,
                         tl.minimum(to_tile - window_tiles, entry_tiles), disable_licm=True):  # fmt: skip
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        row = tl.load(entry_rows + token * num_chosen + j, mask=j < num_chosen, other=-1)
        place = tl.multiple_of(entries + tl.maximum(row, 0) * ENTRY_BYTES, ENTRY_ALIGN)
        top, below, sum0, sum1, sum2, sum3 = attend_tile(
            top, below, sum0, sum1, sum2, sum3, q0, q1, q2, q3, place, row >= 0, scale, ENTRIES, WIDTH, ENTRY_ROPE,
            QUARTER, DOT, HEADS_LEFT)  # fmt: skip
    line = (token * num_splits + split) * num_heads + h
    if not IS_SPLIT:
        logit = tl.load(sink + h, mask=has_head, other=0.0).to(tl.float32) * 1.4426950408889634
        higher = tl.maximum(top, logit)
        kept = tl.exp2(top - higher)
        total = below * kept + tl.exp2(logit - higher)
        factor = tl.where(total > 0.0, kept / tl.where(total > 0.0, total, 1.0), 0.0)
        sum0, sum1 = sum0 * factor[None, :], sum1 * factor[None, :]
        sum2, sum3 = sum2 * factor[None, :], sum3 * factor[None, :]
    else:
        tl.store(tops + line, top, mask=has_head)
        tl.store(belows + line, below, mask=has_head)
    at = out + line * WIDTH
    store_sum(at, has_head, d, sum0, WIDTH)
    store_sum(at, has_head, d + QUARTER, sum1, WIDTH)
    store_sum(at, has_head, d + 2 * QUARTER, sum2, WIDTH)
    store_sum(at, has_head, d + 3 * QUARTER, sum3, WIDTH)


@triton.jit(do_not_specialize=VARIABLE)
def combine_splits(partial, tops, belows, sink, out, num_heads, num_splits, WIDTH: tl.constexpr, BLOCK_S: tl.constexpr,
                   BLOCK_D: tl.constexpr):  # fmt: skip
    """One token and one head per program."""
    token, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    line = (token * num_splits + s) * num_heads + h
    top = tl.load(tops + line, mask=s < num_splits, other=-3.0e38)
    below = tl.load(belows + line, mask=s < num_splits, other=0.0)
    logit = tl.load(sink + h).to(tl.float32) * 1.4426950408889634
    higher = tl.maximum(tl.max(top, 0), logit)
    kept = tl.exp2(top - higher)
    total = tl.sum(below * kept, 0) + tl.exp2(logit - higher)
    inside = (s < num_splits)[:, None] & (d < WIDTH)[None, :]
    parts = tl.load(partial + line[:, None] * WIDTH + d[None, :], mask=inside, other=0.0)
    result = tl.sum(parts * kept[:, None], 0)
    result = tl.where(total > 0.0, result / tl.where(total > 0.0, total, 1.0), 0.0)
    tl.store(out + (token * num_heads + h) * WIDTH + d, result.to(out.dtype.element_ty), mask=d < WIDTH)
