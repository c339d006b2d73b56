"""Hyper-connections: N residual streams that a sublayer reads as one and writes back mixed.

Source: shared facts `deepseek_v4.md` 2.1-2.3.
"""

from __future__ import annotations

from collections.abc import Callable

from dsv4_kernels.groups import EnterSpec
from dsv4_kernels.ops import OpTable
from dsv4_kernels.sublayers import sublayers_of
from torch import Tensor

from dsv4_backend.config import ModelConfig
from dsv4_backend.model.weights import HyperWeights


class HyperConnection:
    """The connections of every sublayer of one model."""

    def __init__(self, config: ModelConfig, ops: OpTable) -> None:
        self.ops = ops
        self.sublayers = sublayers_of(ops)
        self.num_streams = config.hc_mult
        self.norm_eps = config.norm_eps
        self.hc_eps = config.hc_eps
        self.iterations = config.hc_iterations

    def spread(self, hidden: Tensor) -> Tensor:
        """Start all streams as copies of the embedding. Shapes: hidden [T, d]; returns [T, N, d]."""
        return hidden.unsqueeze(1).expand(-1, self.num_streams, -1).contiguous()

    def entry(self, weights: HyperWeights, norm: Tensor) -> EnterSpec:
        """Return how a sublayer with this norm reads the streams. Shapes: norm [d]."""
        return EnterSpec(
            fn=weights.fn,
            base=weights.base,
            scale=weights.scale,
            norm=norm,
            norm_eps=self.norm_eps,
            hc_eps=self.hc_eps,
            iterations=self.iterations,
        )

    def around(self, streams: Tensor, entry: EnterSpec, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a sublayer on the collapsed, normed streams and mix its output back in. Shapes: streams [T, N, d]."""
        x, post, comb = self.sublayers.enter(streams, entry)
        return self.ops.hyper_mix(streams, sublayer(x), post, comb)

    def join(self, streams: Tensor, weights: HyperWeights) -> Tensor:
        """Collapse the streams before the head. Shapes: returns [T, d]."""
        return self.ops.hyper_head(streams, weights.fn, weights.base, weights.scale, self.norm_eps, self.hc_eps)
