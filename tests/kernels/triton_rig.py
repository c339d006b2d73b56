"""The kernels of `triton_lang` on CPU tensors: `interpreted(arch)` is a table that computes in the interpreter.

With DSV4_TEST_GPU=1 (`make test-gpu`) the same tests launch compiled kernels: every launch copies its tensors there and
back. The mode is read where a kernel is defined, so the root conftest sets TRITON_INTERPRET before anything imports it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dsv4_kernels.dispatch import OPERATORS
from dsv4_kernels.triton_lang.arch import arch_named, arch_of
from dsv4_kernels.triton_lang.launch import Device, Launch, execute
from dsv4_kernels.triton_lang.table import functions
from triton_interpreter import repair

IS_GPU = os.environ.get("DSV4_TEST_GPU") == "1"
if not IS_GPU:
    repair()
Table = Any
Move = Callable[[torch.Tensor], torch.Tensor]
ARCH_NAMES = ("sm_90", "sm_100a", "sm_120a")  # sm_103a takes the configurations of sm_100a
each_arch = pytest.mark.parametrize("arch", ARCH_NAMES)


def interpreted_device(arch: str = "") -> Device:
    """By default sm_90, or the GPU that is here; tests of another architecture are skipped on a GPU."""
    if not IS_GPU:
        return Device(arch_named(arch or "sm_90"), execute)
    here = arch_of(torch.cuda.get_device_capability())
    if arch and arch != here.name:
        pytest.skip(f"this GPU is {here.name}")
    return Device(here, execute_on(torch.Tensor.cuda))


def execute_on(move: Move) -> Callable[[Launch], None]:
    """Launch with copies of the tensors, and write back those that the kernel has changed."""

    def run(launch: Launch) -> None:
        given = {id(each): each for each in launch.arguments if isinstance(each, torch.Tensor)}
        copies = {name: move(each) for name, each in given.items()}
        execute(replace(launch, arguments=tuple(copies.get(id(each), each) for each in launch.arguments)))
        for name, each in given.items():
            after = copies[name].to(each.device)
            if not torch.equal(after.contiguous().view(torch.uint8), each.contiguous().view(torch.uint8)):
                each.copy_(after)

    return run


def interpreted(arch: str = "") -> Table:
    table: dict[str, Callable[..., Any]] = functions(interpreted_device(arch), OPERATORS)
    return SimpleNamespace(**table)


def close(got: torch.Tensor, want: torch.Tensor, relative: float) -> None:
    """Every element within `relative` of the largest."""
    assert got.shape == want.shape
    error = (got.double() - want.double()).abs().max() if got.numel() else torch.tensor(0.0)
    scale = want.double().abs().max() if want.numel() else torch.tensor(1.0)
    assert float(error) <= relative * max(float(scale), 1e-30), f"error {float(error):.3g} of {float(scale):.3g}"
