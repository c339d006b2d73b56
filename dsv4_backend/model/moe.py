"""Mixture of experts: route each token by its learned scores or by its id, then add the shared expert.

Source: shared facts `deepseek_v4.md` 2.9.
"""

from __future__ import annotations

from dsv4_kernels.ops import OpTable
from torch import Tensor

from dsv4_backend.config import ModelConfig
from dsv4_backend.model.numerics import Rounding
from dsv4_backend.model.weights import MoeWeights


class MixtureOfExperts:
    """One feed-forward sublayer."""

    def __init__(self, config: ModelConfig, weights: MoeWeights, ops: OpTable, rounding: Rounding) -> None:
        self.config = config
        self.weights = weights
        self.ops = ops
        self.rounding = rounding

    def __call__(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """Shapes: x [T, d]; token_ids [T], read by hash layers; returns [T, d]."""
        return self._routed(x, *self._route(x, token_ids)) + self._shared(x)

    def _routed(self, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
        """The chosen experts. The operators round their own inner values; x is rounded here."""
        stored = self.weights.expert_format
        x = self.rounding.input(x, stored)
        limit = self.config.swiglu_limit
        return self.ops.moe(x, self.weights.experts, ids, shares, limit, self.rounding.rounds(stored))

    def _shared(self, x: Tensor) -> Tensor:
        w1, w3, w2 = self.weights.w1, self.weights.w3, self.weights.w2
        x = self.rounding.input(x, w1.format)
        limit = self.config.swiglu_limit
        return self.ops.gated_mlp(x, w1.weight, w3.weight, w2.weight, limit, self.rounding.rounds(w2.format))

    def _route(self, x: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Choose experts and their shares. Shapes: returns [T, K] ids and [T, K] weights."""
        fixed = None if self.weights.tid2eid is None else self.weights.tid2eid[token_ids]  # [T, K]
        return self.ops.route(
            self.rounding.linear(x, self.weights.gate),
            self.weights.bias,
            fixed,
            self.config.num_active_experts,
            self.config.routed_scale,
        )
