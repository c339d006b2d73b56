"""Expert routing."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.errors import require
from dsv4_kernels.triton_lang.device import route as kernels
from dsv4_kernels.triton_lang.launch import Device, new, power_of_two_at_least


def route(
    device: Device, logits: Tensor, bias: Tensor | None, fixed_ids: Tensor | None, k: int, scale: float
) -> tuple[Tensor, Tensor]:
    """As `ops.Route`."""
    tokens, experts = logits.shape
    require(0 < k <= experts, f"k is {k} but there are {experts} experts.")
    ids = new(logits, tokens, k, dtype=torch.int64)
    weights = new(logits, tokens, k, dtype=torch.float32)
    biases = logits if bias is None else bias.contiguous()
    given = ids if fixed_ids is None else fixed_ids.contiguous()
    arguments = (logits.contiguous(), biases, given, ids, weights, experts, scale)
    constants = {"K": k, "HAS_BIAS": bias is not None, "IS_FIXED": fixed_ids is not None}
    blocks = {"BLOCK_E": power_of_two_at_least(experts), "BLOCK_K": power_of_two_at_least(k)}
    device(kernels.route_token, (tokens,), *arguments, **constants, **blocks)
    return ids, weights
