"""A profile: one tested way to serve one model on one kind of machine, as data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import Enum

from dsv4_backend.parallel import Mesh

ENGINE = "triton"  # NVIDIA's operator treats this engine as optimised, so that it compares GPUs
GB = 10**9


class Goal(str, Enum):
    """What a profile is tuned for; PREFILL and DECODE are the two roles of a disaggregated deployment."""

    LATENCY = "latency"
    BALANCED = "balanced"
    THROUGHPUT = "throughput"
    LONG_CONTEXT = "long-context"
    PREFILL = "prefill"
    DECODE = "decode"


class Weights(str, Enum):
    """How the routed experts are stored; everything else is FP8 (EXPANDED: float32 in memory, on a CPU)."""

    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"
    FP8 = "fp8"
    EXPANDED = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One profile.

    Units: needed_bytes of one GPU's memory (or the CPU's), cache included, at context_tokens and max_sequences;
           weight_bytes the part of it that does not shrink with the context.
    Rule:  a pipeline of stages is not planned, so pp is 1 everywhere.
    """

    model: str
    gpu: str
    num_gpus: int
    weights: Weights
    goal: Goal
    mesh: Mesh
    context_tokens: int
    max_sequences: int
    weight_bytes: int
    needed_bytes: int
    uri: str

    @property
    def is_cpu(self) -> bool:
        """Whether it needs no GPU."""
        return self.gpu == "cpu"

    @property
    def tags(self) -> dict[str, str]:
        """What the manifest and NIM_TAGS_SELECTOR know it by; the operator wants every value as text."""
        tags = {
            "llm_engine": ENGINE,
            "model": self.model,
            "precision": self.weights.value,
            "profile": self.goal.value,
            "tp": str(self.mesh.tp),
            "ep": str(self.mesh.ep),
            "pp": "1",
            "gpu": GPU_TAGS[self.gpu],
            "gpu_count": str(self.num_gpus),
            "context_tokens": str(self.context_tokens),
            "max_sequences": str(self.max_sequences),
        }
        if GPU_DEVICES.get(self.gpu):
            tags["gpu_device"] = GPU_DEVICES[self.gpu]
        return tags

    @property
    def id(self) -> str:
        """64 hexadecimal digits over the tags: the same profile keeps its id from build to build."""
        return hashlib.sha256(json.dumps(self.tags, sort_keys=True).encode()).hexdigest()

    @property
    def short_name(self) -> str:
        """NIM's name, which several profiles share."""
        return f"{ENGINE}-{self.weights.value}-tp{self.mesh.tp}-pp1"

    @property
    def name(self) -> str:
        """A name of its own: NIM's with model, machine and goal."""
        return f"{self.short_name}-ep{self.mesh.ep}-{self.model}-{self.num_gpus}x{self.gpu}-{self.goal.value}"

    @property
    def needed_gb(self) -> int:
        """Whole GB of one device, rounded up."""
        return -(-self.needed_bytes // GB)


# As NVIDIA's GPU feature discovery labels products (the operator looks for the tag inside the label).
GPU_TAGS = {
    "b200": "B200", "b300": "B300", "gb200": "GB200", "gb300": "GB300", "h200": "H200", "h100": "H100",
    "rtx-pro-6000": "RTX-PRO-6000", "cpu": "CPU",
}  # fmt: skip
# PCI ids that are public; a card without one here is known by its name.
GPU_DEVICES = {"h100": "2330:10de", "h200": "2335:10de", "b200": "2901:10de", "gb200": "2941:10de"}
