"""Stretches of a sublayer as one call each: composed of the table's operators, or a C++ twin with the same bits.

sublayers_of(ops) ─► the CPU table's twins (cpu/sublayers.py), else `Composed`, which is the specification.
layers_of(ops)    ─► whole layers as one call (cpu/layers.py), or None: the model composes them of these stretches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from dsv4_kernels.cpu.layers import CpuLayers
from dsv4_kernels.cpu.sublayers import CpuSublayers
from dsv4_kernels.cpu.table import CpuOps
from dsv4_kernels.groups import CompressStage, EnterSpec, ExpertStage, KeyStage, OutputStage, QueryStage
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import LinearWeight
from dsv4_kernels.trips import Trip, make_trip

ENTRY_GROUP = 64


class Sublayers(Protocol):
    """What a layer does between reading its streams, attention and mixing back."""

    def enter(self, streams: Tensor, spec: EnterSpec) -> tuple[Tensor, Tensor, Tensor]:
        """Collapse the streams by their maps and norm the result.

        Shapes: streams [T, N, D]; returns x [T, D], post [T, N], comb [T, N, N].
        """

    def query(self, x: Tensor, stage: QueryStage, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of every head, normed and rotated, and the latent that they come from.

        Shapes: x [T, d]; cos, sin [T, R / 2]; returns latent [T, r_q], query [T, H, c].
        """

    def keys(self, x: Tensor, stage: KeyStage, cos: Tensor, sin: Tensor) -> Tensor:
        """Window keys, normed, rotated and rounded as they are stored. Shapes: x [T, d]; returns [T, c]."""

    def output(self, mixed: Tensor, stage: OutputStage, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn back, project the groups of heads, then all of them. Shapes: mixed [T, H, c]; returns [T, d]."""

    def compress_inputs(self, x: Tensor, stage: CompressStage, phases: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gates of a compressor; a gate counts from its token's place in the block.

        Shapes: x [T, d]; phases int64 [T]; returns [T, series * w] each.
        """

    def feed_forward(self, x: Tensor, fixed_ids: Tensor | None, stage: ExpertStage) -> Tensor:
        """Route, the chosen experts, and the shared one. Shapes: x [T, d]; fixed_ids [T, K]; returns [T, d]."""


def sublayers_of(ops: OpTable) -> Sublayers:
    """The fastest form for a table of operators."""
    twins = getattr(ops.linear, "__self__", None)
    return CpuSublayers(twins) if isinstance(twins, CpuOps) else Composed(ops)


def layers_of(ops: OpTable) -> CpuLayers | None:
    """Whole layers in one call, where every operator of the table is the CPU's own."""
    twins = getattr(ops.linear, "__self__", None)
    is_whole = all(getattr(getattr(ops, each.name), "__self__", None) is twins for each in fields(ops))
    return CpuLayers(twins) if isinstance(twins, CpuOps) and is_whole else None


@dataclass(frozen=True, slots=True)
class Composed:
    """Every stretch out of single operators."""

    ops: OpTable

    def enter(self, streams: Tensor, spec: EnterSpec) -> tuple[Tensor, Tensor, Tensor]:
        """As `Sublayers.enter`."""
        pre, post, comb = self.ops.hyper_maps(
            streams, spec.fn, spec.base, spec.scale, spec.norm_eps, spec.hc_eps, spec.iterations
        )
        return self.ops.rms_norm(self.ops.hyper_collapse(streams, pre), spec.norm, spec.norm_eps), post, comb

    def query(self, x: Tensor, stage: QueryStage, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As `Sublayers.query`."""
        latent = self.ops.rms_norm(self._project(x, stage.wq_a, stage.rounds_a), stage.norm, stage.eps)
        heads = self._project(latent, stage.wq_b, stage.rounds_b).view(x.shape[0] * stage.num_heads, -1)
        heads = self.ops.rms_norm(heads, None, stage.eps).view(x.shape[0], stage.num_heads, -1)
        return latent, self._rotate(heads, cos, sin)

    def keys(self, x: Tensor, stage: KeyStage, cos: Tensor, sin: Tensor) -> Tensor:
        """As `Sublayers.keys`."""
        kv = self.ops.rms_norm(self._project(x, stage.wkv, stage.rounds), stage.norm, stage.eps)
        kv = self._rotate(kv, cos, sin)
        if not stage.rounds_entry:
            return kv
        split = kv.shape[1] - 2 * cos.shape[1]
        return torch.cat([self.ops.fp8_round_trip(kv[:, :split].contiguous(), ENTRY_GROUP), kv[:, split:]], dim=1)

    def output(self, mixed: Tensor, stage: OutputStage, cos: Tensor, sin: Tensor) -> Tensor:
        """As `Sublayers.output`."""
        turned = self._rotate(mixed, cos, sin, inverse=True)
        latent = self.ops.grouped_linear(turned.reshape(mixed.shape[0], stage.num_groups, -1), stage.wo_a)
        return self._project(latent.reshape(mixed.shape[0], -1), stage.wo_b, stage.rounds)

    def compress_inputs(self, x: Tensor, stage: CompressStage, phases: Tensor) -> tuple[Tensor, Tensor]:
        """As `Sublayers.compress_inputs`."""
        values = self._project(x, stage.wkv, stage.rounds)
        return values, self._project(x, stage.wgate, stage.rounds) + stage.ape[phases]

    def feed_forward(self, x: Tensor, fixed_ids: Tensor | None, stage: ExpertStage) -> Tensor:
        """As `Sublayers.feed_forward`."""
        logits = self.ops.linear(x, stage.gate)
        ids, weights = self.ops.route(logits, stage.bias, fixed_ids, stage.num_chosen, stage.scale)
        rounded = make_trip(self.ops, x, stage.rounds)
        routed = self.ops.moe(rounded, stage.experts, ids, weights, stage.limit, stage.rounds)
        if stage.rounds_shared != stage.rounds:
            rounded = make_trip(self.ops, x, stage.rounds_shared)
        shared = self.ops.gated_mlp(
            rounded, *stage.shared, stage.limit, stage.rounds_shared_inner, made=stage.rounds_shared
        )
        return routed + shared

    def _project(self, x: Tensor, weight: LinearWeight, rounds: Trip) -> Tensor:
        return self.ops.linear(make_trip(self.ops, x, rounds), weight, rounds)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
        width = 2 * cos.shape[1]
        turned = self.ops.rope_rotate(x[..., -width:].contiguous(), cos, sin, inverse=inverse)
        return torch.cat([x[..., :-width], turned], dim=-1)
