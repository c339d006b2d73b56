"""The lightning indexer: which compressed entries each token attends to.

Source: shared facts `deepseek_v4.md` 2.7.
"""

from __future__ import annotations

from typing import Protocol

import torch
from dsv4_kernels.cache import CacheRows
from dsv4_kernels.groups import IndexStage
from dsv4_kernels.ops import OpTable
from torch import Tensor

from dsv4_backend.config import ModelConfig
from dsv4_backend.model.compressor import Compressor
from dsv4_backend.model.numerics import Rounding
from dsv4_backend.model.rope import Rotation, rotate
from dsv4_backend.model.step import PoolInputs, Ring, StepInputs
from dsv4_backend.model.weights import IndexerWeights


class EntrySelector(Protocol):
    """Chooses entries by number. A test may hand in one that repeats another implementation's choice.

    Rule: it is asked only where a sequence has more entries than a token may choose.
    """

    def __call__(
        self, layer_id: int, query: Tensor, head_weights: Tensor, keys: CacheRows, inputs: StepInputs
    ) -> Tensor:
        """Return entry numbers, -1 for none.

        Shapes: query [T, HI, cI]; head_weights [T, HI]; keys rows of width cI; returns [T, K] int64.
        """


class TopEntries:
    """The model's own choice: the entries with the highest index scores, per sequence."""

    def __init__(self, ops: OpTable, num_chosen: int) -> None:
        self.ops = ops
        self.num_chosen = num_chosen

    def __call__(
        self, layer_id: int, query: Tensor, head_weights: Tensor, keys: CacheRows, inputs: StepInputs
    ) -> Tensor:
        """Score the visible entries of long sequences and keep the best; short ones keep all that is visible."""
        if inputs.csa_pages is not None:
            pages, visible = inputs.csa_pages, inputs.num_visible
            return self.ops.index_select(
                query, head_weights, keys, pages, visible, self.num_chosen, page_rows=inputs.page_rows
            )
        chosen = visible_entries(inputs, min(self.num_chosen, inputs.most_entries))
        for table in inputs.csa_tables:
            if table.index_rows.shape[0] > self.num_chosen:
                tokens, rows = table.tokens, table.index_rows
                chosen[tokens] = self.ops.index_select(
                    query[tokens], head_weights[tokens], keys, rows, inputs.num_visible[tokens], self.num_chosen
                )
        return chosen


def visible_entries(inputs: StepInputs, most: int) -> Tensor:
    """Return the entries that each token may see, up to `most` of them. Shapes: [T, most] int64, -1 for none."""
    numbers = torch.arange(most, device=inputs.num_visible.device)
    return torch.where(numbers < inputs.num_visible[:, None], numbers, -1)


class Indexer:
    """Index queries and keys of one CSA layer."""

    def __init__(self, config: ModelConfig, weights: IndexerWeights, ops: OpTable, rounding: Rounding) -> None:
        self.weights = weights
        self.ops = ops
        self.rounding = rounding
        self.compressor = Compressor(weights.compressor, ops, rounding, config.norm_eps)
        self.num_heads = config.index_heads
        self.head_dim = config.index_head_dim
        self.scale: float = config.index_head_dim**-0.5 * config.index_heads**-0.5
        self.stage = IndexStage(
            compressor=self.compressor.stage,
            wq_b=weights.wq_b.weight,
            weights_proj=weights.weights_proj.weight,
            num_heads=config.index_heads,
            num_chosen=config.index_topk,
            scale=self.scale,
            rounds_query=rounding.rounds(weights.wq_b.format),
            rounds_weights=rounding.rounds(weights.weights_proj.format),
            is_rounded=rounding.is_trained,
        )

    def keys(self, x: Tensor, blocks: PoolInputs, ring: Ring, at: Rotation) -> Tensor:
        """Return the index keys of the entries that close in this step. Shapes: x [T, d]; returns [B, cI]."""
        return self.rounding.index(self.compressor.pool(x, blocks, ring, at))

    def query(self, q_latent: Tensor, at: Rotation) -> Tensor:
        """Return the index query of every token. Shapes: q_latent [T, r_q]; returns [T, HI, cI]."""
        flat = self.rounding.linear(q_latent, self.weights.wq_b)
        query = flat.view(flat.shape[0], self.num_heads, self.head_dim)
        return self.rounding.index(rotate(self.ops, query, at))

    def head_weights(self, x: Tensor) -> Tensor:
        """Return the signed weight of each index head. Shapes: x [T, d]; returns [T, HI]."""
        return self.rounding.linear(x, self.weights.weights_proj) * self.scale
