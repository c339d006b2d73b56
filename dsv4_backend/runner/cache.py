"""The cache tensors of one rank, allocated from the layout. Rows are handed out by pages; no bookkeeping here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dsv4_backend.kv.layout import CSA, HCA, INDEX, STATE, WINDOW, CacheLayout, RingSpec
from dsv4_backend.model.step import Ring
from dsv4_backend.records import PageCopy


class RankCache:
    """Cache tensors by layer, in fp32. Shapes: [pages * rows_per_page, width]."""

    def __init__(self, layout: CacheLayout, page_counts: Mapping[str, int]) -> None:
        self.layout = layout
        self._window = _allocate(layout, WINDOW, page_counts)
        self._entries = _allocate(layout, CSA, page_counts) | _allocate(layout, HCA, page_counts)
        self._index_keys = _allocate(layout, INDEX, page_counts)
        num_slots = page_counts.get(STATE, 0)
        self._rings = {(spec.layer_id, spec.is_indexer): _ring(spec, num_slots) for spec in layout.rings}

    def copy(self, copies: Iterable[PageCopy]) -> None:
        """Copy pages of the fixed kind, in order. Raises: ValueError for another kind, whose pages are shared."""
        for item in copies:
            if item.kind != STATE:
                raise ValueError(f"a {item.kind} page is to be copied, but only {STATE} pages are.")
            for spec in self.layout.rings:
                ring, rows = self._rings[spec.layer_id, spec.is_indexer], spec.ring_rows
                for part in (ring.values, ring.gates):
                    part[item.target * rows :][:rows] = part[item.source * rows :][:rows]

    @property
    def num_bytes(self) -> int:
        """Bytes of all cache tensors."""
        tensors = [*self._window.values(), *self._entries.values(), *self._index_keys.values()]
        tensors += [part for ring in self._rings.values() for part in (ring.values, ring.gates)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def window(self, layer_id: int) -> Tensor:
        """Window keys, which are also the values."""
        return self._window[layer_id]

    def entries(self, layer_id: int) -> Tensor:
        """Compressed entries of a CSA or HCA layer."""
        return self._entries[layer_id]

    def index_keys(self, layer_id: int) -> Tensor:
        """Index keys of a CSA layer."""
        return self._index_keys[layer_id]

    def ring(self, layer_id: int, *, is_indexer: bool = False) -> Ring:
        """Partial blocks of the main compressor, or of the indexer's."""
        return self._rings[layer_id, is_indexer]


def _allocate(layout: CacheLayout, kind: str, page_counts: Mapping[str, int]) -> dict[int, Tensor]:
    """One tensor per layer of the kind. Memory is touched page by page as it is used."""
    spec = layout.kind(kind)
    if spec is None:
        return {}
    shape = (page_counts[kind] * spec.rows_per_page, spec.width)
    return {layer_id: torch.zeros(shape, dtype=torch.float32) for layer_id in spec.layer_ids}


def _ring(spec: RingSpec, num_slots: int) -> Ring:
    shape = (num_slots * spec.ring_rows, spec.width)
    return Ring(values=torch.zeros(shape, dtype=torch.float32), gates=torch.zeros(shape, dtype=torch.float32))
