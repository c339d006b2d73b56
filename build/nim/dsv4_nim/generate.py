"""Compute every profile with the arithmetic of `dsv4 plan`; a profile exists where it fits.

python -m dsv4_nim.generate     writes profiles.json beside this file, which `catalog` reads
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from dsv4_backend.config import CacheFormat, ExpertFormat, ModelConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.parallel import Mesh, mesh_problems
from dsv4_backend.plan.bundled import bundled_config
from dsv4_backend.plan.cost import ModelCost
from dsv4_backend.plan.deepseek_v4 import model_cost
from dsv4_backend.plan.estimate import Load, max_sequences
from dsv4_backend.plan.formats import HcaState
from dsv4_backend.plan.hardware import find_device
from dsv4_nim.catalog import PROFILES_FILE, dump
from dsv4_nim.profiles import Goal, Profile, Weights

MODELS = {"v4-pro": "pro", "v4-flash": "flash"}
MEMORY_SHARE = 0.9
COUNTS = (1, 2, 4, 8, 16)
NODE_GPUS = {"gb200": 4, "gb300": 4}
DEFAULT_NODE_GPUS = 8
# NVFP4 needs Blackwell's matrix units; MXFP4 experts with FP8 activations run on Hopper too.
GPU_WEIGHTS = {
    "b200": (Weights.NVFP4, Weights.MXFP4, Weights.FP8),
    "b300": (Weights.NVFP4, Weights.MXFP4, Weights.FP8),
    "gb200": (Weights.NVFP4, Weights.MXFP4, Weights.FP8),
    "gb300": (Weights.NVFP4, Weights.MXFP4, Weights.FP8),
    "rtx-pro-6000": (Weights.NVFP4, Weights.MXFP4, Weights.FP8),
    "h200": (Weights.MXFP4, Weights.FP8),
    "h100": (Weights.MXFP4, Weights.FP8),
}
_EXPERTS = {Weights.NVFP4: ExpertFormat.NVFP4, Weights.MXFP4: ExpertFormat.MXFP4, Weights.FP8: ExpertFormat.FP8}
_OFFICIAL = {"v4-pro": "DeepSeek-V4-Pro", "v4-flash": "DeepSeek-V4-Flash"}

BUNDLED_MODEL = "dsv4-nano"
BUNDLED_URI = "file:///opt/nim/models/dsv4-nano"
# Of a process with this model at these limits, read at its largest: see tests/nim/test_nim_serve_real.py.
CPU_WEIGHT_BYTES = 600_000_000
CPU_NEEDED_BYTES = 1_500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a goal asks for. widest_tp: a goal divides each sequence over so many ranks at most, the rest are groups."""

    context_tokens: int
    num_sequences: int
    widest_tp: int


SHAPES = {
    Goal.LATENCY: Shape(context_tokens=131_072, num_sequences=8, widest_tp=16),
    Goal.BALANCED: Shape(context_tokens=131_072, num_sequences=64, widest_tp=4),
    Goal.THROUGHPUT: Shape(context_tokens=32_768, num_sequences=256, widest_tp=1),
    Goal.LONG_CONTEXT: Shape(context_tokens=1_048_576, num_sequences=4, widest_tp=16),
    Goal.PREFILL: Shape(context_tokens=131_072, num_sequences=16, widest_tp=4),
    Goal.DECODE: Shape(context_tokens=131_072, num_sequences=256, widest_tp=1),
}


def compute_profiles() -> tuple[Profile, ...]:
    """Return the CPU profile, then every GPU profile that fits, in a fixed order."""
    return (cpu_profile(), *_gpu_profiles())


def cpu_profile() -> Profile:
    """The bundled model on any CPU."""
    return Profile(
        model=BUNDLED_MODEL, gpu="cpu", num_gpus=0, weights=Weights.EXPANDED, goal=Goal.BALANCED, mesh=Mesh(),
        context_tokens=65_536, max_sequences=64, weight_bytes=CPU_WEIGHT_BYTES, needed_bytes=CPU_NEEDED_BYTES,
        uri=BUNDLED_URI,
    )  # fmt: skip


def needed_bytes(profile: Profile, context_tokens: int) -> int:
    """Return what one device must have at another context; the bundled model's needs are measured, not planned."""
    if profile.is_cpu:
        return profile.needed_bytes
    _, cost = _model(profile.model, profile.weights)
    return _needed(cost, profile.mesh, context_tokens, profile.max_sequences)


def _gpu_profiles() -> Iterator[Profile]:
    for model in MODELS:
        for gpu, formats in GPU_WEIGHTS.items():
            for weights in formats:
                for num_gpus in _counts(model, gpu, weights):
                    for goal in Goal:
                        profile = _profile(model, gpu, weights, num_gpus, goal)
                        if profile:
                            yield profile


def _counts(model: str, gpu: str, weights: Weights) -> list[int]:
    """The fewest GPUs that any goal fits on, and a whole node where that is more."""
    fewest = next((count for count in COUNTS if any(_fits(model, gpu, weights, count))), 0)
    node = NODE_GPUS.get(gpu, DEFAULT_NODE_GPUS)
    return sorted({fewest, max(fewest, node)} - {0})


def _fits(model: str, gpu: str, weights: Weights, num_gpus: int) -> Iterator[bool]:
    for goal in Goal:
        yield _profile(model, gpu, weights, num_gpus, goal) is not None


def _profile(model: str, gpu: str, weights: Weights, num_gpus: int, goal: Goal) -> Profile | None:
    """The profile, or None where the mesh does not divide the model or not even one sequence per group fits."""
    config, cost = _model(model, weights)
    shape = SHAPES[goal]
    tp = min(num_gpus, shape.widest_tp)
    mesh = Mesh(tp=tp, ep=num_gpus // tp)
    if mesh_problems(config, mesh):
        return None
    load = Load(
        device=find_device(gpu), mesh=mesh, context_tokens=shape.context_tokens, concurrency=1,
        memory_share=MEMORY_SHARE,
    )  # fmt: skip
    fitting = min(shape.num_sequences, max_sequences(cost, load))
    if not fitting:
        return None
    return Profile(
        model=model, gpu=gpu, num_gpus=num_gpus, weights=weights, goal=goal, mesh=mesh,
        context_tokens=shape.context_tokens, max_sequences=fitting, weight_bytes=cost.weight_bytes(mesh),
        needed_bytes=_needed(cost, mesh, shape.context_tokens, fitting), uri=_uri(model, weights),
    )  # fmt: skip


def _needed(cost: ModelCost, mesh: Mesh, context_tokens: int, num_sequences: int) -> int:
    group = -(-num_sequences // mesh.ep)
    return int((cost.weight_bytes(mesh) + group * cost.cache_bytes(context_tokens, mesh.tp)) / MEMORY_SHARE)


@cache
def _model(model: str, weights: Weights) -> tuple[ModelConfig, ModelCost]:
    config = bundled_config(MODELS[model])
    if config is None:
        raise ConfigError(f"the model {model} has no released config. Known: {', '.join(MODELS)}.")
    config = replace(config, quant=replace(config.quant, experts=_EXPERTS[weights]))
    return config, model_cost(model, config, CacheFormat.PACKED_FP4INDEX, HcaState.ONLINE)


def _uri(model: str, weights: Weights) -> str:
    """Where weights are published: DeepSeek's are FP8 with MXFP4 experts, NVIDIA's NVFP4; FP8 ones are the user's."""
    name = _OFFICIAL[model]
    if weights is Weights.NVFP4:
        return f"hf://nvidia/{name}-NVFP4"
    return f"hf://deepseek-ai/{name}" if weights is Weights.MXFP4 else ""


def main() -> None:
    """Write the file."""
    PROFILES_FILE.write_text(dump(compute_profiles()), encoding="utf-8")
    sys.stdout.write(f"{PROFILES_FILE}\n")


if __name__ == "__main__":
    main()
