"""Choose one implementation of every operator, once, at process start.

from dsv4_kernels.dispatch import bind
ops = bind("cpu")
y = ops.linear(x, weight)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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
TARGETS = ("cpu", "reference")
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
    reasons = {"cpu": "C++ twin, batch-invariant", "reference": "torch, the specification"}
    return tuple(
        Implementation(op=op, source=source, needs=Needs(target=source), reason=reason)
        for source, reason in reasons.items()
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
    """The table for a target, "cpu" or "reference". The C++ library is built first if `cache` does not hold it.

    Raises: BindError for an unknown target; BuildError if the library cannot be built.
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
    holders = {op: module for module in REFERENCE_MODULES for op in OPERATORS if hasattr(module, op)}
    return {op: getattr(module, op) for op, module in holders.items()}
