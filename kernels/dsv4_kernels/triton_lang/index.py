"""The lightning indexer's choice of compressed entries: scores, then the k best."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from dsv4_kernels.cache import CacheRows
from dsv4_kernels.errors import require
from dsv4_kernels.rows import RowFormat
from dsv4_kernels.triton_lang.device import index as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, new, power_of_two_at_least
from dsv4_kernels.triton_lang.weights import quantise_mxfp4

BLOCK_C = 128  # entries: the row dimension of the tensor core
BLOCK_H = 64
SELECT_BLOCK = 2048


def index_select(  # noqa: PLR0913, PLR0917 - an operator's signature is its specification
    device: Device,
    query: Tensor,
    head_weights: Tensor,
    cache: CacheRows,
    rows: Tensor,
    num_visible: Tensor,
    k: int,
    page_rows: int = 1,
) -> Tensor:
    """As `ops.IndexSelect`. bf16 holds FP8 and FP4 values exactly, so packed keys lose nothing in the products."""
    scores = index_scores(device, query, head_weights, cache, rows, num_visible, k, page_rows)
    chosen = new(rows, query.shape[0], k)
    arguments = (scores, num_visible.contiguous(), chosen, scores.shape[1], k)
    device(kernels.select_best, (query.shape[0],), *arguments, warps=8, BLOCK=SELECT_BLOCK)
    return chosen


def index_scores(  # noqa: PLR0913, PLR0917 - the arguments of index_select
    device: Device,
    query: Tensor,
    head_weights: Tensor,
    cache: CacheRows,
    rows: Tensor,
    num_visible: Tensor,
    k: int,
    page_rows: int = 1,
) -> Tensor:
    """Scores [T, C]; undefined where an entry is not visible or a token sees k entries at most.

    Rule: FP4 keys are multiplied as FP4 where the tensor core can: the query must have made its own FP4 round trip.
    """
    query = query.contiguous()
    tokens, heads, width = query.shape
    spec = cache.spec
    require(spec.width == width, f"index keys are {spec.width} wide but the query {width}.")
    require(rows.dim() == 2 or page_rows == 1, f"rows {list(rows.shape)} are no pages of {page_rows} rows.")
    count, line = rows.shape[-1] * page_rows, rows.shape[1] if rows.dim() == 2 else 0
    scores = new(query, tokens, count, dtype=torch.float32)
    rest = (head_weights.contiguous(), cache.data, rows.contiguous(), num_visible.contiguous(), scores)
    sizes = (count, line, heads, k)
    grid = (tokens, ceil_div(count, BLOCK_C))
    blocks = {"BLOCK_H": min(BLOCK_H, power_of_two_at_least(heads, 16)), "BLOCK_C": BLOCK_C}
    layout = {"WIDTH": width, "ROW_BYTES": spec.row_bytes, "PAGE_ROWS": page_rows}
    if spec.format is RowFormat.FP4 and device.arch.formats["nvfp4"] == "nvfp4" and width % 64 == 0:
        codes, scales = quantise_mxfp4(device, query)
        device(kernels.score_packed, grid, codes, scales, *rest, *sizes, **layout, **blocks)
        return scores
    dot = tl.float32 if spec.format is RowFormat.FP32 else tl.bfloat16
    block_d = power_of_two_at_least(width, 16)
    format = spec.format.value
    warps = 8 if spec.format is RowFormat.FP4 and not device.arch.has_tensor_memory else 4  # nibbles take registers
    device(
        kernels.score_entries,
        grid,
        query,
        *rest,
        *sizes,
        FORMAT=format,
        **layout,
        **blocks,
        BLOCK_D=block_d,
        DOT=dot,
        warps=warps,
    )
    return scores
