"""What one step is given: its tokens, and where each of them reads and writes in the caches.

Every tensor is flat over the tokens of all sequences; nothing is padded into a batch. -1 means "no row".
Rows are absolute row numbers inside a layer's cache tensor. Letters: T tokens, W window, B blocks that close in this
step, S source slots of a block, C entries of a sequence, L logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4_kernels.cache import CacheRows
from dsv4_kernels.tensors import FoldRuns


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInputs:
    """What compressors of one ratio finish in this step, the same for every layer of that ratio.

    Shapes: phases [T]; positions, entry_rows [B].
    Rule:   phases are positions mod ratio; positions are those of a block's first token; entry_rows are where the
            entries go (index keys have the same rows).
    """

    phases: Tensor
    positions: Tensor
    entry_rows: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolInputs(BlockInputs):
    """CSA: overlapping blocks, pooled at once.

    Shapes: source_tokens, source_rows [B, 2 * ratio], the previous block first; ring_tokens, ring_rows [N].
    Rule:   a slot is a token of this step (source_tokens), or a ring row (source_rows), or absent (both -1: block 0
            has no previous block). Ring rows are read before ring_rows are written from ring_tokens.
    """

    source_tokens: Tensor
    source_rows: Tensor
    ring_tokens: Tensor
    ring_rows: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldInputs(BlockInputs):
    """HCA: blocks folded token by token.

    Shapes: raw_rows [R]; ring_tokens, ring_rows [N].
    Rule:   a source of `runs` is a token of this step, or T + i for raw row raw_rows[i]. Entries come out in the order
            of `positions`. Raw rows are read before ring_rows are written from ring_tokens.
    """

    runs: FoldRuns
    raw_rows: Tensor
    ring_tokens: Tensor
    ring_rows: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryTable:
    """The index keys of one sequence, and the tokens of this step that choose among them.

    Shapes: index_rows [C], the row of each entry in the `index` cache.
    """

    tokens: slice
    index_rows: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One step on one rank. There is at least one token.

    Shapes: token_ids, positions, first_entries, num_visible [T]; window_rows [T, W]; ring_tokens, ring_rows [N];
            csa_rows [C], the CSA entries of all sequences one after the other; hca_rows [T, C']; logit_tokens [L].
    Rule:   a window ends with the token itself: row -2 - t is token t of this step, others are rows of the ring, into
            which ring_tokens go at ring_rows after all have attended.
            a token sees the CSA entries 0 ... num_visible-1 of its sequence; entry i is csa_rows[first_entries + i].
            a padded step (`dsv4_backend.runner.padding`) has csa_pages [T, P] instead of csa_tables, csa_rows and
            first_entries: for each token its pages, of page_rows entries.
            logit_tokens are the tokens whose logits are wanted; logit_spans gives each plan row its [begin, end) of L.
    """

    token_ids: Tensor
    positions: Tensor
    window_rows: Tensor
    ring_tokens: Tensor
    ring_rows: Tensor
    csa: PoolInputs | None
    csa_tables: tuple[EntryTable, ...]
    csa_rows: Tensor
    first_entries: Tensor
    num_visible: Tensor
    hca: FoldInputs | None
    hca_rows: Tensor
    logit_tokens: Tensor
    logit_spans: tuple[tuple[int, int], ...]
    csa_pages: Tensor | None = None
    page_rows: int = 1

    @property
    def most_entries(self) -> int:
        """CSA entries of the longest sequence; of a padded step, those that there is room for."""
        if self.csa_pages is not None:
            return self.csa_pages.shape[1] * self.page_rows
        return max((table.index_rows.shape[0] for table in self.csa_tables), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Compressor inputs of the latest positions of every sequence in one CSA layer.

    Shapes: values, gates [states * ring_rows, width] fp32; position p has row state * ring_rows + p mod ring_rows.
    """

    values: Tensor
    gates: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """The block that every sequence is filling in one HCA layer: the folded part, and raw rows that may be taken back.

    Shapes: states [states, 3, width]; values, gates as of `Ring`, without rows where nothing can be taken back.
    """

    states: Tensor
    values: Tensor
    gates: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """What one layer keeps between steps. Rule: a part that its kind of layer has no use for is None."""

    window: CacheRows
    entries: CacheRows | None = None
    index_keys: CacheRows | None = None
    ring: Ring | None = None
    index_ring: Ring | None = None
    fold: Fold | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStep:
    """What all layers of one kind and one rotation share in a step: the rotations of its tokens and closing blocks.

    Shapes: cos, sin [T, R / 2]; block_cos, block_sin [B, R / 2].
    """

    inputs: StepInputs
    blocks: PoolInputs | FoldInputs | None
    cos: Tensor
    sin: Tensor
    block_cos: Tensor | None = None
    block_sin: Tensor | None = None
