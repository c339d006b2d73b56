"""What one step is given: its tokens, and where each of them reads and writes in the caches.

Every tensor is flat over the tokens of all sequences; nothing is padded into a batch. -1 means "no row".
Rows are absolute row numbers inside a layer's cache tensor. Letters: T tokens, W window, B blocks that close in this
step, S source slots of a block, C entries of a sequence, L logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInputs:
    """Compressor work of one ratio, the same for every layer of that ratio.

    Shapes: phases [T]; source_tokens, source_rows [B, S]; positions, entry_rows, index_rows [B];
            ring_tokens, ring_rows [N].
    Rule:   S is ratio (HCA) or 2 * ratio (CSA, the previous block first). A slot is a token of this step
            (source_tokens), or a ring row (source_rows), or absent (both -1: block 0 has no previous block).
            Ring rows are read before ring_rows are written from ring_tokens.
            phases are positions mod ratio; positions are those of a block's first token.
            index_rows is empty where the layers have no indexer.
    """

    phases: Tensor
    source_tokens: Tensor
    source_rows: Tensor
    positions: Tensor
    entry_rows: Tensor
    index_rows: Tensor
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

    Shapes: token_ids, positions, window_write_rows, first_entries, num_visible [T]; window_rows [T, W]; csa_rows [C],
            the CSA entries of all sequences one after the other; hca_rows [T, C']; logit_tokens [L].
    Rule:   a window ends with the token itself.
            a token sees the CSA entries 0 ... num_visible-1 of its sequence; entry i is csa_rows[first_entries + i].
            logit_tokens are the tokens whose logits are wanted; logit_spans gives each plan row its [begin, end) of L.
    """

    token_ids: Tensor
    positions: Tensor
    window_write_rows: Tensor
    window_rows: Tensor
    csa: BlockInputs | None
    csa_tables: tuple[EntryTable, ...]
    csa_rows: Tensor
    first_entries: Tensor
    num_visible: Tensor
    hca: BlockInputs | None
    hca_rows: Tensor
    logit_tokens: Tensor
    logit_spans: tuple[tuple[int, int], ...]

    @property
    def most_entries(self) -> int:
        """CSA entries of the longest sequence."""
        return max((table.index_rows.shape[0] for table in self.csa_tables), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Compressor inputs of the latest positions of every sequence in one layer.

    Shapes: values, gates [slots * ring_rows, width] fp32; the row of position p is slot * ring_rows + p mod ring_rows.
    """

    values: Tensor
    gates: Tensor


class StepCache(Protocol):
    """The caches of one rank, by layer. Shapes: every tensor [rows, width]."""

    def window(self, layer_id: int) -> Tensor:
        """Window keys, which are also the values."""

    def entries(self, layer_id: int) -> Tensor:
        """Compressed entries of a CSA or HCA layer."""

    def index_keys(self, layer_id: int) -> Tensor:
        """Index keys of a CSA layer."""

    def ring(self, layer_id: int, *, is_indexer: bool = False) -> Ring:
        """Partial blocks of the main compressor, or of the indexer's."""
