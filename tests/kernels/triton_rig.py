"""The kernels of `triton_lang` in the interpreter: `interpreted(arch)` is a table that computes on CPU tensors.

The mode is read where a kernel is defined, so the root conftest sets TRITON_INTERPRET before anything imports Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dsv4_kernels.dispatch import OPERATORS
from dsv4_kernels.triton_lang.arch import arch_named
from dsv4_kernels.triton_lang.launch import Device, execute
from dsv4_kernels.triton_lang.table import functions
from triton_interpreter import repair

repair()
Table = Any
ARCH_NAMES = ("sm_90", "sm_100a", "sm_120a")  # sm_103a takes the configurations of sm_100a
each_arch = pytest.mark.parametrize("arch", ARCH_NAMES)


def interpreted_device(arch: str = "sm_90") -> Device:
    return Device(arch_named(arch), execute)


def interpreted(arch: str = "sm_90") -> Table:
    table: dict[str, Callable[..., Any]] = functions(interpreted_device(arch), OPERATORS)
    return SimpleNamespace(**table)


def close(got: torch.Tensor, want: torch.Tensor, relative: float) -> None:
    """Every element within `relative` of the largest."""
    assert got.shape == want.shape
    error = (got.double() - want.double()).abs().max() if got.numel() else torch.tensor(0.0)
    scale = want.double().abs().max() if want.numel() else torch.tensor(1.0)
    assert float(error) <= relative * max(float(scale), 1e-30), f"error {float(error):.3g} of {float(scale):.3g}"
