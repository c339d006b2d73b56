"""Matrix products: linear, one matrix per group, one matrix per expert; the expert's first half with its SwiGLU."""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.accumulate import accumulate
from dsv4_kernels.triton_lang.device.numbers import VARIABLE, power_of_two, scale_byte, sigmoid, to_e4m3


@triton.jit
def places(slots, block_group, num_slots, ROUTED: tl.constexpr, BLOCK_T: tl.constexpr):
    """The slots [BLOCK_T] of this block of tokens (-1 = none) and the group whose matrix serves them (-1 = idle)."""
    block = tl.program_id(1)
    place = block * BLOCK_T + tl.arange(0, BLOCK_T)
    if ROUTED:
        group = tl.load(block_group + block)
        slot = tl.load(slots + place, mask=group + place * 0 >= 0, other=-1)
    else:
        group = tl.program_id(2)
        slot = tl.where(place < num_slots, place, -1)
    return slot, group


@triton.jit(do_not_specialize=VARIABLE)
def linear_kernel(x, x_scales, w, w_scales, alphas, y, slots, block_group, num_slots, N, K, split_y, blocks_per_split,
                  FORMAT: tl.constexpr, ROUTED: tl.constexpr, HAS_ALPHA: tl.constexpr, GROUPS: tl.constexpr,
                  IS_SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
                  BLOCK_K: tl.constexpr):  # fmt: skip
    """y[slot, g] = alpha_g · W_g x[slot, g]; grid: weight rows, tokens, groups.

    With ROUTED a table names the group of each block of slots, and x and y have one row per slot. With IS_SPLIT the
    third axis counts parts of K instead, and their results stand split_y apart.
    """
    slot, group = places(slots, block_group, num_slots, ROUTED, BLOCK_T)
    part = tl.program_id(2) * 0
    if IS_SPLIT:
        part = tl.program_id(2)
        group = part * 0
    if group >= 0:
        has_token = slot >= 0
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        has_row = n < N
        line = tl.where(has_token, slot, 0)
        if GROUPS > 1:
            line = line * GROUPS + group
        first = part * blocks_per_split * 256  # the compiler sees that parts begin at aligned columns
        acc = accumulate(x, x_scales, w, w_scales, group * N + n, has_row, line, has_token, first,
                         tl.minimum(first + blocks_per_split * 256, K), K, FORMAT,
                         BLOCK_N, BLOCK_T, BLOCK_K)  # fmt: skip
        if HAS_ALPHA:
            acc = acc * tl.load(alphas + group)
        out = y + part.to(tl.int64) * split_y + line.to(tl.int64)[None, :] * N + n[:, None]
        tl.store(out, acc.to(y.dtype.element_ty), mask=has_row[:, None] & has_token[None, :])


@triton.jit(do_not_specialize=VARIABLE)
def expert_up_kernel(x, x_scales, w1, w1_scales, w3, w3_scales, alphas, alphas3, gates, hidden,
                     hidden_scales, slots, block_group, num_slots, N, K, limit,
                     FORMAT: tl.constexpr, ROUTED: tl.constexpr, HAS_ALPHA: tl.constexpr,
                     HAS_GATES: tl.constexpr, SHARED_BY: tl.constexpr, OUT: tl.constexpr,
                     BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """hidden[slot] = gate · silu(min(W1 x, limit)) · clip(W3 x, ±limit), rounded as OUT says.

    OUT: "plain"; "trip" through e4m3 with one scale per 128 columns and back; "fp8" the codes and scale bytes of that.
    Rule: BLOCK_N is 128 unless OUT is plain, so that a scale's columns stand in one tile.
    """
    slot, group = places(slots, block_group, num_slots, ROUTED, BLOCK_T)
    if group >= 0:
        has_token = slot >= 0
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        has_row = n < N
        token = tl.where(has_token, slot // SHARED_BY, 0)
        row = group * N + n
        a = accumulate(x, x_scales, w1, w1_scales, row, has_row, token, has_token, 0, K, K, FORMAT,
                       BLOCK_N, BLOCK_T, BLOCK_K)  # fmt: skip
        b = accumulate(x, x_scales, w3, w3_scales, row, has_row, token, has_token, 0, K, K, FORMAT,
                       BLOCK_N, BLOCK_T, BLOCK_K)  # fmt: skip
        if HAS_ALPHA:
            a, b = a * tl.load(alphas + group), b * tl.load(alphas3 + group)
        a = tl.minimum(a, limit)
        f = a * sigmoid(a) * tl.minimum(tl.maximum(b, -limit), limit)
        if HAS_GATES:
            f = f * tl.load(gates + slot, mask=has_token, other=0.0).to(tl.float32)[None, :]
        keep = has_row[:, None] & has_token[None, :]
        place = slot.to(tl.int64)[None, :] * N + n[:, None]
        if OUT == "plain":
            tl.store(hidden + place, f.to(hidden.dtype.element_ty), mask=keep)
        else:
            amax = tl.max(tl.where(has_row[:, None], tl.abs(f), 0.0), 0)
            byte = scale_byte(tl.maximum(amax, 1e-4), 448.0)
            codes = to_e4m3(f * power_of_two(254 - byte)[None, :])
            if OUT == "fp8":
                tl.store(hidden + place, codes, mask=keep)
                at = slot.to(tl.int64) * ((N + 127) // 128) + tl.program_id(0)
                tl.store(hidden_scales + at, byte.to(tl.uint8), mask=has_token)
            else:
                back = codes.to(tl.float32) * power_of_two(byte)[None, :]
                tl.store(hidden + place, back.to(hidden.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=VARIABLE)
def sum_parts(parts, y, size, num_parts, distance, BLOCK: tl.constexpr):
    """y = the sum of the parts, in their order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(num_parts):
        total += tl.load(parts + part * distance + place, mask=place < size, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=place < size)


@triton.jit
def combine_slots(slots, ids, y, width, K: tl.constexpr, BLOCK_D: tl.constexpr):
    """y[t] = the sum of slots[t, 0 … K - 1] in their order; a slot whose id is -1 was never written: it adds 0."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for k in range(K):
        is_used = tl.load(ids + token * K + k) + d * 0 >= 0
        total += tl.load(slots + (token * K + k) * width + d, mask=(d < width) & is_used, other=0.0).to(tl.float32)
    tl.store(y + token * width + d, total.to(y.dtype.element_ty), mask=d < width)


@triton.jit(do_not_specialize=VARIABLE)
def schedule_experts(ids, slots, block_group, num_slots, num_blocks, NUM_EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr,
                     BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """Sort slots by expert, each expert's padded with -1 to whole blocks of BLOCK_T. One program per expert, one more.

    The number of blocks is a bound that the host knows, so nothing waits for the ids; blocks past the last are idle.
    """
    expert = tl.program_id(0)
    bins = tl.arange(0, BLOCK_E)
    counts = tl.zeros([BLOCK_E], tl.int32)
    for first in range(0, num_slots, BLOCK_S):
        place = first + tl.arange(0, BLOCK_S)
        id = tl.load(ids + place, mask=place < num_slots, other=-1).to(tl.int32)
        counts += tl.histogram(tl.where(id < 0, BLOCK_E - 1, id), BLOCK_E)
    blocks = tl.where(bins < NUM_EXPERTS, (counts + BLOCK_T - 1) // BLOCK_T, 0)
    begin = tl.sum(tl.where(bins < expert, blocks, 0), 0)
    mine = tl.sum(tl.where(bins == expert, blocks, 0), 0)
    if expert == NUM_EXPERTS:
        for block in range(begin, num_blocks):
            tl.store(block_group + block, -1)
    else:
        for block in range(begin, begin + mine):
            tl.store(block_group + block, expert)
        for first in range(0, mine * BLOCK_T, BLOCK_T):
            tl.store(slots + begin * BLOCK_T + first + tl.arange(0, BLOCK_T), tl.full([BLOCK_T], -1, tl.int32))
        tl.debug_barrier()
        found = begin * 0
        for first in range(0, num_slots, BLOCK_S):
            place = first + tl.arange(0, BLOCK_S)
            is_mine = tl.load(ids + place, mask=place < num_slots, other=-1).to(tl.int32) == expert
            rank = tl.cumsum(is_mine.to(tl.int32), 0) - 1
            tl.store(slots + begin * BLOCK_T + found + rank, place, mask=is_mine)
            found += tl.sum(is_mine.to(tl.int32), 0)
