"""Scores of the compressed entries, and the choice of the k best with the smaller entry winning ties."""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.numbers import VARIABLE
from dsv4_kernels.triton_lang.device.rows import load_channels


@triton.jit
def entry_row(pages, entry, seen, PAGE_ROWS: tl.constexpr):
    """The cache row of each entry, on the page that it stands on; a page may be a single row."""
    page = tl.load(pages + entry // PAGE_ROWS, mask=seen, other=0)
    return page * PAGE_ROWS + entry % PAGE_ROWS


@triton.jit(do_not_specialize=VARIABLE)
def score_entries(query, head_weights, cache, rows, num_visible, scores, num_entries, line_pages, num_heads, k,
                  FORMAT: tl.constexpr, WIDTH: tl.constexpr, ROW_BYTES: tl.constexpr, PAGE_ROWS: tl.constexpr,
                  BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """Scores of BLOCK_C entries for one token. Entries stand on the left: they fill the tensor core's 128 rows.

    Blocks that are not visible, and tokens that see k entries at most, are left out: `select_best` does not read them.
    """
    token = tl.program_id(0).to(tl.int64)
    visible = tl.load(num_visible + token)
    first = tl.program_id(1) * BLOCK_C
    if (first < visible) & (visible > k):
        entry = first + tl.arange(0, BLOCK_C)
        seen = entry < visible
        row = entry_row(rows + token * line_pages, entry, seen, PAGE_ROWS)
        d = tl.arange(0, BLOCK_D)
        keys = load_channels(cache + row * ROW_BYTES, seen, 0, BLOCK_D, FORMAT, WIDTH, 0).to(DOT)
        total = tl.zeros([BLOCK_C], tl.float32)
        for head in range(0, num_heads, BLOCK_H):
            h = head + tl.arange(0, BLOCK_H)
            inside = (h < num_heads)[None, :] & (d < WIDTH)[:, None]
            q = tl.load(query + (token * num_heads + h)[None, :] * WIDTH + d[:, None], mask=inside, other=0.0)
            weight = tl.load(head_weights + token * num_heads + h, mask=h < num_heads, other=0.0).to(tl.float32)
            dots = tl.dot(keys, q.to(DOT), input_precision="tf32x3")
            total += tl.sum(tl.maximum(dots, 0.0) * weight[None, :], 1)
        tl.store(scores + token * num_entries + entry, total, mask=seen)


@triton.jit(do_not_specialize=VARIABLE)
def score_packed(query, query_scales, head_weights, cache, rows, num_visible, scores, num_entries, line_pages,
                 num_heads, k, WIDTH: tl.constexpr, ROW_BYTES: tl.constexpr, PAGE_ROWS: tl.constexpr,
                 BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """As `score_entries`, with query [T, H, WIDTH / 2] and keys in FP4: the tensor core multiplies e2m1 by e2m1."""
    token = tl.program_id(0).to(tl.int64)
    visible = tl.load(num_visible + token)
    first = tl.program_id(1) * BLOCK_C
    if (first < visible) & (visible > k):
        entry = first + tl.arange(0, BLOCK_C)
        seen = entry < visible
        start = cache + entry_row(rows + token * line_pages, entry, seen, PAGE_ROWS) * ROW_BYTES
        half, part = tl.arange(0, WIDTH // 2), tl.arange(0, WIDTH // 32)
        keys = tl.load(start[:, None] + half[None, :], mask=seen[:, None], other=0)
        key_scales = tl.load(start[:, None] + WIDTH // 2 + part[None, :], mask=seen[:, None], other=0)
        total = tl.zeros([BLOCK_C], tl.float32)
        for head in range(0, num_heads, BLOCK_H):
            h = head + tl.arange(0, BLOCK_H)
            has = h < num_heads
            at = token * num_heads + h
            q = tl.load(query + at[None, :] * (WIDTH // 2) + half[:, None], mask=has[None, :], other=0)
            q_scales = tl.load(query_scales + at[:, None] * (WIDTH // 32) + part[None, :], mask=has[:, None], other=0)
            weight = tl.load(head_weights + at, mask=has, other=0.0).to(tl.float32)
            dots = tl.dot_scaled(keys, key_scales, "e2m1", q, q_scales, "e2m1")
            total += tl.sum(tl.maximum(dots, 0.0) * weight[None, :], 1)
        tl.store(scores + token * num_entries + entry, total, mask=seen)


@triton.jit
def ordered(scores):
    """Float32 as uint32 in the same order; both zeros are equal."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, ~bits, bits | 0x80000000)


@triton.jit(do_not_specialize=VARIABLE)
def select_best(scores, num_visible, chosen, num_entries, k, BLOCK: tl.constexpr):
    """The k best entries of one token in ascending order, then -1.

    The k-th largest value is found byte by byte from the top: a histogram of the candidates' next byte says which byte
    it has. Then all larger ones are kept, and of the equal ones the first that are missing.
    """
    token = tl.program_id(0).to(tl.int64)
    visible = tl.load(num_visible + token).to(tl.int32)
    out = chosen + token * k
    if visible <= k:
        for first in range(0, k, BLOCK):
            place = first + tl.arange(0, BLOCK)
            tl.store(out + place, tl.where(place < visible, place, -1).to(tl.int64), mask=place < k)
    else:
        line = scores + token * num_entries
        prefix = (visible * 0).to(tl.uint32)
        missing = visible * 0 + k
        digits = tl.arange(0, 256)
        for step in tl.static_range(4):
            counts = tl.zeros([256], tl.int32)
            for first in range(0, visible, BLOCK):
                place = first + tl.arange(0, BLOCK)
                key = ordered(tl.load(line + place, mask=place < visible, other=0.0))
                is_candidate = place < visible
                if step > 0:
                    is_candidate = is_candidate & ((key >> (32 - 8 * step)) == prefix)
                counts += tl.histogram(((key >> (24 - 8 * step)) & 255).to(tl.int32), 256, mask=is_candidate)
            at_least = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts  # candidates with this digit or a larger one
            digit = tl.sum((at_least >= missing).to(tl.int32), 0) - 1
            missing -= tl.sum(tl.where(digits > digit, counts, 0), 0)
            prefix = (prefix << 8) | digit.to(tl.uint32)
        written = visible * 0
        for first in range(0, visible, BLOCK):
            place = first + tl.arange(0, BLOCK)
            key = ordered(tl.load(line + place, mask=place < visible, other=0.0))
            is_equal = (place < visible) & (key == prefix)
            nth = tl.cumsum(is_equal.to(tl.int32), 0)
            is_kept = ((place < visible) & (key > prefix)) | (is_equal & (nth <= missing))
            rank = written + tl.cumsum(is_kept.to(tl.int32), 0) - 1
            tl.store(out + rank, place.to(tl.int64), mask=is_kept)
            written += tl.sum(is_kept.to(tl.int32), 0)
            missing -= tl.sum(is_equal.to(tl.int32), 0)
