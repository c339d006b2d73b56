"""A launch as data, so that what is compiled offline is what is launched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsv4_kernels.triton_lang.arch import Arch

Grid = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One kernel with its grid, arguments in the order of its parameters, compile-time constants and options."""

    kernel: Any
    grid: Grid
    arguments: tuple[Tensor | int | float, ...]
    constants: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True, slots=True)
class Device:
    """Where operators run: the architecture whose configurations they take, and what is done with a launch."""

    arch: Arch
    run: Callable[[Launch], None]

    def __call__(
        self,
        kernel: Any,
        grid: Grid,
        *arguments: Tensor | int | float,
        warps: int = 4,
        stages: int = 2,
        **constants: Any,
    ) -> None:
        """Launch a kernel; nothing happens where the grid is empty."""
        if 0 not in grid:
            self.run(
                Launch(
                    kernel=kernel,
                    grid=grid,
                    arguments=arguments,
                    constants=constants,
                    num_warps=warps,
                    num_stages=stages,
                )
            )


def execute(launch: Launch) -> None:
    """Launch on the GPU that holds the tensors; in the interpreter, compute at once."""
    launch.kernel[launch.grid](
        *launch.arguments, **launch.constants, num_warps=launch.num_warps, num_stages=launch.num_stages
    )


def power_of_two_at_least(count: int, least: int = 1) -> int:
    """The smallest power of two that is no less than both."""
    return max(least, 1 << max(0, count - 1).bit_length())


def ceil_div(count: int, size: int) -> int:
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


def new(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor beside x."""
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device)
