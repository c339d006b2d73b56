"""The weights of the backbone, by their official names, and how they are taken from a checkpoint.

Source: shared facts `deepseek_v4.md` 3.1. Draft tensors: `draft_weights.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dsv4_kernels.placement import Placement
from dsv4_kernels.prepared import ExpertPart, ExpertWeights, LinearWeight
from dsv4_kernels.tensors import QuantTensor, WeightFormat
from torch import Tensor

from dsv4_backend.config import LayerKind, LayerSpec, ModelConfig

EXPERT_PARTS: tuple[ExpertPart, ...] = ("w1", "w2", "w3")


class WeightSource(Protocol):
    """A checkpoint that gives tensors by official name. Raises: CheckpointError for a name it lacks."""

    def dense(self, name: str) -> Tensor:
        """Return a small tensor as float32, or int64 where the file holds integers."""

    def linear(self, name: str) -> QuantTensor:
        """Return the matrix `name`.weight with its scales, as stored."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A prepared matrix and the format it is stored in, which decides whether its inputs are rounded."""

    weight: LinearWeight
    format: WeightFormat


@dataclass(frozen=True, slots=True)
class Loader:
    """Takes weights from a source to where the operators read them."""

    source: WeightSource
    placement: Placement

    def tensor(self, name: str) -> Tensor:
        """Take a small tensor."""
        return self.placement.tensor(self.source.dense(name))

    def linear(self, name: str, num_groups: int = 1, *, is_exact: bool = False) -> Projection:
        """Take one matrix; groups and exactness as `Placement.linear` means them."""
        stored = self.source.linear(name)
        return Projection(self.placement.linear(stored, num_groups, is_exact=is_exact), stored.format)


@dataclass(frozen=True, slots=True)
class HyperWeights:
    """Hyper-connection mappings of one sublayer or of the head. Shapes: fn [24 or 4, N*d], base [24 or 4], scale."""

    fn: Tensor
    base: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class CompressorWeights:
    """Shapes: wkv, wgate [2w or w, d]; ape [ratio, 2w or w]; norm [w]."""

    wkv: Projection
    wgate: Projection
    ape: Tensor
    norm: Tensor


@dataclass(frozen=True, slots=True)
class IndexerWeights:
    """Shapes: wq_b [HI*cI, r_q]; weights_proj [HI, d]."""

    wq_b: Projection
    weights_proj: Projection
    compressor: CompressorWeights


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Shapes: wq_a [r_q, d]; wq_b [H*c, r_q]; wkv [c, d]; wo_a [G*d_g, H/G*c]; wo_b [d, G*d_g]; attn_sink [H]."""

    wq_a: Projection
    q_norm: Tensor
    wq_b: Projection
    wkv: Projection
    kv_norm: Tensor
    attn_sink: Tensor
    wo_a: Projection
    wo_b: Projection
    compressor: CompressorWeights | None
    indexer: IndexerWeights | None


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """Shapes: gate [E, d]; bias [E] or tid2eid [V, K], never both; w1, w3 [I, d]; w2 [d, I] of the shared expert."""

    gate: Projection
    bias: Tensor | None
    tid2eid: Tensor | None
    experts: ExpertWeights
    expert_format: WeightFormat
    w1: Projection
    w2: Projection
    w3: Projection


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer."""

    hc_attn: HyperWeights
    attn_norm: Tensor
    attn: AttentionWeights
    hc_ffn: HyperWeights
    ffn_norm: Tensor
    ffn: MoeWeights


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """The backbone. Shapes: embed [V, d]; head [V, d]; norm [d]."""

    embed: Tensor
    layers: tuple[LayerWeights, ...]
    hc_head: HyperWeights
    norm: Tensor
    head: Projection


def load_weights(config: ModelConfig, loader: Loader) -> ModelWeights:
    """Take every tensor of the backbone from the source, once, in the order of the layers."""
    return ModelWeights(
        embed=loader.tensor("embed.weight"),
        layers=tuple(load_layer(config, loader, f"layers.{index}", spec) for index, spec in enumerate(config.layers)),
        hc_head=load_hyper(loader, "hc_head"),
        norm=loader.tensor("norm.weight"),
        head=loader.linear("head"),
    )


def load_layer(config: ModelConfig, loader: Loader, prefix: str, spec: LayerSpec) -> LayerWeights:
    """Take one decoder layer, of the backbone or of a draft model."""
    return LayerWeights(
        hc_attn=load_hyper(loader, f"{prefix}.hc_attn"),
        attn_norm=loader.tensor(f"{prefix}.attn_norm.weight"),
        attn=_attention(config, loader, f"{prefix}.attn", spec.kind),
        hc_ffn=load_hyper(loader, f"{prefix}.hc_ffn"),
        ffn_norm=loader.tensor(f"{prefix}.ffn_norm.weight"),
        ffn=_moe(config, loader, f"{prefix}.ffn", spec.is_hash_routed),
    )


def load_hyper(loader: Loader, prefix: str) -> HyperWeights:
    """Take one hyper-connection mapping."""
    return HyperWeights(*(loader.tensor(f"{prefix}_{part}") for part in ("fn", "base", "scale")))


def _attention(config: ModelConfig, loader: Loader, prefix: str, kind: LayerKind) -> AttentionWeights:
    return AttentionWeights(
        wq_a=loader.linear(f"{prefix}.wq_a"),
        q_norm=loader.tensor(f"{prefix}.q_norm.weight"),
        wq_b=loader.linear(f"{prefix}.wq_b"),
        wkv=loader.linear(f"{prefix}.wkv"),
        kv_norm=loader.tensor(f"{prefix}.kv_norm.weight"),
        attn_sink=loader.tensor(f"{prefix}.attn_sink"),
        wo_a=loader.linear(f"{prefix}.wo_a", config.o_groups),
        wo_b=loader.linear(f"{prefix}.wo_b"),
        compressor=None if kind is LayerKind.WINDOW else _compressor(loader, f"{prefix}.compressor"),
        indexer=_indexer(loader, f"{prefix}.indexer") if kind is LayerKind.CSA else None,
    )


def _compressor(loader: Loader, prefix: str) -> CompressorWeights:
    return CompressorWeights(
        wkv=loader.linear(f"{prefix}.wkv"),
        wgate=loader.linear(f"{prefix}.wgate"),
        ape=loader.tensor(f"{prefix}.ape"),
        norm=loader.tensor(f"{prefix}.norm.weight"),
    )


def _indexer(loader: Loader, prefix: str) -> IndexerWeights:
    return IndexerWeights(
        wq_b=loader.linear(f"{prefix}.wq_b"),
        weights_proj=loader.linear(f"{prefix}.weights_proj"),
        compressor=_compressor(loader, f"{prefix}.compressor"),
    )


def _moe(config: ModelConfig, loader: Loader, prefix: str, is_hash_routed: bool) -> MoeWeights:
    experts, expert_format = _experts(config, loader, f"{prefix}.experts")
    shared = f"{prefix}.shared_experts"
    return MoeWeights(
        gate=loader.linear(f"{prefix}.gate", is_exact=True),
        bias=None if is_hash_routed else loader.tensor(f"{prefix}.gate.bias"),
        tid2eid=loader.tensor(f"{prefix}.gate.tid2eid") if is_hash_routed else None,
        experts=experts,
        expert_format=expert_format,
        w1=loader.linear(f"{shared}.w1"),
        w2=loader.linear(f"{shared}.w2"),
        w3=loader.linear(f"{shared}.w3"),
    )


def _experts(config: ModelConfig, loader: Loader, prefix: str) -> tuple[ExpertWeights, WeightFormat]:
    """Fill room for every routed expert, one matrix at a time. All of them are stored alike."""
    room = loader.placement.experts
    experts: ExpertWeights | None = None
    expert_format = WeightFormat.FP32
    for expert in range(config.num_experts):
        for part in EXPERT_PARTS:
            stored = loader.source.linear(f"{prefix}.{expert}.{part}")
            if experts is None:
                expert_format = stored.format
                experts = room(config.num_experts, config.hidden_size, config.moe_size, expert_format)
            experts.put(expert, part, stored)
    return experts or room(0, config.hidden_size, config.moe_size, expert_format), expert_format
