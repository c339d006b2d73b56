"""The least time that a step or a prompt can take: bytes over bandwidth or FLOPs over rate, whichever is longer.

Nothing else is counted: no communication, launches, padding, sampling, softmax or drafts. Sequences are divided over
the `ep` groups; each rank of a group computes its heads over the whole cache of its group's sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsv4_backend.parallel import Mesh
from dsv4_backend.plan.cost import ModelCost
from dsv4_backend.plan.hardware import Device, Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Work of one rank and the time it takes at best. Units: seconds."""

    num_bytes: float
    memory_s: float
    compute_s: float

    @property
    def seconds(self) -> float:
        """The longer of the two."""
        return max(self.memory_s, self.compute_s)

    @property
    def limit(self) -> str:
        """What the time is bound by."""
        return "memory" if self.memory_s >= self.compute_s else "compute"


def decode_bound(cost: ModelCost, device: Device, mesh: Mesh, num_tokens: int, num_sequences: int) -> Bound:
    """One token for each of num_sequences that are num_tokens long."""
    group = -(-num_sequences // mesh.ep)
    num_bytes = _weights_read(cost, mesh, num_sequences)
    num_bytes += group * sum(term.read_bytes(num_tokens, mesh.tp) for term in cost.caches)
    work = _linear_work(cost, mesh, num_sequences, num_prompts=num_sequences)
    work += [
        (term.precision, group * term.flops(num_tokens) / (mesh.tp if term.is_divided else 1)) for term in cost.caches
    ]
    return _bound(device, num_bytes, work)


def prefill_bound(cost: ModelCost, device: Device, mesh: Mesh, num_tokens: int, num_prompts: int = 1) -> Bound:
    """All tokens of num_prompts prompts, every weight read once."""
    group = -(-num_prompts // mesh.ep)
    work = _linear_work(cost, mesh, num_prompts * num_tokens, num_prompts=num_prompts)
    work += [
        (term.precision, group * term.prompt_flops(num_tokens) / (mesh.tp if term.is_divided else 1))
        for term in cost.caches
    ]
    return _bound(device, _weights_read(cost, mesh, num_prompts * num_tokens), work)


def _weights_read(cost: ModelCost, mesh: Mesh, num_tokens: int) -> float:
    """Bytes of weights that a rank reads: all matrices, and of the experts those that somebody chose (evenly)."""
    chosen = 1 - (1 - cost.num_active_experts / max(1, cost.num_experts)) ** num_tokens
    return sum(
        group.num_bytes / group.num_shares(mesh) * (chosen if group.is_expert else 1)
        for group in cost.weights
        if group.is_matmul
    )


def _linear_work(cost: ModelCost, mesh: Mesh, num_tokens: int, num_prompts: int) -> list[tuple[Precision, float]]:
    """FLOPs of a rank. Every sequence's experts are spread over all groups; the rest stays in its own group."""
    per_prompt = num_tokens // num_prompts
    work = []
    for group, count in cost.active():
        tokens = num_prompts if group.is_head else num_tokens
        if not group.is_expert:
            tokens = -(-num_prompts // mesh.ep) * (1 if group.is_head else per_prompt)
        work.append((group.precision, 2.0 * count * tokens / group.num_shares(mesh)))
    return work


def _bound(device: Device, num_bytes: float, work: Iterable[tuple[Precision, float]]) -> Bound:
    compute_s = sum(flops / device.rate(precision) for precision, flops in work)
    return Bound(num_bytes=num_bytes, memory_s=num_bytes / device.bandwidth, compute_s=compute_s)
