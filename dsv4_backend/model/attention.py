"""Attention of one layer: a window of recent tokens and compressed entries under one softmax with sinks.

Source: shared facts `deepseek_v4.md` 2.5-2.7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows
from dsv4_kernels.cpu.layers import Described
from dsv4_kernels.groups import KeyStage, OutputStage, QueryStage
from dsv4_kernels.ops import OpTable
from dsv4_kernels.sublayers import sublayers_of
from torch import Tensor

from dsv4_backend.config import ModelConfig
from dsv4_backend.model.compressor import Compressor
from dsv4_backend.model.indexer import EntrySelector, Indexer, visible_entries
from dsv4_backend.model.numerics import Rounding
from dsv4_backend.model.rope import Rotation
from dsv4_backend.model.step import FoldInputs, PoolInputs, StepCache, StepInputs
from dsv4_backend.model.weights import AttentionWeights


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What all layers of one family share in a step; the rotations are of its tokens and of its closing blocks.

    Rule: `whole` is the same as compiled layers take it, where they may be used.
    """

    inputs: StepInputs
    cache: StepCache
    select: EntrySelector
    at_tokens: Rotation
    at_blocks: Rotation | None
    blocks: PoolInputs | FoldInputs | None
    whole: Described | None = None


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
        self.scale: float = config.head_dim**-0.5
        self.sublayers = sublayers_of(ops)
        self.query_stage = QueryStage(
            wq_a=weights.wq_a.weight,
            norm=weights.q_norm,
            wq_b=weights.wq_b.weight,
            num_heads=config.num_heads,
            eps=config.norm_eps,
            rounds_a=rounding.rounds(weights.wq_a.format),
            rounds_b=rounding.rounds(weights.wq_b.format),
        )
        self.key_stage = KeyStage(
            wkv=weights.wkv.weight,
            norm=weights.kv_norm,
            eps=config.norm_eps,
            rounds=rounding.rounds(weights.wkv.format),
            rounds_entry=rounding.is_trained,
        )
        self.output_stage = OutputStage(
            wo_a=weights.wo_a.weight,
            wo_b=weights.wo_b.weight,
            num_groups=config.o_groups,
            rounds=rounding.rounds(weights.wo_b.format),
        )
        self.compressor = (
            Compressor(weights.compressor, ops, rounding, config.norm_eps) if weights.compressor is not None else None
        )
        self.indexer = Indexer(config, weights.indexer, ops, rounding) if weights.indexer is not None else None

    def __call__(self, x: Tensor, step: AttentionStep) -> Tensor:
        """Attend for every token of the step, and keep its keys. Shapes: x [T, d]; returns [T, d]."""
        at = step.at_tokens
        q_latent, query = self.sublayers.query(x, self.query_stage, at.cos, at.sin)  # [T, r_q], [T, H, c]
        ring = step.cache.window(self.layer_id)
        fresh = self.ops.pack_rows(self.sublayers.keys(x, self.key_stage, at.cos, at.sin), ring.spec)
        mixed = self.ops.sparse_attention(
            query,
            WindowRows(ring, fresh, step.inputs.window_rows),
            self._entries(x, q_latent, step),
            self.weights.attn_sink,
            self.scale,
        )  # [T, H, c]
        ring.insert(step.inputs.ring_rows, fresh, step.inputs.ring_tokens)
        return self.sublayers.output(mixed, self.output_stage, at.cos, at.sin)

    def keep(self, x: Tensor, step: AttentionStep) -> None:
        """Keep the keys of the step's tokens, which attend to nothing. Shapes: x [T, d]."""
        ring, at = step.cache.window(self.layer_id), step.at_tokens
        fresh = self.ops.pack_rows(self.sublayers.keys(x, self.key_stage, at.cos, at.sin), ring.spec)
        ring.insert(step.inputs.ring_rows, fresh, step.inputs.ring_tokens)

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


def entry_rows(chosen: Tensor, inputs: StepInputs) -> Tensor:
    """Turn entry numbers into rows of the entry cache. Shapes: chosen [T, K], -1 for none, returned alike."""
    is_entry = chosen >= 0
    if inputs.csa_pages is not None:
        numbers = torch.where(is_entry, chosen, 0)
        rows = inputs.csa_pages.gather(1, numbers // inputs.page_rows) * inputs.page_rows + numbers % inputs.page_rows
        return torch.where(is_entry, rows, -1)
    numbers = torch.where(is_entry, inputs.first_entries[:, None] + chosen, 0)
    return torch.where(is_entry, inputs.csa_rows[numbers], -1)
