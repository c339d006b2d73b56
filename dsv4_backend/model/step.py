"""What one step is given: its tokens, as `dsv4_kernels.steps` describes them, and the caches it reads and writes."""

from __future__ import annotations

from typing import Protocol

from dsv4_kernels.cache import CacheRows
from dsv4_kernels.steps import EntryTable, Fold, FoldInputs, PoolInputs, Ring, StepInputs

__all__ = ["EntryTable", "Fold", "FoldInputs", "PoolInputs", "Ring", "StepCache", "StepInputs"]


class StepCache(Protocol):
    """The caches of one rank, by layer."""

    def window(self, layer_id: int) -> CacheRows:
        """Window keys, which are also the values."""

    def entries(self, layer_id: int) -> CacheRows:
        """Compressed entries of a CSA or HCA layer."""

    def index_keys(self, layer_id: int) -> CacheRows:
        """Index keys of a CSA layer."""

    def ring(self, layer_id: int, *, is_indexer: bool = False) -> Ring:
        """Partial blocks of a CSA layer's main compressor, or of its indexer's."""

    def fold(self, layer_id: int) -> Fold:
        """The block that an HCA layer is filling."""
