"""The lightning indexer: chooses entries, and learns to predict the attention of its own layer.

Source: shared facts `deepseek_v4.md` 2.7; the loss is KL from the layer's attention over visible entries, all heads
together, to the softmax of the index scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4_backend.config import ModelConfig
from nano_train import fast
from nano_train.batch import EntryGeometry
from nano_train.config import CHUNK
from nano_train.numerics import Rounding
from nano_train.products import linear
from nano_train.row import Row, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """Index keys of a row and what its queries are made of. None of it passes gradients to the rest of the model.

    Shapes: wq_b [HI * cI, r_q]; head_weights [T, HI]; latent [T, r_q]; keys [C, cI].
    """

    config: ModelConfig
    rounding: Rounding
    wq_b: Tensor
    head_weights: Tensor
    latent: Tensor
    keys: Tensor
    at_tokens: Turn

    def scores(self, chunk: int, low: int, high: int) -> Tensor:
        """Score entries low ... high - 1 for the queries of a chunk. Shapes: returns [CHUNK, high - low]."""
        rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        heads, width = self.config.index_heads, self.config.index_head_dim
        query = linear(self.latent[rows], self.wq_b).view(CHUNK, heads, width)
        query = self.rounding.index(fast.rotate(query, self.at_tokens.cos[rows], self.at_tokens.sin[rows]))
        each = torch.relu(linear(query.flatten(0, 1), self.keys[low:high])).view(CHUNK, heads, -1)
        scale: float = width**-0.5 * heads**-0.5
        return torch.bmm((self.head_weights[rows] * scale).unsqueeze(1), each).squeeze(1)

    @torch.no_grad()
    def select(self, entries: EntryGeometry) -> tuple[Tensor, ...]:
        """Return the masks of the entries with -inf at those that are not among the best of their query."""
        most = self.config.index_topk
        return tuple(
            self._select(chunk, entries, most) if int(entries.visible[chunk].max()) > most else mask
            for chunk, mask in enumerate(entries.masks)
        )

    def _select(self, chunk: int, entries: EntryGeometry, most: int) -> Tensor:
        low, high = entries.ranges[chunk]
        scores = self.scores(chunk, low, high) + entries.masks[chunk]
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :most]
        chosen = torch.full_like(scores, float("-inf")).scatter_(1, best, 0.0)
        return chosen + entries.masks[chunk]

    def loss(self, query: Tensor, entries: Tensor, normaliser: Tensor, row: Row) -> Tensor:
        """Mean KL over the queries of the row's trained chunks that see two entries or more.

        Shapes: query [T, H, c]; entries [C, c]; normaliser [T, H].
        """
        assert row.entries is not None
        total, count = entries.new_zeros(()), 0
        for chunk in sorted(row.index.trained_chunks):
            is_open = row.entries.visible[chunk] > 1
            if not bool(is_open.any()):
                continue
            low, high = row.entries.ranges[chunk]
            mask = row.entries.masks[chunk][is_open]
            with torch.no_grad():
                target = self._target(query, entries[low:high], normaliser, chunk)[is_open] * torch.exp(mask)
                target = target / target.sum(1, keepdim=True).clamp(min=1e-20)
            logs = torch.log_softmax(self.scores(chunk, low, high)[is_open] + mask, dim=1)
            logs = logs.masked_fill(mask < 0, 0.0)
            total = total + (torch.xlogy(target, target) - target * logs).sum()
            count += int(is_open.sum())
        return total / max(count, 1)

    @staticmethod
    def _target(query: Tensor, entries: Tensor, normaliser: Tensor, chunk: int) -> Tensor:
        """Attention of all heads to each entry, chosen or not. Shapes: returns [CHUNK, C]."""
        rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        scores = linear(query[rows].flatten(0, 1), entries).view(CHUNK, query.shape[1], -1) * query.shape[2] ** -0.5
        return torch.exp(scores - normaliser[rows].unsqueeze(2)).sum(1)
