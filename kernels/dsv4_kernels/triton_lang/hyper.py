"""Manifold-constrained hyper-connections (mHC): maps, collapse, mix and head."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.errors import require
from dsv4_kernels.triton_lang.device import hyper as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, new, power_of_two_at_least

BLOCK_K = 64
BLOCK_T = 16
PART_COLUMNS = 1024  # of K for one program: 28 parts at Pro's 28,672 columns
FINISH_TOKENS = 16


def hyper_maps(  # noqa: PLR0913, PLR0917 - an operator's signature is its specification
    device: Device,
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    norm_eps: float,
    hc_eps: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.HyperMaps`; the streams may be bf16."""
    streams = streams.contiguous()
    tokens, n, width = streams.shape
    require(n & (n - 1) == 0, f"there are {n} streams but kernels take a power of two.")
    parts, squares = _project(device, streams, fn)
    pre, post = new(base, tokens, n), new(base, tokens, n)
    comb = new(base, tokens, n, n)
    sizes = (tokens, fn.shape[0], n * width, norm_eps, hc_eps, iterations)
    device(
        kernels.finish_maps,
        (ceil_div(tokens, FINISH_TOKENS),),
        *(parts, squares, base.contiguous(), scale.contiguous(), pre, post, comb, *sizes),
        N=n,
        NUM_PARTS=parts.shape[0],
        BLOCK_T=FINISH_TOKENS,
    )
    return pre, post, comb


def hyper_collapse(device: Device, streams: Tensor, pre: Tensor) -> Tensor:
    """As `ops.HyperCollapse`."""
    streams = streams.contiguous()
    tokens, n, width = streams.shape
    y = new(streams, tokens, width)
    block = min(2048, power_of_two_at_least(width))
    grid = (tokens, ceil_div(width, block))
    device(kernels.collapse_streams, grid, streams, pre.contiguous(), y, width, N=n, BLOCK_D=block)
    return y


def hyper_mix(device: Device, streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """As `ops.HyperMix`."""
    streams = streams.contiguous()
    tokens, n, width = streams.shape
    out = torch.empty_like(streams)
    block = min(1024, power_of_two_at_least(width))
    grid = (tokens, ceil_div(width, block))
    arguments = (streams, y.contiguous(), post.contiguous(), comb.contiguous(), out, width)
    device(kernels.mix_streams, grid, *arguments, N=n, BLOCK_D=block)
    return out


def hyper_head(
    device: Device, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm_eps: float, hc_eps: float
) -> Tensor:
    """As `ops.HyperHead`."""
    streams = streams.contiguous()
    tokens, n, width = streams.shape
    parts, squares = _project(device, streams, fn)
    mixing = new(base, tokens, n)
    device(
        kernels.finish_head,
        (ceil_div(tokens, FINISH_TOKENS),),
        *(parts, squares, base.contiguous(), scale.contiguous(), mixing, tokens, n, n * width, norm_eps, hc_eps),
        N=n,
        NUM_PARTS=parts.shape[0],
        BLOCK_T=FINISH_TOKENS,
    )
    return hyper_collapse(device, streams, mixing)


def _project(device: Device, streams: Tensor, fn: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of fn · vec(streams) [P, T, rows of fn] and of the sums of squares [P, T]."""
    tokens, n, width = streams.shape
    rows, columns = fn.shape
    require(columns == n * width, f"fn has {columns} columns but the streams have {n * width}.")
    num_parts = ceil_div(columns, PART_COLUMNS)
    parts = new(streams, num_parts, tokens, rows, dtype=torch.float32)
    squares = new(streams, num_parts, tokens, dtype=torch.float32)
    device(
        kernels.project_part,
        (ceil_div(tokens, BLOCK_T), num_parts),
        *(streams, fn.contiguous(), parts, squares, tokens, rows, columns, PART_COLUMNS),
        stages=3,
        BLOCK_T=BLOCK_T,
        BLOCK_N=power_of_two_at_least(rows, 16),
        BLOCK_K=BLOCK_K,
    )
    return parts, squares
