"""Pooling a block of tokens into an entry, at once or row by row."""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.numbers import VARIABLE


@triton.jit(do_not_specialize=VARIABLE)
def pool_block(values, gates, y, num_slots, width, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    """One block and BLOCK_D channels per program."""
    block = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    slot = tl.arange(0, BLOCK_S)
    inside = (slot < num_slots)[:, None] & (d < width)[None, :]
    place = (block * num_slots + slot)[:, None] * width + d[None, :]
    gate = tl.load(gates + place, mask=inside, other=float("-inf")).to(tl.float32)
    value = tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
    top = tl.where(d < width, tl.max(gate, 0), 0.0)
    weight = tl.exp(gate - top[None, :])
    total = tl.sum(weight * value, 0) / tl.sum(weight, 0)
    tl.store(y + block * width + d, total.to(y.dtype.element_ty), mask=d < width)


@triton.jit(do_not_specialize=VARIABLE)
def fold_runs(values, gates, states, begins, offsets, sources, ends, entries, num_runs, width, BLOCK_D: tl.constexpr):
    """BLOCK_D channels per program, run after run: a run may read the state that an earlier one stored."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < width
    entry = tl.program_id(0).to(tl.int64) * 0
    for run in range(num_runs):
        begin, end = tl.load(begins + run), tl.load(ends + run)
        at = states + tl.maximum(begin, 0) * 3 * width + d
        is_kept = inside & (begin + d * 0 >= 0)
        top = tl.load(at, mask=is_kept, other=float("-inf"))
        below = tl.load(at + width, mask=is_kept, other=0.0)
        total = tl.load(at + 2 * width, mask=is_kept, other=0.0)
        for place in range(tl.load(offsets + run), tl.load(offsets + run + 1)):
            source = tl.load(sources + place) * width + d
            gate = tl.load(gates + source, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(values + source, mask=inside, other=0.0).to(tl.float32)
            higher = tl.maximum(top, gate)
            kept, weight = tl.exp(top - higher), tl.exp(gate - higher)
            below = below * kept + weight
            total = total * kept + weight * value
            top = higher
        is_stored = inside & (end + d * 0 >= 0)
        out = states + tl.maximum(end, 0) * 3 * width + d
        tl.store(out, top, mask=is_stored)
        tl.store(out + width, below, mask=is_stored)
        tl.store(out + 2 * width, total, mask=is_stored)
        tl.store(
            entries + entry * width + d, (total / below).to(entries.dtype.element_ty), mask=inside & (end + d * 0 < 0)
        )
        entry += (end < 0).to(tl.int64)
