"""The weights and settings of one stretch of a sublayer. `rounds…` is the round trip that the input makes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4_kernels.prepared import ExpertWeights, LinearWeight
from dsv4_kernels.trips import Trip


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
    rounds_a: Trip
    rounds_b: Trip


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStage:
    """Shapes: wkv [c, d]; norm [c].

    Rule: `rounds_entry` says that the keys make the round trip of cache entries.
    """

    wkv: LinearWeight
    norm: Tensor
    eps: float
    rounds: Trip
    rounds_entry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStage:
    """Shapes: wo_a [G * d_g, H / G * c]; wo_b [d, G * d_g]."""

    wo_a: LinearWeight
    wo_b: LinearWeight
    num_groups: int
    rounds: Trip


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressStage:
    """Shapes: wkv, wgate [series * w, d]; ape [ratio, series * w]."""

    wkv: LinearWeight
    wgate: LinearWeight
    ape: Tensor
    rounds: Trip


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorStage:
    """A compressor up to the entry that is kept. Shapes: norm [w]."""

    inputs: CompressStage
    norm: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStage:
    """The indexer of a CSA layer. Shapes: wq_b [HI * cI, r_q]; weights_proj [HI, d].

    Rule: `is_rounded` says that queries and keys make the Hadamard transform and the FP4 round trip.
    """

    compressor: CompressorStage
    wq_b: LinearWeight
    weights_proj: LinearWeight
    num_heads: int
    num_chosen: int
    scale: float
    rounds_query: Trip
    rounds_weights: Trip
    is_rounded: bool


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
    rounds: Trip
    rounds_shared: Trip
    rounds_shared_inner: Trip


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStage:
    """A whole decoder layer. Shapes: sink [H]; fixed_ids int64 [V, K], the experts of each token id in a hash layer.

    Rule: a layer without a compressor attends to its window alone; one without an index to all its entries.
    """

    enter_attention: EnterSpec
    query: QueryStage
    keys: KeyStage
    output: OutputStage
    compressor: CompressorStage | None
    index: IndexStage | None
    sink: Tensor
    scale: float
    enter_experts: EnterSpec
    experts: ExpertStage
    fixed_ids: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneStage:
    """What a model has around and between its layers.

    Shapes: kinds ("window", "csa", "hca") and ropes of each layer; frequencies [ropes, R / 2]; embed [V, d]; of the
            head fn [N, N * d]; base [N]; scale [1]; norm [d]; head [V, d].
    """

    kinds: tuple[str, ...]
    ropes: tuple[int, ...]
    frequencies: Tensor
    embed: Tensor
    csa_ratio: int
    fn: Tensor
    base: Tensor
    scale: Tensor
    norm: Tensor
    head: LinearWeight
    rounds: Trip
    norm_eps: float
    hc_eps: float
