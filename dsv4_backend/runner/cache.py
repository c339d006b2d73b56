"""The cache tensors of one rank, allocated from the layout. Rows are handed out by pages; no bookkeeping here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from dsv4_kernels.cache import CacheRows
from dsv4_kernels.placement import HOST_DEVICE
from torch import Tensor

from dsv4_backend.kv.layout import BLOCK, CSA, FOLDED_ROWS, HCA, INDEX, KINDS, STATE, CacheLayout, FoldSpec, RingSpec
from dsv4_backend.model.step import Fold, Ring
from dsv4_backend.records import PageCopy, Tier
from dsv4_backend.runner.disk import DiskStore

Places = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor of which every place of a kind owns `rows` consecutive rows."""

    tensor: Tensor
    rows: int

    def at(self, place: int) -> Tensor:
        return self.tensor[place * self.rows :][: self.rows]


class _Store:
    """All tensors of one tier. Memory is touched place by place as it is used."""

    def __init__(self, layout: CacheLayout, places: Places, device: torch.device) -> None:
        num_pages, num_states = places.get(BLOCK, 0), places.get(STATE, 0)
        self.windows = [
            CacheRows.allocate(layout.window.row, num_states * layout.window.ring_rows, device)
            for _ in range(layout.window.num_layers)
        ]
        self.entries = {
            (spec.name, layer_id): CacheRows.allocate(spec.row, num_pages * spec.rows_per_page, device)
            for spec in layout.entries
            for layer_id in spec.layer_ids
        }
        self.rings = {(spec.layer_id, spec.is_indexer): _ring(spec, num_states, device) for spec in layout.rings}
        self.folds = {spec.layer_id: _fold(spec, num_states, device) for spec in layout.folds}
        self.parts = {BLOCK: self._page_parts(layout), STATE: self._state_parts(layout)}

    def _page_parts(self, layout: CacheLayout) -> list[_Part]:
        rows = {spec.name: spec.rows_per_page for spec in layout.entries}
        return [_Part(cache.data, rows[name]) for (name, _), cache in self.entries.items()]

    def _state_parts(self, layout: CacheLayout) -> list[_Part]:
        parts = [_Part(cache.data, layout.window.ring_rows) for cache in self.windows]
        for spec in layout.rings:
            ring = self.rings[spec.layer_id, spec.is_indexer]
            parts += [_Part(ring.values, spec.ring_rows), _Part(ring.gates, spec.ring_rows)]
        for item in layout.folds:
            fold = self.folds[item.layer_id]
            parts += [_Part(fold.states, 1), _Part(fold.values, item.ring_rows), _Part(fold.gates, item.ring_rows)]
        return parts


class RankCache:
    """Cache tensors by layer, on the device and in host memory."""

    def __init__(
        self,
        layout: CacheLayout,
        places: Places,
        host_places: Places | None = None,
        disk: DiskStore | None = None,
        device: torch.device = HOST_DEVICE,
        *,
        num_spare: int = 0,
    ) -> None:
        """num_spare: places of each kind behind those that are handed out."""
        self._disk = disk
        self._device = _Store(layout, {kind: count + num_spare for kind, count in places.items()}, device)
        self._tiers = {Tier.DEVICE: self._device, Tier.HOST: _Store(layout, host_places or {}, HOST_DEVICE)}

    def copy(self, copies: Iterable[PageCopy]) -> tuple[bytes, ...]:
        """Copy places, in order; return the keys of those that could not be read from disk, whose targets are zeros."""
        damaged = []
        for item in copies:
            if item.target_tier is Tier.DISK:
                self._save(item)
            elif item.source_tier is Tier.DISK:
                damaged += [] if self._load(item) else [item.key]
            else:
                sources, targets = self._tiers[item.source_tier].parts, self._tiers[item.target_tier].parts
                for source, target in zip(sources[item.kind], targets[item.kind], strict=True):
                    target.at(item.target).copy_(source.at(item.source))
        return tuple(damaged)

    def _save(self, item: PageCopy) -> None:
        if self._disk is not None:
            parts = (part.at(item.source).reshape(-1).view(torch.uint8) for part in self._device.parts[item.kind])
            self._disk.save(item.kind, item.key, torch.cat(list(parts)).cpu().numpy().tobytes())

    def _load(self, item: PageCopy) -> bool:
        """Fill a place from disk; False, and zeros, where that fails."""
        targets = [part.at(item.target) for part in self._device.parts[item.kind]]
        sizes = [target.numel() * target.element_size() for target in targets]
        contents = self._disk.load(item.kind, item.key, sum(sizes)) if self._disk else None
        data = torch.frombuffer(bytearray(contents or bytes(sum(sizes))), dtype=torch.uint8)
        for target, piece in zip(targets, torch.split(data, sizes), strict=True):
            target.copy_(piece.clone().view(target.dtype).view(target.shape))
        return contents is not None

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors on the device."""
        parts = (part.tensor for kind in KINDS for part in self._device.parts[kind])
        return sum(tensor.numel() * tensor.element_size() for tensor in parts)

    def window(self, layer_id: int) -> CacheRows:
        """Window keys, which are also the values."""
        return self._device.windows[layer_id]

    def entries(self, layer_id: int) -> CacheRows:
        """Compressed entries of a CSA or HCA layer."""
        found = self._device.entries.get((CSA, layer_id))
        return self._device.entries[HCA, layer_id] if found is None else found

    def index_keys(self, layer_id: int) -> CacheRows:
        """Index keys of a CSA layer."""
        return self._device.entries[INDEX, layer_id]

    def ring(self, layer_id: int, *, is_indexer: bool = False) -> Ring:
        """Partial blocks of a CSA layer's main compressor, or of its indexer's."""
        return self._device.rings[layer_id, is_indexer]

    def fold(self, layer_id: int) -> Fold:
        """The block that an HCA layer is filling."""
        return self._device.folds[layer_id]


def _ring(spec: RingSpec, num_states: int, device: torch.device) -> Ring:
    shape = (num_states * spec.ring_rows, spec.width)
    return Ring(values=torch.zeros(shape, device=device), gates=torch.zeros(shape, device=device))


def _fold(spec: FoldSpec, num_states: int, device: torch.device) -> Fold:
    raw = (num_states * spec.ring_rows, spec.width)
    states = torch.zeros(num_states, FOLDED_ROWS, spec.width, device=device)
    return Fold(states=states, values=torch.zeros(raw, device=device), gates=torch.zeros(raw, device=device))
