"""Routed experts and the shared one: schedule, first half with SwiGLU, second half, combination."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4_kernels.device_weights import DeviceWeight
from dsv4_kernels.errors import require
from dsv4_kernels.tensors import WeightFormat
from dsv4_kernels.triton_lang.device import gemm as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, new, power_of_two_at_least
from dsv4_kernels.triton_lang.linear import BLOCK_N, PART_MULTIPLE, Blocks, choose_blocks
from dsv4_kernels.triton_lang.weights import tokens_for

SCAN = 1024  # expert ids that a program looks at together
COMBINE_BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The three projections of E experts. Shapes: w1, w3 [E * I, D]; w2 [E * D, I]."""

    w1: DeviceWeight
    w3: DeviceWeight
    w2: DeviceWeight


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Which slots each block of a grouped product holds. Shapes: slots int32 [B * size]; experts int32 [B], -1 idle."""

    slots: Tensor
    experts: Tensor
    size: int

    @property
    def num_blocks(self) -> int:
        """B, used or idle."""
        return self.experts.shape[0]


def moe(
    device: Device, x: Tensor, experts: Experts, ids: Tensor, weights: Tensor, limit: float, round_trip: bool
) -> Tensor:
    """As `ops.Moe`, over any weight format.

    Rule: FP8 and MXFP4 experts always make the FP8 round trip of `round_trip`: their tokens are FP8.
    """
    tokens, width = x.shape
    k = ids.shape[1]
    require(
        tuple(weights.shape) == (tokens, k) == tuple(ids.shape), f"ids {list(ids.shape)} are not for {tokens} tokens."
    )
    num_experts = experts.w1.num_groups
    blocks = _blocks(device, experts.w1, ceil_div(tokens * k, num_experts), is_pair=True)
    schedule = make_schedule(device, ids.contiguous(), num_experts, blocks.tokens)
    hidden, scales = _up(device, x.contiguous(), experts, schedule, weights.contiguous(), limit, round_trip)
    slots = _down(device, hidden, scales, experts.w2, schedule, x.dtype)
    y = torch.empty_like(x)
    grid = (tokens, ceil_div(width, COMBINE_BLOCK))
    device(kernels.combine_slots, grid, slots, ids.contiguous(), y, width, K=k, BLOCK_D=COMBINE_BLOCK)
    return y


def gated_mlp(device: Device, x: Tensor, experts: Experts, limit: float, round_trip: bool) -> Tensor:
    """As `ops.GatedMlp`: one expert, whose weight is 1."""
    hidden, scales = _up(device, x.contiguous(), experts, None, None, limit, round_trip)
    return _down(device, hidden, scales, experts.w2, None, x.dtype)


def make_schedule(device: Device, ids: Tensor, num_experts: int, size: int) -> Schedule:
    """Sort the slots of ids [T, K] by expert into blocks of `size`, without waiting for the ids."""
    count = ids.numel()
    num_blocks = count // size + min(num_experts, count)
    slots = new(ids, num_blocks * size, dtype=torch.int32)
    found = new(ids, num_blocks, dtype=torch.int32)
    device(
        kernels.schedule_experts,
        (num_experts + 1,),
        *(ids, slots, found, count, num_blocks),
        NUM_EXPERTS=num_experts,
        BLOCK_E=power_of_two_at_least(num_experts + 1),
        BLOCK_S=min(SCAN, power_of_two_at_least(count, 16)),
        BLOCK_T=size,
    )
    return Schedule(slots=slots, experts=found, size=size)


def _blocks(device: Device, weight: DeviceWeight, num_tokens: int, *, is_pair: bool) -> Blocks:
    return choose_blocks(device, weight.multiplied(device), num_tokens, weight.codes.element_size(), is_pair=is_pair)


def _up(
    device: Device,
    x: Tensor,
    experts: Experts,
    schedule: Schedule | None,
    weights: Tensor | None,
    limit: float,
    round_trip: bool,
) -> tuple[Tensor, Tensor]:
    """The hidden rows [slots, I] as the second half takes them, and their scales."""
    w1, w3 = experts.w1, experts.w3
    slots = x.shape[0] if weights is None else weights.numel()
    n = w1.num_rows
    is_fp8 = w1.format in (WeightFormat.FP8, WeightFormat.MXFP4)
    out = "fp8" if is_fp8 else "trip" if round_trip else "plain"
    hidden = new(x, slots, n, dtype=torch.float8_e4m3fn if is_fp8 else x.dtype)
    scales = new(x, slots, ceil_div(n, BLOCK_N), dtype=torch.uint8) if is_fp8 else hidden
    codes, x_scales = tokens_for(device, x, w1)
    matrices = (w1.codes, w1.scales, w3.codes, w3.scales)
    factors = w1.factors(device), w3.factors(device)
    has_alpha = all(each is not None for each in factors)
    alphas = [x if each is None else each for each in factors]
    blocks, num_blocks, table = _placed(device, w1, schedule, slots, codes, is_pair=True)
    device(
        kernels.expert_up_kernel,
        (ceil_div(n, BLOCK_N), num_blocks, 1),
        *(codes, x_scales, *matrices, *alphas, x if weights is None else weights, hidden, scales, *table),
        *(slots, n, x.shape[1], limit),
        FORMAT=w1.multiplied(device),
        ROUTED=schedule is not None,
        HAS_ALPHA=has_alpha,
        HAS_GATES=weights is not None,
        SHARED_BY=slots // max(1, x.shape[0]),
        OUT=out,
        **blocks.options,
    )
    return hidden, scales


def _down(
    device: Device, hidden: Tensor, scales: Tensor, w2: DeviceWeight, schedule: Schedule | None, dtype: torch.dtype
) -> Tensor:
    """W2 of every slot's expert. Shapes: hidden [slots, I]; returns [slots, D]."""
    slots, k = hidden.shape
    n = w2.num_rows
    if hidden.dtype != torch.float8_e4m3fn:
        hidden, scales = tokens_for(device, hidden, w2)
    y = new(hidden, slots, n, dtype=dtype)
    factors = w2.factors(device)
    blocks, num_blocks, table = _placed(device, w2, schedule, slots, hidden, is_pair=False)
    device(
        kernels.linear_kernel,
        (ceil_div(n, BLOCK_N), num_blocks, 1),
        *(hidden, scales, w2.codes, w2.scales, y if factors is None else factors, y, *table),
        *(slots, n, k, 0, ceil_div(k, PART_MULTIPLE)),
        FORMAT=w2.multiplied(device),
        ROUTED=schedule is not None,
        HAS_ALPHA=factors is not None,
        GROUPS=1,
        IS_SPLIT=False,
        **blocks.options,
    )
    return y


def _placed(
    device: Device, weight: DeviceWeight, schedule: Schedule | None, slots: int, unused: Tensor, *, is_pair: bool
) -> tuple[Blocks, int, tuple[Tensor, Tensor]]:
    """Blocks, how many of them along the tokens, and the tables that place slots (any tensor where there are none)."""
    if schedule is None:
        blocks = _blocks(device, weight, slots, is_pair=is_pair)
        return blocks, ceil_div(slots, blocks.tokens), (unused, unused)
    blocks = _blocks(device, weight, schedule.size, is_pair=is_pair)
    return blocks, schedule.num_blocks, (schedule.slots, schedule.experts)
