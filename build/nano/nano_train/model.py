"""DeepSeek-V4 as a differentiable function of its weights, for one packed row.

Embedding ─► layers (attention.py, moe.py, each between hyper-connections) ─► streams ─► head; draft block beside it.
Source: shared facts `deepseek_v4.md` 2.1-2.10; equality with the runtime: tests/nano/test_nano_train_forward.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear as exact

from dsv4_backend.config import LayerKind, LayerSpec, ModelConfig, RopeSpec
from dsv4_backend.model.rope import frequencies, rotation
from nano_train import fast, ops, stacked
from nano_train.attention import Attention
from nano_train.batch import Batch, geometry
from nano_train.moe import Rules, route, routed_experts
from nano_train.numerics import Rounding
from nano_train.products import linear
from nano_train.row import IndexPhase, Row, Stacked, Turn
from nano_train.weights import Weights


class Pass:
    """One forward pass over one row. It collects expert loads by router, and the losses of the indexers."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        batch: Batch,
        rounding: Rounding | None = None,
        index: IndexPhase | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.device = weights["embed.weight"].device
        self.host, self.batch = batch, batch.to(self.device)
        self.rounding = rounding or Rounding()
        self.index = index or IndexPhase()
        self.loads: dict[str, Tensor] = {}
        self.index_losses: list[Tensor] = []
        self.rows: dict[tuple[int, RopeSpec], Row] = {}

    def backbone(self) -> Tensor:
        """Return the streams after the last layer. Shapes: [T, N, d]."""
        embedded = self.weights["embed.weight"][self.batch.token_ids]
        streams = embedded[:, None].expand(-1, self.config.hc_mult, -1).contiguous()
        for index, spec in enumerate(self.config.layers):
            streams = self._layer(f"layers.{index}", spec, streams)
        return streams

    def draft(self, streams: Tensor, next_ids: Tensor | None = None) -> Tensor:
        """Run the MTP block on the streams of each token and the id of the next one. Shapes: returns [T, N, d]."""
        weights = self.weights
        hidden = self._norm(streams, weights["mtp.0.hnorm.weight"])
        ahead = weights["embed.weight"][self.batch.next_ids if next_ids is None else next_ids]
        ahead = self._norm(ahead, weights["mtp.0.enorm.weight"])
        mixed = linear(self.rounding.input(hidden), weights["mtp.0.h_proj.weight"])
        mixed = mixed + linear(self.rounding.input(ahead), weights["mtp.0.e_proj.weight"])[:, None]
        return self._layer("mtp.0", draft_layer(self.config), mixed)

    def logits(self, streams: Tensor, prefix: str = "") -> Tensor:
        """Join streams and apply the head. Shapes: streams [L, N, d]; returns [L, V].

        Rule: the draft's prefix is "mtp.0.".
        """
        weights = self.weights
        z = self._project(f"{prefix}hc_head", streams)
        mixing = torch.sigmoid(z * weights[f"{prefix}hc_head_scale"] + weights[f"{prefix}hc_head_base"])
        hidden = ops.hyper_collapse(streams, mixing + self.config.hc_eps)
        return exact(self._norm(hidden, weights[f"{prefix}norm.weight"]), weights["head.weight"])

    def _layer(self, prefix: str, spec: LayerSpec, streams: Tensor) -> Tensor:
        streams = self._around(f"{prefix}.hc_attn", streams, lambda hidden: self._attend(prefix, spec, hidden))
        return self._around(f"{prefix}.hc_ffn", streams, lambda hidden: self._feed(prefix, hidden))

    def _around(self, prefix: str, streams: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a sublayer on the collapsed streams and mix its output back in."""
        config = self.config
        fn, base, scale = (self.weights[f"{prefix}_{part}"] for part in ("fn", "base", "scale"))
        sizes = config.norm_eps, config.hc_eps, config.hc_iterations
        hidden, post, comb, streams = fast.hyper_read(streams, (fn, base, scale), *sizes)
        return fast.hyper_mix(streams, sublayer(hidden), post, comb)

    def _project(self, prefix: str, streams: Tensor) -> Tensor:
        flat = streams.flatten(1)  # [T, N * d]
        scale = (flat.square().mean(1, keepdim=True) + self.config.norm_eps).rsqrt()
        return exact(flat, self.weights[f"{prefix}_fn"]) * scale

    def _attend(self, prefix: str, spec: LayerSpec, hidden: Tensor) -> Tensor:
        attention = Attention(self.config, spec, self.weights, f"{prefix}.attn", self.rounding)
        x = self._norm(hidden, self.weights[f"{prefix}.attn_norm.weight"])
        y, loss = attention(x, self._row(spec))
        if loss is not None:
            self.index_losses.append(loss)
        return y

    def _feed(self, prefix: str, hidden: Tensor) -> Tensor:
        x = self._norm(hidden, self.weights[f"{prefix}.ffn_norm.weight"])
        ids, shares = self._route(f"{prefix}.ffn.gate", x)
        w13, w2 = self.weights[f"{prefix}.ffn.experts.w13"], self.weights[f"{prefix}.ffn.experts.w2"]
        x = self.rounding.input(x)
        limit = self.config.swiglu_limit
        experts = routed_experts if fast.is_native(x) else stacked.routed_experts
        routed = experts(x, ids, shares, w13, w2, Rules(limit, self.rounding))
        w1, w2, w3 = (self.weights[f"{prefix}.ffn.shared_experts.w{part}.weight"] for part in (1, 2, 3))
        hidden = fast.swiglu(linear(x, torch.cat([w1, w3])), limit)
        return routed + linear(self.rounding.input(hidden), w2)

    def _route(self, prefix: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return expert ids and shares [T, K], and remember how many tokens each expert got."""
        config, bias = self.config, self.weights.get(f"{prefix}.bias")
        table = self.weights.get(f"{prefix}.tid2eid")
        fixed = None if table is None else table[self.batch.token_ids]
        logits = exact(x, self.weights[f"{prefix}.weight"])
        ids, shares = route(logits, bias, fixed, config.num_active_experts, config.routed_scale)
        if bias is not None:
            self.loads[f"{prefix}.bias"] = torch.bincount(ids.flatten(), minlength=config.num_experts)
        return ids, shares

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return fast.rms_norm(x, weight, self.config.norm_eps)

    def _row(self, spec: LayerSpec) -> Row:
        """Compute once what all layers with the same ratio and rotation share."""
        key = spec.ratio, spec.rope
        if key not in self.rows:
            self.rows[key] = self._new_row(spec)
        return self.rows[key]

    def _new_row(self, spec: LayerSpec) -> Row:
        shared = geometry(self.host, self.config.window, [spec.ratio])
        entries = shared.entries.get(spec.ratio)
        table = frequencies(spec.rope, self.config.rope_dim)
        at_entries = None if entries is None else _turn(table, entries.positions).to(self.device)
        at_tokens = _turn(table, self.host.positions).to(self.device)
        if fast.is_native(self.weights["embed.weight"]):
            return Row(self.batch, shared, at_tokens, entries, at_entries, self.index)
        seen = None if entries is None else Stacked.of(entries).to(self.device)
        shared = shared.to(self.device)
        return Row(self.batch, shared, at_tokens, shared.entries.get(spec.ratio), at_entries, self.index, seen)


def draft_layer(config: ModelConfig) -> LayerSpec:
    """Return the roles of the MTP block: window only, plain rotation, learned router."""
    plain = next((layer.rope for layer in config.layers if layer.kind is LayerKind.WINDOW), RopeSpec(theta=10_000.0))
    return LayerSpec(kind=LayerKind.WINDOW, ratio=0, is_hash_routed=False, rope=plain)


def _turn(table: Tensor, positions: Tensor) -> Turn:
    at = rotation(table, positions)
    return Turn(at.cos, at.sin)
