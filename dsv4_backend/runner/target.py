"""What a rank computes on: the operators, and where their tensors lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.errors import BindError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.placement import HOST, DevicePlacement, Placement

from dsv4_backend.config import DeviceKind, Numerics, ServingConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.runner.graphs import CudaRecorder, Recorder


@dataclass(frozen=True, slots=True)
class Target:
    """Operators, the placement that belongs to them, and how decode steps are recorded, if they are."""

    ops: OpTable
    placement: Placement
    recorder: Recorder | None = None


def open_target(config: ServingConfig) -> Target:
    """The target that the settings name; AUTO takes a GPU where it can be used with them, else the CPU.

    Raises: ConfigError where a GPU is asked for that is not there, or that the kernels or the numerics are not for.
    """
    if config.device is DeviceKind.CPU:
        return Target(bind("cpu"), HOST)
    try:
        return _open_gpu(config)
    except BindError as error:
        if config.device is DeviceKind.AUTO:
            return Target(bind("cpu"), HOST)
        raise ConfigError(f"device is cuda, but {error} Or set device=cpu.") from error


def _open_gpu(config: ServingConfig) -> Target:
    """Raises: BindError."""
    if config.numerics is not Numerics.TRAINED:
        raise BindError(
            f"numerics is {config.numerics.value}, and a GPU's products take FP8 inputs. Set numerics=trained."
        )
    ops = bind("cuda")
    placement = DevicePlacement(torch.device("cuda", torch.cuda.current_device()))
    return Target(ops, placement, CudaRecorder() if config.cuda_graphs else None)
