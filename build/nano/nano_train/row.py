"""What layers with the same roles share on one packed row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nano_train.batch import Batch, EntryGeometry, Geometry


@dataclass(frozen=True, slots=True)
class Turn:
    """Angles of some positions. Shapes: cos, sin [T, R / 2]."""

    cos: Tensor
    sin: Tensor

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
class Row:
    """What layers with the same roles share on one packed row."""

    batch: Batch
    geometry: Geometry
    at_tokens: Turn
    entries: EntryGeometry | None = None
    at_entries: Turn | None = None
    index: IndexPhase = IndexPhase()
