"""Choose one implementation of every operator, once, at process start.

from dsv4_kernels.dispatch import bind
ops = bind("cpu")                  # or "cuda": kernels in the Triton language, for the GPU that is here
y = ops.linear(x, weight)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from dsv4_kernels.build import build
from dsv4_kernels.cpu.library import load
from dsv4_kernels.cpu.table import CpuOps
from dsv4_kernels.errors import BindError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.reference import (
    attention,
    cache,
    compress,
    hyper,
    index,
    linear,
    moe,
    norm,
    rope,
    round_trip,
    route,
    sample,
)

OPERATORS = tuple(field.name for field in fields(OpTable))
TARGETS = ("cpu", "reference", "cuda")
SOURCES = {  # source → the target that it serves, and what is to be said for it
    "cpu": ("cpu", "C++ twin, batch-invariant"),
    "reference": ("reference", "torch, the specification"),
    "triton_lang": ("cuda", "portable kernels for sm_90, sm_100a, sm_103a and sm_120a"),
}
REASONS = {
    ("triton_lang", "sample_tokens"): "torch's sort and sums over the vocabulary, without a wait",
    ("triton_lang", "int8_round_trip"): "refused: products there take FP8",
}
REFERENCE_MODULES = (attention, cache, compress, hyper, index, linear, moe, norm, rope, round_trip, route, sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an implementation was written for."""

    target: str
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """One way to compute one operator, and what is to be said for it."""

    op: str
    source: str
    needs: Needs
    reason: str


def declared() -> tuple[Implementation, ...]:
    """Everything that exists; where several serve a target, the first one listed is chosen."""
    return tuple(
        Implementation(op=op, source=source, needs=Needs(target=target), reason=REASONS.get((source, op), reason))
        for source, (target, reason) in SOURCES.items()
        for op in OPERATORS
    )


def choose(needs: Needs) -> tuple[Implementation, ...]:
    """The implementation of each operator that serves these needs, in the order of `OpTable`.

    Raises: BindError if an operator has none.
    """
    served = {one.op: one for one in reversed(declared()) if one.needs == needs}
    missing = [op for op in OPERATORS if op not in served]
    if missing:
        raise BindError(
            f"no implementation of {', '.join(missing)} for target {needs.target!r} and {needs.dtype}. "
            f"Choose a target of {', '.join(TARGETS)} and float32."
        )
    return tuple(served[op] for op in OPERATORS)


def bind(target: str = "cpu", cache: Path | None = None) -> OpTable:
    """The table for a target: "cpu", "reference", or "cuda" for the current GPU.

    Raises: BindError for an unknown target or GPU; BuildError if the C++ library is not in `cache` and cannot be built.
    """
    chosen = choose(Needs(target=target))
    functions = {source: _functions(source, cache) for source in {one.source for one in chosen}}
    return OpTable(**{one.op: functions[one.source][one.op] for one in chosen})


def describe(target: str = "cpu") -> str:
    """One line per operator: name, implementation, reason."""
    return "\n".join(f"{one.op:<18}{one.source:<12}{one.reason}" for one in choose(Needs(target=target)))


def _functions(source: str, cache: Path | None) -> dict[str, Callable[..., Any]]:
    """Every operator of one source, by name."""
    if source == "cpu":
        twins = CpuOps(load(build(cache)))
        return {op: getattr(twins, op) for op in OPERATORS}
    if source == "triton_lang":
        return _gpu_functions()
    holders = {op: module for module in REFERENCE_MODULES for op in OPERATORS if hasattr(module, op)}
    return {op: getattr(module, op) for op, module in holders.items()}


def _gpu_functions() -> dict[str, Callable[..., Any]]:
    """Imported here only: the Triton language is slow to import, and a CPU does without it."""
    if not torch.cuda.is_available():
        raise BindError('torch sees no GPU, so target "cuda" cannot be bound. Bind "cpu".')
    arch, launch, table = (
        importlib.import_module(f"dsv4_kernels.triton_lang.{name}") for name in ("arch", "launch", "table")
    )
    device = launch.Device(arch.arch_of(torch.cuda.get_device_capability()), launch.execute)
    functions: dict[str, Callable[..., Any]] = table.functions(device, OPERATORS)
    return functions
