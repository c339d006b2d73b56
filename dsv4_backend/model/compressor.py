"""Compress blocks of tokens into entries: a softmax over the block, per channel, of gated projections.

CSA pools overlapping blocks at once from a ring of the latest tokens; HCA folds its long blocks token by token.
Source: shared facts `deepseek_v4.md` 2.6.
"""

from __future__ import annotations

import torch
from dsv4_kernels.groups import CompressorStage, CompressStage
from dsv4_kernels.ops import OpTable
from dsv4_kernels.sublayers import sublayers_of
from torch import Tensor

from dsv4_backend.model.numerics import Rounding
from dsv4_backend.model.rope import Rotation, rotate
from dsv4_backend.model.step import Fold, FoldInputs, PoolInputs, Ring
from dsv4_backend.model.weights import CompressorWeights


class Compressor:
    """The compressor of one layer, or of its indexer."""

    def __init__(self, weights: CompressorWeights, ops: OpTable, rounding: Rounding, norm_eps: float) -> None:
        self.weights = weights
        self.ops = ops
        self.sublayers = sublayers_of(ops)
        inputs = CompressStage(
            wkv=weights.wkv.weight,
            wgate=weights.wgate.weight,
            ape=weights.ape,
            rounds=rounding.rounds(weights.wkv.format),
        )
        self.stage = CompressorStage(inputs=inputs, norm=weights.norm)
        self.norm_eps = norm_eps

    def pool(self, x: Tensor, blocks: PoolInputs, ring: Ring, at: Rotation) -> Tensor:
        """Return the CSA entries that close in this step, rotated, and remember this step's tokens in the ring.

        Shapes: x [T, d]; returns [B, w].
        """
        values, gates = self._project(x, blocks.phases)
        width = self.weights.norm.shape[0]
        pooled = values.new_empty((0, width))
        if blocks.positions.shape[0]:
            pooled = self.ops.compress_pool(
                _gather(values, ring.values, blocks, width, absent=0.0),
                _gather(gates, ring.gates, blocks, width, absent=float("-inf")),
            )  # [B, w]
        ring.values[blocks.ring_rows] = values[blocks.ring_tokens]
        ring.gates[blocks.ring_rows] = gates[blocks.ring_tokens]
        return self._finish(pooled, at)

    def fold(self, x: Tensor, blocks: FoldInputs, fold: Fold, at: Rotation) -> Tensor:
        """Return the HCA entries that close in this step, rotated, and fold what is certain of the open blocks.

        Shapes: x [T, d]; returns [B, w].
        """
        values, gates = self._project(x, blocks.phases)
        has_raw = blocks.raw_rows.shape[0] > 0
        rows = torch.cat([values, fold.values[blocks.raw_rows]]) if has_raw else values  # [T + R, w]
        weights = torch.cat([gates, fold.gates[blocks.raw_rows]]) if has_raw else gates
        pooled = self.ops.compress_fold(rows, weights, fold.states, blocks.runs)  # [B, w]
        fold.values[blocks.ring_rows] = values[blocks.ring_tokens]
        fold.gates[blocks.ring_rows] = gates[blocks.ring_tokens]
        return self._finish(pooled, at)

    def _project(self, x: Tensor, phases: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gates of every token. Shapes: [T, series * w] each."""
        return self.sublayers.compress_inputs(x, self.stage.inputs, phases)

    def _finish(self, pooled: Tensor, at: Rotation) -> Tensor:
        if not pooled.shape[0]:
            return pooled
        return rotate(self.ops, self.ops.rms_norm(pooled, self.weights.norm, self.norm_eps), at)


def _gather(tokens: Tensor, ring: Tensor, blocks: PoolInputs, width: int, absent: float) -> Tensor:
    """Collect the source slots of each block, one series of channels after the other.

    Shapes: tokens [T, series * w]; ring [R, series * w]; returns [B, S, w].
    Rule:   slots are shared out evenly over the series: the first half of an overlapping block reads the first series.
    """
    num_series = tokens.shape[1] // width
    parts = []
    for series, (slots, rows) in enumerate(
        zip(blocks.source_tokens.chunk(num_series, 1), blocks.source_rows.chunk(num_series, 1), strict=True)
    ):
        channels = slice(series * width, (series + 1) * width)
        part = tokens[:, channels][slots.clamp(min=0)]  # [B, S / series, w]
        part = torch.where((slots >= 0)[..., None], part, absent)
        parts.append(torch.where((rows >= 0)[..., None], ring[:, channels][rows.clamp(min=0)], part))
    return torch.cat(parts, dim=1)
