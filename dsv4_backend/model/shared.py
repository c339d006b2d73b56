"""What all layers of one kind and one rotation share in a step, computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from dsv4_kernels.cpu.layers import Described
from dsv4_kernels.ops import OpTable
from dsv4_kernels.placement import Placement
from dsv4_kernels.steps import LayerStep
from dsv4_kernels.sublayers import layers_of

from dsv4_backend.config import LayerKind, LayerSpec, ModelConfig
from dsv4_backend.model.attention import AttentionStep
from dsv4_backend.model.indexer import EntrySelector, TopEntries
from dsv4_backend.model.rope import Rotation, frequencies, rotations
from dsv4_backend.model.step import FoldInputs, PoolInputs, StepCache, StepInputs


class SharedSteps:
    """Prepares the steps of some layers of a model. A role is a kind of layer and a rotation."""

    def __init__(self, config: ModelConfig, layers: Sequence[LayerSpec], ops: OpTable, placement: Placement) -> None:
        roles = tuple(dict.fromkeys((spec.kind, spec.rope) for spec in layers))
        ropes = tuple(dict.fromkeys(rope for _, rope in roles))
        self._roles = tuple((kind, ropes.index(rope)) for kind, rope in roles)
        self._role_of = tuple(roles.index((spec.kind, spec.rope)) for spec in layers)
        angles = torch.stack([frequencies(rope, config.rope_dim)[None] for rope in ropes])
        self.frequencies = placement.tensor(angles)  # [F, 1, R/2]
        self._no_blocks = rotations(self.frequencies, placement.tensor(torch.zeros(0)))[0]
        self._select = TopEntries(ops, config.index_topk)
        self._compiled = layers_of(ops)

    @property
    def of_layers(self) -> list[tuple[LayerKind, int]]:
        """The kind of each layer and its line of `frequencies`."""
        return [self._roles[role] for role in self._role_of]

    def __call__(
        self, inputs: StepInputs, cache: StepCache, selector: EntrySelector | None = None
    ) -> list[AttentionStep]:
        """Return the step of each layer; layers with the same role get the same."""
        at_tokens = rotations(self.frequencies, inputs.positions)
        is_whole = selector is None and inputs.csa_pages is None
        tokens = self._compiled.tokens(inputs) if self._compiled is not None and is_whole else None
        steps = []
        for kind, rope in self._roles:
            blocks = _blocks(kind, inputs)
            at_blocks = None if blocks is None else self._at_blocks(blocks, rope)
            whole = self._whole(inputs, blocks, at_tokens[rope], at_blocks, tokens)
            steps.append(
                AttentionStep(inputs, cache, selector or self._select, at_tokens[rope], at_blocks, blocks, whole)
            )
        return [steps[role] for role in self._role_of]

    def _at_blocks(self, blocks: PoolInputs | FoldInputs, rope: int) -> Rotation:
        if not blocks.positions.shape[0]:
            return self._no_blocks
        return rotations(self.frequencies[rope : rope + 1], blocks.positions)[0]

    def _whole(
        self,
        inputs: StepInputs,
        blocks: PoolInputs | FoldInputs | None,
        at_tokens: Rotation,
        at_blocks: Rotation | None,
        tokens: Described | None,
    ) -> Described | None:
        """The same as compiled layers take it; None where they may not be used."""
        if self._compiled is None or tokens is None:
            return None
        at = at_blocks or self._no_blocks
        step = LayerStep(
            inputs=inputs, blocks=blocks, cos=at_tokens.cos, sin=at_tokens.sin, block_cos=at.cos, block_sin=at.sin
        )
        return self._compiled.step(step, tokens)


def _blocks(kind: LayerKind, inputs: StepInputs) -> PoolInputs | FoldInputs | None:
    if kind is LayerKind.CSA:
        return inputs.csa
    return inputs.hca if kind is LayerKind.HCA else None
