"""The ranks of one model as a grid: `tp` ranks share every weight, `ep` such groups share the routed experts."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_backend.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """One rank's place in the grid.

    Rule: rank = ep_rank * tp + tp_rank, so that the ranks of one tensor-parallel group are neighbours.
    """

    tp: int = 1
    ep: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        """Refuse an empty grid or a rank outside it. Raises: ConfigError."""
        for name, size in (("tp", self.tp), ("ep", self.ep)):
            if size < 1:
                raise ConfigError(f"{name} is {size} but must be at least 1.")
        if not 0 <= self.rank < self.num_ranks:
            raise ConfigError(f"rank is {self.rank} but the mesh of tp {self.tp} x ep {self.ep} has {self.num_ranks}.")

    @property
    def num_ranks(self) -> int:
        """Ranks in the whole grid."""
        return self.tp * self.ep

    @property
    def tp_rank(self) -> int:
        """Place inside the tensor-parallel group."""
        return self.rank % self.tp

    @property
    def ep_rank(self) -> int:
        """Which share of the routed experts this rank holds."""
        return self.rank // self.tp
