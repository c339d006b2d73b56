"""Attention of one layer: a window of recent tokens and compressed entries under one softmax with sinks.

Source: shared facts `deepseek_v4.md` 2.5-2.7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows
from dsv4_kernels.ops import OpTable
from torch import Tensor

from dsv4_backend.config import ModelConfig
from dsv4_backend.model.compressor import Compressor
from dsv4_backend.model.indexer import EntrySelector, Indexer, visible_entries
from dsv4_backend.model.numerics import Rounding
from dsv4_backend.model.rope import Rotation, rotate
from dsv4_backend.model.step import FoldInputs, PoolInputs, StepCache, StepInputs
from dsv4_backend.model.weights import AttentionWeights


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What all layers of one family share in a step; the rotations are of its tokens and of its closing blocks."""

    inputs: StepInputs
    cache: StepCache
    select: EntrySelector
    at_tokens: Rotation
    at_blocks: Rotation | None
    blocks: PoolInputs | FoldInputs | None


class Attention:
    """One attention sublayer; the layer's kind decides what it attends to besides the window."""

    def __init__(
        self, config: ModelConfig, layer_id: int, weights: AttentionWeights, ops: OpTable, rounding: Rounding
    ) -> None:
        self.config = config
        self.layer_id = layer_id
        self.kind = config.layers[layer_id].kind
        self.weights = weights
        self.ops = ops
        self.rounding = rounding
        self.compressor = (
            Compressor(weights.compressor, ops, rounding, config.norm_eps) if weights.compressor is not None else None
        )
        self.indexer = Indexer(config, weights.indexer, ops, rounding) if weights.indexer is not None else None

    def __call__(self, x: Tensor, step: AttentionStep) -> Tensor:
        """Attend for every token of the step, and keep its keys. Shapes: x [T, d]; returns [T, d]."""
        q_latent = self._norm(self.rounding.linear(x, self.weights.wq_a), self.weights.q_norm)  # [T, r_q]
        query = self._query(q_latent, step.at_tokens)  # [T, H, c]
        ring = step.cache.window(self.layer_id)
        fresh = self.ops.pack_rows(self._window_keys(x, step.at_tokens), ring.spec)
        mixed = self.ops.sparse_attention(
            query,
            WindowRows(ring, fresh, step.inputs.window_rows),
            self._entries(x, q_latent, step),
            self.weights.attn_sink,
            self.config.head_dim**-0.5,
        )  # [T, H, c]
        ring.insert(step.inputs.ring_rows, fresh, step.inputs.ring_tokens)
        return self._output(rotate(self.ops, mixed, step.at_tokens, inverse=True))

    def keep(self, x: Tensor, step: AttentionStep) -> None:
        """Keep the keys of the step's tokens, which attend to nothing. Shapes: x [T, d]."""
        ring = step.cache.window(self.layer_id)
        fresh = self.ops.pack_rows(self._window_keys(x, step.at_tokens), ring.spec)
        ring.insert(step.inputs.ring_rows, fresh, step.inputs.ring_tokens)

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return self.ops.rms_norm(x, weight, self.config.norm_eps)

    def _query(self, q_latent: Tensor, at: Rotation) -> Tensor:
        heads = self.rounding.linear(q_latent, self.weights.wq_b).view(-1, self.config.head_dim)  # [T*H, c]
        heads = self._norm(heads, None).view(-1, self.config.num_heads, self.config.head_dim)
        return rotate(self.ops, heads, at)

    def _window_keys(self, x: Tensor, at: Rotation) -> Tensor:
        kv = self._norm(self.rounding.linear(x, self.weights.wkv), self.weights.kv_norm)  # [T, c]
        return self.rounding.entry(rotate(self.ops, kv, at), self.config.rope_dim)

    def _entries(self, x: Tensor, q_latent: Tensor, step: AttentionStep) -> EntryRows | None:
        """Write the entries that close in this step; return what each token attends to."""
        blocks, at = step.blocks, step.at_blocks
        if self.compressor is None or blocks is None or at is None:
            return None
        cache = step.cache.entries(self.layer_id)
        if isinstance(blocks, FoldInputs):  # HCA takes every entry
            closed = self.compressor.fold(x, blocks, step.cache.fold(self.layer_id), at)  # [B, c]
            self._insert(cache, blocks.entry_rows, self.rounding.entry(closed, self.config.rope_dim))
            return EntryRows(cache, step.inputs.hca_rows)
        closed = self.compressor.pool(x, blocks, step.cache.ring(self.layer_id), at)  # [B, c]
        self._insert(cache, blocks.entry_rows, self.rounding.entry(closed, self.config.rope_dim))
        if self.indexer is None:
            return EntryRows(cache, entry_rows(visible_entries(step.inputs, step.inputs.most_entries), step.inputs))
        keys, ring = step.cache.index_keys(self.layer_id), step.cache.ring(self.layer_id, is_indexer=True)
        self._insert(keys, blocks.entry_rows, self.indexer.keys(x, blocks, ring, at))
        return EntryRows(cache, self._choose(self.indexer, keys, x, q_latent, step))

    def _insert(self, cache: CacheRows, rows: Tensor, values: Tensor) -> None:
        if rows.shape[0]:
            cache.insert(rows, self.ops.pack_rows(values, cache.spec))

    def _choose(self, indexer: Indexer, keys: CacheRows, x: Tensor, q_latent: Tensor, step: AttentionStep) -> Tensor:
        """Return the entries that each token attends to. Shapes: [T, K].

        Rule: while every sequence has at most top-k entries all of them are taken, and nothing is scored.
        """
        inputs = step.inputs
        if inputs.most_entries <= self.config.index_topk:
            return entry_rows(visible_entries(inputs, inputs.most_entries), inputs)
        query = indexer.query(q_latent, step.at_tokens)
        chosen = step.select(self.layer_id, query, indexer.head_weights(x), keys, inputs)
        return entry_rows(chosen, inputs)

    def _output(self, mixed: Tensor) -> Tensor:
        """Project groups of heads down, then all groups together. Shapes: mixed [T, H, c]; returns [T, d]."""
        grouped = mixed.reshape(mixed.shape[0], self.config.o_groups, -1)  # [T, G, H/G * c]
        latent = self.ops.grouped_linear(grouped, self.weights.wo_a.weight)  # [T, G, d_g]
        return self.rounding.linear(latent.reshape(latent.shape[0], -1), self.weights.wo_b)


def entry_rows(chosen: Tensor, inputs: StepInputs) -> Tensor:
    """Turn entry numbers into rows of the entry cache. Shapes: chosen [T, K], -1 for none, returned alike."""
    is_entry = chosen >= 0
    numbers = torch.where(is_entry, inputs.first_entries[:, None] + chosen, 0)
    return torch.where(is_entry, inputs.csa_rows[numbers], -1)
