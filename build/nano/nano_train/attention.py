"""One attention sublayer: low-rank queries, one key/value head, compressed entries, indexer, grouped output.

Source: shared facts `deepseek_v4.md` 2.5-2.7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4_backend.config import LayerKind, LayerSpec, ModelConfig
from nano_train import fast, stacked
from nano_train.attend import View, attend
from nano_train.batch import EntryGeometry
from nano_train.indexer import Indexer
from nano_train.numerics import Rounding
from nano_train.products import linear
from nano_train.row import Row, Turn
from nano_train.weights import Weights


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of one layer with its weights under `prefix`."""

    config: ModelConfig
    spec: LayerSpec
    weights: Weights
    prefix: str
    rounding: Rounding

    def __call__(self, x: Tensor, row: Row) -> tuple[Tensor, Tensor | None]:
        """Attend; return the output and the indexer's loss, if chunks of this row train it. Shapes: x, y [T, d]."""
        config, eps = self.config, self.config.norm_eps
        rounded = self.rounding.input(x)
        down = linear(rounded, torch.cat([self._weight("wq_a.weight"), self._weight("wkv.weight")]))
        latent, kv = torch.split(down, [config.q_lora_rank, config.head_dim], dim=1)
        latent = fast.rms_norm(latent, self._weight("q_norm.weight"), eps)  # [T, r_q]
        query = linear(self.rounding.input(latent), self._weight("wq_b.weight")).view(
            -1, config.num_heads, config.head_dim
        )
        at = row.at_tokens
        query = fast.norm_rotate(query, None, at.cos, at.sin, eps)
        kv = fast.norm_rotate(kv, self._weight("kv_norm.weight"), at.cos, at.sin, eps)
        kv = self.rounding.entry(kv, config.rope_dim)
        out, loss = self._attend(x, latent, query, kv, row)
        return self._output(fast.rotate(out, at.cos, -at.sin)), loss

    def _attend(self, x: Tensor, latent: Tensor, query: Tensor, kv: Tensor, row: Row) -> tuple[Tensor, Tensor | None]:
        if row.stacked is not None or not fast.is_native(x):
            return self._attend_stacked(x, latent, query, kv, row)
        sink, masks = self._weight("attn_sink"), row.geometry.window_masks
        if row.entries is None or row.at_entries is None:
            none = kv.new_empty(0, kv.shape[1])
            view = View(row.geometry.window, ((0, 0),) * len(masks), tuple(masks))
            return attend(query, kv, none, sink, view)[0], None
        entries = self._entries(x, row.entries, row.at_entries)
        seen, indexer = row.entries.masks, None
        if self.spec.kind is LayerKind.CSA:
            indexer = self._indexer(x, latent, row)
            seen = seen if row.index.is_dense else indexer.select(row.entries)
        both = tuple(torch.cat(pair, dim=1) for pair in zip(masks, seen, strict=True))
        out, normaliser = attend(query, kv, entries, sink, View(row.geometry.window, row.entries.ranges, both))
        if indexer is None or not row.index.trained_chunks:
            return out, None
        return out, indexer.loss(query.detach(), entries.detach(), normaliser, row)

    def _attend_stacked(
        self, x: Tensor, latent: Tensor, query: Tensor, kv: Tensor, row: Row
    ) -> tuple[Tensor, Tensor | None]:
        """All chunks at once."""
        sink, seen = self._weight("attn_sink"), row.stacked
        if row.entries is None or row.at_entries is None or seen is None:
            return stacked.attend(query, kv, None, sink, row.geometry, None)[0], None
        entries = self._entries(x, row.entries, row.at_entries)
        if self.spec.kind is not LayerKind.CSA:
            return stacked.attend(query, kv, entries, sink, row.geometry, seen)[0], None
        indexer = self._indexer(x, latent, row)
        chosen = seen if row.index.is_dense else stacked.chosen(indexer, seen)
        out, normaliser = stacked.attend(query, kv, entries, sink, row.geometry, chosen)
        if not row.index.trained_chunks:
            return out, None
        trained = row.index.trained_chunks
        return out, stacked.index_loss(indexer, query.detach(), entries.detach(), normaliser, seen, trained)

    def _entries(self, x: Tensor, geometry: EntryGeometry, at: Turn) -> Tensor:
        """Compressed entries as they are attended to. Shapes: returns [C, c]."""
        entries = compress(x, self.weights, f"{self.prefix}.compressor", geometry)
        norm = self._weight("compressor.norm.weight")
        entries = fast.norm_rotate(entries, norm, at.cos, at.sin, self.config.norm_eps)
        return self.rounding.entry(entries, self.config.rope_dim)

    def _indexer(self, x: Tensor, latent: Tensor, row: Row) -> Indexer:
        """Build the indexer on inputs that pass no gradient on."""
        x, latent = x.detach(), latent.detach()
        prefix = f"{self.prefix}.indexer"
        assert row.entries is not None and row.at_entries is not None
        keys = compress(x, self.weights, f"{prefix}.compressor", row.entries)
        turn, eps = row.at_entries, self.config.norm_eps
        keys = fast.norm_rotate(keys, self.weights[f"{prefix}.compressor.norm.weight"], turn.cos, turn.sin, eps)
        return Indexer(
            config=self.config,
            rounding=self.rounding,
            wq_b=self.weights[f"{prefix}.wq_b.weight"],
            head_weights=linear(x, self.weights[f"{prefix}.weights_proj.weight"]),
            latent=self.rounding.input(latent),
            keys=self.rounding.index(keys),
            at_tokens=row.at_tokens,
        )

    def _output(self, mixed: Tensor) -> Tensor:
        """Project groups of heads down, then all groups together. Shapes: mixed [T, H, c]; returns [T, d]."""
        groups = self.config.o_groups
        grouped = mixed.reshape(mixed.shape[0], groups, -1)  # [T, G, H / G * c]
        wo_a = self._weight("wo_a.weight").view(groups, self.config.o_lora_rank, -1)
        latent = torch.cat([linear(grouped[:, group], wo_a[group]) for group in range(groups)], dim=1)  # [T, G * d_g]
        return linear(self.rounding.input(latent), self._weight("wo_b.weight"))

    def _weight(self, name: str) -> Tensor:
        return self.weights[f"{self.prefix}.{name}"]


def compress(x: Tensor, weights: Weights, prefix: str, entries: EntryGeometry) -> Tensor:
    """Pool blocks of tokens into entries, before norm and rotation. Shapes: x [T, d]; returns [C, w]."""
    both = linear(x, torch.cat([weights[f"{prefix}.wkv.weight"], weights[f"{prefix}.wgate.weight"]]))
    values, gates = both[entries.tokens].chunk(2, dim=2)  # [C, ratio, series * w]
    gates = gates + weights[f"{prefix}.ape"]
    if values.shape[2] > weights[f"{prefix}.norm.weight"].shape[0]:  # CSA: the first series reads the block before
        values, gates = _overlapping(values, gates, entries.has_previous)
    return (torch.softmax(gates, dim=1) * values).sum(dim=1)


def _overlapping(values: Tensor, gates: Tensor, has_previous: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes: values, gates [C, ratio, 2w]; returns [C, 2 * ratio, w]."""
    before, now = values.chunk(2, dim=2)
    gates_before, gates_now = gates.chunk(2, dim=2)
    is_absent = ~has_previous[:, None, None]
    before = before.roll(1, 0).masked_fill(is_absent, 0.0)
    gates_before = gates_before.roll(1, 0).masked_fill(is_absent, float("-inf"))
    return torch.cat([before, now], dim=1), torch.cat([gates_before, gates_now], dim=1)
