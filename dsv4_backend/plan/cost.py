"""A model as a cost: groups of weights, and kinds of cache with what reading one entry takes.

The same record describes DeepSeek-V4, V3.2 and dense attention, so that one estimate compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from dsv4_backend.parallel import Mesh
from dsv4_backend.plan.hardware import Precision

WEIGHTING = "linear x1 (FP4 experts count as FP8), attention and index by format: BF16 x2, FP8 x1, FP4 x1/2"
FP8_EQUIVALENT = {Precision.FP4: 0.5, Precision.FP8: 1.0, Precision.BF16: 2.0}


class Operation(str, Enum):
    """What reading a cache is for."""

    INDEX = "index"
    CORE = "core"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroup:
    """Weights of one storage that are divided alike.

    Rule: is_divided over tp; is_expert also over ep, and only the chosen ones are read; is_head runs once per prompt;
          what is no matmul takes memory and neither time nor FLOPs.
    """

    num_bytes: int
    num_parameters: int
    precision: Precision
    is_matmul: bool = True
    is_divided: bool = True
    is_expert: bool = False
    is_head: bool = False

    def num_shares(self, mesh: Mesh) -> int:
        """Ranks over which the group is divided."""
        return (mesh.tp if self.is_divided else 1) * (mesh.ep if self.is_expert else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTerm:
    """One kind of cache over all layers that have it.

    Units: ratio in tokens per entry; entry_flops per entry read, layer and query token.
    Rule:  max_read and max_stored of 0 mean every entry. tp divides the FLOPs where `is_divided` (heads), and the
           bytes over at most cache_shares ranks: one key/value head cannot be divided.
    """

    name: str
    operation: Operation
    num_layers: int
    ratio: int
    entry_bytes: int
    entry_flops: int
    precision: Precision
    max_read: int = 0
    max_stored: int = 0
    is_divided: bool = True
    cache_shares: int = 1

    def stored_bytes(self, num_tokens: int, tp: int = 1) -> int:
        """Bytes of a sequence of that length on one rank."""
        entries = _capped(num_tokens // self.ratio, self.max_stored)
        return -(-self.num_layers * entries * self.entry_bytes // min(tp, self.cache_shares))

    def read_bytes(self, num_tokens: int, tp: int = 1) -> float:
        """Bytes that one new token reads on one rank."""
        entries = _capped(num_tokens // self.ratio, self.max_read)
        return self.num_layers * entries * self.entry_bytes / min(tp, self.cache_shares)

    def flops(self, num_tokens: int) -> int:
        """FLOPs of one token at that context, on all ranks."""
        return self.num_layers * self.entry_flops * _capped(num_tokens // self.ratio, self.max_read)

    def prompt_flops(self, num_tokens: int) -> int:
        """FLOPs of a whole prompt: the sum of `flops` over its positions."""
        return self.num_layers * self.entry_flops * _sum_capped(num_tokens, self.ratio, self.max_read)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """What a model holds, reads and computes.

    Units: state_bytes per sequence, whatever its length.
    """

    name: str
    weights: tuple[WeightGroup, ...]
    caches: tuple[CacheTerm, ...]
    state_bytes: int
    num_experts: int
    num_active_experts: int

    def weight_bytes(self, mesh: Mesh) -> int:
        """Bytes that one rank holds."""
        return sum(-(-group.num_bytes // group.num_shares(mesh)) for group in self.weights)

    def cache_bytes(self, num_tokens: int, tp: int = 1) -> int:
        """Bytes of one sequence on one rank: entries and state."""
        return self.state_bytes + sum(term.stored_bytes(num_tokens, tp) for term in self.caches)

    @property
    def marginal_bytes(self) -> float:
        """Bytes that a further token adds in the long run, on all ranks."""
        return sum(term.num_layers * term.entry_bytes / term.ratio for term in self.caches if not term.max_stored)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of a sequence that do not grow with it: state and full windows."""
        return self.state_bytes + self._window_bytes()

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of a snapshot at a page edge, from which a prefix can go on: a copy of all that does not grow."""
        return self.fixed_bytes

    def _window_bytes(self) -> int:
        return sum(term.num_layers * term.max_stored * term.entry_bytes for term in self.caches)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token is multiplied with."""
        return sum(count for _, count in self.active())

    def active(self) -> Iterator[tuple[WeightGroup, int]]:
        """Yield each group of matrices with the parameters that one token is multiplied with."""
        for group in self.weights:
            if group.is_matmul:
                routed = group.num_parameters * self.num_active_experts // max(1, self.num_experts)
                yield group, routed if group.is_expert else group.num_parameters

    def flops(self, num_tokens: int, operation: Operation) -> int:
        """Plain FLOPs of one token in one operation."""
        return sum(term.flops(num_tokens) for term in self.caches if term.operation is operation)

    def weighted_flops(self, num_tokens: int) -> float:
        """FP8-equivalent FLOPs of one token at that context, weighted as WEIGHTING says."""
        read = sum(term.flops(num_tokens) * FP8_EQUIVALENT[term.precision] for term in self.caches)
        return 2 * self.active_parameters + read


def _capped(count: int, limit: int) -> int:
    return min(count, limit) if limit else count


def _sum_capped(num_tokens: int, ratio: int, limit: int) -> int:
    """Sum over t = 1 … num_tokens of min(t // ratio, limit)."""
    growing = min(num_tokens, limit * ratio) if limit else num_tokens
    whole = growing // ratio
    total = ratio * whole * (whole - 1) // 2 + whole * (growing - whole * ratio + 1)
    return total + (num_tokens - growing) * limit
