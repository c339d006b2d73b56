"""Bring a step's inputs to the device: one copy for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

Inputs = TypeVar("Inputs")


class Upload:
    """Copies integer tensors that lie somewhere in a record of tensors, tuples and records."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, inputs: Inputs) -> Inputs:
        """Return the same record with its tensors, all int64, on the device. On the CPU that is the record itself.

        Rule: they travel as one buffer in pinned memory, so a step waits for one copy at most, and for none before it.
        """
        if self._device.type == "cpu":
            return inputs
        return rebuilt(inputs, staged(inputs, self._device).to(self._device, non_blocking=True))


def staged(inputs: object, device: torch.device) -> Tensor:
    """All tensors of a record one after the other, where a copy to the device does not wait. Shapes: int64 [sum]."""
    flat = torch.cat([each.reshape(-1) for each in tensors_of(inputs)])
    return flat.pin_memory() if device.type == "cuda" else flat


def rebuilt(inputs: Inputs, flat: Tensor) -> Inputs:
    """The record, its tensors being views of `flat`. Shapes: flat int64 [sum], as `staged` returns it."""
    tensors = list(tensors_of(inputs))
    parts = iter(torch.split(flat, [each.numel() for each in tensors]))
    return changed(inputs, lambda each: next(parts).view(each.shape))


def tensors_of(value: object) -> Iterator[Tensor]:
    """Every tensor of a record, in the order of its fields."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from tensors_of(each)
    elif is_dataclass(value):
        for item in fields(value):
            yield from tensors_of(getattr(value, item.name))


def changed(value: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The record with each tensor replaced, in the same order."""
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(changed(each, change) for each in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: changed(getattr(value, item.name), change) for item in fields(value)}
        return replace(value, **parts)
    return value
