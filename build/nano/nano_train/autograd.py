"""torch's functions with gradients by hand, as far as they need a typed door."""

from __future__ import annotations

from typing import Any

import torch

Function = torch.autograd.Function
Saved = torch.autograd.function.FunctionCtx


def apply(function: type[Function], *arguments: object) -> Any:
    """Run a function forward and remember it for the backward pass; the result is a tensor, or a tuple of them."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]
