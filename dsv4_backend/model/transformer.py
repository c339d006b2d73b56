"""The forward pass, in reading order: embed, layers, join the streams, head.

Source: shared facts `deepseek_v4.md` 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from dsv4_kernels.cpu.plan import PlannedStep, unplanned
from dsv4_kernels.groups import BackboneStage
from dsv4_kernels.ops import OpTable
from dsv4_kernels.placement import HOST, Placement
from dsv4_kernels.sublayers import layers_of
from torch import Tensor

from dsv4_backend.config import LayerKind, ModelConfig, Numerics
from dsv4_backend.model.attention import Attention, AttentionStep
from dsv4_backend.model.hyper import HyperConnection
from dsv4_backend.model.indexer import EntrySelector
from dsv4_backend.model.moe import MixtureOfExperts
from dsv4_backend.model.numerics import Rounding
from dsv4_backend.model.shared import SharedSteps
from dsv4_backend.model.step import StepCache, StepInputs
from dsv4_backend.model.weights import LayerWeights, Loader, ModelWeights, WeightSource, load_weights
from dsv4_backend.model.whole import WholeBackbone, WholeLayer


class Layer:
    """One decoder layer: attention, then experts, each between its hyper-connections."""

    def __init__(
        self, config: ModelConfig, layer_id: int, weights: LayerWeights, ops: OpTable, rounding: Rounding
    ) -> None:
        self.spec = config.layers[layer_id]
        self.weights = weights
        self.hyper = HyperConnection(config, ops)
        self.enter_attn = self.hyper.entry(weights.hc_attn, weights.attn_norm)
        self.enter_ffn = self.hyper.entry(weights.hc_ffn, weights.ffn_norm)
        self.attention = Attention(config, layer_id, weights.attn, ops, rounding)
        self.experts = MixtureOfExperts(config, weights.ffn, ops, rounding)
        compiled = layers_of(ops)
        enter = self.enter_attn, self.enter_ffn
        self.whole = None if compiled is None else WholeLayer(compiled, self.attention, self.experts, enter)

    def __call__(self, streams: Tensor, step: AttentionStep) -> Tensor:
        """Shapes: streams [T, N, d], returned alike."""
        if self.whole is not None and step.whole is not None:
            return self.whole(streams, step.whole, step.cache)
        streams = self.hyper.around(streams, self.enter_attn, partial(self.attention, step=step))
        return self.hyper.around(streams, self.enter_ffn, partial(self.experts, token_ids=step.inputs.token_ids))


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step leaves of its tokens. Shapes: streams [T, N, d]; taps [T, L*d], the means of L tapped layers."""

    streams: Tensor
    taps: Tensor | None

    def at(self, tokens: Tensor) -> Tensor:
        """The streams of some tokens, in ascending order; where that is all of them nothing is copied."""
        return self.streams if tokens.shape[0] == self.streams.shape[0] else self.streams[tokens]


class Transformer:
    """The backbone on one rank. It keeps no state between steps; the caches belong to the caller."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        ops: OpTable,
        numerics: Numerics,
        placement: Placement = HOST,
    ) -> None:
        self.config = config
        self.placement = placement
        self.weights = weights
        self.ops = ops
        self.rounding = Rounding(ops, numerics)
        self.hyper = HyperConnection(config, ops)
        self.layers = tuple(
            Layer(config, layer_id, layer, ops, self.rounding) for layer_id, layer in enumerate(weights.layers)
        )
        self.steps = SharedSteps(config, config.layers, ops, placement)
        self.whole = self._whole()

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        source: WeightSource,
        ops: OpTable,
        numerics: Numerics,
        placement: Placement = HOST,
    ) -> Transformer:
        """Build the model from a checkpoint, where its operators want it.

        Raises: CheckpointError for a tensor that the source lacks.
        """
        return cls(config, load_weights(config, Loader(source, placement)), ops, numerics, placement)

    def _whole(self) -> WholeBackbone | None:
        """All layers in one call, where each of them is one."""
        compiled, layers = layers_of(self.ops), [layer.whole for layer in self.layers if layer.whole is not None]
        if compiled is None or len(layers) < len(self.layers):
            return None
        head, weights = self.weights.hc_head, self.weights
        ratios = [spec.ratio for spec in self.config.layers if spec.kind is LayerKind.CSA]
        stage = BackboneStage(
            kinds=tuple(kind.value for kind, _ in self.steps.of_layers),
            ropes=tuple(rope for _, rope in self.steps.of_layers),
            frequencies=self.steps.frequencies.squeeze(1),
            embed=weights.embed,
            csa_ratio=ratios[0] if ratios else 0,
            fn=head.fn,
            base=head.base,
            scale=head.scale,
            norm=weights.norm,
            head=weights.head.weight,
            rounds=self.rounding.rounds(weights.head.format),
            norm_eps=self.config.norm_eps,
            hc_eps=self.config.hc_eps,
        )
        return WholeBackbone(layers, stage, compiled)

    def forward(
        self, inputs: StepInputs | PlannedStep, cache: StepCache, selector: EntrySelector | None = None
    ) -> Tensor:
        """Compute one step and return the wanted logits; the caches then hold the step's tokens.

        Shapes: returns [L, V] fp32, in the order of inputs.logit_tokens.
        """
        return self.logits(self.run(inputs, cache, selector=selector).at(inputs.logit_tokens))

    @torch.inference_mode()
    def run(
        self,
        inputs: StepInputs | PlannedStep,
        cache: StepCache,
        tapped: tuple[int, ...] = (),
        selector: EntrySelector | None = None,
    ) -> Computed:
        """Compute one step up to the last layer; `tapped` are layers whose streams a draft model reads."""
        if self.whole is not None and isinstance(inputs, PlannedStep) and selector is None and not tapped:
            return Computed(self.whole(inputs, cache), None)
        inputs = unplanned(inputs)
        streams = self.hyper.spread(self.weights.embed.index_select(0, inputs.token_ids))  # [T, N, d]
        taps: dict[int, Tensor] = {}
        for layer_id, step in enumerate(self.steps(inputs, cache, selector)):
            streams = self.layers[layer_id](streams, step)
            if layer_id in tapped:
                taps[layer_id] = streams.mean(1)
        return Computed(streams, torch.cat([taps[layer_id] for layer_id in tapped], 1) if tapped else None)

    @torch.inference_mode()
    def logits(self, streams: Tensor) -> Tensor:
        """Join the streams and apply the head. Shapes: streams [L, N, d]; returns [L, V] fp32."""
        if self.whole is not None:
            return self.whole.logits(streams)
        hidden = self.hyper.join(streams, self.weights.hc_head)  # [L, d]
        return self.rounding.linear(
            self.ops.rms_norm(hidden, self.weights.norm, self.config.norm_eps), self.weights.head
        )
