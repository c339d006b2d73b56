"""Mixture of experts: route each token by its learned scores or by its id, then add the shared expert.

Source: shared facts `deepseek_v4.md` 2.9.
"""

from __future__ import annotations

from dsv4_kernels.groups import ExpertStage
from dsv4_kernels.ops import OpTable
from dsv4_kernels.sublayers import sublayers_of
from torch import Tensor

from dsv4_backend.config import ModelConfig
from dsv4_backend.model.numerics import Rounding
from dsv4_backend.model.weights import MoeWeights


class MixtureOfExperts:
    """One feed-forward sublayer."""

    def __init__(self, config: ModelConfig, weights: MoeWeights, ops: OpTable, rounding: Rounding) -> None:
        self.weights = weights
        self.sublayers = sublayers_of(ops)
        self.stage = ExpertStage(
            gate=weights.gate.weight,
            bias=weights.bias,
            experts=weights.experts,
            shared=(weights.w1.weight, weights.w3.weight, weights.w2.weight),
            num_chosen=config.num_active_experts,
            scale=config.routed_scale,
            limit=config.swiglu_limit,
            rounds=rounding.rounds(weights.expert_format),
            rounds_shared=rounding.rounds(weights.w1.format),
            rounds_shared_inner=rounding.rounds(weights.w2.format),
        )

    def __call__(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """Shapes: x [T, d]; token_ids [T], read by hash layers; returns [T, d]."""
        fixed = None if self.weights.tid2eid is None else self.weights.tid2eid[token_ids]  # [T, K]
        return self.sublayers.feed_forward(x, fixed, self.stage)
