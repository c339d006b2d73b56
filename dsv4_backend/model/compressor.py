"""Compress blocks of tokens into entries: a softmax over the block, per channel, of gated projections.

Source: shared facts `deepseek_v4.md` 2.6.
"""

from __future__ import annotations

import torch
from dsv4_kernels.ops import OpTable
from torch import Tensor

from dsv4_backend.model.numerics import Rounding
from dsv4_backend.model.rope import Rotation, rotate
from dsv4_backend.model.step import BlockInputs, Ring
from dsv4_backend.model.weights import CompressorWeights


class Compressor:
    """The compressor of one layer, or of its indexer."""

    def __init__(self, weights: CompressorWeights, ops: OpTable, rounding: Rounding, norm_eps: float) -> None:
        self.weights = weights
        self.ops = ops
        self.rounding = rounding
        self.norm_eps = norm_eps

    def __call__(self, x: Tensor, blocks: BlockInputs, ring: Ring, at: Rotation) -> Tensor:
        """Return the entries that close in this step, rotated, and remember this step's tokens in the ring.

        Shapes: x [T, d]; returns [B, w].
        """
        values = self.rounding.linear(x, self.weights.wkv)  # [T, series * w]
        gates = self.rounding.linear(x, self.weights.wgate) + self.weights.ape[blocks.phases]
        width = self.weights.norm.shape[0]
        if blocks.positions.shape[0]:
            pooled = self.ops.compress_pool(
                _gather(values, ring.values, blocks, width, absent=0.0),
                _gather(gates, ring.gates, blocks, width, absent=float("-inf")),
            )  # [B, w]
            entries = rotate(self.ops, self.ops.rms_norm(pooled, self.weights.norm, self.norm_eps), at)
        else:
            entries = values.new_empty((0, width))
        ring.values[blocks.ring_rows] = values[blocks.ring_tokens]
        ring.gates[blocks.ring_rows] = gates[blocks.ring_tokens]
        return entries


def _gather(tokens: Tensor, ring: Tensor, blocks: BlockInputs, width: int, absent: float) -> Tensor:
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
        if bool((rows >= 0).any()):
            part = torch.where((rows >= 0)[..., None], ring[:, channels][rows.clamp(min=0)], part)
        parts.append(part)
    return torch.cat(parts, dim=1)
