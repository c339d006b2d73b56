"""The operators of `OpTable` on one device, and those that take quantised weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dsv4_kernels.errors import BindError
from dsv4_kernels.tensors import ExpertPart, ExpertWeights, LinearWeight
from dsv4_kernels.trips import Trip
from dsv4_kernels.triton_lang import attention, cache, compress, hyper, index, linear, moe, route, rowwise, sample
from dsv4_kernels.triton_lang.launch import Device
from dsv4_kernels.triton_lang.moe import Experts
from dsv4_kernels.triton_lang.weights import DeviceWeight, dense_weight

MODULES = (attention, cache, compress, hyper, index, route, rowwise, sample)
WEIGHTED = ("linear", "grouped_linear", "moe", "gated_mlp")


def functions(device: Device, operators: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """Every operator of `OpTable`, bound to a device; weights may be dense or `DeviceWeight`."""
    own = {"linear": _linear, "grouped_linear": _grouped_linear, "moe": _moe, "gated_mlp": _gated_mlp}
    own["int8_round_trip"] = _int8_round_trip
    found = {op: getattr(module, op) for module in MODULES for op in operators if hasattr(module, op)}
    return {op: partial({**found, **own}[op], device) for op in operators}


def _int8_round_trip(device: Device, x: Tensor, group: int) -> Tensor:
    raise BindError(f"{device.arch.name} multiplies FP4 weights with FP8 tokens, not int8. Set numerics to trained.")


def _linear(device: Device, x: Tensor, weight: LinearWeight | DeviceWeight, made: Trip = Trip.NONE) -> Tensor:
    return linear.linear(device, x, _on_device(weight))


def _grouped_linear(device: Device, x: Tensor, weight: LinearWeight | DeviceWeight) -> Tensor:
    return linear.grouped_linear(device, x, _on_device(weight, x.shape[1]))


def _moe(
    device: Device,
    x: Tensor,
    experts: ExpertWeights | Experts,
    ids: Tensor,
    weights: Tensor,
    limit: float,
    round_trip: Trip,
) -> Tensor:
    if isinstance(experts, ExpertWeights):
        count = range(experts.num_experts)
        parts: tuple[ExpertPart, ...] = ("w1", "w3", "w2")
        stacks = (torch.cat([experts.matrix(expert, part) for expert in count]) for part in parts)
        w1, w3, w2 = (dense_weight(stack, experts.num_experts) for stack in stacks)
        experts = Experts(w1=w1, w3=w3, w2=w2)
    return moe.moe(device, x, experts, ids, weights, limit, bool(round_trip))


def _gated_mlp(
    device: Device,
    x: Tensor,
    w1: LinearWeight | DeviceWeight,
    w3: LinearWeight | DeviceWeight,
    w2: LinearWeight | DeviceWeight,
    limit: float,
    round_trip: Trip,
    **_: Trip,  # `made`: tokens are rounded here as the weight's format wants them
) -> Tensor:
    experts = Experts(w1=_on_device(w1), w3=_on_device(w3), w2=_on_device(w2))
    return moe.gated_mlp(device, x, experts, limit, bool(round_trip))


def _on_device(weight: LinearWeight | DeviceWeight, num_groups: int = 1) -> DeviceWeight:
    return weight if isinstance(weight, DeviceWeight) else dense_weight(weight.matrix(), num_groups)
