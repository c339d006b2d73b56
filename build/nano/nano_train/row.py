"""What layers with the same roles share on one packed row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from nano_train.batch import Batch, EntryGeometry, Geometry


@dataclass(frozen=True, slots=True)
class Turn:
    """Angles of some positions. Shapes: cos, sin [T, R / 2]."""

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device) -> Turn:
        """The angles on a device."""
        return Turn(self.cos.to(device), self.sin.to(device))

    @property
    def inverse(self) -> Turn:
        """The opposite rotation."""
        return Turn(self.cos, -self.sin)

    def rows(self, rows: slice) -> Turn:
        """The rotation of some rows."""
        return Turn(self.cos[rows], self.sin[rows])


@dataclass(frozen=True, slots=True)
class IndexPhase:
    """What becomes of the indexers in a pass: the chunks whose queries train them, and whether they choose yet."""

    trained_chunks: frozenset[int] = frozenset()
    is_dense: bool = False


@dataclass(frozen=True, slots=True)
class Stacked:
    """What the chunks of a row see of the entries of one ratio.

    Shapes: rows [N, C], entries by number; masks [N, Q, C], 0 or -inf; visible [N, Q].
    """

    rows: Tensor
    masks: Tensor
    visible: Tensor

    def to(self, device: torch.device) -> Stacked:
        """The same on a device."""
        return Stacked(self.rows.to(device), self.masks.to(device), self.visible.to(device))

    @classmethod
    def of(cls, entries: EntryGeometry) -> Stacked:
        """Pad every chunk to the widest one."""
        most = max((high - low for low, high in entries.ranges), default=0)
        lows = torch.tensor([low for low, _ in entries.ranges], device=entries.positions.device)
        offsets = torch.arange(most, device=lows.device)
        masks = torch.stack([pad(mask, (0, most - mask.shape[1]), value=float("-inf")) for mask in entries.masks])
        rows = (lows[:, None] + offsets).clamp(max=max(len(entries.positions) - 1, 0))
        return cls(rows, masks, torch.stack(entries.visible))


@dataclass(frozen=True, slots=True)
class Row:
    """What layers with the same roles share on one packed row. `stacked`: the entries, without the compiled library."""

    batch: Batch
    geometry: Geometry
    at_tokens: Turn
    entries: EntryGeometry | None = None
    at_entries: Turn | None = None
    index: IndexPhase = IndexPhase()
    stacked: Stacked | None = None
