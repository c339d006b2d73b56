"""Sparse attention over window and entry rows with a sink: split over the rows, then combined."""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.numbers import VARIABLE
from dsv4_kernels.triton_lang.device.rows import load_channels


@triton.jit
def attend_tile(top, below, left, right, q_left, q_right, row, valid, d, scale, FORMAT: tl.constexpr,
                WIDTH: tl.constexpr, ROPE: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """Take BLOCK_J rows into the running softmax (top, below [H]) and its sums [D / 2, H]; scale is for base 2.

    Rows, then channels, stand on the left of the products and heads on the right, so that the sums of 64 heads take
    half of the tensor memory; with heads on the left they would take all of it.
    """
    kv_left = load_channels(row, valid, d, FORMAT, WIDTH, ROPE).to(DOT)
    kv_right = load_channels(row, valid, d + BLOCK_D // 2, FORMAT, WIDTH, ROPE).to(DOT)
    scores = tl.dot(kv_left, q_left, input_precision="tf32x3")
    scores = tl.dot(kv_right, q_right, scores, input_precision="tf32x3") * scale  # [J, H]
    scores = tl.where(valid[:, None], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 0))
    weights = tl.where(valid[:, None], tl.exp2(scores - higher[None, :]), 0.0)
    kept = tl.exp2(top - higher)
    below = below * kept + tl.sum(weights, 0)
    weights = weights.to(DOT)
    left = tl.dot(tl.trans(kv_left), weights, left * kept[None, :], input_precision="tf32x3")
    right = tl.dot(tl.trans(kv_right), weights, right * kept[None, :], input_precision="tf32x3")
    return higher, below, left, right


@triton.jit(do_not_specialize=VARIABLE)
def attend_split(query, ring, fresh, window_rows, entries, entry_rows, sink, out, tops, belows, num_heads, num_window,
                 num_chosen, tiles_per_split, scale, WINDOW: tl.constexpr, ENTRIES: tl.constexpr, WIDTH: tl.constexpr,
                 WINDOW_ROPE: tl.constexpr, ENTRY_ROPE: tl.constexpr, WINDOW_BYTES: tl.constexpr,
                 ENTRY_BYTES: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_J: tl.constexpr,
                 BLOCK_D: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """One token, BLOCK_H heads and one split of its rows. With one split the result is final, otherwise partial.

    Shapes: query [T, H, WIDTH]; rows int64 [T, num_window], [T, num_chosen]; out [T, H, WIDTH], or partial
            [T, SPLITS, H, WIDTH] float32 with tops and belows [T, SPLITS, H]. WINDOW and ENTRIES name row formats.
    """
    token = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D // 2)
    has_head = h < num_heads
    has_left = has_head[None, :] & (d < WIDTH)[:, None]
    has_right = has_head[None, :] & (d + BLOCK_D // 2 < WIDTH)[:, None]
    at = query + (token * num_heads + h)[None, :] * WIDTH + d[:, None]
    q_left = tl.load(at, mask=has_left, other=0.0).to(DOT)
    q_right = tl.load(at + BLOCK_D // 2, mask=has_right, other=0.0).to(DOT)
    top = tl.full([BLOCK_H], -3.0e38, tl.float32)
    below = tl.zeros([BLOCK_H], tl.float32)
    left = tl.zeros([BLOCK_D // 2, BLOCK_H], tl.float32)
    right = tl.zeros([BLOCK_D // 2, BLOCK_H], tl.float32)
    window_tiles = (num_window + BLOCK_J - 1) // BLOCK_J
    from_tile = split * tiles_per_split
    to_tile = from_tile + tiles_per_split
    for tile in range(from_tile, tl.minimum(to_tile, window_tiles)):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        row = tl.load(window_rows + token * num_window + j, mask=j < num_window, other=-1)
        place = tl.where(row >= 0, ring + row * WINDOW_BYTES, fresh + tl.maximum(-2 - row, 0) * WINDOW_BYTES)
        top, below, left, right = attend_tile(top, below, left, right, q_left, q_right, place, row != -1, d, scale,
                                              WINDOW, WIDTH, WINDOW_ROPE, BLOCK_D, DOT)  # fmt: skip
    entry_tiles = (num_chosen + BLOCK_J - 1) // BLOCK_J
    for tile in range(tl.maximum(from_tile, window_tiles) - window_tiles,
                      tl.minimum(to_tile - window_tiles, entry_tiles)):  # fmt: skip
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        row = tl.load(entry_rows + token * num_chosen + j, mask=j < num_chosen, other=-1)
        place = entries + tl.maximum(row, 0) * ENTRY_BYTES
        top, below, left, right = attend_tile(top, below, left, right, q_left, q_right, place, row >= 0, d, scale,
                                              ENTRIES, WIDTH, ENTRY_ROPE, BLOCK_D, DOT)  # fmt: skip
    line = (token * SPLITS + split) * num_heads + h
    if SPLITS == 1:
        logit = tl.load(sink + h, mask=has_head, other=0.0).to(tl.float32) * 1.4426950408889634
        higher = tl.maximum(top, logit)
        kept = tl.exp2(top - higher)
        total = below * kept + tl.exp2(logit - higher)
        factor = tl.where(total > 0.0, kept / tl.where(total > 0.0, total, 1.0), 0.0)
        left, right = left * factor[None, :], right * factor[None, :]
    else:
        tl.store(tops + line, top, mask=has_head)
        tl.store(belows + line, below, mask=has_head)
    place = out + line[None, :] * WIDTH + d[:, None]
    tl.store(place, left.to(out.dtype.element_ty), mask=has_left)
    tl.store(place + BLOCK_D // 2, right.to(out.dtype.element_ty), mask=has_right)


@triton.jit
def combine_splits(partial, tops, belows, sink, out, num_heads, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
                   BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """One token and one head per program."""
    token, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    line = (token * SPLITS + s) * num_heads + h
    top = tl.load(tops + line, mask=s < SPLITS, other=-3.0e38)
    below = tl.load(belows + line, mask=s < SPLITS, other=0.0)
    logit = tl.load(sink + h).to(tl.float32) * 1.4426950408889634
    higher = tl.maximum(tl.max(top, 0), logit)
    kept = tl.exp2(top - higher)
    total = tl.sum(below * kept, 0) + tl.exp2(logit - higher)
    inside = (s < SPLITS)[:, None] & (d < WIDTH)[None, :]
    parts = tl.load(partial + line[:, None] * WIDTH + d[None, :], mask=inside, other=0.0)
    result = tl.sum(parts * kept[:, None], 0)
    result = tl.where(total > 0.0, result / tl.where(total > 0.0, total, 1.0), 0.0)
    tl.store(out + (token * num_heads + h) * WIDTH + d, result.to(out.dtype.element_ty), mask=d < WIDTH)
