"""The weights of the draft models, by their official names.

Source: shared facts `deepseek_v4.md` 2.10, `dspark.md` section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4_backend.config import ModelConfig
from dsv4_backend.model.weights import HyperWeights, LayerWeights, Loader, Projection, load_hyper, load_layer


@dataclass(frozen=True, slots=True)
class MtpWeights:
    """The MTP block. Shapes: enorm, hnorm, norm [d]; e_proj, h_proj [d, d]."""

    layer: LayerWeights
    enorm: Tensor
    hnorm: Tensor
    e_proj: Projection
    h_proj: Projection
    hc_head: HyperWeights
    norm: Tensor


@dataclass(frozen=True, slots=True)
class DsparkWeights:
    """The stages of DSpark and what joins them.

    Shapes: main_proj [d, L*d] of L tapped layers; main_norm, norm [d]; markov_w1, markov_w2 [V, r];
            confidence [d + r].
    """

    layers: tuple[LayerWeights, ...]
    main_proj: Projection
    main_norm: Tensor
    hc_head: HyperWeights
    norm: Tensor
    markov_w1: Tensor
    markov_w2: Projection
    confidence: Tensor


def load_mtp(config: ModelConfig, loader: Loader) -> MtpWeights:
    """Take the first MTP block; others, which no release has, are left to the caller's check of what is unused."""
    return MtpWeights(
        layer=load_layer(config, loader, "mtp.0", config.draft.layer),
        enorm=loader.tensor("mtp.0.enorm.weight"),
        hnorm=loader.tensor("mtp.0.hnorm.weight"),
        e_proj=loader.linear("mtp.0.e_proj"),
        h_proj=loader.linear("mtp.0.h_proj"),
        hc_head=load_hyper(loader, "mtp.0.hc_head"),
        norm=loader.tensor("mtp.0.norm.weight"),
    )


def load_dspark(config: ModelConfig, loader: Loader) -> DsparkWeights:
    """Take every stage and the heads of DSpark."""
    stages = range(config.draft.num_stages)
    last = f"mtp.{config.draft.num_stages - 1}"
    return DsparkWeights(
        layers=tuple(load_layer(config, loader, f"mtp.{stage}", config.draft.layer) for stage in stages),
        main_proj=loader.linear("mtp.0.main_proj"),
        main_norm=loader.tensor("mtp.0.main_norm.weight"),
        hc_head=load_hyper(loader, f"{last}.hc_head"),
        norm=loader.tensor(f"{last}.norm.weight"),
        markov_w1=loader.tensor(f"{last}.markov_head.markov_w1.weight"),
        markov_w2=loader.linear(f"{last}.markov_head.markov_w2"),
        confidence=loader.tensor(f"{last}.confidence_head.proj.weight").view(-1),
    )
