"""The operators of `OpTable` on one device, and those that take quantised weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dsv4_kernels.device_weights import DeviceWeight, dense_weight
from dsv4_kernels.errors import BindError
from dsv4_kernels.prepared import ExpertPart, ExpertWeights, LinearWeight
from dsv4_kernels.trips import Trip
from dsv4_kernels.triton_lang import attention, cache, compress, hyper, index, linear, moe, route, rowwise, sample
from dsv4_kernels.triton_lang.launch import Device
from dsv4_kernels.triton_lang.moe import Experts

MODULES = (attention, cache, compress, hyper, index, route, rowwise, sample)
PARTS: tuple[ExpertPart, ...] = ("w1", "w3", "w2")


def functions(device: Device, operators: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """Every operator of `OpTable`, bound to a device."""
    own = {"linear": _linear, "grouped_linear": _grouped_linear, "moe": _moe, "gated_mlp": _gated_mlp}
    own["int8_round_trip"] = _int8_round_trip
    found = {op: getattr(module, op) for module in MODULES for op in operators if hasattr(module, op)}
    return {op: partial({**found, **own}[op], device) for op in operators}


def _int8_round_trip(device: Device, x: Tensor, group: int) -> Tensor:
    raise BindError(f"{device.arch.name} multiplies FP4 weights with FP8 tokens, not int8. Set numerics to trained.")


def _linear(device: Device, x: Tensor, weight: LinearWeight, made: Trip = Trip.NONE) -> Tensor:
    return linear.linear(device, x, _on_device(weight))


def _grouped_linear(device: Device, x: Tensor, weight: LinearWeight) -> Tensor:
    return linear.grouped_linear(device, x, _on_device(weight, x.shape[1]))


def _moe(
    device: Device, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, limit: float, round_trip: Trip
) -> Tensor:
    w1, w3, w2 = (_stack(experts, part) for part in PARTS)
    return moe.moe(device, x, Experts(w1=w1, w3=w3, w2=w2), ids, weights, limit, bool(round_trip))


def _gated_mlp(
    device: Device,
    x: Tensor,
    w1: LinearWeight,
    w3: LinearWeight,
    w2: LinearWeight,
    limit: float,
    round_trip: Trip,
    **_: Trip,  # `made`: tokens are rounded here as the weight's format wants them
) -> Tensor:
    experts = Experts(w1=_on_device(w1), w3=_on_device(w3), w2=_on_device(w2))
    return moe.gated_mlp(device, x, experts, limit, bool(round_trip))


def _on_device(weight: LinearWeight, num_groups: int = 1) -> DeviceWeight:
    """What `DevicePlacement` made; anything else, as tests hand it in, is widened anew in each call."""
    return dense_weight(weight.matrix(), num_groups) if weight.placed is None else weight.placed


def _stack(experts: ExpertWeights, part: ExpertPart) -> DeviceWeight:
    held = {"w1": experts.w1, "w2": experts.w2, "w3": experts.w3}[part]
    if isinstance(held, DeviceWeight):
        return held
    matrices = [experts.matrix(expert, part) for expert in range(experts.num_experts)]
    return dense_weight(torch.cat(matrices), experts.num_experts)
