"""A decoder layer, or all of them, as one call of the compiled library where the operators allow it: the same bits."""

from __future__ import annotations

from collections.abc import Sequence

from dsv4_kernels.cpu.backbone import CpuBackbone
from dsv4_kernels.cpu.layers import CpuLayers, Described
from dsv4_kernels.cpu.plan import PlannedStep
from dsv4_kernels.groups import BackboneStage, EnterSpec, LayerStage
from dsv4_kernels.steps import LayerMemory
from torch import Tensor

from dsv4_backend.config import LayerKind
from dsv4_backend.model.attention import Attention
from dsv4_backend.model.moe import MixtureOfExperts
from dsv4_backend.model.step import StepCache


class WholeLayer:
    """The compiled form of one layer. What it knows of a cache is kept until it is handed another."""

    def __init__(
        self,
        layers: CpuLayers,
        attention: Attention,
        experts: MixtureOfExperts,
        enter: tuple[EnterSpec, EnterSpec],
    ) -> None:
        self._layers = layers
        self._attention = attention
        self._stage = _stage(attention, experts, enter)
        self.described = layers.layer(self._stage)
        self._kept: tuple[StepCache, Described] | None = None

    def __call__(self, streams: Tensor, step: Described, cache: StepCache) -> Tensor:
        """Shapes: streams [T, N, d], returned alike."""
        return self._layers.run(self.described, self.memory(cache), step, streams)

    def memory(self, cache: StepCache) -> Described:
        """What this layer keeps in a cache."""
        if self._kept is None or self._kept[0] is not cache:
            self._kept = cache, self._layers.memory(self._memory(cache), self._stage)
        return self._kept[1]

    def _memory(self, cache: StepCache) -> LayerMemory:
        number, kind = self._attention.layer_id, self._attention.kind
        window = cache.window(number)
        if kind is LayerKind.WINDOW:
            return LayerMemory(window=window)
        if kind is LayerKind.HCA:
            return LayerMemory(window=window, entries=cache.entries(number), fold=cache.fold(number))
        has_index = self._attention.indexer is not None
        return LayerMemory(
            window=window,
            entries=cache.entries(number),
            index_keys=cache.index_keys(number) if has_index else None,
            ring=cache.ring(number),
            index_ring=cache.ring(number, is_indexer=True) if has_index else None,
        )


class WholeBackbone:
    """All layers and the head of one model. What it knows of a cache is kept until it is handed another."""

    def __init__(self, layers: Sequence[WholeLayer], stage: BackboneStage, compiled: CpuLayers) -> None:
        self._layers = tuple(layers)
        self._compiled = CpuBackbone(compiled.twins, stage, [layer.described for layer in layers])
        self.logits = self._compiled.logits
        self._kept: tuple[StepCache, Described] | None = None

    def __call__(self, step: PlannedStep, cache: StepCache) -> Tensor:
        """Shapes: returns the streams [T, N, d]."""
        if self._kept is None or self._kept[0] is not cache:
            self._kept = cache, self._compiled.memories([layer.memory(cache) for layer in self._layers])
        return self._compiled.run(self._kept[1], step)


def _stage(attention: Attention, experts: MixtureOfExperts, enter: tuple[EnterSpec, EnterSpec]) -> LayerStage:
    return LayerStage(
        enter_attention=enter[0],
        query=attention.query_stage,
        keys=attention.key_stage,
        output=attention.output_stage,
        compressor=None if attention.compressor is None else attention.compressor.stage,
        index=None if attention.indexer is None else attention.indexer.stage,
        sink=attention.weights.attn_sink,
        scale=attention.scale,
        enter_experts=enter[1],
        experts=experts.stage,
        fixed_ids=experts.weights.tid2eid,
    )
