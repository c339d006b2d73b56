"""The weights and settings of one stretch of a sublayer. `rounds…` says that the input makes the FP8 round trip."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4_kernels.tensors import ExpertWeights, LinearWeight


@dataclass(frozen=True, slots=True, kw_only=True)
class EnterSpec:
    """Shapes: fn [(2 + N)N, N * D]; base [(2 + N)N]; scale [3]; norm [D]."""

    fn: Tensor
    base: Tensor
    scale: Tensor
    norm: Tensor
    norm_eps: float
    hc_eps: float
    iterations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryStage:
    """Shapes: wq_a [r_q, d]; norm [r_q]; wq_b [H * c, r_q]."""

    wq_a: LinearWeight
    norm: Tensor
    wq_b: LinearWeight
    num_heads: int
    eps: float
    rounds_a: bool
    rounds_b: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStage:
    """Shapes: wkv [c, d]; norm [c]."""

    wkv: LinearWeight
    norm: Tensor
    eps: float
    rounds: bool
    rounds_entry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStage:
    """Shapes: wo_a [G * d_g, H / G * c]; wo_b [d, G * d_g]."""

    wo_a: LinearWeight
    wo_b: LinearWeight
    num_groups: int
    rounds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressStage:
    """Shapes: wkv, wgate [series * w, d]; ape [ratio, series * w]."""

    wkv: LinearWeight
    wgate: LinearWeight
    ape: Tensor
    rounds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStage:
    """Shapes: gate [E, d]; bias [E]; shared w1, w3 [I, d] and w2 [d, I].

    Rule: `rounds` is of the routed experts' inputs, outer and inner.
    """

    gate: LinearWeight
    bias: Tensor | None
    experts: ExpertWeights
    shared: tuple[LinearWeight, LinearWeight, LinearWeight]
    num_chosen: int
    scale: float
    limit: float
    rounds: bool
    rounds_shared: bool
    rounds_shared_inner: bool
