"""Join a model's cost with devices, mesh and load: the figures that `dsv4 plan` prints."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_backend.errors import ConfigError
from dsv4_backend.parallel import Mesh
from dsv4_backend.plan.cost import WEIGHTING, ModelCost, Operation
from dsv4_backend.plan.hardware import Device
from dsv4_backend.plan.roofline import decode_bound, prefill_bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a plan is for.

    Rule: memory_share is the part of a device's memory that weights and cache may take together; a snapshot of every
          text is kept each snapshot_interval tokens.
    """

    device: Device
    mesh: Mesh
    context_tokens: int
    concurrency: int
    memory_share: float = 0.9
    snapshot_interval: int = 2048

    def __post_init__(self) -> None:
        """Refuse what cannot be planned. Raises: ConfigError."""
        counts = {
            "context": self.context_tokens,
            "concurrency": self.concurrency,
            "snapshot-interval": self.snapshot_interval,
        }
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name} is {value} but must be at least 1.")
        if not 0 < self.memory_share <= 1:
            raise ConfigError(f"memory-share is {self.memory_share:g} but must be above 0 and at most 1. Set 0.9.")

    @property
    def memory_bytes(self) -> int:
        """Bytes of one device that weights and cache may take."""
        return int(self.device.memory_bytes * self.memory_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One model under one load.

    Units: bytes per rank where the name says so, otherwise of one sequence; flops of one token at the full context.
    Rule:  max_sequences counts the sequences of the whole mesh at the full context. Times are lower bounds, rates upper
           ones: decode at the full context with `concurrency` sequences, ttft of one prompt of that length, alone.
    """

    name: str
    active_parameters: int
    weight_bytes_per_rank: int
    cache_bytes_per_rank: int
    sequence_bytes: int
    marginal_bytes_per_token: float
    fixed_bytes_per_sequence: int
    snapshot_bytes: int
    snapshots_bytes: int
    cache_read_per_token: float
    max_sequences: int
    linear_flops: int
    index_flops: int
    core_flops: int
    weighted_flops: float
    flops_share: float
    cache_share: float
    step_bytes_per_rank: float
    step_s: float
    step_limit: str
    ttft_s: float
    ttft_limit: str
    tokens_per_s_per_user: float
    tokens_per_s_per_device: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The planned model first, then what it is compared with. Shares are of `models[1]`, DeepSeek-V3.2."""

    device: Device
    mesh: Mesh
    context_tokens: int
    snapshot_interval: int
    concurrency: int
    memory_bytes_per_rank: int
    weighting: str
    models: tuple[Figures, ...]

    @property
    def does_fit(self) -> bool:
        """The planned model holds `concurrency` sequences at the full context."""
        return self.models[0].max_sequences >= self.concurrency


def make_plan(model: ModelCost, v32: ModelCost, others: tuple[ModelCost, ...], load: Load) -> Plan:
    """Estimate the planned model, V3.2 and others under the same load."""
    return Plan(
        device=load.device,
        mesh=load.mesh,
        context_tokens=load.context_tokens,
        snapshot_interval=load.snapshot_interval,
        concurrency=load.concurrency,
        memory_bytes_per_rank=load.memory_bytes,
        weighting=WEIGHTING,
        models=tuple(estimate(cost, v32, load) for cost in (model, v32, *others)),
    )


def estimate(cost: ModelCost, v32: ModelCost, load: Load) -> Figures:
    """Estimate one model; shares are relative to v32."""
    mesh, tokens = load.mesh, load.context_tokens
    group = -(-load.concurrency // mesh.ep)
    step = decode_bound(cost, load.device, mesh, tokens, load.concurrency)
    prompt = prefill_bound(cost, load.device, mesh, tokens)
    return Figures(
        name=cost.name,
        active_parameters=cost.active_parameters,
        weight_bytes_per_rank=cost.weight_bytes(mesh),
        cache_bytes_per_rank=group * cost.cache_bytes(tokens, mesh.tp),
        sequence_bytes=cost.cache_bytes(tokens),
        marginal_bytes_per_token=cost.marginal_bytes,
        fixed_bytes_per_sequence=cost.fixed_bytes,
        snapshot_bytes=cost.snapshot_bytes,
        snapshots_bytes=cost.snapshot_bytes * (tokens // load.snapshot_interval),
        cache_read_per_token=sum(term.read_bytes(tokens) for term in cost.caches),
        max_sequences=max_sequences(cost, load),
        linear_flops=2 * cost.active_parameters,
        index_flops=cost.flops(tokens, Operation.INDEX),
        core_flops=cost.flops(tokens, Operation.CORE),
        weighted_flops=cost.weighted_flops(tokens),
        flops_share=cost.weighted_flops(tokens) / v32.weighted_flops(tokens),
        cache_share=cost.cache_bytes(tokens) / v32.cache_bytes(tokens),
        step_bytes_per_rank=step.num_bytes,
        step_s=step.seconds,
        step_limit=step.limit,
        ttft_s=prompt.seconds,
        ttft_limit=prompt.limit,
        tokens_per_s_per_user=1 / step.seconds,
        tokens_per_s_per_device=load.concurrency / step.seconds / mesh.num_ranks,
    )


def max_sequences(cost: ModelCost, load: Load) -> int:
    """Sequences of the full context that the mesh holds beside the weights; 0 where not even those fit."""
    free = load.memory_bytes - cost.weight_bytes(load.mesh)
    return max(0, free // cost.cache_bytes(load.context_tokens, load.mesh.tp)) * load.mesh.ep
